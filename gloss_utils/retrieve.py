"""Notebook 4: each user's queries, written by the model or read from a file, turned into a ranking of items."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd
from IPython.display import HTML

from gloss_utils.base.errors import GlossError
from gloss_utils.base.files import fingerprint, joined, parquet_in_parts, write_whole
from gloss_utils.data import queries as query_files
from gloss_utils.data import splits
from gloss_utils.data.dataset import Dataset
from gloss_utils.data.rejects import Rejects
from gloss_utils.rank.candidates import Histories
from gloss_utils.rank.evidence import without_part
from gloss_utils.rank.learned import check_fits
from gloss_utils.rank.ranker import HYBRID, LEARNED, Ranker
from gloss_utils.rank.trec import write_qrels, write_trec
from gloss_utils.rank.weights import HybridSettings
from gloss_utils.report import stories
from gloss_utils.report.in_blocks import methods
from gloss_utils.report.metrics import GLOSS, GLOSS_PAPER, targets_of
from gloss_utils.runs import asking
from gloss_utils.runs.blocks import in_blocks
from gloss_utils.runs.counting import following
from gloss_utils.runs.folder import RunFolder
from gloss_utils.runs.parameters import RETRIEVE, texts_per_user
from gloss_utils.runs.run import Run, is_headless, open_run
from gloss_utils.search.bm25 import BM25Index
from gloss_utils.search.dense import DenseIndex
from gloss_utils.search.on_disk import memory

QRELS, RANKING, WITHOUT_TEXTS = "qrels.trec", "ranking.parquet", "without_texts.parquet"  # of a block
NOBODY = pd.DataFrame(columns=query_files.COLUMNS, dtype=object)
USERS_AT_ONCE, SHOWN = 4096, 32768  # ranked for together: a multiple of what `hybrid` and `learned` take together


@dataclass
class Retrieved:
    """What the notebook shows. queries: user, history, target (null under split next), texts, logprobs, lengths, of the
    first blocks, until these have `SHOWN` users, and of the one to show. ranking: user, rank, item, score.
    without_texts: the same without the generated texts, under hybrid, and under learned where they count. numbers: of
    all users."""

    data: Dataset
    queries: pd.DataFrame
    ranking: pd.DataFrame
    without_texts: pd.DataFrame | None = None
    numbers: stories.TextsSummary | None = None


def start(notebook: dict) -> Run:
    """Start the stage from its notebook's `globals()`."""
    return open_run(RETRIEVE, notebook)


def prepare(run: Run) -> Retrieved:
    """Stage 4's work: get the queries, rank, write `queries.jsonl` and `rankings/`, under learned `trees.txt`, and
    `qrels.trec` or, under split next, `recommendations.parquet`."""
    data, folder = Dataset.load(run.open("data")), run.folder
    HybridSettings.read(run["ranking_weights"])  # a wrong file is better known before the hours of generation
    if run["ranking"] == LEARNED:
        check_fits(len(data.items), memory())
    held = _held(run, data)
    if run["ask"] and held.empty and run["split"] != "validation":
        raise GlossError(
            f"parameter ask is {run['ask']}, but ranking_share {run['ranking_share']} leaves no user to learn from how "
            "far to trust the model; raise it (with holdout: time nobody can be left, so set ask to 0)"
        )
    path = _read(run) if run["queries_file"] else _generated(run, data)
    blocks = blocks_of(run, path)
    _look_through(run, data, blocks())
    run.known["histories"] = query_files.digest_of_histories(blocks)
    world = world_of(run, data, blocks)
    if run["ask"]:
        world.asked = asking.asked(run, data, world, held)
    results = _ranked(run, data, world, blocks())
    if run["ranking"] == LEARNED:
        with write_whole(folder.trees) as part:
            part.write_text(world.learned.trees_text)
        run.outputs.append(folder.trees)
    if name := in_sample(folder, run.inputs, world):
        print(
            f"IN-SAMPLE: the weights of hybrid were fitted on these texts ({name}), so the metrics of hybrid flatter "
            "it; python -m benchmarks.ranking prints out-of-fold ones"
        )
    return results


def blocks_of(run: Run, path: Path) -> Callable[[], Iterator[pd.DataFrame]]:
    """What reads the queries in a file from the first on, in blocks of users who are ranked for together."""
    size = None if _all_together(run) else USERS_AT_ONCE
    return partial(query_files.blocks, path, texts_per_user(run), 0, run["split"] != "next", users_at_once=size)


def _all_together(run: Run) -> bool:
    """Whether all users are one block: weights may be fitted on those whose targets are known."""
    return bool(run["ask"]) or run["split"] == "validation"


