"""Notebook 5: metrics of GLoSS and of its rivals, from the TREC files of the run, and how sure they are."""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import partial
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from pandas.io.formats.style import Styler

from gloss_utils import retrieve
from gloss_utils.base.errors import GlossError
from gloss_utils.base.files import parquet_in_parts, write_json, write_whole
from gloss_utils.data import splits
from gloss_utils.data.dataset import Dataset
from gloss_utils.rank import baselines, cooccurrence
from gloss_utils.rank.asked import PARTS as ASKED
from gloss_utils.rank.baselines import Rival
from gloss_utils.rank.cooccurrence import lists_of
from gloss_utils.rank.evidence import without_part
from gloss_utils.rank.ranker import FUSED, HYBRID, LEARNED, PAPER, Ranker
from gloss_utils.rank.trec import as_run, writing_trec
from gloss_utils.rank.weights import PARTS
from gloss_utils.report import beyond, metrics, published, result_plots, segments, significance, tables
from gloss_utils.report.beyond import BEYOND, COVERAGE, TAKEN, Catalogue
from gloss_utils.report.in_blocks import Values, measured
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
TEXTS, WITHOUT, SHUFFLED = "texts", "without", "shuffled"  # what is measured beside the methods
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
    blocks = retrieve.in_blocks(run, run.folder.queries)
    world, rankers = retrieve.world_of(run, data, blocks)
    catalogue = Catalogue(world.items, world.training_sequences, world.indexes["dense"].vectors())
    about, texts = _about(run, data, blocks(), catalogue)
    rivals, by_seed, sasrec = _rivals(run, data, world, about)
    of_seeds = {f"{SASREC}-seed-{seed}": rank for seed, rank in by_seed.items()}
    run.folder.unfinished.mkdir(exist_ok=True)
    with TemporaryDirectory(dir=run.folder.unfinished) as folder:
        values = Values(Path(folder))
        ties = _rank(run, rankers, rivals, of_seeds, texts, values)
        methods = list(product([*rivals, *retrieve.methods(run, world)], SEEN))
        of_groups = _per_user(run, about, methods, catalogue, values)
        found = _found(run, world, about, methods, of_groups, values, sasrec)
        found["ties"] = significance.tie_orders_of(*ties, len(about), run["seed"]).round(6).tolist()
        found["seeds"] = _seeds(run, found["rows"], by_seed, about, catalogue, values)
    return found | {"by_model": _by_model(run, world), "shuffled": found.pop("shuffled")}


def _about(run: Run, data: Dataset, blocks: Iterable[pd.DataFrame], catalogue: Catalogue) -> tuple[pd.DataFrame, int]:
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
    interactions = interactions_of(data, about.pop("length").set_axis(about["user"]), run["split"])
    bounds = run["cold_start_max"], run["power_min"], data.users["interactions"]
    segment = segments.assign(interactions, *bounds)
    return about.assign(segment=segment.to_numpy(), interactions=interactions.to_numpy()), texts


def _rivals(
    run: Run, data: Dataset, ranker: Ranker, evaluated: pd.DataFrame
) -> tuple[dict[str, Rival], dict[int, Rival], dict]:
    """What ranks by each rival's method, trained where it has to be; by SASRec's further seeds; and what was tried for
    SASRec (see `sasrec_search.train`)."""
    rivals = baselines.rivals(ranker)
    if not run["sasrec_epochs"]:
        return rivals, {}, {}
    from gloss_utils.rank import sasrec, sasrec_search  # load torch and transformers, which others do not need

    sequences = lists_of(ranker.training_sequences)
    validation = sasrec.validation_users(data, evaluated, run["split"])
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


def _seeds(run: Run, rows: list[dict], by_seed: dict[int, Rival], about: pd.DataFrame, catalogue, values) -> list[dict]:
    """Rows of all users by the seed of what was trained with several; none where one was."""
    if not by_seed:
        return []
    found = [row | {"seed": run["seed"]} for row in rows if row["method"] == SASREC and row["segment"] == "all"]
    for seed, seen in product(by_seed, SEEN):
        method = f"{SASREC}-seed-{seed}"
        for some in measured(run.folder.ranking(method, seen), about, catalogue, retrieve.USERS_AT_ONCE, {}, {}):
            values.add((method, seen), some[METRICS])
        means = pd.DataFrame(values.read((method, seen)), columns=METRICS).mean().round(6).to_dict()
        found.append({"method": SASREC, "seen": seen, "seed": seed} | means)
    return found


