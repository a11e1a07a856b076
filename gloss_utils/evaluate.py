"""Notebook 5: metrics of GLoSS and of the baselines, and how sure they are."""

import json
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import partial
from itertools import product
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from pandas.io.formats.style import Styler

from gloss_utils import retrieve
from gloss_utils.base.files import joined, parquet_in_parts, write_json, write_whole
from gloss_utils.data import splits
from gloss_utils.data.dataset import Dataset
from gloss_utils.rank import cooccurrence
from gloss_utils.rank.baselines import Baseline
from gloss_utils.rank.ranker import HYBRID, LEARNED, Ranker
from gloss_utils.report import beyond, metrics, published, result_plots, segments, significance, tables
from gloss_utils.report.beyond import BEYOND, COVERAGE, TAKEN, Catalogue, coverage
from gloss_utils.report.in_blocks import (
    MEASURED,
    PLACES,
    SHUFFLED,
    TEXTS,
    TIES,
    WITHOUT,
    Measure,
    Values,
    methods,
    trec_of,
)
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
from gloss_utils.runs.baselines import SASREC, baselines_of
from gloss_utils.runs.blocks import in_blocks
from gloss_utils.runs.parameters import EVALUATE, RETRIEVE
from gloss_utils.runs.run import Run, open_run

COLUMNS = ["user", "method", "seen", "segment", "new_item", "interactions", *METRICS, *BEYOND, TAKEN]
FOUND = ("rows", "comparisons", "ablation", "parts", "importances", "text_weights", "ties", "sasrec", "trials", "seeds")
FOUND += ("shuffled", "by_model")  # what is in metrics.json
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
    """Rank with the baselines, compute all metrics, write `per_user.parquet` and `metrics.json`.

    Returns the run's result table (see `report.tables`); its lists are empty under split next, which has no targets.
    """
    if run["split"] == "next":
        print("Split next has no targets: there is nothing to evaluate.")
        found = {name: [] for name in FOUND}
        with write_whole(run.folder.per_user) as part:
            pd.DataFrame(columns=COLUMNS).to_parquet(part, index=False)
    else:
        found = _evaluated(run, Dataset.load(run.open("data")))
    write_json(run.folder.metrics, found)
    run.outputs += [run.folder.per_user, run.folder.metrics]
    return table(run, found)


def _evaluated(run: Run, data: Dataset) -> dict:
    """Rank in blocks of users, then measure method by method: all that goes into `metrics.json`."""
    blocks = retrieve.blocks_of(run, run.folder.queries)
    world = retrieve.world_of(run, data, blocks)
    catalogue = Catalogue(world.items, world.training_sequences, world.indexes["dense"].vectors())
    bounds = run["cold_start_max"], run["power_min"]
    about, texts = about_users(data, blocks(), catalogue, run["split"], *bounds)
    baselines, by_seed, sasrec = baselines_of(run, data, world, about)
    of_seeds = {f"{SASREC}-seed-{seed}": rank for seed, rank in by_seed.items()}
    measure = Measure(world, catalogue, baselines, of_seeds, texts, run["seed"] if run["shuffle_test"] else None)
    run.clear("values")  # of a run that was cut off
    folder = run.unfinished("values", run.stage)
    folder.mkdir(parents=True)
    values = Values(folder)
    ties = _rank(run, measure, blocks(), values)
    compared = list(product([*baselines, *methods(world)], SEEN))
    of_groups = write_per_user(run.folder.per_user, about, compared, len(world.items), values)
    found = _found(run, world, about, compared, of_groups, values, sasrec)
    found["ties"] = significance.tie_orders_of(*ties, len(about), run["seed"]).round(6).tolist()
    found["seeds"] = _seeds(run, found["rows"], by_seed, values)
    found["by_model"] = _by_model(run, world)
    run.clear("values")
    return {name: found[name] for name in FOUND}


