"""Stage 4: each user's queries, written by the model or read from a file, turned into a ranking of items."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from html import escape

import pandas as pd
from IPython.display import HTML, display

from gloss_utils.base.errors import GlossError
from gloss_utils.base.files import fingerprint, write_whole
from gloss_utils.data import queries as query_files
from gloss_utils.data import splits
from gloss_utils.data.dataset import Dataset
from gloss_utils.data.prompts import item_text
from gloss_utils.data.rejects import Rejects
from gloss_utils.rank import fusion, ranking
from gloss_utils.rank.ranker import HYBRID, PAPER, Ranker
from gloss_utils.runs.folder import RunFolder, identity
from gloss_utils.runs.parameters import EVALUATE, EXPLORE, FINE_TUNE
from gloss_utils.runs.run import Run
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


def load_indexes(run: Run) -> dict[str, DenseIndex | BM25Index]:
    """The indexes by retriever, as stage 3 left them."""
    return {"dense": DenseIndex.load(run.folder.dense_index), "bm25": BM25Index.load(run.folder.bm25_index)}


def ranker(run: Run, queries: pd.DataFrame, data: Dataset) -> Ranker:
    """What ranks for the users of these queries, on the run's indexes."""
    if run["ranking"] != PAPER or run.stage == EVALUATE:  # whose item-knn counts as hybrid does
        run.read_from_outside(run["ranking_weights"])
    return Ranker(queries, data, load_indexes(run), run, trained(run, queries, data))


def trained(run: Run, queries: pd.DataFrame, data: Dataset) -> Callable[[dict[str, list[str]]], pd.DataFrame]:
    """What gives SASRec's ranking for these users when it is called: the run's, trained where it is not yet."""

    def rank(learnable: dict[str, list[str]]) -> pd.DataFrame:
        from gloss_utils.rank import sasrec  # loads torch and transformers, which most rankings do not need

        return sasrec.ranked(run, data, queries, max(fusion.SASREC_DEPTH, run["ranking_depth"]), learnable)

    return rank


def check_weights(run: Run):
    """Raise `GlossError` where the weights cannot be read, or count a SASRec that is not to be trained."""
    if run["ranking"] == PAPER:
        return
    counted = fusion.Settings.read(run["ranking_weights"]).weights.get(fusion.SASREC)
    if run["ranking"] == HYBRID and counted and not run["sasrec_epochs"]:
        raise GlossError(
            f"parameter sasrec_epochs is 0, but {run['ranking_weights']} has a weight for SASRec; allowed there is a "
            "whole number from 1 up"
        )


def prepare(run: Run, data: Dataset) -> Retrieved:
    """Stage 4's work: get the queries, rank, write `queries.jsonl` and `rankings/`, or `recommendations.parquet`."""
    folder, notes, upcoming = run.folder, [], run["split"] == "next"
    check_weights(run)  # better known before the hours of generation
    if run["queries_file"]:
        run.read_from_outside(run["queries_file"])
        rejects = Rejects(folder.rejected_queries)
        queries = query_files.read(run["queries_file"], run["num_beams"], run["max_rejected"], not upcoming, rejects)
        rejects.write()
        run.outputs.append(folder.rejected_queries)
        notes.append(
            f"{len(queries):,} users are read from {run['queries_file']}; {len(rejects.records)} records cannot be used"
        )
        notes += [f"{kept['place']}: {kept['reason']}" for kept in rejects.records[:5]]
        if upcoming:
            queries["target"] = None
    else:
        queries = _generated(run, data, notes)
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
    ranking.write_trec(folder.ranking("gloss"), ranked, "gloss")
    ranking.write_trec(folder.ranking("gloss-paper"), found.paper(run["retriever"]), "gloss-paper")
    run.outputs += [folder.queries, folder.ranking("gloss"), folder.ranking("gloss-paper")]
    if upcoming:
        with write_whole(folder.recommendations) as part:
            recommendations(ranked, data).to_parquet(part, index=False)
        run.outputs.append(folder.recommendations)
    else:
        ranking.write_qrels(folder.qrels, dict(zip(queries["user"], queries["target"], strict=True)))
        run.outputs.append(folder.qrels)
    return Retrieved(data, queries, ranked, notes)