def world_of(run: Run, data: Dataset, blocks: Callable[[], Iterator[pd.DataFrame]]) -> Ranker:
    """What counts and learns, once for all users; where all are one block, their ranker."""
    if _all_together(run):
        return ranker(run, next(blocks()), data)
    return ranker(run, NOBODY, data, evaluated=blocks())


def _look_through(run: Run, data: Dataset, blocks: Iterator[pd.DataFrame]):
    """Raise a `GlossError` where the user to show is not among the queries', before the work; say which targets the
    catalogue lacks."""
    known, unknown, users = set(data.items["item"]), 0, []
    for queries in blocks:
        users.append(queries["user"])
        unknown += int((~queries["target"].isin(known)).sum())
    if run["show_user"]:
        _row_of(pd.DataFrame({"user": pd.concat(users)}), run["show_user"])
    if unknown and run["split"] != "next":
        print(f"{unknown} targets are not in the catalogue; each counts as a miss")


def _ranked(run: Run, data: Dataset, world: Ranker, blocks: Iterable[pd.DataFrame]) -> Retrieved:
    """Rank for the users of all blocks and write what they get, block by block."""
    folder, upcoming, titles = run.folder, run["split"] == "next", data.titles()
    numbers, shown, names = stories.TextsSummary(titles.values()), [], list(methods(world))
    offers = folder.recommendations if upcoming else folder.qrels
    with in_blocks(run, "rankings", blocks, lambda: world, _rank) as done, ExitStack() as stack:
        files = {f"{name}.trec": stack.enter_context(joined(folder.ranking(name))) for name in names}
        if not upcoming:
            files[QRELS] = stack.enter_context(joined(offers))
        offer = stack.enter_context(parquet_in_parts(offers)) if upcoming else None
        for queries, part in done:
            for name, add in files.items():
                add(part / name)
            ranking, without = (
                pd.read_parquet(file) if file.exists() else None for file in (part / RANKING, part / WITHOUT_TEXTS)
            )
            if upcoming:
                titled = ranking.assign(title=ranking["item"].map(titles))
                offer(titled[["user", "rank", "item", "title", "score"]])
            kept = queries if numbers.users < SHOWN else queries[queries["user"] == run["show_user"]]
            numbers.add(queries, ranking)
            each = kept, ranking, without
            shown.append([None if frame is None else frame[frame["user"].isin(kept["user"])] for frame in each])
    run.outputs += [*map(folder.ranking, names), offers]
    frames = [None if of[0] is None else pd.concat(of, ignore_index=True) for of in zip(*shown, strict=True)]
    return Retrieved(data, *frames, numbers)


def _rank(world: Ranker, queries: pd.DataFrame, folder: Path):
    """Write what the users of a block get: a TREC file of each method, the run's own ranking as it is, and this without
    generated texts, where they count."""
    rankings, without_texts = _rankings(world.of_block(queries))
    for method, ranking in rankings.items():
        write_trec(folder / f"{method}.trec", ranking, method)
    write_qrels(folder / QRELS, targets_of(queries))
    rankings[GLOSS].to_parquet(folder / RANKING)
    if without_texts is not None:
        without_texts.to_parquet(folder / WITHOUT_TEXTS)


def _rankings(found: Ranker) -> tuple[dict[str, pd.DataFrame], pd.DataFrame | None]:
    """The rankings by method, that of the run last, and this without generated texts, where they count."""
    if found.rule != HYBRID:
        hears_texts = found.rule == LEARNED and (found.text_targets or found.asked)
        without_texts = found.by_learned(0) if hears_texts else None
        return {method: rank() for method, rank in methods(found).items()}, without_texts
    weights = found.settings.weights
    both = found.weighted({GLOSS: weights, "without": without_part("generated texts", weights)})
    return {GLOSS_PAPER: found.paper(found.retriever), GLOSS: both[GLOSS]}, both["without"]


def ranker(
    run: Run,
    queries: pd.DataFrame,
    data: Dataset,
    indexes: dict[str, DenseIndex | BM25Index] | None = None,
    rule: str | None = None,
    evaluated: Iterable[pd.DataFrame] | None = None,
) -> Ranker:
    """What ranks for the users of these queries, by default by the run's rule on the run's indexes. evaluated: all
    queries, some at a time, where these are not all: nothing is learnt from what they are evaluated by."""
    rule, settings = rule or run["ranking"], HybridSettings.read(run["ranking_weights"])
    run.read_from_outside("ranking_weights")
    held, sequences = _held(run, data), _learnable(run, data, queries if evaluated is None else evaluated)
    follows = following(run, data, sequences, settings)  # before titles and indexes take memory
    return run.settings(
        Ranker,
        queries=queries,
        titles=data.titles(),
        indexes=indexes or load_indexes(run),
        training_sequences=sequences,
        settings=settings,
        rule=rule,
        depth=run["ranking_depth"],
        exact_titles=run["decoding"] == "catalogue" and not run["queries_file"],
        text_targets=targets_of(queries) if run["split"] == "validation" else None,
        # Fitted once, in stage 4; what later stages add to the catalogue changes no tree.
        trees=run.folder.trees.read_text() if rule == LEARNED and run.stage != RETRIEVE else None,
        held=dict(zip(held["user"], held["history"], strict=True)),
        asked=asking.asked_before(run, held) if run["ask"] and rule == LEARNED and run.stage != RETRIEVE else None,
        following=follows,
    )