def about_users(
    data: Dataset,
    blocks: Iterable[pd.DataFrame],
    catalogue: Catalogue,
    split: str,
    cold_start_max: int,
    power_min: int | None = None,
) -> tuple[pd.DataFrame, int]:
    """What is known of each user before any ranking: user, target, segment, interactions, new_item, and the popularity
    of what was taken; and how many texts a user has at most."""
    frames, texts, new = [], 0, data.new_items()
    for queries in blocks:
        histories = dict(zip(queries["user"], queries["history"], strict=True))
        some = queries[["user", "target"]].astype("str").assign(length=queries["history"].map(len).astype(int))
        some["new_item"] = queries["target"].isin(new)
        frames.append(some.assign(**{TAKEN: catalogue.taken(histories)}))
        texts = max(texts, int(queries["texts"].map(len).max()))
    about = pd.concat(frames, ignore_index=True)
    interactions = interactions_of(data, about.pop("length").set_axis(about["user"]), split)
    segment = segments.assign(interactions, cold_start_max, power_min, data.users["interactions"])
    return about.assign(segment=segment.to_numpy(), interactions=interactions.to_numpy()), texts


def _seeds(run: Run, rows: list[dict], by_seed: dict[int, Baseline], values: Values) -> list[dict]:
    """Rows of all users by the seed of what was trained with several; none where one was."""
    if not by_seed:
        return []
    found = [row | {"seed": run["seed"]} for row in rows if row["method"] == SASREC and row["segment"] == "all"]
    for seed, seen in product(by_seed, SEEN):
        means = pd.DataFrame(values.read((f"{SASREC}-seed-{seed}", seen)), columns=METRICS).mean().round(6).to_dict()
        found.append({"method": SASREC, "seen": seen, "seed": seed} | means)
    return found


def _rank(run: Run, measure: Measure, blocks: Iterable[pd.DataFrame], values: Values) -> tuple[np.ndarray, np.ndarray]:
    """Write the rankings of all methods, with seen items left out and kept in, and what is measured of them and of what
    is not kept, block by block. Returns `significance.beside_target`."""
    ties, ranked = [], list(product([*measure.baselines, *measure.of_seeds, *methods(measure.world)], SEEN))
    with in_blocks(run, "evaluated", blocks, lambda: measure, Measure.write) as done, ExitStack() as stack:
        add = {one: stack.enter_context(joined(run.folder.ranking(*one))) for one in ranked}
        for _, part in done:
            for one in ranked:
                add[one](trec_of(part, *one))
            with np.load(part / MEASURED) as found:
                ties.append([found[name] for name in TIES])
                for name in found.files[len(TIES) :]:
                    values.add(tuple(json.loads(name)), found[name])
    run.outputs += [run.folder.ranking(*one) for one in ranked]
    return tuple(map(np.concatenate, zip(*ties, strict=True)))


def write_per_user(
    path: Path, about: pd.DataFrame, methods: list[tuple], items: int, values: Values
) -> dict[tuple, tuple]:
    """Write the metrics of each user and method, columns `COLUMNS`. Returns of each method, with seen items left out or
    kept in, and segment, the coverage and the popularity of what was taken before."""
    inside, of_groups = segments.members(about), {}
    taken = {segment: about.loc[members, TAKEN].mean() for segment, members in inside.items()}
    with parquet_in_parts(path) as add:
        for method, seen in methods:
            numbers = values.read((method, seen), [*METRICS, *BEYOND])
            for start in range(0, len(about), retrieve.USERS_AT_ONCE):
                some = about.iloc[start : start + retrieve.USERS_AT_ONCE].assign(method=method, seen=seen)
                some[[*METRICS, *BEYOND]] = numbers[start : start + len(some)]
                add(some[COLUMNS])
            places = values.read((method, seen), PLACES)
            for segment, members in inside.items():
                of_groups[method, seen, segment] = (
                    (coverage(places[members], items), taken[segment]) if members.any() else (None, None)
                )
    return of_groups


def interactions_of(data: Dataset, lengths: pd.Series, split: str) -> pd.Series:
    """The number of interactions in the dataset of each evaluated user; where the dataset does not know a user, what
    the history and the split say. lengths: of histories, by user."""
    known = data.users.set_index("user")["interactions"]
    lengths = lengths + {"test": 1, "validation": 2}[split]
    counted = known.reindex(lengths.index.map(splits.owner)).set_axis(lengths.index)
    return counted.fillna(lengths).astype(int)


