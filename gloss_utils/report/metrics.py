"""Metrics by ir-measures: of each user, their means with intervals, and how they change with fewer texts or parts.

A ranking is a frame with the columns user, rank, item, score. `targets` holds the one item that each user should get.
No metric looks further than ten places: MRR@10 is the mean of 1 / place of the target, and 0 below the tenth. Rankings
may be shorter: those of the paper's rule have at most one item per text, by default five.
"""

import warnings
from collections.abc import Callable, Collection, Iterable
from itertools import pairwise

import ir_measures
import numpy as np
import pandas as pd

from gloss_utils.rank.trec import as_run
from gloss_utils.report import segments, significance
from gloss_utils.report.beyond import BEYOND

# To add a metric, add a line here: all else follows.
MEASURES = {
    "recall@1": ir_measures.R @ 1,
    "recall@5": ir_measures.R @ 5,
    "recall@10": ir_measures.R @ 10,
    "ndcg@1": ir_measures.nDCG @ 1,
    "ndcg@5": ir_measures.nDCG @ 5,
    "ndcg@10": ir_measures.nDCG @ 10,
    "mrr@10": ir_measures.RR @ 10,
}
METRICS = list(MEASURES)
COMPARED = ("recall@5", "ndcg@5")  # the paper's metrics: what is tested and drawn
LEFT_OUT, KEPT_IN = SEEN = ("left out", "kept in")  # what each method does with items that the user already has
# GLoSS by the run's own ranking, by the paper's rule, and, beside learned, by hybrid; where the model is asked, also by
# histories alone
GLOSS, GLOSS_PAPER, GLOSS_HYBRID, GLOSS_HISTORIES = "gloss", "gloss-paper", "gloss-hybrid", "gloss-histories"


OFTEN = (0, 5, 10, 20, np.inf)  # how often targets occur, in the groups of `gained_by_group`


def targets_of(queries: pd.DataFrame) -> dict[str, str]:
    """The target of each user, from a frame with the columns user and target."""
    return dict(zip(queries["user"], queries["target"], strict=True))


def per_user_metrics(run: pd.DataFrame, targets: dict[str, str]) -> pd.DataFrame:
    """The metrics of each user, indexed by user in the order of `targets`; a user without a ranking scores 0.

    run: columns query_id, doc_id, score, as `rank.as_run` returns them.
    """
    # Who does not have the target scores 0: only the others are looked at, since ir-measures takes long for each user.
    hits = run.loc[run["doc_id"] == run["query_id"].map(targets), "query_id"].tolist()
    run, found = run[run["query_id"].isin(hits)], [targets[user] for user in hits]
    qrels = pd.DataFrame({"query_id": hits, "doc_id": found, "relevance": 1})
    names = {measure: name for name, measure in MEASURES.items()}
    found = pd.DataFrame(
        [(m.query_id, names[m.measure], m.value) for m in ir_measures.iter_calc(list(names), qrels, run)],
        columns=["user", "metric", "value"],
    )
    wide = found.pivot(index="user", columns="metric", values="value")
    return wide.reindex(index=list(targets), columns=METRICS).fillna(0.0)


