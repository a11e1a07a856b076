"""How much the votes of generated texts count beside a learned score: chosen by users whose target is known, and used
for other users alone."""

import hashlib
import itertools
from collections.abc import Mapping

import numpy as np
import pandas as pd

from gloss_utils.data import splits

FOLDS, FIRST, ERRORS = 5, 5, 2
TEXTS = ("texts_dense", "texts_bm25")
STEPS = (0, 0.1, 0.3, 1)  # a vote of 1 adds so much, in standard deviations of the scores of a user's candidates
GRID = tuple(itertools.product(STEPS, repeat=len(TEXTS)))  # the first: texts count nothing


def out_of_fold(scored: pd.DataFrame, targets: Mapping[str, str | None]) -> pd.DataFrame:
    """The weight of each of `TEXTS` for each user: chosen by the users of other folds.

    scored: candidates, sorted by user: user, item (ids), score, `TEXTS`. targets: user -> item, null where none is
    known; such a user gets what all who have one choose. Users are put into `FOLDS` folds by a hash of their id.
    """
    users = list(targets)
    fold = np.array([fold_of(user) if targets[user] is not None else FOLDS for user in users], dtype=int)
    spread = scored.groupby("user")["score"].std(ddof=0).mean()
    ndcg = np.stack([_ndcg(scored, targets, np.array(weights) * spread) for weights in GRID], axis=1)
    weights = np.zeros((len(users), len(TEXTS)))
    for left_out in set(fold.tolist()):
        others = (fold != left_out) & (fold != FOLDS)
        weights[fold == left_out] = _surest(ndcg[others] - ndcg[others, :1])
    return pd.DataFrame(weights * spread, index=users, columns=list(TEXTS))


def _ndcg(scored: pd.DataFrame, targets: Mapping[str, str | None], weights: np.ndarray) -> np.ndarray:
    place = pd.Index(list(targets)).get_indexer(scored["user"])
    is_target = (scored["item"] == scored["user"].map(dict(targets))).to_numpy()
    score = scored["score"].to_numpy() + scored[list(TEXTS)].to_numpy(dtype=float) @ weights
    return ndcg(place, score, is_target, len(targets), FIRST)


def ndcg(user: np.ndarray, score: np.ndarray, is_target: np.ndarray, users: int, first: int) -> np.ndarray:
    """NDCG of each user's `first` items, [users]; 0 where the target is no candidate, equal scores count for it.

    user, score, is_target: of each candidate; user: its place, 0 to `users` - 1.
    """
    of_target = np.full(users, np.inf)
    of_target[user[is_target]] = score[is_target]
    rank = 1 + np.bincount(user, score > of_target[user], minlength=users)
    return np.where((rank <= first) & np.isfinite(of_target), 1 / np.log2(rank + 1), 0.0)


def _surest(gains: np.ndarray) -> tuple[float, ...]:
    """The weighting that gains most by its mean less `ERRORS` standard errors; none where no gain is above these."""
    if len(gains) < 2:
        return GRID[0]
    return GRID[int((gains.mean(axis=0) - ERRORS * gains.std(axis=0, ddof=1) / len(gains) ** 0.5).argmax())]


def fold_of(user: str) -> int:
    """The fold of a user, from 0: a hash, so that it is the same in all runs."""
    return int(hashlib.sha256(splits.owner(user).encode()).hexdigest(), 16) % FOLDS
