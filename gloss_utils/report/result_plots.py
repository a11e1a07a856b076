"""Figures of result tables (see `tables`). A notebook of one run gives a list of one table.

Each function draws the tables that have what it shows, and returns None where none has. Measured values are filled and
have their 95 % intervals; published ones are hollow and stand apart.
"""

import textwrap
from collections.abc import Callable
from functools import wraps
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator

from gloss_utils.report import plots, published
from gloss_utils.report.metrics import COMPARED, GLOSS, GLOSS_PAPER
from gloss_utils.report.plots import COLUMN, PAGE, SHADES
from gloss_utils.report.segments import COLD_START
from gloss_utils.report.tables import LABELS, METHODS

RANKINGS = {
    "paper": "paper's rule",
    "fused": "fused",
    "hybrid": "hybrid",
    "hybrid without generated texts": "hybrid without the texts",
}
HATCHES = ("", "//", "", "..")
IN_SEGMENTS = ("lis-dense-unseen", "item-knn", "sasrec", GLOSS_PAPER, GLOSS)
BASELINES = "all but SASRec"  # whose seconds `benchmarks.baselines` measures together
RUN_STAGES = ("02_fine_tune", "03_build_index", "04_retrieve")  # whose seconds are the cost of a run


def of_tables(shows: Callable[[dict], object]) -> Callable:
    """Draw only the tables for which `shows` is true; a figure of none of them is None."""

    def decorate(draw: Callable) -> Callable:
        @wraps(draw)
        def drawn(tables: list[dict], **options) -> plt.Figure | None:
            chosen = [table for table in tables if shows(table)]
            return plots.styled(draw)(chosen, **options) if chosen else None

        return drawn

    return decorate


def _has_segment(segment: str) -> Callable[[dict], bool]:
    return lambda table: any(row.get("segment") == segment for row in table["rows"])


# ---- methods and rankings


@of_tables(_has_segment("all"))
def methods(tables: list[dict], metrics: tuple[str, ...] = COMPARED[:1]) -> plt.Figure | None:
    """Metrics of all users by method, one panel for each dataset and metric: measured, and below a line published ones.

    Methods whose weights were fitted on these users' targets are marked as in-sample.
    """
    measured = pd.DataFrame([row for table in tables for row in _of_all_users(table)])
    datasets = measured.drop_duplicates(["dataset", "name"]).groupby("dataset", sort=False)
    lines = {dataset: _lines(some, metrics) for dataset, some in datasets}
    drawn = [(dataset, metric) for dataset in lines for metric in metrics]
    size = (PAGE, 0.9 + 0.128 * max(map(len, lines.values())))
    figure, axes = plt.subplots(1, len(drawn), figsize=size, squeeze=False, sharex=len(metrics) == 1)
    for axis, (dataset, metric) in zip(axes[0], drawn, strict=True):
        here, first = lines[dataset], datasets.get_group(dataset).iloc[0]
        known = here.dropna(subset=metric)
        ours, theirs = known[known["measured"]], known[~known["measured"]]
        look = {"marker": "o", "color": SHADES[2], "label": "measured here, 95 % interval"}
        plots.points(axis, ours.index, ours, metric, across=True, **look)
        if len(theirs):
            hollow = {"fmt": "D", "markerfacecolor": "white", "color": "0.4", "label": "published"}
            axis.errorbar(theirs[metric], theirs.index, **hollow)
            axis.axhline(here["measured"].sum() - 0.5, color="0.4", linewidth=0.6)
        axis.set_yticks(here.index, here["name"] if metric == metrics[0] else [""] * len(here))
        for tick, kind in zip(axis.get_yticklabels(), here["kind"], strict=True):
            tick.set_fontweight("bold" if pd.isna(kind) else "normal")
        title = f"{dataset.title()}, {first['split']}, {first['users']:,} users"
        axis.set(xlabel=LABELS[metric], title=title, ylim=(len(here) - 0.5, -0.5))
    for axis in axes[0]:
        axis.set_xlim(0, None)
    plots.legend(figure, 2)
    return figure


