"""Notebook 7's figures and tables, from result tables (see `results`): sized for a two-column page, readable in grey.

Measured values are filled and have their 95 % intervals; published ones are hollow and stand apart.
"""

import textwrap
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.lines import Line2D

from gloss_utils.base.files import write_whole
from gloss_utils.evaluate import GLOSS, GLOSS_PAPER, with_interval
from gloss_utils.report import published
from gloss_utils.report.figures import NAMES, spread
from gloss_utils.report.segments import COLD_START
from gloss_utils.runs.parameters import FINE_TUNE, INDEX, RETRIEVE

COLUMN, PAGE = 3.35, 6.9  # inches: one column, both
STYLE = {
    "font.size": 7,
    "axes.labelsize": 7,
    "axes.titlesize": 7,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "legend.fontsize": 6.5,
    "axes.grid": True,
    "grid.linewidth": 0.4,
    "axes.axisbelow": True,
}
# Of different lightness, so that grey tells most apart; markers and hatches do besides.
SHADES = ("#56B4E9", "#E69F00", "#0072B2", "#999999", "#000000")
METRICS = ("recall@5", "ndcg@5")
POINTS = {"markersize": 3, "elinewidth": 0.8, "capsize": 1.5, "linestyle": ""}
SASREC = "sasrec"
TOLD = ("lis-dense-unseen", "item-knn", SASREC, GLOSS_PAPER, GLOSS)  # the methods that figures of segments show
BASELINES = "all but SASRec"  # whose seconds `benchmarks.baselines` counts together
KINDS = dict.fromkeys(("popularity", "item-knn", SASREC), published.ID_BASED) | dict.fromkeys(
    (GLOSS_PAPER, GLOSS), published.LLM_BASED
)  # the others search by text
LABELS = {"recall@5": "Recall@5", "ndcg@5": "NDCG@5"}
RANKINGS = {
    "paper": "paper's rule",
    "fused": "fused",
    "hybrid": "hybrid",
    "hybrid without generated texts": "hybrid without the texts",
}


def rankings(table: dict) -> plt.Figure:
    """The same generated texts under each ranking (rows of `benchmarks.ranking`), one group of bars a file of texts."""
    frame = pd.DataFrame(table["rows"])
    frame = frame[frame["method"].isin(RANKINGS)]
    files = list(frame["texts"].unique())
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, 2, figsize=(PAGE, 2.1), layout="constrained")
        for axis, metric in zip(axes, METRICS, strict=True):
            for place, (method, name) in enumerate(RANKINGS.items()):
                some = frame[frame["method"] == method].set_index("texts").loc[files]
                axis.bar(
                    np.arange(len(files)) + 0.2 * (place - 1.5),
                    some[metric],
                    width=0.19,
                    yerr=spread(some, metric),
                    error_kw={"elinewidth": 0.7, "capsize": 1.5},
                    color=SHADES[place],
                    hatch=("", "//", "", "..")[place],
                    edgecolor="white",
                    linewidth=0.4,
                    label=name,
                )
            users = frame.drop_duplicates("texts").set_index("texts")["users"]
            axis.set_xticks(range(len(files)), [f"{_texts(file)}\n{users[file]:,} users" for file in files])
            axis.set_ylabel(f"{LABELS[metric]}, validation")
            axis.grid(visible=False, axis="x")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(RANKINGS))
    return figure


def _texts(file: str) -> str:
    dataset, model, size = file.split(".")[0].split("-")
    return f"{dataset.title()}, {model.title()} {size.upper()}"