def means(values: np.ndarray, seed: int, users: Iterable[str] | None = None) -> tuple[np.ndarray, ...]:
    """Means of the columns of `values` [users, columns], and the low and high ends of their 95 % intervals.

    NaN does not count. users: whose each row is, in case some have several targets (see `splits.owner`).
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a column of nothing but NaN
        mean = np.nanmean(values, axis=0) if len(values) else np.full(values.shape[1], np.nan)
    return mean, *significance.intervals(values, seed, None if users is None else significance.owners_of(users))


def users_of(ids: Collection[str]) -> int:
    """How many users these are, each with one target or several (see `splits.owner`)."""
    owners = significance.owners_of(ids)
    return len(ids) if owners is None else len(set(owners))


def rounded(names: list[str], mean: np.ndarray, low: np.ndarray, high: np.ndarray) -> dict:
    """Means and their intervals as a row of a result table: `<name>`, `<name>_low`, `<name>_high`; NaN becomes None."""
    keys = [f"{name}{end}" for end in ("", "_low", "_high") for name in names]
    values = np.concatenate([mean, low, high])
    return {key: None if np.isnan(value) else round(float(value), 6) for key, value in zip(keys, values, strict=True)}


def summarise(per_user: pd.DataFrame, split: str, seed: int) -> list[dict]:
    """`summarise_all` of a frame: user, method, seen, segment, new_item, metrics, and those of `beyond.BEYOND` where
    they are measured."""
    by_method = {one: rows.set_index("user") for one, rows in per_user.groupby(["method", "seen"], sort=False)}
    methods, measured = list(by_method), [name for name in (*METRICS, *BEYOND) if name in per_user]
    about = by_method[methods[0]].reset_index()

    def read(one: tuple) -> np.ndarray:
        return by_method[one][measured].reindex(about["user"]).to_numpy()

    return summarise_all(read, methods, measured, about, split, seed)


def summarise_all(
    read: Callable[[tuple], np.ndarray],
    methods: list[tuple],
    measured: list[str],
    about: pd.DataFrame,
    split: str,
    seed: int,
    at_once: int = 2**27,
) -> list[dict]:
    """A row for each method, seen items left out and kept in, and segment: means over users, with 95 % bootstrap
    intervals.

    Means are over targets, of which some users have several under `time_target: all`. All methods share the resamples.

    read: gives the values of a method, [users, measured]. about: user, segment, new_item. at_once: so many numbers are
    in memory, or one method's.
    """
    rows, step = [], max(1, at_once // max(1, len(about) * len(measured)))
    order = about["user"].argsort().to_numpy()
    about = about.iloc[order].reset_index(drop=True)
    for start in range(0, len(methods), step):
        some = methods[start : start + step]
        every = np.stack([read(one)[order] for one in some], axis=2)
        for segment, inside in segments.members(about).items():
            users = about.loc[inside, "user"]
            found = means(every[inside.to_numpy()].reshape(len(users), len(measured) * len(some)), seed, users)
            for place, (method, seen) in enumerate(some):
                row = {"method": method, "seen": seen, "split": split, "segment": segment}
                row |= {"users": users_of(users), "targets": len(users)}
                rows.append(row | rounded(measured, *(values[place :: len(some)] for values in found)))
    return sorted(rows, key=lambda row: methods.index((row["method"], row["seen"])))


def of_texts(number: int, values: np.ndarray, users: Iterable[str], split: str, seed: int) -> dict:
    """The row of a ranking from each user's first so many texts. values: [users, `METRICS`]."""
    row = {"queries": number, "split": split, "users": users_of(users)}
    return row | rounded(METRICS, *means(values, seed, users))


def lost(before: np.ndarray, values: np.ndarray, users: Iterable[str], seed: int) -> dict:
    """How many users there are, their metrics [users, `METRICS`], and what is lost against those before (paired over
    users)."""
    row = {"users": users_of(users)} | rounded(METRICS, *means(values, seed, users))
    return row | rounded([f"{metric}_lost" for metric in METRICS], *means(before - values, seed, users))


def gained_by_group(per_user: pd.DataFrame, method: str, other: str, popularity: pd.Series, seed: int) -> list[dict]:
    """What a method gains over another one, paired over users, by group: all, each segment, users by how often their
    target occurs in the training sequences (`popularity`, by user).

    per_user: user, method, segment, new_item, metrics. Each row: group, users, the method's metrics and the gains.
    """
    wide = {name: per_user[per_user["method"] == name].set_index("user") for name in (method, other)}
    about, often = wide[method], popularity.reindex(wide[method].index)
    groups = {name: inside.to_numpy() for name, inside in segments.members(about).items()}
    for low, high in pairwise(OFTEN):
        name = f"target occurs {low} to {high - 1} times" if np.isfinite(high) else f"target occurs {low} times or more"
        groups[name] = ((often >= low) & (often < high)).to_numpy()
    rows = []
    for group, inside in groups.items():
        users = about.index[inside]
        values, before = (wide[name].loc[users, METRICS].to_numpy() for name in (method, other))
        row = {"group": group, "users": users_of(users)} | rounded(METRICS, *means(values, seed, users))
        rows.append(row | rounded([f"{metric}_gained" for metric in METRICS], *means(values - before, seed, users)))
    return [row for row in rows if row["users"]]


def by_new_target(ranking: pd.DataFrame, targets: dict[str, str], new: set[str], metric: str, seed: int) -> list[dict]:
    """A metric of the users whose target is among the `new` items, and of the others: group, users, mean, low, high.

    Targets of one user are drawn together (see `splits.owner`).
    """
    values = per_user_metrics(as_run(ranking), targets)[metric]
    is_new, rows = values.index.map(targets).isin(new), []
    for group, inside in (("new targets", is_new), ("other targets", ~is_new)):
        some = values[inside]
        mean, low, high = (float(each[0]) for each in means(some.to_numpy()[:, None], seed, some.index))
        rows.append({"group": group, "users": users_of(some.index), "mean": mean, "low": low, "high": high})
    return rows
