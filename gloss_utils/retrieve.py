"""Stage 4: each user's queries, written by the model or read from a file, turned into a ranking of items."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd
from IPython.display import HTML
from tqdm import tqdm

from gloss_utils.base.errors import GlossError
from gloss_utils.base.files import digest, fingerprint, write_whole
from gloss_utils.base.seals import is_sealed, seal
from gloss_utils.data import queries as query_files
from gloss_utils.data import splits
from gloss_utils.data.dataset import Dataset
from gloss_utils.data.prompts import encode_prompts
from gloss_utils.data.rejects import Rejects
from gloss_utils.rank.ranker import HYBRID, PAPER, Ranker
from gloss_utils.rank.trec import write_qrels, write_trec
from gloss_utils.rank.weights import HybridSettings
from gloss_utils.report import stories
from gloss_utils.runs import workers
from gloss_utils.runs.folder import RunFolder
from gloss_utils.runs.journal import Journal
from gloss_utils.runs.parameters import EVALUATE, FINE_TUNE, RETRIEVE
from gloss_utils.runs.run import Run, is_headless, open_run
from gloss_utils.search.bm25 import BM25Index
from gloss_utils.search.dense import DenseIndex

# The parameters that generated texts depend on, besides the model and the users.
TEXTS_DEPEND_ON = (
    "split",
    "decoding",
    "num_beams",
    "max_new_tokens",
    "temperature",
    "top_p",
    "generation_batch_tokens",
    "max_length",
    "load_in_4bit",
    "lora_alpha",
    "seed",
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
    """Queries by the fine-tuned model, sealed; those on the disk where nothing that they depend on has changed."""
    folder, base = run.folder, run.base_model
    models = folder.stages()[FINE_TUNE]["inputs"]  # sha256 of a base model that is a folder
    made_from = {name: run[name] for name in TEXTS_DEPEND_ON} | {
        "base_model": fingerprint(base) if base == folder.base else models.get(base, base),
        "adapter": fingerprint(folder.adapter / "adapter_model.safetensors"),
        "data": folder.data_key(),
    }
    if is_sealed(folder.queries, made_from):
        notes.append(
            "The texts are those of the last run: nothing that they depend on has changed. "
            "To generate them again, delete queries.jsonl."
        )
        return query_files.read(folder.queries, run["num_beams"], 0, run["split"] != "next")
    examples = splits.evaluation_examples(data, run["split"])
    if run["show_user"]:
        _row_of(examples, run["show_user"])  # a wrong one is better known before the hours of generation
    rows, journal = _written(run, data, examples["history"], made_from, notes)
    texts = pd.DataFrame(rows, columns=["texts", "logprobs", "lengths"], dtype=object)
    queries = pd.concat([examples.reset_index(drop=True), texts], axis=1)
    query_files.write(folder.queries, queries)
    seal(folder.queries, made_from)
    journal.unlink()
    return queries


def _written(run: Run, data: Dataset, histories: pd.Series, made_from: dict, notes: list[str]) -> tuple[list, Path]:
    """What the model writes for each history, and the journal of it, which may be one of a run that was cut off."""
    from gloss_utils import language  # loads torch and transformers, which replaying a file does not need

    folder, titles = run.folder, data.titles()
    tokenizer = language.load_tokenizer(folder.adapter)
    title_trie = language.TitleTrie(tokenizer, titles.values()) if run["decoding"] == language.CATALOGUE else None
    if title_trie:
        notes += title_trie.notes
        _check_beams(run["num_beams"], title_trie.trie.texts)
    named = [[titles[item] for item in history] for history in histories]
    inputs = encode_prompts(tokenizer, named, run["max_length"] - run["max_new_tokens"])
    columns = run["num_beams"] * run["max_new_tokens"]
    batches = language.plan_batches([len(ids) for ids in inputs], columns, run["generation_batch_tokens"])
    plan = digest([made_from, inputs, batches])
    journal = Journal(folder.journal(plan), plan, [len(batch) for batch in batches])
    notes += journal.notes
    if journal.done:
        notes.append(f"{len(journal.done)} of {len(batches)} batches are those of a run that was cut off")
    left = {number: places for number, places in enumerate(batches) if number not in journal.done}
    model, settings = (run.base_model, folder.adapter, run["load_in_4bit"]), run.settings(language.Decoding)

    def load() -> language.Writer:
        return language.Writer(*language.load_finetuned(*model), settings, title_trie)

    map_parts = partial(workers.map_parts, workers=run["workers"]) if run["engine"] == "ray" else None
    with tqdm(total=len(inputs), desc="generating", unit="user", mininterval=2) as bar:
        bar.update(sum(map(len, journal.done.values())))
        for number, rows, notice in language.write_batches(load, inputs, left, map_parts):
            journal.add(number, rows)
            bar.update(len(rows))
            if notice and notice not in notes:
                notes.append(notice)
    pairs = ((batches[number], rows) for number, rows in journal.done.items())
    found = {place: row for places, rows in pairs for place, row in zip(places, rows, strict=True)}
    return [found[place] for place in range(len(inputs))], journal.path


def _check_beams(num_beams: int, titles: int):
    if num_beams > titles:
        raise GlossError(
            f"parameter num_beams is {num_beams}; decoding: catalogue writes each of the catalogue's {titles} "
            "different titles once at most; allowed is a whole number from 1 to as many"
        )


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