def _found(
    run: Run, ranker: Ranker, about: pd.DataFrame, methods: list[tuple], of_groups: dict, values: Values, sasrec: dict
) -> dict:
    """What goes into `metrics.json`.

    rows: means by method, seen items left out or kept in, and segment. comparisons: paired tests of `gloss` against
    every other method. ablation: by rule, retriever and number of texts. parts: `hybrid` or `learned` without each of
    its parts. importances: what `learned` gains by each signal. text_weights: of its texts, where they count, or of all
    that is known of an item, where the model is asked. ties: NDCG@5 of the paper's rule under random orders of equal
    scores. sasrec: its settings and how they were chosen. trials: what was tried for it. shuffled: what each method
    loses, seen items left out, from shuffled histories.
    """
    split, seed = run["split"], run["seed"]
    inputs = run.folder.stages()[RETRIEVE]["inputs"]
    by_hybrid = GLOSS if ranker.rule == HYBRID else GLOSS_HYBRID
    fitted = {by_hybrid: retrieve.in_sample(run.folder, inputs, ranker) is not None}
    users, columns = about["user"], [*METRICS, *BEYOND]
    read = partial(values.read, columns=columns)
    without = [name for name in values.width if name[0] == WITHOUT]
    shuffled = [name for name in values.width if name[0] == SHUFFLED]
    return {
        "rows": [
            row
            | _of_group(row, *of_groups[row["method"], row["seen"], row["segment"]])
            | {"in_sample": fitted.get(row["method"], False)}
            | ({"loss": sasrec["chosen"]["loss"]} if row["method"] == SASREC else {})
            for row in metrics.summarise_all(read, methods, columns, about, split, seed)
        ],
        "comparisons": [
            {"seen": seen} | row
            for seen in SEEN
            for row in significance.compare(
                lambda method, metric, seen=seen: values.read((method, seen), [metric])[:, 0],
                users,
                list(dict.fromkeys(method for method, _ in methods)),
                GLOSS,
                COMPARED,
                seed,
            )
        ],
        "ablation": [
            {"ranking": name[1], "retriever": name[2]}
            | metrics.of_texts(name[3], values.read(name), users, split, seed)
            for name in values.width
            if name[0] == TEXTS
        ],
        "parts": [
            {"left_out": name[1]} | metrics.lost(values.read((WITHOUT, "none")), values.read(name), users, seed)
            for name in without
        ],
        "shuffled": [
            {"method": name[1]} | metrics.lost(values.read((name[1], LEFT_OUT)), values.read(name), users, seed)
            for name in shuffled
        ],
        "importances": ranker.learned.importances().to_dict("records") if ranker.rule == LEARNED else [],
        "text_weights": _text_weights(ranker),
        "sasrec": {name: value for name, value in sasrec.items() if name != "trials"},
        "trials": sasrec.get("trials", []),
    }


def _by_model(run: Run, ranker: Ranker) -> list[dict]:
    """Rows of what the language model adds to histories alone, by group of users; none where it was not asked."""
    if not ranker.asked:
        return []
    counts = pd.Series(cooccurrence.counts(ranker.training_sequences.values(), pd.Index(ranker.items)), ranker.items)
    often = pd.Series(targets_of(ranker.queries)).map(counts).fillna(0)
    left_out = pd.read_parquet(run.folder.per_user, filters=[("seen", "==", LEFT_OUT)])
    return metrics.gained_by_group(left_out, GLOSS, GLOSS_HISTORIES, often, run["seed"])


def _of_group(row: dict, coverage: float | None, taken: float | None) -> dict:
    """Coverage and popularity bias, which are of a group and not of each user."""
    return {COVERAGE: None if coverage is None else round(coverage, 6)} | beyond.bias(row, taken)


def _text_weights(ranker: Ranker) -> list[dict]:
    if ranker.asked:
        return [
            {name: float(f"{value:.6g}") for name, value in row.items()}
            for row in ranker.asked.weights().to_dict("records")
        ]
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
