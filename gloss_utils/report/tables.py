"""Result tables for looking at, and for a paper as CSV and LaTeX.

A result table is a dict of what one run or benchmark measured. `rows` holds a dict for each method and segment: method,
seen (whether items that users already have are "left out" or "kept in"), split, segment, users, and each metric as
`<metric>`, `<metric>_low`, `<metric>_high`. A run's table also has `dataset`,
`parameters`, `comparisons`, `ablation`, `parts`, `ties` and `seconds`.
"""

import json
import textwrap
from html import unescape
from pathlib import Path

import numpy as np
import pandas as pd
from pandas.io.formats.style import Styler

from gloss_utils.base.files import write_whole
from gloss_utils.report.beyond import BEYOND, COVERAGE
from gloss_utils.report.metrics import COMPARED, GLOSS, GLOSS_HISTORIES, GLOSS_HYBRID, GLOSS_PAPER, LEFT_OUT
from gloss_utils.report.published import ID_BASED, LLM_BASED, OTHER, SEARCH

METHODS = {  # how each is shown, and its kind
    "popularity": ("popularity", ID_BASED),
    "lis-bm25": ("last item, BM25", SEARCH),
    "lis-dense": ("last item, dense", SEARCH),
    "item-knn": ("item-kNN", ID_BASED),
    "ease": ("EASE", ID_BASED),
    "star": ("STAR", SEARCH),
    "sasrec": ("SASRec", ID_BASED),
    GLOSS_PAPER: ("GLoSS, the paper's ranking", LLM_BASED),
    GLOSS_HYBRID: ("GLoSS, hybrid", LLM_BASED),
    GLOSS_HISTORIES: ("histories alone, learned", ID_BASED),
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


def one_protocol(rows: list[dict]) -> list[dict]:
    """The rows with seen items left out, and of a method that has none the others, which its name then says."""
    left_out = {row["method"] for row in rows if row.get("seen", LEFT_OUT) == LEFT_OUT}
    kept = (row for row in rows if row.get("seen", LEFT_OUT) == LEFT_OUT or row["method"] not in left_out)
    return [row | {"note": "" if row["method"] in left_out else ", seen in"} for row in kept]


def methods(rows: list[dict], metrics: tuple[str, ...] = ("recall@5", "ndcg@5", "recall@10", "mrr@10")) -> pd.DataFrame:
    """The metrics of all users by method, seen items left out and kept in; methods that were fitted on these users'
    targets are marked, and SASRec has its loss.

    MRR@10 looks at the first ten items, and the paper's rule ranks at most one per text (see `metrics`).
    """
    frame = _by_protocol(rows)
    shown = {name: with_interval(frame, name) for name in metrics}
    wide = pd.DataFrame(shown).unstack("seen").reindex(frame.index.unique("method"))
    wide = wide.reorder_levels([1, 0], axis=1)[
        [(seen, name) for seen in frame.index.unique("seen") for name in metrics]
    ]
    wide.columns = wide.columns.set_levels([f"seen items {seen}" for seen in wide.columns.levels[0]], level=0)
    users = frame["users"].groupby("method", sort=False).first().map("{:,}".format)
    wide.insert(0, ("", "users"), users)
    return wide.rename_axis(columns=[None, None])


def _by_protocol(rows: list[dict], segment: str = "all") -> pd.DataFrame:
    """The rows of a segment by method, as it is shown, and seen."""
    frame = pd.DataFrame([row for row in rows if row["segment"] == segment])
    loss = frame["loss"] if "loss" in frame else pd.Series(np.nan, frame.index)
    frame["method"] += loss.map(", {}".format, na_action="ignore").fillna("")
    frame["method"] += frame["in_sample"].map({True: " (in-sample)", False: ""})
    return frame.set_index(["method", "seen"])


def beyond_accuracy(rows: list[dict], segment: str = "all") -> pd.DataFrame:
    """Coverage, novelty, diversity and popularity by method, and seen items left out and kept in (see `beyond`).

    Coverage is of all users together, so that it has no interval over users.
    """
    frame = _by_protocol(rows, segment)
    shown = {COVERAGE: frame[COVERAGE].map("{:.1%}".format, na_action="ignore")}
    shown |= {name: with_interval(frame.astype(_floats(name)), name) for name in (*BEYOND, "popularity_bias")}
    return pd.DataFrame(shown).reset_index("seen").rename(columns={"seen": "seen items"})


def _floats(metric: str) -> dict[str, type]:
    return {f"{metric}{end}": float for end in ("", "_low", "_high")}


def segments(rows: list[dict], metric: str) -> pd.DataFrame:
    """A metric by method, seen items left out and kept in, and segment."""
    frame = pd.DataFrame(rows)
    frame["shown"] = with_interval(frame.astype(_floats(metric)), metric)
    frame["shown"] = frame["shown"].where(frame["users"] > 0, "no users")
    frame["column"] = frame["segment"] + frame["users"].map(" ({:,} users)".format)
    shown = frame.pivot(index=["method", "seen"], columns="column", values="shown")
    order = pd.MultiIndex.from_frame(frame[["method", "seen"]].drop_duplicates())
    return shown.loc[order, frame["column"].unique()].rename_axis(columns="segment")


def comparisons(rows: list[dict]) -> pd.DataFrame:
    """The paired differences between `gloss` and every other method, seen items left out and kept in."""
    frame = pd.DataFrame(rows)
    frame["shown"] = with_interval(frame, "difference", "+") + frame["p_corrected"].map(", p = {:.4f}".format)
    frame["column"] = frame["metric"] + ", seen items " + frame["seen"]
    wide = frame.pivot(index="other", columns="column", values="shown")
    return wide.loc[frame["other"].unique(), frame["column"].unique()].rename_axis(index="gloss against", columns=None)


def parts(rows: list[dict]) -> pd.DataFrame:
    """The run's ranking without each of its parts."""
    frame = pd.DataFrame(rows).set_index("left_out").rename_axis("left out")
    lost = {f"{metric}, lost": with_interval(frame, f"{metric}_lost", "+") for metric in COMPARED}
    lost = {name: shown.where(shown.index != "none", "") for name, shown in lost.items()}
    return pd.DataFrame({metric: with_interval(frame, metric) for metric in COMPARED} | lost)


def gained(rows: list[dict]) -> pd.DataFrame:
    """What the language model adds to histories alone, by group of users."""
    frame = pd.DataFrame(rows).set_index("group")
    shown = {"users": frame["users"]} | {metric: with_interval(frame, metric) for metric in COMPARED}
    return pd.DataFrame(
        shown | {f"{metric}, gained": with_interval(frame, f"{metric}_gained", "+") for metric in COMPARED}
    )


def shuffled(rows: list[dict]) -> pd.DataFrame:
    """What each method loses where it ranks from shuffled histories, seen items left out."""
    frame = pd.DataFrame(rows).set_index("method")
    shown = {f"{metric}, shuffled": with_interval(frame, metric) for metric in COMPARED}
    return pd.DataFrame(shown | {f"{metric}, lost": with_interval(frame, f"{metric}_lost", "+") for metric in COMPARED})


def over_seeds(rows: list[dict], by: tuple[str, ...] = ("method", "seen")):
    """What the seed of a training changes: mean, standard deviation and range of a metric over seeds.

    rows: of all users, with `seed`, and what they are grouped `by`. Groups of one seed are left out; a frame.
    """
    found, frame = [], pd.DataFrame(rows)
    for names, some in frame.groupby(list(by), sort=False) if rows else ():
        if some["seed"].nunique() < 2:
            continue
        row = dict(zip(by, names, strict=True)) | {"seeds": ", ".join(map(str, sorted(some["seed"].unique())))}
        for metric in COMPARED:
            values = some.drop_duplicates("seed")[metric]
            row[metric] = f"{values.mean():.4f} ± {values.std():.4f} ({values.min():.4f} to {values.max():.4f})"
        found.append(row)
    return pd.DataFrame(found)


def sasrec_trials(rows: list[dict]) -> pd.DataFrame:
    """What was tried for SASRec within the budget of the search, the best first."""
    frame = pd.DataFrame(rows).sort_values("ndcg@10", ascending=False, kind="stable")
    return frame.set_index("trial")


def text_weights(rows: list[dict]) -> pd.DataFrame:
    """How much the votes of generated texts count beside the learned score, by fold of users; where the model is asked,
    the weight of each of `asked.FEATURES` and how far the model is heeded."""
    frame = pd.DataFrame(rows).rename_axis("fold of users")
    return frame if len(frame) > 1 else frame.set_axis(["all users"])


def importances(rows: list[dict]) -> pd.DataFrame:
    """What the trees of `learned` gain by each signal, as a share of all."""
    frame = pd.DataFrame(rows)
    return frame.assign(gain=frame["gain"].map("{:.1%}".format)).set_index("signal")


def all_methods(tables: list[dict]) -> pd.DataFrame:
    """Every measured row of all users: dataset, split, method, seen items, users, metrics, and the table it is from."""
    frame = pd.DataFrame(_of_all_users(tables))
    shown = {LABELS[metric]: with_interval(frame, metric) for metric in COMPARED}
    return frame[["dataset", "split", "method", "seen", "texts", "users", "from"]].assign(**shown)


def seeds_of_runs(tables: list[dict]) -> pd.DataFrame:
    """The spread over seeds of runs whose other parameters are the same, by dataset, split, method and seen items."""
    rows = []
    for row, parameters in ((row, row["parameters"]) for row in _of_all_users(tables)):
        rest = {name: value for name, value in parameters.items() if name != "seed"}
        if "seed" in parameters:
            rows.append(row | {"seed": parameters["seed"], "same": json.dumps(rest, sort_keys=True)})
    found = over_seeds(rows, ("dataset", "split", "method", "seen", "texts", "same"))
    return found.drop(columns="same", errors="ignore")


def _of_all_users(tables: list[dict]) -> list[dict]:
    return [
        {"texts": "", "seen": "", "dataset": table.get("dataset"), "from": table["name"]}
        | row
        | {"parameters": table["parameters"]}
        for table in tables
        for row in table["rows"]
        if row.get("segment", "all") == "all"
    ]


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