def _lines(measured: pd.DataFrame, metrics: tuple[str, ...]) -> pd.DataFrame:
    """The rows of each kind under a line that has just the kind's name; after those measured, those published."""
    theirs = published.results(*measured[["dataset", "split", "holdout"]].iloc[0])
    if theirs is None:
        theirs = pd.DataFrame(columns=["kind", *metrics])
    theirs = theirs.reset_index(names="name").dropna(subset=list(metrics), how="all")
    lines = []
    for frame, is_ours in ((measured, True), (theirs, False)):
        for kind in published.KINDS:
            rows = frame[frame["kind"] == kind].assign(measured=is_ours).to_dict("records")
            lines += [{"name": kind, "measured": is_ours}, *rows] if rows else []
    return pd.DataFrame(lines)


def _of_all_users(table: dict) -> list[dict]:
    """The rows of all users, each with its kind and what it is called beside those of other runs."""
    parameters, rows = table["parameters"], []
    for row in table["rows"]:
        if row.get("segment") == "all":
            name, kind = METHODS[row["method"]]
            if row["method"] in (GLOSS, GLOSS_PAPER):
                name = f"GLoSS {_texts(parameters)}, {_ranking(parameters, row['method'])}"
            name += " (in-sample)" * bool(row.get("in_sample"))
            about = {"dataset": table["dataset"], "holdout": parameters.get("holdout", "leave_one_out")}
            rows.append(row | about | {"name": name, "kind": kind})
    return rows


def _ranking(parameters: dict, method: str) -> str:
    if method == GLOSS_PAPER:
        return "paper's rule"
    own = parameters.get("ranking_weights") not in (None, "params/ranking/weights.yaml")
    return parameters["ranking"] + ", own weights" * (own and parameters["ranking"] == "hybrid")


def _texts(parameters: dict) -> str:
    """Whose texts a run ranks: those of a file, or of a model under a kind of decoding."""
    if parameters.get("queries_file"):
        return Path(parameters["queries_file"]).name.split(".")[0]
    return f"{parameters['base_model'].split('/')[-1]}, {parameters['decoding']}"


@of_tables(lambda table: any("texts" in row for row in table["rows"]))
def rankings(tables: list[dict]) -> plt.Figure | None:
    """The same generated texts under each ranking (rows of `benchmarks.ranking`), one group of bars a file of texts."""
    frame = pd.DataFrame([row for table in tables for row in table["rows"] if row["method"] in RANKINGS])
    files = frame.drop_duplicates("texts").set_index("texts")["users"]
    figure, axes = plt.subplots(1, len(COMPARED), figsize=(PAGE, 2.1))
    for axis, metric in zip(axes, COMPARED, strict=True):
        for place, (method, name) in enumerate(RANKINGS.items()):
            some = frame[frame["method"] == method].set_index("texts").loc[files.index]
            look = {"color": SHADES[place], "hatch": HATCHES[place], "edgecolor": "white", "linewidth": 0.4}
            places = np.arange(len(files)) + 0.2 * (place - 1.5)
            error = {"yerr": plots.spread(some, metric), "error_kw": plots.INTERVAL}
            axis.bar(places, some[metric], width=0.19, label=name, **look, **error)
        axis.set_xticks(range(len(files)), [f"{_file(file)}\n{users:,} users" for file, users in files.items()])
        axis.set_ylabel(f"{LABELS[metric]}, {frame['split'].iloc[0]}")
        axis.grid(visible=False, axis="x")
    plots.legend(figure, len(RANKINGS))
    return figure


def _file(name: str) -> str:
    dataset, model, size = name.split(".")[0].split("-")
    return f"{dataset.title()}, {model.title()} {size.upper()}"


@of_tables(lambda table: table.get("parts"))
def parts(tables: list[dict]) -> plt.Figure | None:
    """What the hybrid ranking loses without each of its parts (paired differences), one row of panels a run."""
    runs = _distinct(tables)
    figure, axes = plots.panels(len(runs) * len(COMPARED), len(COMPARED), 1.2, sharey=True)
    for axis, (table, metric) in zip(axes, [(table, metric) for table in runs for metric in COMPARED], strict=True):
        frame = pd.DataFrame([row for row in table["parts"] if row["left_out"] != "none"])
        plots.points(axis, frame["left_out"], frame, f"{metric}_lost", across=True, marker="o", color=SHADES[2])
        axis.axvline(0, color="0.4", linewidth=0.8)
        axis.set(xlabel=f"{LABELS[metric]} lost without it, 95 % intervals", title=_title(table))
        axis.margins(y=0.2)
    axes[0].invert_yaxis()
    return figure