def _held(run: Run, data: Dataset) -> pd.DataFrame:
    """The examples that teach how far to trust the model, where it is asked: none of their targets is read before."""
    return splits.ranking_examples(data, run["ranking_share"] if run["ask"] else 0.0, run["seed"])


def _learnable(run: Run, data: Dataset, queries: pd.DataFrame | Iterable[pd.DataFrame]) -> Histories:
    """The sequences that may be learned from where these queries are made and ranked; next holds nothing out."""
    return data.sequences() if run["split"] == "next" else splits.training_sequences(data, queries)


def load_indexes(run: Run) -> dict[str, DenseIndex | BM25Index]:
    """The indexes by retriever, as stage 3 left them."""
    return {"dense": DenseIndex.load(run.open("dense")), "bm25": BM25Index.load(run.open("bm25"))}


def in_sample(folder: RunFolder, inputs: dict[str, str], found: Ranker) -> str | None:
    """The name of the texts, a run's own or among stage 4's inputs, that the weights of `hybrid` were fitted on, if
    they were and the run ranks by it, or beside it."""
    fitted_on = found.settings.fitted_on if found.rule in (HYBRID, LEARNED) else {}
    digests = (*inputs.values(), fingerprint(folder.queries)) if fitted_on else ()
    return next((fitted_on[digest] for digest in digests if digest in fitted_on), None)


def _read(run: Run) -> Path:
    """Queries that were generated elsewhere, from `queries_file`, are copied to the run."""
    file, upcoming, rejects = run["queries_file"], run["split"] == "next", Rejects(run.folder.refused)
    run.read_from_outside("queries_file")

    def usable() -> Iterator[pd.DataFrame]:
        read = query_files.blocks(file, texts_per_user(run), run["max_rejected"], not upcoming, rejects, USERS_AT_ONCE)
        yield from (queries.assign(target=None) if upcoming else queries for queries in read)
        run.put_aside("texts")  # those that this run generated before: only now is the file known to be good

    users = query_files.write(run.folder.queries, usable())
    rejects.write(run.folder.rejected_queries)
    print(f"{users:,} users are read from {file}; {len(rejects.records)} records cannot be used")
    for kept in rejects.records[:5]:
        print(f"{kept['place']}: {kept['reason']}")
    run.outputs += [run.folder.rejected_queries, run.folder.queries]
    return run.folder.queries


def _generated(run: Run, data: Dataset) -> Path:
    """Queries by the fine-tuned model; those on the disk where nothing that they are made from has changed."""
    if not run.keeps("texts"):
        examples = splits.evaluation_examples(data, run["split"])
        if run["show_user"]:
            _row_of(examples, run["show_user"])  # a wrong one is better known before the hours of generation
        known = _learnable(run, data, examples) if run["guide"] else {}
        rows = asking.written(run, data, examples["history"], known)
        with run.writing("texts") as part:
            query_files.write(part, asking.with_texts(examples, rows))
    return run.open("texts")


def _row_of(queries: pd.DataFrame, user: str) -> pd.Series:
    chosen = queries[queries["user"] == user]
    if chosen.empty:
        raise GlossError(
            f"parameter show_user is {user!r}, which is not among the {len(queries):,} users of this run; "
            f"one that is: {queries['user'].iloc[0]}"
        )
    return chosen.iloc[0]


def summary(results: Retrieved) -> pd.DataFrame:
    """What was generated, in numbers."""
    return results.numbers.table()


def show(results: Retrieved, user: str | None = None) -> HTML:
    """One user's story; by default that of a user worth showing."""
    user = user or stories.telling_user(results.queries, results.ranking)
    query, titles = _row_of(results.queries, user), results.data.titles()
    return stories.story(query, results.ranking, titles, results.without_texts)


def browse(results: Retrieved, user: str | None = None):
    """In JupyterLab: a box to choose a user in, at first `user`, with that user's story below."""
    first = user or stories.telling_user(results.queries, results.ranking)
    return stories.browse(results.queries["user"].tolist(), first, lambda chosen: show(results, chosen))


def story(results: Retrieved, user: str | None, notebook: dict):
    """`browse`, or `show` where papermill runs the notebook, given its `globals()`."""
    return (show if is_headless(notebook) else browse)(results, user)
