"""How sure a number is: bootstrap intervals of means over users, paired tests of differences, and the noise of ties."""

import warnings
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import pandas as pd

from gloss_utils.data import splits

RESAMPLES = 1000
PERMUTATIONS, SIGNS_AT_A_TIME = 9999, 2**26
MANY = 2**13  # differences, of which few are not the same: metrics of one target have a dozen values
TIE_ORDERS = 100


def intervals(values: np.ndarray, seed: int, owners: Sequence | None = None) -> tuple[np.ndarray, np.ndarray]:
    """95 % bootstrap intervals (percentile, over users) of the column means of `values` [rows, columns].

    All columns share the resamples. owners: whose each row is, where users have several; they are drawn with all their
    rows. NaN does not count.
    """
    if not len(values):
        return np.full(values.shape[1], np.nan), np.full(values.shape[1], np.nan)
    counted = ~np.isnan(values)
    whole = owners is None and counted.all()
    sums = by_owner(values if counted.all() else np.where(counted, values, 0.0), owners)
    counts = None if whole else by_owner(counted.astype(float), owners)
    rng, users = np.random.default_rng(seed), len(sums)
    means = []
    for _ in range(RESAMPLES):
        times = np.bincount(rng.integers(users, size=users), minlength=users)
        of = users if whole else times @ counts
        with np.errstate(invalid="ignore"):
            means.append(times @ sums / of)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a column of nothing but NaN
        low, high = np.nanpercentile(np.stack(means), [2.5, 97.5], axis=0)
    return low, high


def by_owner(values: np.ndarray, owners: Sequence | None) -> np.ndarray:
    """The sums of each owner's rows, in the order in which owners first come; without owners, the rows as they are."""
    if owners is None:
        return values
    codes, names = pd.factorize(np.asarray(owners, dtype=object))
    if len(names) == len(codes):
        return values
    found = np.zeros((len(names), *values.shape[1:]))
    np.add.at(found, codes, values)
    return found


def compare(
    read: Callable[[str, str], np.ndarray],
    users: list[str],
    methods: list[str],
    method: str,
    metrics: Iterable[str],
    seed: int,
) -> list[dict]:
    """Is a method better than each other one? Paired over users, two-sided, corrected for the number of comparisons.

    read: gives a method's values [users] of a metric. users: ids, in that order. methods: names, `method` among them.
    metrics: names. Each row: method, other, metric, difference of the means (method
    - other) with its 95 % bootstrap interval, p (permutation test: the two values of each user are swapped at random,
    of a user with several targets all together) and p_corrected (Holm, over all rows).
    """
    rows, others = [], [other for other in methods if other != method]
    for metric in metrics:
        wide = pd.DataFrame({name: read(name, metric) for name in methods}, index=pd.Index(users)).sort_index()
        owners = owners_of(wide.index)
        differences = wide[[method]].to_numpy() - wide[others].to_numpy()
        for other, values, low, high in zip(others, differences.T, *intervals(differences, seed, owners), strict=True):
            found = {"difference": values.mean(), "difference_low": low, "difference_high": high}
            found = {name: round(float(value), 6) for name, value in found.items()}
            rows.append(
                {
                    "method": method,
                    "other": other,
                    "metric": metric,
                    **found,
                    "p": paired_p(by_owner(values, owners), seed),
                }
            )
    for row, corrected in zip(rows, holm([row["p"] for row in rows]), strict=True):
        row["p_corrected"] = corrected
    return rows


def owners_of(users: Iterable[str]) -> list[str] | None:
    """Whose target each of these is, where some users have several (see `splits.owner`); else null."""
    if not any(splits.FURTHER in user for user in users):
        return None
    owners = list(map(splits.owner, users))
    return None if len(set(owners)) == len(owners) else owners


def paired_p(differences: np.ndarray, seed: int) -> float:
    """Two-sided p of a mean difference of 0, by random signs of the differences [users]."""
    from scipy.stats import permutation_test  # takes a second to import, and only `evaluate` tests

    differences = differences[differences != 0]  # a difference of 0 is the same under any sign
    if len(differences) < 2:
        return 1.0
    if len(differences) > MANY:
        return _paired_p_of_many(differences, np.random.default_rng(seed))
    found = permutation_test(
        (differences,),
        lambda values, axis: values.mean(axis=axis),
        permutation_type="samples",
        n_resamples=PERMUTATIONS,
        batch=max(1, min(500, SIGNS_AT_A_TIME // len(differences))),
        vectorized=True,
        rng=np.random.default_rng(seed),
    )
    return float(found.pvalue)


def _paired_p_of_many(differences: np.ndarray, rng: np.random.Generator) -> float:
    """The same test, whose signs are drawn for all users of one difference at once: how many of them are positive."""
    size, users = np.unique(np.abs(differences).round(12), return_counts=True)
    null = (2 * rng.binomial(users, 0.5, (PERMUTATIONS, len(size))) - users) @ size
    observed, slack = differences.sum(), 1e-9 * np.abs(differences).sum()
    tails = (np.count_nonzero(null >= observed - slack), np.count_nonzero(null <= observed + slack))
    return min(1.0, 2 * (min(tails) + 1) / (PERMUTATIONS + 1))


def holm(p: list[float]) -> list[float]:
    """Holm's correction: p values that hold together for all comparisons, in the order given."""
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(np.asarray(p)[order] * (len(p) - np.arange(len(p))))
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(stepped, 1.0)
    return corrected.tolist()


def tie_orders(found: pd.DataFrame, targets: dict[str, str], seed: int) -> np.ndarray:
    """NDCG@5 of the paper's rule under `TIE_ORDERS` random orders of equal scores, over all users of `targets`.

    found: the paper's candidates, as `rank.nearest_items` returns them; the last score of an item counts.
    """
    return tie_orders_of(*beside_target(found, targets), len(targets), seed)


def beside_target(found: pd.DataFrame, targets: dict[str, str]) -> tuple[np.ndarray, np.ndarray]:
    """How many items stand above the target, and how many share its score, for each user who has it among these."""
    last = found.drop_duplicates(["user", "item"], keep="last")
    hit = last[last["item"] == last["user"].map(targets)]
    beside = hit.merge(last, on="user", suffixes=("", "_other"))
    above = (beside["score_other"] > beside["score"]).groupby(beside["user"], sort=False).sum().to_numpy()
    equal = (beside["score_other"] == beside["score"]).groupby(beside["user"], sort=False).sum().to_numpy()
    return above, equal


def tie_orders_of(above: np.ndarray, equal: np.ndarray, users: int, seed: int) -> np.ndarray:
    """`tie_orders` from what `beside_target` found. users: all, with their target or without."""
    drawn = np.random.default_rng(seed).random((TIE_ORDERS, len(above)))
    rank = above + np.floor(drawn * equal) + 1
    return np.where(rank <= 5, 1 / np.log2(rank + 1), 0).sum(axis=1) / users