@of_tables(lambda table: table.get("ties"))
def tie_orders(tables: list[dict]) -> plt.Figure | None:
    """NDCG@5 of the paper's rule over random orders of equal scores, and in the run's own order, one panel a run."""
    runs = _distinct(tables)
    figure, axes = plots.panels(len(runs))
    for axis, table in zip(axes, runs, strict=True):
        ours = next(row["ndcg@5"] for row in _of_all_users(table) if row["method"] == GLOSS_PAPER)
        axis.hist(table["ties"], bins=20, color=SHADES[0])
        axis.axvline(ours, color=SHADES[4], linestyle="--", label="this run's order")
        axis.set(xlabel="NDCG@5 of the paper's rule", ylabel=f"orders, of {len(table['ties'])}", title=_title(table))
        axis.yaxis.set_major_locator(MaxNLocator(integer=True))
    plots.legend(figure, 1)
    return figure


# ---- texts and retrievers


@of_tables(lambda table: table.get("ablation"))
def number_of_queries(tables: list[dict], metric: str = "recall@5") -> plt.Figure | None:
    """A metric against the number of generated texts used, by ranking and retriever, one panel a run."""
    runs = _distinct(tables)
    figure, axes = plots.panels(len(runs), sharey=True)
    for axis, table in zip(axes, runs, strict=True):
        frame = pd.DataFrame(table["ablation"])
        for number, (names, some) in enumerate(frame.groupby(["ranking", "retriever"], sort=False)):
            ends = [some[f"{metric}{end}"] for end in ("", "_low", "_high")]
            plots.band(axis, some["queries"], *ends, number, ", ".join(names))
        axis.set(xlabel="generated texts used", title=textwrap.fill(_title(table), 36))
        axis.set_xticks(sorted(frame["queries"].unique()))
    axes[0].set_ylim(0, 1.05 * max(row[f"{metric}_high"] for table in runs for row in table["ablation"]))
    for axis in axes[::3]:
        axis.set_ylabel(LABELS[metric])
    plots.legend(figure, 3)
    return figure


@of_tables(lambda table: table.get("ablation"))
def retrievers(tables: list[dict], metric: str = "recall@5") -> plt.Figure | None:
    """A metric of all generated texts by ranking, retriever and encoder, one row of points a run."""
    frames = []
    for table in _distinct(tables):
        frame = pd.DataFrame(table["ablation"])
        encoder = table["parameters"]["encoder"]
        with_encoder = {"dense": f"dense ({encoder})", "both": f"both ({encoder})", "bm25": "BM25"}
        label = frame["ranking"] + ", " + frame["retriever"].map(with_encoder)
        frame = frame.assign(tick=textwrap.fill(_title(table), 22), label=label)
        frames.append(frame[frame["queries"] == frame["queries"].max()])
    frame = pd.concat(frames)
    figure, axis = plt.subplots(figsize=(COLUMN, 0.9 + 0.45 * len(frames)))
    plots.dots(axis, frame, metric, list(frame["label"].unique()), across=True)
    axis.set_xlabel(f"{LABELS[metric]}, 95 % intervals")
    plots.legend(figure, 1)
    return figure


# ---- users