def comparison(tables: list[dict], metric: str = "recall@5") -> plt.Figure:
    """A metric of all methods on test users, by kind: measured with intervals, below a line what others published."""
    measured = _all_users(tables, "test")
    datasets = list(measured["dataset"].unique())
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            1, len(datasets), figsize=(PAGE, 4.5), layout="constrained", squeeze=False, sharex=True
        )
        for axis, dataset in zip(axes[0], datasets, strict=True):
            ours, theirs = measured[measured["dataset"] == dataset], published.results(dataset, "test")
            lines = _by_kind(ours)
            border = len(lines)
            lines += _by_kind(theirs.reset_index(names="name").dropna(subset=metric)) if theirs is not None else []
            drawn = pd.DataFrame(lines).rename_axis("place").reset_index().dropna(subset=metric)
            above, below = drawn[drawn["place"] < border], drawn[drawn["place"] > border]
            axis.errorbar(above[metric], above["place"], xerr=spread(above, metric), fmt="o", color=SHADES[2], **POINTS)
            axis.plot(below[metric], below["place"], "D", markersize=3, markerfacecolor="white", color="0.4")
            axis.axhline(border - 0.5, color="0.4", linewidth=0.6)
            axis.set_yticks(range(len(lines)), [row["name"] for row in lines])
            for tick, row in zip(axis.get_yticklabels(), lines, strict=True):
                tick.set_fontweight("normal" if metric in row else "bold")
            axis.set(xlabel=LABELS[metric], title=f"{dataset.title()}, test, {ours['users'].iloc[0]:,} users")
            axis.set_ylim(len(lines) - 0.5, -0.5)
        marks = {"linestyle": "", "markersize": 3}
        handles = [
            Line2D([], [], marker="o", color=SHADES[2], label="measured here, 95 % interval", **marks),
            Line2D([], [], marker="D", markerfacecolor="white", color="0.4", label="published", **marks),
        ]
        figure.legend(handles=handles, loc="outside upper center", ncols=2)
    return figure


def _by_kind(frame: pd.DataFrame) -> list[dict]:
    """The rows of each kind under one that has just the kind's name."""
    lines = []
    for kind in published.KINDS:
        rows = frame[frame["kind"] == kind].to_dict("records")
        lines += [{"name": kind}, *rows] if rows else []
    return lines


def _all_users(tables: list[dict], split: str) -> pd.DataFrame:
    rows = [
        row
        | {"dataset": table["dataset"], "name": _name(row["method"], table["parameters"])}
        | {"kind": KINDS.get(row["method"], published.SEARCH)}
        for table in tables
        if not table["parameters"].get("new_item_fraction")  # which learn from less
        for row in table["rows"]
        if row.get("segment") == "all" and row["split"] == split
    ]
    return pd.DataFrame(rows).drop_duplicates(["dataset", "name"])


def number_of_queries(tables: list[dict], metric: str = "recall@5") -> plt.Figure:
    """A metric against the number of generated texts used, by ranking and retriever, one panel a run (`_panels`)."""
    tables = _panels([table for table in tables if table.get("ablation")])
    with plt.rc_context(STYLE):
        columns = min(len(tables), 3)
        lines = -(-len(tables) // columns)
        figure, axes = plt.subplots(
            lines, columns, figsize=(PAGE, 0.4 + 1.7 * lines), layout="constrained", squeeze=False, sharey=True
        )
        for axis in axes.flat[len(tables) :]:
            axis.remove()
        for axis, table in zip(axes.flat, tables, strict=False):
            groups = pd.DataFrame(table["ablation"]).groupby(["ranking", "retriever"], sort=False)
            for (names, some), marker, shade in zip(groups, "os^", SHADES, strict=False):
                look = {"marker": marker, "markersize": 3, "linewidth": 1, "color": shade, "label": ", ".join(names)}
                low, high = some[f"{metric}_low"], some[f"{metric}_high"]
                axis.plot(some["queries"], some[metric], **look)
                axis.fill_between(some["queries"], low, high, alpha=0.15, color=shade)
            axis.set(xlabel="generated texts used", title=textwrap.fill(_panel(table), 36))
            axis.set_xticks(sorted({row["queries"] for row in table["ablation"]}))
        highest = max(row[f"{metric}_high"] for table in tables for row in table["ablation"])
        axes[0, 0].set_ylim(0, 1.05 * highest)
        for axis in axes[:, 0]:
            axis.set_ylabel(LABELS[metric])
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return figure


def retrievers(tables: list[dict], metric: str = "recall@5") -> plt.Figure:
    """A metric of all generated texts by ranking, retriever and encoder, one row of points a run."""
    points, runs = [], _panels([table for table in tables if table.get("ablation")])
    for place, table in enumerate(runs):
        frame = pd.DataFrame(table["ablation"])
        frame = frame[frame["queries"] == frame["queries"].max()].assign(place=place)
        encoder = table["parameters"]["encoder"]
        with_encoder = {"dense": f"dense ({encoder})", "both": f"both ({encoder})", "bm25": "BM25"}
        points.append(frame.assign(label=frame["ranking"] + ", " + frame["retriever"].map(with_encoder)))
    frame = pd.concat(points)
    labels = list(frame["label"].unique())
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(COLUMN, 0.9 + 0.45 * len(runs)), layout="constrained")
        for number, label in enumerate(labels):
            some = frame[frame["label"] == label]
            shift = 0.6 * ((number + 0.5) / len(labels) - 0.5)
            xerr = spread(some, metric)
            axis.errorbar(some[metric], some["place"] + shift, xerr=xerr, label=label, **_look(number))
        axis.set(xlabel=f"{LABELS[metric]}, 95 % intervals", xlim=(0, None))
        axis.set_yticks(range(len(runs)), [textwrap.fill(_panel(table), 22) for table in runs])
        axis.set_ylim(len(runs) - 0.5, -0.5)
        figure.legend(*axis.get_legend_handles_labels(), loc="outside upper center", ncols=1)
    return figure