def in_sample(folder: RunFolder, inputs: dict[str, str], found: Ranker) -> str | None:
    """The name of the texts, a run's own or among stage 4's inputs, that the weights of `hybrid` were fitted on, if
    they were."""
    fitted_on = found.settings.fitted_on if found.rule == HYBRID else {}
    digests = (*inputs.values(), fingerprint(folder.queries)) if fitted_on else ()
    return next((fitted_on[digest] for digest in digests if digest in fitted_on), None)


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


def recommendations(ranked: pd.DataFrame, data: Dataset) -> pd.DataFrame:
    """A ranking with titles: columns user, rank, item, title, score."""
    frame = ranked.assign(title=ranked["item"].map(data.titles()))
    return frame[["user", "rank", "item", "title", "score"]]


def summary(results: Retrieved) -> pd.DataFrame:
    """What was generated, in numbers: share of distinct texts, of exact titles, of users whose target was named."""
    texts = results.queries[["user", "target", "texts"]].explode("texts")
    titles = {item_text(title) for title in results.data.items["title"]}
    hit = results.ranking.merge(results.queries[["user", "target"]], on="user")
    rows = {
        "users": f"{len(results.queries):,}",
        "texts": f"{len(texts):,}",
        "distinct texts": f"{texts['texts'].nunique() / len(texts):.1%}",
        "texts that are an item's exact title": f"{texts['texts'].isin(titles).mean():.1%}",
        "items ranked per user": f"{len(results.ranking) / len(results.queries):.2f}",
    }
    if results.queries["target"].notna().any():
        rows["users whose target is ranked"] = f"{(hit['item'] == hit['target']).sum() / len(results.queries):.1%}"
    return pd.DataFrame({"value": rows})


def telling_user(results: Retrieved) -> str:
    """A user worth showing: the first whose target was ranked and whose history is short; else the first."""
    hit = results.ranking.merge(results.queries[["user", "target", "history"]], on="user")
    hit = hit[(hit["item"] == hit["target"]) & (hit["history"].map(len) <= 8)]
    return hit["user"].iloc[0] if len(hit) else results.queries["user"].iloc[0]


def show(results: Retrieved, user: str | None = None) -> HTML:
    """One user's story: history, generated texts, recommended items with the target marked."""
    user = user or telling_user(results)
    row, titles = _row_of(results.queries, user), results.data.titles()

    def named(item):
        return escape(titles.get(item, f"{item} (not in the catalogue)"))

    ranked = results.ranking[results.ranking["user"] == user]
    parts = [
        ("History, oldest first", [named(item) for item in row["history"]]),
        ("Generated texts, best first (mean log-probability of a token)", _scored(row)),
        (
            "Recommended items, best first (score)",
            [
                f"<b>{named(item)} ({score:.3f}) ← target</b>"
                if item == row["target"]
                else f"{named(item)} ({score:.3f})"
                for item, score in zip(ranked["item"], ranked["score"], strict=True)
            ],
        ),
    ]
    body = "".join(f"<h4>{name}</h4><ol>{''.join(f'<li>{line}</li>' for line in found)}</ol>" for name, found in parts)
    if row["target"]:
        body += f"<h4>Target, what the user bought next</h4><p>{named(row['target'])}</p>"
    return HTML(f"<div><h3>User {escape(user)}</h3>{body}</div>")


def _scored(row: pd.Series) -> list[str]:
    scores = zip(row["logprobs"], row["lengths"], strict=True)
    means = ["" if None in score else f" ({score[0] / score[1]:.2f})" for score in scores]
    return [escape(text) + mean for text, mean in zip(row["texts"], means, strict=True)]


def _row_of(queries: pd.DataFrame, user: str) -> pd.Series:
    chosen = queries[queries["user"] == user]
    if chosen.empty:
        raise GlossError(
            f"parameter show_user is {user!r}, which is not among the {len(queries):,} users of this run; "
            f"one that is: {queries['user'].iloc[0]}"
        )
    return chosen.iloc[0]


def browse(results: Retrieved, user: str | None = None):
    """In JupyterLab: a box to choose a user in, at first `user`, with that user's story under it."""
    import ipywidgets

    users = results.queries["user"].tolist()
    box = ipywidgets.Combobox(
        value=user or telling_user(results), options=users[:500], description="User", placeholder="type a user id"
    )
    place = ipywidgets.Output()

    def update(_=None):
        if box.value in set(users):
            place.clear_output(wait=True)
            with place:
                display(show(results, box.value))

    box.observe(update, "value")
    update()
    return ipywidgets.VBox([box, place])
