"""Figures of result tables (see `tables`). A notebook of one run gives a list of one table.

Each function draws the tables that have what it shows, and returns None where none has. Measured values are filled and
have their 95 % intervals; published ones are hollow and stand apart.
"""

import re
import textwrap
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn.objects as so
from matplotlib.ticker import MaxNLocator

from gloss_utils.report import plots, published
from gloss_utils.report.beyond import COVERAGE, K
from gloss_utils.report.metrics import COMPARED, GLOSS, GLOSS_HISTORIES, GLOSS_HYBRID, GLOSS_PAPER, KEPT_IN
from gloss_utils.report.plots import COLUMN, DOTS, LINES, PAGE, SHADES, SideBySide
from gloss_utils.report.segments import COLD_START
from gloss_utils.report.tables import LABELS, one_protocol, shown_as

RANKINGS = {
    "paper": "paper's rule",
    "fused": "fused",
    "hybrid": "hybrid",
    "hybrid without generated texts": "hybrid without the texts",
    "learned": "learned",
}
METRIC = COMPARED[0]  # in figures of one metric
IN_SEGMENTS = ("lis-dense", "item-knn", "sasrec", GLOSS_PAPER, GLOSS)
BASELINES, LEARNED = "all but SASRec", "learned"  # whose seconds `benchmarks.baselines` measures
RUN_STAGES = ("02_fine_tune", "03_build_index", "04_retrieve")  # whose seconds are the cost of a run


def methods(tables: list[dict], metrics: tuple[str, ...] = (METRIC,)) -> plt.Figure | None:
    """Metrics of all users by method, one panel for each dataset and metric: measured, and below a line published ones.

    Methods whose weights were fitted on these users' targets are marked as in-sample.
    """
    measured = pd.DataFrame([row for table in tables for row in _of_all_users(table)])
    if measured.empty:
        return None
    measured = measured.drop_duplicates(["dataset", "name"])
    lines = [_lines(some, metrics) for _, some in measured.groupby("dataset", sort=False)]
    frame = plots.by_metric(pd.concat(lines), {metric: LABELS[metric] for metric in metrics}).dropna(subset="mean")
    frame = frame.fillna({"low": frame["mean"], "high": frame["mean"]})  # published without intervals
    ours, theirs = labels = ("measured here, 95 % interval", "published")
    frame["label"] = np.where(frame["measured"], *labels)
    frame["panel"] = frame["panel"] + "\n" + frame["metric"]
    plot = plots.with_intervals(frame, DOTS, along="x", y="place", fill="label").facet("panel")
    plot = plot.share(x=len(metrics) == 1, y=False).limit(x=(0, None)).label(x="", y="")
    plot = plot.scale(
        color={ours: SHADES[2], theirs: "0.4"}, marker={ours: "o", theirs: "D"}, fill={ours: True, theirs: False}
    )
    figure = plots.draw(plot, (PAGE, 0.9 + 0.128 * max(map(len, lines))), ncols=2)
    panels = [(here, metric) for metric in metrics for here in lines]
    for axis, (here, metric) in zip(figure.axes, panels, strict=True):
        axis.set_yticks(here["place"], here["name"] if metric == metrics[0] else [""] * len(here))
        for tick, kind in zip(axis.get_yticklabels(), here["kind"], strict=True):
            tick.set_fontweight("bold" if pd.isna(kind) else "normal")
        axis.axhline(here["measured"].sum() - 0.5, color="0.4", linewidth=0.6)
        axis.set_ylim(len(here) - 0.5, -0.5)
    return figure


def _lines(measured: pd.DataFrame, metrics: tuple[str, ...]) -> pd.DataFrame:
    """The lines of a dataset's panel: each kind of method, and below it its methods; first the measured ones, then the
    published ones."""
    first = measured.iloc[0]
    theirs = published.results(first["dataset"], first["split"], first["holdout"])
    if theirs is None:
        theirs = pd.DataFrame(columns=["kind", *metrics])
    theirs = theirs.reset_index(names="name").dropna(subset=list(metrics), how="all")
    lines = []
    for frame, is_ours in ((measured, True), (theirs, False)):
        for kind, rows in frame.groupby(pd.Categorical(frame["kind"], published.KINDS), observed=True):
            lines += [{"name": kind, "measured": is_ours}, *rows.assign(measured=is_ours).to_dict("records")]
    panel = f"{_dataset(first['dataset'])}, {first['split']}, {first['users']:,} users"
    return pd.DataFrame(lines).assign(panel=panel, place=range(len(lines)))