def _rank(
    run: Run, rankers: Iterable[Ranker], rivals: dict[str, Rival], of_seeds: dict[str, Rival], most: int, values: Values
) -> tuple[np.ndarray, np.ndarray]:
    """Write the rankings of all methods, with seen items left out and kept in, block by block; measure those that are
    not kept: from fewer texts, without parts, from shuffled histories. Returns `significance.beside_target`.

    What was learnt stays where histories are shuffled, and so do the generated texts: `gloss-paper`, which ranks by
    them alone, is not shuffled.
    """
    ties, chance, files = [], np.random.default_rng(run["seed"]), {}
    with ExitStack() as stack:
        for ranker in rankers:
            targets = targets_of(ranker.queries)

            def measure(name: tuple, ranking: pd.DataFrame, targets=targets):
                values.add(name, metrics.per_user_metrics(as_run(ranking), targets))

            ours = retrieve.methods(run, ranker)
            if not files:
                files = {run.folder.ranking(*one): one[0] for one in product([*rivals, *of_seeds, *ours], SEEN)}
                write = stack.enter_context(writing_trec(files))
            for seen in SEEN:
                out = seen == LEFT_OUT
                for method, rank in (rivals | of_seeds).items():
                    write(run.folder.ranking(method, seen), rank(ranker.histories, out))
                for method, rank in ours.items():
                    write(run.folder.ranking(method, seen), rank(exclude_seen=out))
            for (rule, retriever), rank in _rules(run, ranker).items():
                for number in range(1, most + 1):
                    measure((TEXTS, rule, retriever, number), rank(number))
            for part, ranking in _without_parts(ranker).items():
                measure((WITHOUT, part), ranking)
            ties.append(significance.beside_target(ranker.paper_candidates(run["retriever"]), targets))
            if run["shuffle_test"]:
                other = ranker.shuffled(chance)
                for method, rank in rivals.items():
                    measure((SHUFFLED, method), rank(other.histories, True))
                measure((SHUFFLED, GLOSS), other.rank(exclude_seen=True))
    run.outputs += files
    return tuple(map(np.concatenate, zip(*ties, strict=True)))


def _per_user(
    run: Run, about: pd.DataFrame, methods: list[tuple], catalogue: Catalogue, values: Values
) -> dict[tuple, tuple]:
    """Write the metrics of each user and method, from the TREC files in the run folder, columns `COLUMNS`. Returns of
    each method, with seen items left out or kept in, and segment, the coverage and the popularity of what was taken
    before."""
    inside, of_groups = segments.members(about), {}
    taken = {segment: about.loc[members, TAKEN].mean() for segment, members in inside.items()}
    with parquet_in_parts(run.folder.per_user) as add:
        for method, seen in methods:
            reached = {segment: np.zeros(len(catalogue.items), dtype=bool) for segment in inside}
            start = 0
            for some in measured(
                run.folder.ranking(method, seen), about, catalogue, retrieve.USERS_AT_ONCE, reached, inside
            ):
                values.add((method, seen), some)
                known = about.iloc[start : start + len(some)].set_axis(some.index).drop(columns="user")
                start += len(some)
                frame = some.join(known).assign(method=method, seen=seen).rename_axis("user").reset_index()
                add(frame[COLUMNS])
            for segment, items in reached.items():
                share = items.sum() / max(len(items), 1)
                of_groups[method, seen, segment] = (share, taken[segment]) if inside[segment].any() else (None, None)
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
    its parts. importances: what `learned` gains by each signal. text_weights: of its texts, where they count. ties:
    NDCG@5 of the paper's rule under random orders of equal scores. sasrec: its settings and how they were chosen.
    trials: what was tried for it. shuffled: what each method loses, seen items left out, from shuffled histories.
    """
    split, seed = run["split"], run["seed"]
    inputs = run.folder.stages()[RETRIEVE]["inputs"]
    by_hybrid = GLOSS if ranker.rule == HYBRID else GLOSS_HYBRID
    fitted = {by_hybrid: retrieve.in_sample(run.folder, inputs, ranker) is not None}
    users, columns = about["user"], [*METRICS, *BEYOND]
    without = [name for name in values.columns if name[0] == WITHOUT]
    shuffled = [name for name in values.columns if name[0] == SHUFFLED]
    return {
        "rows": [
            row
            | _of_group(row, *of_groups[row["method"], row["seen"], row["segment"]])
            | {"in_sample": fitted.get(row["method"], False)}
            | ({"loss": sasrec["chosen"]["loss"]} if row["method"] == SASREC else {})
            for row in metrics.summarise_all(values.read, methods, columns, about, split, seed)
        ],
        "comparisons": [
            {"seen": seen} | row
            for seen in SEEN
            for row in significance.compare_all(
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
            for name in values.columns
            if name[0] == TEXTS
        ],
        "parts": [
            {"left_out": name[1]} | metrics.lost(values.read((WITHOUT, "none")), values.read(name), users, seed)
            for name in without
        ],
        "shuffled": [
            {"method": name[1]}
            | metrics.lost(values.read((name[1], LEFT_OUT), METRICS), values.read(name), users, seed)
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
