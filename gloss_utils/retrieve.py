"""Stage 4: each user's queries, written by the model or read from a file, turned into a ranking of items."""

import hashlib
import json
from dataclasses import dataclass

import pandas as pd
from IPython.display import HTML

from gloss_utils.base.errors import GlossError
from gloss_utils.base.files import fingerprint, write_whole
from gloss_utils.data import queries as query_files
from gloss_utils.data import splits
from gloss_utils.data.dataset import Dataset
from gloss_utils.data.rejects import Rejects
from gloss_utils.rank.ranker import HYBRID, PAPER, Ranker
from gloss_utils.rank.trec import write_qrels, write_trec
from gloss_utils.rank.weights import HybridSettings
from gloss_utils.report import stories
from gloss_utils.runs.folder import RunFolder, identity
from gloss_utils.runs.parameters import EVALUATE, EXPLORE, FINE_TUNE, RETRIEVE
from gloss_utils.runs.run import Run, is_headless, open_run
from gloss_utils.search.bm25 import BM25Index
from gloss_utils.search.dense import DenseIndex

# What the texts depend on, besides the model and the split's users.
DECODING_PARAMETERS = (
    "split",
    "decoding",
    "num_beams",
    "max_new_tokens",
    "temperature",
    "top_p",
    "generation_batch_tokens",
)


@dataclass
class Retrieved:
    """Stage 4's results.

    queries: user, history, target (null under split next), texts, logprobs, lengths. ranking: user, rank, item,
    score. notes: lines about records that were rejected and unknown targets.
    """

    data: Dataset
    queries: pd.DataFrame
    ranking: pd.DataFrame
    notes: list[str]


def start(notebook: dict) -> Run:
    """Start the stage from its notebook's `globals()`."""
    return open_run(RETRIEVE, notebook)


def prepare(run: Run) -> Retrieved:
    """Stage 4's work: get the queries, rank, write `queries.jsonl` and `rankings/`, or `recommendations.parquet`."""
    data, folder, notes, upcoming = Dataset.load(run.folder.data), run.folder, [], run["split"] == "next"
    if run["ranking"] != PAPER:
        HybridSettings.read(run["ranking_weights"])  # a wrong file is better known before the hours of generation
    queries = _read(run, notes) if run["queries_file"] else _generated(run, data, notes)
    if run["show_user"]:
        _row_of(queries, run["show_user"])
    unknown = 0 if upcoming else int((~queries["target"].isin(data.items["item"])).sum())
    if unknown:
        notes.append(f"{unknown} targets are not in the catalogue; each counts as a miss")
    found = ranker(run, queries, data)
    ranked = found.rank()
    query_files.write(folder.queries, queries)
    if name := in_sample(run.folder, run.inputs, found):
        notes.append(
            f"IN-SAMPLE: the weights of hybrid were fitted on these texts ({name}), so the metrics of gloss flatter "
            "it; python -m benchmarks.ranking prints out-of-fold ones"
        )
    write_trec(folder.ranking("gloss"), ranked, "gloss")
    write_trec(folder.ranking("gloss-paper"), found.paper(run["retriever"]), "gloss-paper")
    run.outputs += [folder.queries, folder.ranking("gloss"), folder.ranking("gloss-paper")]
    if upcoming:
        with write_whole(folder.recommendations) as part:
            recommendations(ranked, data).to_parquet(part, index=False)
        run.outputs.append(folder.recommendations)
    else:
        write_qrels(folder.qrels, dict(zip(queries["user"], queries["target"], strict=True)))
        run.outputs.append(folder.qrels)
    return Retrieved(data, queries, ranked, notes)


def ranker(
    run: Run,
    queries: pd.DataFrame,
    data: Dataset,
    indexes: dict[str, DenseIndex | BM25Index] | None = None,
    rule: str | None = None,
) -> Ranker:
    """What ranks for the users of these queries, by default by the run's rule on the run's indexes."""
    rule, settings = rule or run["ranking"], None
    if rule != PAPER or run.stage == EVALUATE:  # whose item-knn counts as hybrid does
        settings = HybridSettings.read(run["ranking_weights"])
        run.read_from_outside(run["ranking_weights"])
    # Under split next nothing is held out.
    known = data.sequences() if run["split"] == "next" else splits.training_sequences(data, queries)
    return Ranker(
        queries,
        data.titles(),
        indexes or load_indexes(run),
        known,
        settings,
        rule=rule,
        retriever=run["retriever"],
        top_k=run["top_k"],
        exclude_seen=run["exclude_seen"],
        depth=run["ranking_depth"],
        seed=run["seed"],
        exact_titles=run["decoding"] == "catalogue" and not run["queries_file"],
    )


