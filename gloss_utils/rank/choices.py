"""Candidates of users, and what `learned` sees of each: signals, their shares of the user's best, and their places."""

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
from scipy import sparse

from gloss_utils.rank import cooccurrence
from gloss_utils.rank.signals import SIGNALS, Signals

USERS_AT_A_TIME = 1024
# How many items each signal proposes; twice as many where more than so large a share of the catalogue is new, for the
# places of new items are low in most signals.
MANY_NEW = 0.01
PROPOSED = {"cooccurrence": 50, "second_hop": 25, "cosine": 25, "successors": 25}
PROPOSED |= dict.fromkeys(("near_dense", "near_words", "like_dense", "like_words", "last_dense", "last_words"), 15)
PROPOSED |= dict.fromkeys(("nearest_dense", "nearest_words", "mean_dense", "mean_words", "popularity"), 10)
OF_NEW = ("cooccurrence", "last_dense", "last_words", "near_words")  # each proposes 20 new items, too
NEW = "new"  # the feature that says 1 of a new item
KINDS = ("", "_share", "_place")
FEATURES = *(f"{signal}{kind}" for signal in SIGNALS for kind in KINDS), NEW


def features_of(signals: Sequence[str]) -> list[str]:
    """The features that some signals give."""
    return [f"{signal}{kind}" for signal in signals for kind in KINDS]


def signal_of(feature: str) -> str:
    """The signal that a feature is of."""
    return feature.removesuffix("_share").removesuffix("_place")


def candidates(
    signals: Signals,
    histories: Sequence[Sequence[str]],
    depth: int = 10,
    exclude_seen: bool = True,
    more: sparse.csr_matrix | None = None,
) -> Iterator[pd.DataFrame]:
    """The candidates of users, some users at a time: columns user (place in `histories`), item (place in the catalogue)
    and `FEATURES` (float32); sorted by user, then item.

    Each signal proposes its strongest items (see `PROPOSED`); where these are fewer than `depth`, popular ones fill up.
    more: further candidates, [users, items]; they do not change the features of the others. exclude_seen: leave out
    what the user has.
    """
    popular = np.argsort(-signals.counts, kind="stable")
    for start in range(0, len(histories), USERS_AT_A_TIME):
        some = histories[start : start + USERS_AT_A_TIME]
        found, users, items = signals.of(some), len(some), len(signals.items)
        owners, places = cooccurrence.encode(some, signals.items)
        seen = np.unique(owners * items + places)[: None if exclude_seen else 0]
        times = 2 if signals.new.mean() > MANY_NEW else 1
        proposed = [
            cooccurrence.keys(cooccurrence.strongest(matrix, PROPOSED[signal] * times))
            for signal, matrix in found.items()
        ]
        if signals.new.any():
            new = sparse.diags_array(signals.new.astype(float))
            by_new = (sparse.csr_matrix(found[signal] @ new) for signal in OF_NEW)
            proposed += [cooccurrence.keys(cooccurrence.strongest(matrix, 20)) for matrix in by_new]
        by_all = np.arange(users)[:, None] * items + popular[: max(PROPOSED["popularity"] * times, depth)]
        own = np.setdiff1d(np.concatenate([*proposed, by_all.ravel()]), seen)
        own = cooccurrence.filled_up(own, seen, users, items, depth, popular)
        keys = (
            own if more is None else np.union1d(own, np.setdiff1d(cooccurrence.keys(more[start : start + users]), seen))
        )
        user, item = np.divmod(keys, items)
        values = {signal: _at(matrix, keys) for signal, matrix in found.items()}
        values["popularity"] = np.log1p(signals.counts[item])
        is_own = np.isin(keys, own, assume_unique=True)
        features = {}
        for signal in SIGNALS:
            features |= _features(signal, values[signal], user, is_own)
        features[NEW] = signals.new[item].astype(np.float32)
        yield pd.DataFrame({"user": start + user, "item": item} | features)


def _features(signal: str, values: np.ndarray, user: np.ndarray, is_own: np.ndarray) -> dict[str, np.ndarray]:
    """A signal's value, its share of the user's best, and the reciprocal of its place among the user's own candidates
    (0 where the signal says nothing). user: sorted."""
    starts = np.flatnonzero(np.diff(user, prepend=-1))
    sizes = np.diff(np.append(starts, len(user)))
    best = np.maximum.reduceat(np.where(is_own, values, 0.0), starts)
    order = np.lexsort((~is_own, -values, user))
    above = np.cumsum(is_own[order]) - is_own[order]  # own candidates before, of all users
    place = np.empty(len(values))
    place[order] = 1 + above - np.repeat(above[starts], sizes)
    found = values, values / np.repeat(np.maximum(best, 1e-12), sizes), np.where(values > 0, 1 / place, 0.0)
    return dict(zip(features_of([signal]), (column.astype(np.float32) for column in found), strict=True))


def _at(matrix: sparse.csr_matrix, keys: np.ndarray) -> np.ndarray:
    """The matrix's values at some keys."""
    stored = cooccurrence.keys(matrix)
    if not len(stored):
        return np.zeros(len(keys))
    places = np.minimum(np.searchsorted(stored, keys), len(stored) - 1)
    return np.where(stored[places] == keys, matrix.data[places], 0.0)