@of_tables(_has_segment(COLD_START))
def segments(tables: list[dict], metric: str = "recall@5", of: tuple[str, ...] = IN_SEGMENTS) -> plt.Figure | None:
    """A metric by user segment and method, one panel a run; users whose target is a new item are the last group."""
    runs = _distinct(tables)
    figure, axes = plt.subplots(len(runs), 1, figsize=(PAGE, 0.5 + 1.3 * len(runs)), squeeze=False)
    for axis, table in zip(axes[:, 0], runs, strict=True):
        frame = pd.DataFrame([row for row in table["rows"] if row["users"]])
        tick = frame["segment"] + frame["users"].map("\n{:,} users".format)
        label = frame["method"].map({method: name for method, (name, _) in METHODS.items()})
        plots.dots(axis, frame.assign(tick=tick, label=label), metric, [METHODS[method][0] for method in of])
        axis.set(ylabel=LABELS[metric], title=_title(table))
    plots.legend(figure, len(of))
    return figure


@plots.styled
def history_length(binned: pd.DataFrame, metric: str, of: tuple[str, ...] = IN_SEGMENTS) -> plt.Figure:
    """A metric against history length for some methods; binned: as `segments.by_history_length` returns it."""
    figure, axis = plt.subplots(figsize=(0.75 * PAGE, 2.6))
    for number, method in enumerate(of):
        some = binned[binned["method"] == method]
        if len(some):
            plots.band(axis, some["interactions"], some["mean"], some["low"], some["high"], number, METHODS[method][0])
    axis.set(xlabel="interactions per user (mean of a bin of equally many users)", ylabel=LABELS[metric])
    axis.set(xscale="log", ylim=(0, None))
    ticks = binned["interactions"].unique()
    axis.set_xticks(ticks, [f"{tick:.0f}" for tick in ticks])
    axis.set_xticks([], minor=True)
    plots.legend(figure, 3)
    return figure


# ---- cost


@of_tables(lambda table: "seconds" in table)
def cost(tables: list[dict], metric: str = "recall@5") -> plt.Figure | None:
    """A metric of all users against the minutes that it took, training included, one panel a dataset.

    The minutes of a run are those of fine-tuning, indexing and retrieving. The baselines other than SASRec are measured
    together, so that item-kNN has the minutes of all of them. Of runs that rank the same texts the first counts, for
    others may use weights that were fitted elsewhere.
    """
    rivals = [table for table in tables if BASELINES in table["seconds"]]
    runs = _distinct([table for table in tables if table not in rivals])
    frame = pd.DataFrame([row for table in (*rivals, *runs) for row in _costs(table)])
    datasets, names = frame.groupby("dataset", sort=False), list(frame["name"].unique())
    figure, axes = plots.panels(len(datasets), 2, 2.1, sharex=True, sharey=True)
    for axis, (dataset, here) in zip(axes, datasets, strict=True):
        for name, some in here.groupby("name", sort=False):
            plots.points(axis, some["minutes"], some, metric, label=name, **plots.look(names.index(name)))
        title = f"{dataset.title()}, {here['split'].iloc[0]}"
        axis.set(xlabel="minutes, training included", title=title, xscale="log")
        axis.xaxis.set_major_formatter("{x:g}")
    axes[0].set(ylabel=LABELS[metric], ylim=(0, 1.05 * frame[f"{metric}_high"].max()))
    plots.legend(figure, 3)
    return figure


def _costs(table: dict) -> list[dict]:
    seconds = table["seconds"]
    if BASELINES in seconds:
        taken = {"item-knn": seconds[BASELINES], "sasrec": seconds.get("SASRec")}
    else:
        taken = dict.fromkeys((GLOSS_PAPER, GLOSS), sum(seconds[stage] for stage in RUN_STAGES))
    return [row | {"minutes": taken[row["method"]] / 60} for row in _of_all_users(table) if taken.get(row["method"])]


# ---- what they share


def _distinct(tables: list[dict]) -> list[dict]:
    """Of runs that differ only in how they rank the same texts, the first."""
    first = {}
    for table in tables:
        first.setdefault((_title(table), table["parameters"].get("encoder")), table)
    return list(first.values())


def _title(table: dict) -> str:
    """A run in words: dataset, texts, split, and the share of new items."""
    parameters = table["parameters"]
    texts = _texts(parameters) + " decoding" * (not parameters.get("queries_file"))
    new = parameters.get("new_item_fraction")
    held_out = f", {new:.0%} of items new" if new else ""
    return f"{table['dataset'].title()}, {texts}, {table['rows'][0]['split']}{held_out}"
