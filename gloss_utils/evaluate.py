"""Notebook 5: metrics of GLoSS and of its rivals, from the TREC files of the run, and how sure they are."""

from collections.abc import Callable
from functools import partial
from itertools import product

import matplotlib.pyplot as plt
import pandas as pd
from pandas.io.formats.style import Styler

from gloss_utils import retrieve
from gloss_utils.base.errors import GlossError
from gloss_utils.base.files import write_json, write_whole
from gloss_utils.data import queries as query_files
from gloss_utils.data import splits
from gloss_utils.data.dataset import Dataset
from gloss_utils.rank import baselines, cooccurrence
from gloss_utils.rank.asked import PARTS as ASKED
from gloss_utils.rank.baselines import Rival
from gloss_utils.rank.cooccurrence import lists_of
from gloss_utils.rank.evidence import without_part
from gloss_utils.rank.ranker import FUSED, HYBRID, LEARNED, PAPER, Ranker
from gloss_utils.rank.trec import as_run, read_trec, write_trec
from gloss_utils.rank.weights import PARTS
from gloss_utils.report import beyond, metrics, published, result_plots, segments, significance, tables
from gloss_utils.report.beyond import BEYOND, COVERAGE, TAKEN, Catalogue
from gloss_utils.report.metrics import (
    COMPARED,
    GLOSS,
    GLOSS_HISTORIES,
    GLOSS_HYBRID,
    LEFT_OUT,
    METRICS,
    SEEN,
    targets_of,
)
from gloss_utils.runs import results
from gloss_utils.runs.parameters import EVALUATE, RETRIEVE
from gloss_utils.runs.run import Run, open_run

SASREC = "sasrec"
COLUMNS = ["user", "method", "seen", "segment", "new_item", "interactions", *METRICS, *BEYOND, TAKEN]
FOUND = (  # what is in metrics.json
    "rows",
    "comparisons",
    "ablation",
    "parts",
    "importances",
    "text_weights",
    "ties",
    "sasrec",
    "trials",
    "seeds",
    "shuffled",
    "by_model",
)
FIGURES = {
    "05_methods": partial(result_plots.methods, metrics=COMPARED),
    "05_parts": result_plots.parts,
    "05_coverage": result_plots.coverage,
    "05_ties": result_plots.tie_orders,
    "05_number_of_queries": result_plots.number_of_queries,
}
TABLES = {
    "rows": tables.methods,
    "beyond": tables.beyond_accuracy,
    "comparisons": tables.comparisons,
    "parts": tables.parts,
    "importances": tables.importances,
    "shuffled": tables.shuffled,
    "trials": tables.sasrec_trials,
    "seeds": tables.over_seeds,
    "text_weights": tables.text_weights,
    "by_model": tables.gained,
}


def start(notebook: dict) -> Run:
    """Start the stage from its notebook's `globals()`."""
    return open_run(EVALUATE, notebook)


def prepare(run: Run) -> dict:
    """Rank with the rivals, compute all metrics, write `per_user.parquet` and `metrics.json`.

    Returns the run's result table (see `report.tables`); its lists are empty under split next, which has no targets.
    """
    if run["split"] == "next":
        print("Split next has no targets: there is nothing to evaluate.")
        found, per_user = {name: [] for name in FOUND}, pd.DataFrame(columns=COLUMNS)
    else:
        data = Dataset.load(run.open("data"))
        queries = query_files.read(run.folder.queries, run["num_beams"], 0)
        ranker = retrieve.ranker(run, queries, data)
        rivals, by_seed, sasrec = _rivals(run, data, ranker)
        catalogue = Catalogue(ranker.items, ranker.training_sequences, ranker.indexes["dense"].vectors())
        _write_rankings(run, ranker, rivals | {f"{SASREC}-seed-{seed}": rank for seed, rank in by_seed.items()})
        per_user, of_groups = _per_user(run, data, queries, [*rivals, *retrieve.methods(run, ranker)], catalogue)
        found = _found(run, ranker, per_user, targets_of(queries), of_groups, sasrec)
        found["seeds"] = _seeds(run, found["rows"], by_seed, targets_of(queries))
        found["by_model"] = _by_model(run, ranker, per_user)
        found["shuffled"] = _shuffled(run, ranker, rivals, per_user)
    with write_whole(run.folder.per_user) as part:
        per_user.to_parquet(part, index=False)
    write_json(run.folder.metrics, found)
    run.outputs += [run.folder.per_user, run.folder.metrics]
    return table(run, found)


