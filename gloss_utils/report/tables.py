"""Result tables for looking at, and for a paper as CSV and LaTeX.

A result table is a dict of what one run or benchmark measured. `rows` holds a dict for each method and segment: method,
split, segment, users, and each metric as `<metric>`, `<metric>_low`, `<metric>_high`. A run's table also has `dataset`,
`parameters`, `comparisons`, `ablation`, `parts`, `ties` and `seconds`.
"""

import textwrap
from html import unescape
from pathlib import Path

import pandas as pd
from pandas.io.formats.style import Styler

from gloss_utils.base.files import write_whole
from gloss_utils.report.metrics import COMPARED, GLOSS, GLOSS_HYBRID, GLOSS_PAPER
from gloss_utils.report.published import ID_BASED, LLM_BASED, OTHER, SEARCH

METHODS = {  # how each is shown, and its kind
    "popularity": ("popularity", ID_BASED),
    "lis-bm25": ("last item, BM25", SEARCH),
    "lis-dense": ("last item, dense", SEARCH),
    "lis-bm25-unseen": ("last item, BM25, unseen", SEARCH),
    "lis-dense-unseen": ("last item, dense, unseen", SEARCH),
    "item-knn": ("item-kNN", ID_BASED),
    "sasrec": ("SASRec", ID_BASED),
    GLOSS_PAPER: ("GLoSS, the paper's ranking", LLM_BASED),
    GLOSS_HYBRID: ("GLoSS, hybrid", LLM_BASED),
    GLOSS: ("GLoSS, this run's ranking", LLM_BASED),
}
LABELS = {"recall@5": "Recall@5", "ndcg@5": "NDCG@5"}


def shown_as(method: str) -> tuple[str, str]:
    """How a method is shown, and its kind; one that is not in `METHODS` by its own name."""
    return METHODS.get(method, (method, OTHER))


def with_interval(frame: pd.DataFrame, metric: str, sign: str = "") -> pd.Series:
    """A metric and its interval as text, "0.0500 [0.0450, 0.0600]"; sign: "+" shows the sign of numbers above 0."""
    shown = "{:%s.4f} [{:%s.4f}, {:%s.4f}]" % ((sign,) * 3)
    columns = frame[[metric, f"{metric}_low", f"{metric}_high"]]
    return pd.Series([shown.format(*row) for row in columns.to_numpy()], index=frame.index)


def methods(rows: list[dict], metrics: tuple[str, ...] = ("recall@1", "recall@5", "ndcg@5", "mrr@10")) -> pd.DataFrame:
    """The metrics of all users by method; methods that were fitted on these users' targets are marked.

    MRR@10 looks at the first ten items, and the paper's rule ranks at most `num_beams` (see `metrics`).
    """
    frame = pd.DataFrame([row for row in rows if row["segment"] == "all"]).set_index("method")
    frame.index = frame.index + frame["in_sample"].map({True: " (in-sample)", False: ""})
    return pd.DataFrame({"users": frame["users"].map("{:,}".format)} | {m: with_interval(frame, m) for m in metrics})


def segments(rows: list[dict], metric: str) -> pd.DataFrame:
    """A metric by method and segment."""
    frame = pd.DataFrame(rows)
    frame["shown"] = with_interval(frame.astype({f"{metric}{end}": float for end in ("", "_low", "_high")}), metric)
    frame["shown"] = frame["shown"].where(frame["users"] > 0, "no users")
    frame["column"] = frame["segment"] + frame["users"].map(" ({:,} users)".format)
    shown = frame.pivot(index="method", columns="column", values="shown")
    return shown.loc[frame["method"].unique(), frame["column"].unique()].rename_axis(columns="segment")


def comparisons(rows: list[dict]) -> pd.DataFrame:
    """The paired differences between `gloss` and every other method."""
    frame = pd.DataFrame(rows)
    frame["shown"] = with_interval(frame, "difference", "+") + frame["p_corrected"].map(", p = {:.4f}".format)
    wide = frame.pivot(index="other", columns="metric", values="shown")
    return wide.loc[frame["other"].unique(), frame["metric"].unique()].rename_axis(index="gloss against", columns=None)


def parts(rows: list[dict], metrics: tuple[str, ...] = COMPARED) -> pd.DataFrame:
    """The run's ranking without each of its parts."""
    frame = pd.DataFrame(rows).set_index("left_out").rename_axis("left out")
    lost = {f"{metric}, lost": with_interval(frame, f"{metric}_lost", "+") for metric in metrics}
    lost = {name: shown.where(shown.index != "none", "") for name, shown in lost.items()}
    return pd.DataFrame({metric: with_interval(frame, metric) for metric in metrics} | lost)


def text_weights(rows: list[dict]) -> pd.DataFrame:
    """How much the votes of generated texts count beside the learned score, by fold of users."""
    return pd.DataFrame(rows).rename_axis("fold of users")


def importances(rows: list[dict]) -> pd.DataFrame:
    """What the trees of `learned` gain by each signal, as a share of all."""
    frame = pd.DataFrame(rows)
    return frame.assign(gain=frame["gain"].map("{:.1%}".format)).set_index("signal")


def all_methods(tables: list[dict]) -> pd.DataFrame:
    """Every measured row of all users: dataset, split, method, users, metrics, and the table that it is from."""
    rows = [
        {"texts": "", "dataset": table.get("dataset"), "from": table["name"]} | row
        for table in tables
        for row in table["rows"]
        if row.get("segment", "all") == "all"
    ]
    frame = pd.DataFrame(rows)
    shown = {LABELS[metric]: with_interval(frame, metric) for metric in COMPARED}
    return frame[["dataset", "split", "method", "texts", "users", "from"]].assign(**shown)


def provenance(tables: list[dict]) -> pd.DataFrame:
    """Where the numbers of each table come from."""
    shown = pd.DataFrame([{name: table[name] for name in ("name", "command", "commit")} for table in tables])
    shown["made_from"] = [", ".join(table["inputs"].values()) for table in tables]
    return shown.set_index("name").rename_axis("table")


def save(frame: pd.DataFrame, folder: Path, name: str):
    """Write a frame as CSV and as LaTeX (booktabs)."""
    with write_whole(folder / f"{name}.csv") as part:
        frame.to_csv(part, index=False)
    with write_whole(folder / f"{name}.tex") as part:
        frame.style.hide(axis="index").format(escape="latex").to_latex(part, hrules=True)


def in_full(frame: pd.DataFrame) -> Styler:
    """A frame for looking at: no row or text is cut, numbers have three decimals, `&amp;` in a title is shown as &."""
    frame = frame.map(as_written).rename(index=as_written)
    return frame.style.format(precision=3, thousands=",", escape="html").format_index(escape="html")


def as_written(value):
    """A title as people write it: HTML entities, which raw files hold and models read, become their characters."""
    return unescape(value) if isinstance(value, str) else value


def wrapped(text: str) -> str:
    """A prompt with lines of at most 100 characters, for printing in a notebook."""
    lines = [(line, " " * len("Title: ") * line.startswith("Title: ")) for line in text.split("\n")]
    return "\n".join(textwrap.fill(line, 100, subsequent_indent=indent) for line, indent in lines)