def segments(tables: list[dict], metric: str = "recall@5", of: tuple[str, ...] = TOLD) -> plt.Figure:
    """A metric by user segment and method, one panel a run; new items, where some were held out, are the last group."""
    runs = _panels([table for table in tables if any(row.get("segment") == COLD_START for row in table["rows"])])
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            len(runs), 1, figsize=(PAGE, 0.5 + 1.3 * len(runs)), layout="constrained", squeeze=False
        )
        for axis, table in zip(axes[:, 0], runs, strict=True):
            frame = pd.DataFrame(table["rows"])
            frame = frame[frame["users"] > 0]
            groups = list(frame["segment"].unique())
            for number, method in enumerate(of):  # the same look in every panel, also where a run lacks some
                some = frame[frame["method"] == method].set_index("segment").reindex(groups).dropna(subset=[metric])
                if some.empty:
                    continue
                places = np.array([groups.index(group) for group in some.index])
                places, yerr = places + 0.7 * ((number + 0.5) / len(of) - 0.5), spread(some, metric)
                axis.errorbar(places, some[metric], yerr=yerr, label=NAMES[method], **_look(number))
            users = frame.drop_duplicates("segment").set_index("segment")["users"]
            axis.set_xticks(range(len(groups)), [f"{group}\n{users[group]:,} users" for group in groups])
            axis.set(ylabel=LABELS[metric], title=_panel(table), ylim=(0, None))
            axis.grid(visible=False, axis="x")
        figure.legend(**_labels_of(axes), loc="outside upper center", ncols=len(of))
    return figure


def cost(tables: list[dict], metric: str = "recall@5") -> plt.Figure:
    """A metric of all test users against the minutes that it took, training included, one panel a dataset.

    Of a run, the minutes are those of fine-tuning, indexing and retrieving; of the baselines other than SASRec, which
    are measured together, those of all of them. Of runs that rank the same texts the first counts (see `_panels`):
    others may rest on weights or on a SASRec that were made elsewhere.
    """
    timed = [table for table in tables if "seconds" in table]
    rivals = [table for table in timed if BASELINES in table["seconds"]]
    runs = _panels([table for table in timed if table not in rivals])
    frame = pd.DataFrame([row for table in [*rivals, *runs] for row in _costs(table)])
    datasets, names = list(frame["dataset"].unique()), list(frame["name"].unique())
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            1, len(datasets), figsize=(PAGE, 2.4), layout="constrained", squeeze=False, sharex=True, sharey=True
        )
        for axis, dataset in zip(axes[0], datasets, strict=True):
            for number, name in enumerate(names):
                some = frame[(frame["dataset"] == dataset) & (frame["name"] == name)]
                if len(some):
                    yerr = spread(some, metric)
                    axis.errorbar(some["minutes"], some[metric], yerr=yerr, label=name, **_look(number))
            axis.set(xlabel="minutes, training included", title=f"{dataset.title()}, test", xscale="log")
            axis.xaxis.set_major_formatter("{x:g}")
        axes[0, 0].set(ylabel=LABELS[metric], ylim=(0, 1.05 * frame[f"{metric}_high"].max()))
        figure.legend(**_labels_of(axes), loc="outside upper center", ncols=3)
    return figure