def _of_all_users(table: dict) -> list[dict]:
    """The rows of all users, each with its kind and what it is called beside those of other runs."""
    parameters, rows = table["parameters"], []
    of_all = [row for row in table["rows"] if row.get("segment") == "all"]
    own = parameters.get("ranking_weights") not in (None, "params/ranking/weights.yaml")
    for row in one_protocol(of_all):
        name, kind = shown_as(row["method"])
        if row["method"] == GLOSS_PAPER:
            name = f"GLoSS {_texts(table)}, paper's rule"
        elif row["method"] == GLOSS_HYBRID:
            name = f"GLoSS {_texts(table)}, hybrid"
        elif row["method"] == GLOSS:
            ranking = parameters.get("ranking", "own ranking")
            weights = ", own weights" if own and ranking == "hybrid" else ""
            name = f"GLoSS {_texts(table)}, {ranking}{weights}"
        name += f", {row['loss']}" if row.get("loss") else ""
        name += row["note"] + (" (in-sample)" if row.get("in_sample") else "")
        about = {"dataset": table["dataset"], "holdout": parameters.get("holdout", "leave_one_out")}
        rows.append(row | about | {"name": name, "kind": kind})
    return rows


def _texts(table: dict) -> str:
    """Whose texts a run ranks: those of a file, or of a model under a kind of decoding; else the table's own name."""
    parameters = table["parameters"]
    if parameters.get("queries_file"):
        return Path(parameters["queries_file"]).name.split(".")[0]
    if not {"base_model", "decoding"} <= set(parameters):
        return table["name"]
    return f"{parameters['base_model'].split('/')[-1]}, {parameters['decoding']}"


def rankings(tables: list[dict]) -> plt.Figure | None:
    """The same generated texts under each ranking (rows of `benchmarks.ranking`), one group of points per file."""
    rows = [row for table in tables for row in table["rows"] if "texts" in row and row["method"] in RANKINGS]
    if not rows:
        return None
    metrics = {metric: f"{LABELS[metric]}, {rows[0]['split']}" for metric in COMPARED}
    frame = plots.by_metric(pd.DataFrame(rows), metrics)
    frame["label"] = frame["method"].map(RANKINGS)
    frame["group"] = frame["texts"].map(_file) + frame["users"].map("\n{:,} users".format)
    plot = plots.with_intervals(frame, DOTS, SideBySide(), x="group").facet("metric").share(y=False)
    return plots.draw(plot.limit(y=(0, None)).label(x="", y=""), (PAGE, 2.1), ncols=len(RANKINGS))


def _file(name: str) -> str:
    """A file of texts in words where it is named like beauty-llama-1b.validation.json.gz; else its name as it is."""
    parts = re.fullmatch(r"([a-z]+)-([a-z]+)-([0-9]+b)", name.split(".")[0])
    return f"{parts[1].title()}, {parts[2].title()} {parts[3].upper()}" if parts else name


def parts(tables: list[dict]) -> plt.Figure | None:
    """What the run's ranking loses without each of its parts (paired differences), one row of panels per run."""
    frame = _of_runs(tables, "parts", {f"{metric}_lost": LABELS[metric] for metric in COMPARED})
    if frame.empty:
        return None
    frame = frame[frame["left_out"] != "none"].assign(label="lost without it, 95 % interval")
    plot = plots.with_intervals(frame, DOTS, along="x", y="left_out").facet("metric", "run").label(x="", y="")
    figure = plots.draw(plot, (PAGE, 0.9 + 1.2 * frame["run"].nunique()))
    for axis in figure.axes:
        axis.axvline(0, color="0.4", linewidth=0.8)
        axis.title.set_text("\n".join(textwrap.fill(part, 36) for part in axis.get_title().split(" | ")))
    return figure


def tie_orders(tables: list[dict]) -> plt.Figure | None:
    """NDCG@5 of the paper's rule over random orders of equal scores, and in the run's own order, one panel per run."""
    runs = {_title(table): table for table in _distinct(tables, "ties")}
    if not runs:
        return None
    frame = pd.concat([pd.DataFrame({"run": textwrap.fill(run, 36), "ties": runs[run]["ties"]}) for run in runs])
    plot = so.Plot(frame.reset_index(), x="ties").facet("run", wrap=3).add(so.Bars(color=SHADES[0]), so.Hist(bins=20))
    plot = plot.label(x="NDCG@5 of the paper's rule\n(dashed: in this run's order)", y="random orders")
    figure = plots.draw(plot, _size(len(runs)))
    for axis, table in zip(figure.axes, runs.values(), strict=True):
        of_all = (row for row in table["rows"] if row["method"] == GLOSS_PAPER and row["segment"] == "all")
        ours = next(row["ndcg@5"] for row in of_all if row.get("seen", KEPT_IN) == KEPT_IN)  # as the orders are
        axis.axvline(ours, color="black", linestyle="--")
        axis.yaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def number_of_queries(tables: list[dict]) -> plt.Figure | None:
    """Recall@5 against the number of generated texts used, by ranking, retriever and encoder, one panel per run."""
    frame = _ablation(tables, 36)
    if frame.empty:
        return None
    panels, numbers = frame["run"].nunique(), sorted(frame["queries"].unique())
    plot = plots.with_intervals(frame, LINES, x="queries").facet("run", wrap=3)
    plot = (
        plot.scale(x=so.Continuous().tick(at=numbers))
        .limit(y=(0, 1.05 * frame["high"].max()))
        .label(x="generated texts used", y=LABELS[METRIC])
    )
    return plots.draw(plot, _size(panels), ncols=min(panels, 3))