def _rivals(run: Run, data: Dataset, ranker: Ranker) -> tuple[dict[str, Rival], dict[int, Rival], dict]:
    """What ranks by each rival's method, trained where it has to be; by SASRec's further seeds; and what was tried for
    SASRec (see `sasrec_search.train`)."""
    rivals = baselines.rivals(ranker)
    if not run["sasrec_epochs"]:
        return rivals, {}, {}
    from gloss_utils.rank import sasrec, sasrec_search  # load torch and transformers, which others do not need

    sequences = lists_of(ranker.training_sequences)
    validation = sasrec.validation_users(data, ranker.queries, run["split"])
    if run["sasrec_search"] and validation.empty:
        raise GlossError(
            f"parameter sasrec_search is {run['sasrec_search']}, but split {run['split']} leaves no validation user to "
            "search on; set it to 0, or split to test"
        )
    if not run.keeps("sasrec"):
        world = sasrec_search.World(sequences, validation, ranker.items)
        given = sasrec.Settings(run["sasrec_epochs"], run["sasrec_width"], run["seed"], run["sasrec_loss"])
        budget = run["sasrec_search"], run["sasrec_seeds"]
        trained = sasrec_search.train(world, given, *budget, run.unfinished("sasrec"))
        with run.writing("sasrec") as part:
            sasrec_search.save(*trained, part)
    models, about = sasrec_search.load(run.open("sasrec"))
    by_seed = {seed: sasrec.rival(model, sequences, ranker.items, ranker.depth) for seed, model in models.items()}
    return rivals | {SASREC: by_seed.pop(about["seeds"][0])}, by_seed, about


def _seeds(run: Run, rows: list[dict], by_seed: dict[int, Rival], targets: dict[str, str]) -> list[dict]:
    """Rows of all users by the seed of what was trained with several; none where one was."""
    if not by_seed:
        return []
    found = [row | {"seed": run["seed"]} for row in rows if row["method"] == SASREC and row["segment"] == "all"]
    for seed, seen in product(by_seed, SEEN):
        trec = read_trec(run.folder.ranking(f"{SASREC}-seed-{seed}", seen))
        means = metrics.per_user_metrics(trec, targets).mean().round(6).to_dict()
        found.append({"method": SASREC, "seen": seen, "seed": seed} | means)
    return found


def _write_rankings(run: Run, ranker: Ranker, rivals: dict[str, Rival]):
    """Write the rankings of all methods, with seen items left out and kept in."""
    for seen in SEEN:
        out = seen == LEFT_OUT
        rankings = {method: rank(ranker.histories, out) for method, rank in rivals.items()}
        rankings |= {method: rank(exclude_seen=out) for method, rank in retrieve.methods(run, ranker).items()}
        for method, ranked in rankings.items():
            write_trec(run.folder.ranking(method, seen), ranked, method)
            run.outputs.append(run.folder.ranking(method, seen))


def _per_user(
    run: Run, data: Dataset, queries: pd.DataFrame, methods: list[str], catalogue: Catalogue
) -> tuple[pd.DataFrame, dict[tuple, tuple]]:
    """The metrics of each user and method, from the TREC files in the run folder, columns `COLUMNS`; and of each
    method, with seen items left out or kept in, and segment, the coverage and the popularity of what was taken before.
    """
    targets, interactions = targets_of(queries), interactions_of(data, queries, run["split"])
    bounds = run["cold_start_max"], run["power_min"], data.users["interactions"]
    about = pd.DataFrame({"segment": segments.assign(interactions, *bounds), "interactions": interactions})
    about["new_item"] = pd.Series(targets).isin(data.new_items())
    histories, frames, of_groups = dict(zip(queries["user"], queries["history"], strict=True)), [], {}
    for method, seen in product(methods, SEEN):
        trec = read_trec(run.folder.ranking(method, seen))
        first = catalogue.first(trec)
        found = metrics.per_user_metrics(trec, targets).join(about).join(catalogue.per_user(first, histories))
        frames.append(found.assign(method=method, seen=seen).rename_axis("user").reset_index())
        for segment, inside in segments.members(frames[-1]).items():
            group = frames[-1][inside]
            found = (catalogue.coverage(first, group["user"]), group[TAKEN].mean()) if len(group) else (None, None)
            of_groups[method, seen, segment] = found
    return pd.concat(frames, ignore_index=True)[COLUMNS], of_groups