def load_indexes(run: Run) -> dict[str, DenseIndex | BM25Index]:
    """The indexes by retriever, as stage 3 left them."""
    return {"dense": DenseIndex.load(run.folder.dense_index), "bm25": BM25Index.load(run.folder.bm25_index)}


def in_sample(folder: RunFolder, inputs: dict[str, str], found: Ranker) -> str | None:
    """The name of the texts, a run's own or among stage 4's inputs, that the weights of `hybrid` were fitted on, if
    they were."""
    fitted_on = found.settings.fitted_on if found.rule == HYBRID else {}
    digests = (*inputs.values(), fingerprint(folder.queries)) if fitted_on else ()
    return next((fitted_on[digest] for digest in digests if digest in fitted_on), None)


def _read(run: Run, notes: list[str]) -> pd.DataFrame:
    """Queries that were generated elsewhere, from `queries_file`."""
    file, upcoming, rejects = run["queries_file"], run["split"] == "next", Rejects(run.folder.rejected_queries)
    run.read_from_outside(file)
    queries = query_files.read(file, run["num_beams"], run["max_rejected"], not upcoming, rejects)
    rejects.write()
    run.outputs.append(run.folder.rejected_queries)
    notes.append(f"{len(queries):,} users are read from {file}; {len(rejects.records)} records cannot be used")
    notes += [f"{kept['place']}: {kept['reason']}" for kept in rejects.records[:5]]
    return queries.assign(target=None) if upcoming else queries


def _generated(run: Run, data: Dataset, notes: list[str]) -> pd.DataFrame:
    """Queries by the fine-tuned model; those of the last run where all that they depend on is the same."""
    stages, folder = run.folder.stages(), run.folder
    parts = [identity(stages[stage]) for stage in (EXPLORE, FINE_TUNE)]
    parts += [run[name] for name in DECODING_PARAMETERS]
    run.made_from = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
    before = stages.get(run.stage)
    if before and before.get("made_from") == run.made_from and folder.damaged(before) is None:
        notes.append(
            "The texts are those of the last run: nothing that they depend on has changed. "
            "To generate them again, delete queries.jsonl."
        )
        return query_files.read(folder.queries, run["num_beams"], 0, run["split"] != "next")
    from gloss_utils.language import (
        generation as generate,  # loads torch and peft, which replaying a file does not need
    )

    examples = splits.evaluation_examples(data, run["split"])
    if run["show_user"]:
        _row_of(examples, run["show_user"])  # a wrong one is better known before the hours of generation
    return generate.queries(run, examples, data, notes)


def _row_of(queries: pd.DataFrame, user: str) -> pd.Series:
    chosen = queries[queries["user"] == user]
    if chosen.empty:
        raise GlossError(
            f"parameter show_user is {user!r}, which is not among the {len(queries):,} users of this run; "
            f"one that is: {queries['user'].iloc[0]}"
        )
    return chosen.iloc[0]


def recommendations(ranked: pd.DataFrame, data: Dataset) -> pd.DataFrame:
    """A ranking with titles: columns user, rank, item, title, score."""
    frame = ranked.assign(title=ranked["item"].map(data.titles()))
    return frame[["user", "rank", "item", "title", "score"]]


def summary(results: Retrieved) -> pd.DataFrame:
    """What was generated, in numbers."""
    return stories.texts_summary(results.queries, results.ranking, results.data.titles())


def show(results: Retrieved, user: str | None = None) -> HTML:
    """One user's story; by default that of a user worth showing."""
    user = user or stories.telling_user(results.queries, results.ranking)
    return stories.story(_row_of(results.queries, user), results.ranking, results.data.titles())


def browse(results: Retrieved, user: str | None = None):
    """In JupyterLab: a box to choose a user in, at first `user`, with that user's story below."""
    first = user or stories.telling_user(results.queries, results.ranking)
    return stories.browse(results.queries["user"].tolist(), first, lambda chosen: show(results, chosen))


def story(results: Retrieved, user: str | None, notebook: dict):
    """`browse`, or `show` where papermill runs the notebook, given its `globals()`."""
    return (show if is_headless(notebook) else browse)(results, user)