def retrievers(tables: list[dict]) -> plt.Figure | None:
    """Recall@5 of all generated texts by ranking, retriever and encoder, one row of points per run."""
    frame = _ablation(tables, 22)
    if frame.empty:
        return None
    frame = frame[frame["queries"] == frame.groupby(["run", "label"])["queries"].transform("max")]
    plot = plots.with_intervals(frame, DOTS, SideBySide(), along="x", y="run").limit(x=(0, None))
    plot = plot.label(x=f"{LABELS[METRIC]}, 95 % intervals", y="")
    return plots.draw(plot, (COLUMN, 0.9 + 0.45 * frame["run"].nunique()))


def _ablation(tables: list[dict], width: int) -> pd.DataFrame:
    """The ablation of all runs, their titles in lines of so many characters. Each encoder has labels of its own."""
    frame = _of_runs(tables, "ablation", {METRIC: LABELS[METRIC]})
    if frame.empty:
        return frame
    by = frame["retriever"].where(frame["retriever"] != "bm25", "BM25")
    by = by.where(by == "BM25", by + " (" + frame["encoder"] + ")")
    run = frame["run"].map(lambda title: textwrap.fill(title, width))
    return frame.assign(run=run, label=frame["ranking"] + ", " + by).drop_duplicates(["run", "label", "queries"])


def segments(tables: list[dict]) -> plt.Figure | None:
    """Recall@5 by user segment and method, one panel per run; users whose target is a new item are the last group."""
    measured = [table for table in tables if any(row.get("segment") == COLD_START for row in table["rows"])]
    measured = [table | {"rows": one_protocol(table["rows"])} for table in measured]
    frame = _of_runs(measured, "rows", {METRIC: LABELS[METRIC]})
    if frame.empty:
        return None
    frame = _labelled(frame[frame["users"] > 0])
    if frame.empty:
        return None
    frame["group"] = frame["segment"] + frame["users"].map("\n{:,} users".format)
    plot = plots.with_intervals(frame, DOTS, SideBySide(), x="group").facet(row="run").share(x=False, y=False)
    size = (PAGE, 0.5 + 1.3 * frame["run"].nunique())
    return plots.draw(plot.limit(y=(0, None)).label(x="", y=LABELS[METRIC]), size, ncols=len(IN_SEGMENTS))


def history_length(binned: pd.DataFrame) -> plt.Figure:
    """Recall@5 against history length for some methods; binned: as `segments.by_history_length` returns it."""
    bins = so.Continuous(trans="log").tick(at=sorted(binned["interactions"].unique())).label(like="{x:.0f}")
    plot = plots.with_intervals(_labelled(binned), LINES, x="interactions").limit(y=(0, None)).scale(x=bins)
    plot = plot.label(x="interactions per user (mean of a bin of equally many users)", y=LABELS[METRIC])
    return plots.draw(plot, (0.75 * PAGE, 2.6), ncols=3)


def favour(frame: pd.DataFrame, chosen: float) -> plt.Figure:
    """Recall@5 of users with a new target, and of the others, against how much new items are favoured; searches that do
    not favour them are level lines. frame: columns label, favour, group, mean, low, high. chosen: the run's favour."""
    plot = plots.with_intervals(frame, LINES, x="favour").facet("group").share(y=False).limit(y=(0, None))
    figure = plots.draw(plot.label(x="new_item_favour", y=LABELS[METRIC]), (0.75 * PAGE, 2.4), ncols=3)
    for axis in figure.axes:
        axis.axvline(chosen, color="0.4", linestyle="--", linewidth=0.8)
    return figure