def interactions_of(data: Dataset, queries: pd.DataFrame, split: str) -> pd.Series:
    """The number of interactions in the dataset of each evaluated user; where the dataset does not know a user, what
    the history and the split say."""
    known = data.users.set_index("user")["interactions"]
    ahead = {"test": 1, "validation": 2}[split]
    lengths = queries.set_index("user")["history"].map(len) + ahead
    counted = known.reindex(lengths.index.map(splits.owner)).set_axis(lengths.index)
    return counted.fillna(lengths).astype(int)


def _found(
    run: Run, ranker: Ranker, per_user: pd.DataFrame, targets: dict[str, str], of_groups: dict, sasrec: dict
) -> dict:
    """What goes into `metrics.json`.

    rows: means by method, seen items left out or kept in, and segment. comparisons: paired tests of `gloss` against
    every other method. ablation: by rule, retriever and number of texts. parts: `hybrid` or `learned` without each of
    its parts. importances: what `learned` gains by each signal. text_weights: of its texts, where they count. ties:
    NDCG@5 of the paper's rule under random orders of equal scores. sasrec: its settings and how they were chosen.
    trials: what was tried for it.
    """
    split, seed = run["split"], run["seed"]
    inputs = run.folder.stages()[RETRIEVE]["inputs"]
    by_hybrid = GLOSS if ranker.rule == HYBRID else GLOSS_HYBRID
    fitted = {by_hybrid: retrieve.in_sample(run.folder, inputs, ranker) is not None}
    most = int(ranker.queries["texts"].map(len).max())
    return {
        "rows": [
            row
            | _of_group(row, *of_groups[row["method"], row["seen"], row["segment"]])
            | {"in_sample": fitted.get(row["method"], False)}
            | ({"loss": sasrec["chosen"]["loss"]} if row["method"] == SASREC else {})
            for row in metrics.summarise(per_user, split, seed)
        ],
        "comparisons": [
            {"seen": seen} | row
            for seen in SEEN
            for row in significance.compare(per_user[per_user["seen"] == seen], GLOSS, COMPARED, seed)
        ],
        "ablation": [
            {"ranking": rule, "retriever": retriever} | row
            for (rule, retriever), rank in _rules(run, ranker).items()
            for row in metrics.ablate(rank, most, targets, split, seed)
        ],
        "parts": metrics.leave_parts_out(_without_parts(ranker), targets, seed),
        "importances": ranker.learned.importances().to_dict("records") if ranker.rule == LEARNED else [],
        "text_weights": _text_weights(ranker),
        "ties": significance.tie_orders(ranker.paper_candidates(run["retriever"]), targets, seed).round(6).tolist(),
        "sasrec": {name: value for name, value in sasrec.items() if name != "trials"},
        "trials": sasrec.get("trials", []),
    }


def _by_model(run: Run, ranker: Ranker, per_user: pd.DataFrame) -> list[dict]:
    """Rows of what the language model adds to histories alone, by group of users; none where it was not asked."""
    if not ranker.asked:
        return []
    counts = pd.Series(cooccurrence.counts(ranker.training_sequences.values(), pd.Index(ranker.items)), ranker.items)
    often = pd.Series(targets_of(ranker.queries)).map(counts).fillna(0)
    left_out = per_user[per_user["seen"] == LEFT_OUT]
    return metrics.gained_by_group(left_out, GLOSS, GLOSS_HISTORIES, often, run["seed"])


