"""How sure a number is: bootstrap intervals of means over users, paired tests of differences, and the noise of ties."""

import numpy as np
import pandas as pd

RESAMPLES = 1000
PERMUTATIONS = 9999
TIE_ORDERS = 100


def intervals(values: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """95 % bootstrap intervals (percentile, over users) of the column means of `values` [users, columns].

    All columns share the resamples.
    """
    users = len(values)
    if not users:
        return np.full(values.shape[1], np.nan), np.full(values.shape[1], np.nan)
    rng = np.random.default_rng(seed)
    means = np.stack(
        [np.bincount(rng.integers(users, size=users), minlength=users) @ values / users for _ in range(RESAMPLES)]
    )
    low, high = np.percentile(means, [2.5, 97.5], axis=0)
    return low, high


def compare(per_user: pd.DataFrame, method: str, metrics: tuple[str, ...], seed: int) -> list[dict]:
    """Is a method better than each other one? Paired over users, two-sided, corrected for the number of comparisons.

    per_user: user, method, metrics. Each row: method, other, metric, difference of the means (method - other) with its
    95 % bootstrap interval, p (permutation test: the two values of each user are swapped at random) and p_corrected
    (Holm, over all rows).
    """
    rows = []
    for metric in metrics:
        wide = per_user.pivot(index="user", columns="method", values=metric)
        others = [other for other in per_user["method"].unique() if other != method]
        differences = wide[[method]].to_numpy() - wide[others].to_numpy()
        for other, values, low, high in zip(others, differences.T, *intervals(differences, seed), strict=True):
            found = {"difference": values.mean(), "difference_low": low, "difference_high": high}
            found = {name: round(float(value), 6) for name, value in found.items()}
            rows.append({"method": method, "other": other, "metric": metric, **found, "p": paired_p(values, seed)})
    for row, corrected in zip(rows, holm([row["p"] for row in rows]), strict=True):
        row["p_corrected"] = corrected
    return rows


def paired_p(differences: np.ndarray, seed: int) -> float:
    """Two-sided p of a mean difference of 0, by random signs of the differences [users]."""
    from scipy.stats import permutation_test  # takes a second to import, and only `evaluate` tests

    differences = differences[differences != 0]  # a difference of 0 is the same under any sign
    if len(differences) < 2:
        return 1.0
    found = permutation_test(
        (differences,),
        lambda values, axis: values.mean(axis=axis),
        permutation_type="samples",
        n_resamples=PERMUTATIONS,
        batch=500,
        vectorized=True,
        rng=np.random.default_rng(seed),
    )
    return float(found.pvalue)


def holm(p: list[float]) -> list[float]:
    """Holm's correction: p values that hold together for all comparisons, in the order given."""
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(np.asarray(p)[order] * (len(p) - np.arange(len(p))))
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(stepped, 1.0)
    return corrected.tolist()


def tie_orders(found: pd.DataFrame, targets: dict[str, str], seed: int, k: int = 5) -> np.ndarray:
    """NDCG@k of the paper's rule under `TIE_ORDERS` random orders of equal scores, over all users of `targets`.

    found: the paper's candidates, as `rank.nearest_items` returns them; the last score of an item counts.
    """
    last = found.drop_duplicates(["user", "item"], keep="last")
    hit = last[last["item"] == last["user"].map(targets)]
    beside = hit.merge(last, on="user", suffixes=("", "_other"))
    above = (beside["score_other"] > beside["score"]).groupby(beside["user"], sort=False).sum().to_numpy()
    equal = (beside["score_other"] == beside["score"]).groupby(beside["user"], sort=False).sum().to_numpy()
    drawn = np.random.default_rng(seed).random((TIE_ORDERS, len(above)))
    rank = above + np.floor(drawn * equal) + 1
    return np.where(rank <= k, 1 / np.log2(rank + 1), 0).sum(axis=1) / len(targets)