def _labelled(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of the methods `IN_SEGMENTS`, with what each is called."""
    frame = frame[frame["method"].isin(IN_SEGMENTS)]
    return frame.assign(label=[shown_as(method)[0] for method in frame["method"]])


def coverage(tables: list[dict]) -> plt.Figure | None:
    """Recall@5 of all users against the share of the catalogue that is recommended to anybody, seen items left out, one
    panel per run."""
    measured = _distinct([table for table in tables if any(COVERAGE in row for row in table["rows"])])
    if not measured:
        return None
    rows = [row | {"run": textwrap.fill(_title(table), 36)} for table in measured for row in _of_all_users(table)]
    frame = plots.by_metric(pd.DataFrame(rows), {METRIC: LABELS[METRIC]})
    frame["label"] = [shown_as(method)[0] for method in frame["method"]]
    plot = plots.with_intervals(frame, DOTS, x=COVERAGE).facet("run", wrap=2)
    plot = plot.limit(x=(0, None), y=(0, None)).label(x=f"coverage@{K}, share of the catalogue", y=LABELS[METRIC])
    return plots.draw(plot, _size(len(measured), 2, 2.6), ncols=2 if len(measured) == 1 else 3)


def cost(tables: list[dict]) -> plt.Figure | None:
    """Recall@5 of all users against the minutes that it took, training included, one panel per dataset.

    The minutes of a run are those of fine-tuning, indexing and retrieving. The baselines other than SASRec are measured
    together, so that item-kNN has the minutes of all of them. Of runs that rank the same texts the first counts, for
    others may use weights that were fitted elsewhere.
    """
    timed = [table for table in tables if "seconds" in table]
    baselines = [table for table in timed if {BASELINES, LEARNED} & set(table["seconds"])]
    runs = _distinct([table for table in timed if set(RUN_STAGES) <= set(table["seconds"])])
    rows = [row for table in (*baselines, *runs) for row in _costs(table)]
    if not rows:
        return None
    frame = plots.by_metric(pd.DataFrame(rows), {METRIC: LABELS[METRIC]}).rename(columns={"name": "label"})
    frame["panel"] = frame["dataset"].map(_dataset) + ", " + frame["split"]
    plot = plots.with_intervals(frame, DOTS, x="minutes").facet("panel", wrap=2)
    plot = plot.scale(x=so.Continuous(trans="log").label(like="{x:g}")).limit(y=(0, 1.05 * frame["high"].max()))
    plot = plot.label(x="minutes, training included", y=LABELS[METRIC])
    return plots.draw(plot, _size(frame["panel"].nunique(), 2, 2.1), ncols=3)


def _costs(table: dict) -> list[dict]:
    seconds = table["seconds"]
    taken = {"item-knn": seconds.get(BASELINES), "sasrec": seconds.get("SASRec"), GLOSS_HISTORIES: seconds.get(LEARNED)}
    if set(RUN_STAGES) <= set(seconds):
        taken = dict.fromkeys((GLOSS_PAPER, GLOSS), sum(seconds[stage] for stage in RUN_STAGES))
    return [row | {"minutes": taken[row["method"]] / 60} for row in _of_all_users(table) if taken.get(row["method"])]


def _distinct(tables: list[dict], having: str = "rows") -> list[dict]:
    """The first of each group of runs that differ only in how they rank the same texts. Runs without `having` do not
    count."""
    first = {}
    for table in tables:
        if table.get(having):
            first.setdefault((_title(table), table["parameters"].get("encoder")), table)
    return list(first.values())


def _of_runs(tables: list[dict], name: str, metrics: dict[str, str]) -> pd.DataFrame:
    """The rows that distinct runs have under a name, once for each metric, with the run's title and its encoder."""
    rows = [
        row | {"run": _title(table), "encoder": table["parameters"].get("encoder") or "encoder not named"}
        for table in _distinct(tables, name)
        for row in table[name]
    ]
    return plots.by_metric(pd.DataFrame(rows), metrics) if rows else pd.DataFrame()


def _title(table: dict) -> str:
    """A run in words: dataset, texts, split, and the share of new items."""
    parameters = table["parameters"]
    generated = "decoding" in parameters and not parameters.get("queries_file")
    in_full = ", all weights trained" if parameters.get("tuning") == "full" else ""
    texts = _texts(table) + " decoding" * generated + in_full
    new = parameters.get("new_item_fraction")
    held_out = f", {new:.0%} of items new" if new else ""
    return f"{_dataset(table['dataset'])}, {texts}, {table['rows'][0]['split']}{held_out}"


def _dataset(name: str) -> str:
    """A dataset's name with a capital letter where it is one small word; else as it is."""
    return name.title() if re.fullmatch("[a-z]+", name) else name


def _size(panels: int, columns: int = 3, height: float = 1.7) -> tuple[float, float]:
    """Inches of a figure of so many panels, row by row."""
    return (COLUMN if panels == 1 else PAGE, 0.4 + height * -(-panels // columns))