def _of_group(row: dict, coverage: float | None, taken: float | None) -> dict:
    """Coverage and popularity bias, which are of a group and not of each user."""
    return {COVERAGE: None if coverage is None else round(coverage, 6)} | beyond.bias(row, taken)


def _shuffled(run: Run, ranker: Ranker, rivals: dict[str, Rival], per_user: pd.DataFrame) -> list[dict]:
    """Rows of what each method loses, seen items left out, where it ranks from shuffled histories (`shuffle_test`).

    What was learnt stays, and so do the generated texts: `gloss-paper`, which ranks by them alone, is not in it.
    """
    if not run["shuffle_test"]:
        return []
    other = ranker.shuffled(run["seed"])
    rankings = {method: rank(other.histories, True) for method, rank in rivals.items()}
    rankings[GLOSS] = other.rank(exclude_seen=True)
    as_they_are = per_user[per_user["seen"] == LEFT_OUT]
    runs = {name: as_run(ranked) for name, ranked in rankings.items()}
    return metrics.losses(as_they_are, runs, targets_of(ranker.queries), run["seed"])


def _rules(run: Run, ranker: Ranker) -> dict:
    """What ranks from a number of texts, by rule and retriever: the paper's rule by both, and the run's own rule where
    texts count."""
    rules = {(PAPER, retriever): partial(ranker.paper, retriever) for retriever in ("dense", "bm25")}
    if ranker.rule != PAPER and (ranker.rule != LEARNED or ranker.text_targets or ranker.asked):
        rules[ranker.rule, run["retriever"] if ranker.rule == FUSED else "both"] = ranker.rank
    return rules


def _without_parts(ranker: Ranker) -> dict[str, pd.DataFrame]:
    """The rankings whole ("none") and without each part: of `hybrid`, whose other weights stay, or of `learned`, which
    is fitted again; none of other rules."""
    if ranker.asked:
        less = {"none": ASKED} | {out: [part for part in ASKED if part != out] for out in ASKED[1:]}
        found = {name: ranker.by_all(parts) for name, parts in less.items()}
        return found | {" and ".join(ASKED[1:]): ranker.by_learned(0)}
    if ranker.rule == LEARNED:
        return ranker.learned.without_parts(ranker.depth, ranker.exclude_seen is not False, ranker.weighed())
    if ranker.rule != HYBRID:
        return {}
    weights = ranker.settings.weights
    return ranker.weighted({"none": weights} | {part: without_part(part, weights) for part in PARTS})


def _text_weights(ranker: Ranker) -> list[dict]:
    texts = ranker.weighed() if ranker.rule == LEARNED else None
    return ranker.learned.text_weights(texts).to_dict("records") if texts else []


def table(run: Run, found: dict) -> dict:
    """The result table of a run, from what is in its `metrics.json`."""
    parameters = results.parameters_of(run.folder.stages() | {"this": {"parameters": run.parameters}})
    return {"name": run.folder.root.name, "dataset": run["dataset"], "parameters": parameters} | found


# ---- what the notebook shows


def show(table: dict, name: str) -> pd.DataFrame | None:
    """One of the lists of a result table (see `TABLES`) for looking at; None where it is empty."""
    rows = table["rows" if name == "beyond" else name]
    return TABLES[name](rows) if rows else None


def draw(run: Run, table: dict, name: str) -> plt.Figure | None:
    """Draw one of `FIGURES` and write it to the run's `figures/`; None where there is nothing to draw."""
    figure = FIGURES[name]([table])
    return run.save_figure(figure, name) if figure else None


def published_numbers(run: Run, find: Callable = published.results) -> Styler | None:
    """What others published for the run's dataset and split; where they did not, a line says so."""
    theirs = find(run["dataset"], run["split"], run["holdout"])
    if theirs is None:
        print(f"No published numbers for {run['dataset']}, split {run['split']}.")
        return None
    numbers = theirs.select_dtypes("number").columns
    return theirs.style.format("{:.4f}", subset=numbers, na_rep="not published").set_caption(published.SOURCE)