def _labels_of(axes: np.ndarray) -> dict:
    """Each label of any panel once, for a legend of all."""
    shown = {label: mark for axis in axes.flat for mark, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    return {"handles": list(shown.values()), "labels": list(shown)}


def _costs(table: dict) -> list[dict]:
    seconds = table["seconds"]
    if BASELINES in seconds:
        taken = {"item-knn": seconds[BASELINES], SASREC: seconds.get("SASRec")}
    else:
        taken = dict.fromkeys((GLOSS_PAPER, GLOSS), sum(seconds[stage] for stage in (FINE_TUNE, INDEX, RETRIEVE)))
    rows = _all_users([table], "test").to_dict("records")
    return [row | {"minutes": taken[row["method"]] / 60} for row in rows if taken.get(row["method"])]


def _look(number: int) -> dict:
    return {"fmt": "os^Dv<>"[number % 7], "color": SHADES[number % len(SHADES)], **POINTS}


def _name(method: str, told: dict) -> str:
    """What a method is called beside those of other runs."""
    if method not in (GLOSS, GLOSS_PAPER):
        return NAMES.get(method, method)
    ranking = told["ranking"] + _weights(told) if method == GLOSS else "paper's rule"
    return f"GLoSS {_model(told)}, {told['decoding']}, {ranking}"


def _model(told: dict) -> str:
    return told["base_model"].split("/")[-1]


def _weights(told: dict) -> str:
    of_ours = {None: "", "params/ranking/weights.yaml": "", "params/ranking/weights-sasrec.yaml": " with SASRec"}
    return of_ours.get(told.get("ranking_weights"), ", own weights")


def _panels(tables: list[dict]) -> list[dict]:
    """Of runs that differ in nothing but how they rank the same texts, the first."""
    first = {}
    for table in tables:
        first.setdefault((_panel(table), table["parameters"].get("encoder")), table)
    return list(first.values())


def _panel(table: dict) -> str:
    told, split = table["parameters"], table["rows"][0]["split"]
    new = told.get("new_item_fraction")
    held_out = f", {new:.0%} of items new" if new else ""
    return f"{table['dataset'].title()}, {_model(told)}, {told['decoding']} decoding, {split}{held_out}"


def methods_table(tables: list[dict]) -> pd.DataFrame:
    """Every measured row of all users: dataset, split, method, users, metrics with intervals, from which table."""
    rows = []
    for table in tables:
        for row in table["rows"]:
            if row.get("segment", "all") == "all":
                dataset = row.get("dataset") or table["dataset"]
                rows.append({"texts": row.get("texts", ""), "from": table["name"]} | row | {"dataset": dataset})
    frame = pd.DataFrame(rows)
    shown = frame[["dataset", "split", "method", "texts", "users", "from"]].copy()
    for metric in METRICS:
        shown[LABELS[metric]] = with_interval(frame, metric)
    return shown


def save_table(frame: pd.DataFrame, folder: Path, name: str) -> pd.DataFrame:
    """Write a table as CSV and as LaTeX (booktabs)."""
    with write_whole(folder / f"{name}.csv") as part:
        frame.to_csv(part, index=False)
    with write_whole(folder / f"{name}.tex") as part:
        frame.style.hide(axis="index").format(escape="latex").to_latex(part, hrules=True)
    return frame
