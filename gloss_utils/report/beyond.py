"""Beyond accuracy: coverage, novelty, intra-list diversity and popularity of what is recommended.

Of the first `K` items of each ranking:

coverage@5         share of the catalogue that somebody in a group is recommended (Ge et al., RecSys 2010)
novelty@5          mean of -log2 of an item's popularity, in bits (Vargas and Castells, RecSys 2011)
diversity@5        mean over pairs of 1 - cosine of their texts' embeddings (Ziegler et al., WWW 2005)
popularity@5       mean of the items' popularity (Yin et al., VLDB 2012)
popularity_bias    how far that is above the popularity of what the same users took before, as a share of it
                   (Abdollahpouri et al., RecSys 2020, "popularity lift"); 0: none, 1: twice as popular

An item's popularity is the share of users who took it in the training sequences; novelty adds one user who took all
items, so that an item that nobody took has a novelty, too. Users who are recommended nothing do not count, nor do, for
diversity, those who are recommended one item.

No library computes these here: RecTools 0.19 has them, but needs pandas below 3 and numpy below 2; ir-measures and ranx
have none of them.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

import numpy as np
import pandas as pd

from gloss_utils.rank import cooccurrence
from gloss_utils.rank.candidates import Histories

K = 5
BEYOND = [f"novelty@{K}", f"diversity@{K}", f"popularity@{K}"]
COVERAGE = f"coverage@{K}"
TAKEN = "taken"  # the column with the popularity of what the user took before
USERS_AT_A_TIME, SEQUENCES_AT_A_TIME = 2048, 2**18


class Catalogue:
    """What these metrics know of the items."""

    def __init__(self, items: Sequence[str], sequences: Histories, vectors: np.ndarray):
        """items: ids in the catalogue's order. sequences: those of training. vectors: of the items' texts, float
        [items, dimensions]."""
        self.items, self.vectors = cooccurrence.index_of(items), vectors
        lists, takers, users = cooccurrence.lists_of(sequences), np.zeros(len(self.items), dtype=np.int64), 0
        for start in range(0, len(lists), SEQUENCES_AT_A_TIME):
            some = lists[start : start + SEQUENCES_AT_A_TIME]
            owners, places = cooccurrence.encode(some, self.items)
            once = np.unique(owners * len(self.items) + places) % max(len(self.items), 1)
            takers += np.bincount(once, minlength=len(self.items))
            users += sum(map(bool, some)) if isinstance(some, list) else int((some.lengths > 0).sum())
        users = max(users, 1)
        self.popularity, self.novelty = takers / users, -np.log2((takers + 1) / (users + 1))

    def first(self, run: pd.DataFrame) -> pd.DataFrame:
        """The first `K` items of each user (columns user, place in the catalogue); items that it lacks are left out.

        run: columns query_id, doc_id, score, as `rank.as_run` returns them.
        """
        run = run.sort_values("score", ascending=False, kind="stable").groupby("query_id").head(K)
        found = pd.DataFrame({"user": run["query_id"], "place": self.items.get_indexer(run["doc_id"])})
        return found[found["place"] >= 0].sort_values("user", kind="stable").reset_index(drop=True)

    def of_lists(self, first: pd.DataFrame, users: Iterable[str]) -> pd.DataFrame:
        """`BEYOND` of each of these users, in their order."""
        values = {BEYOND[0]: self.novelty[first["place"]], BEYOND[2]: self.popularity[first["place"]]}
        found = first[["user"]].assign(**values).groupby("user").mean()
        found = found.assign(**{BEYOND[1]: self._diversity(first)})[BEYOND].astype(float)
        return found.reindex(list(users))

    def taken(self, histories: Histories) -> list[float]:
        """The popularity of what each user took; NaN where that is nothing of the catalogue."""
        owners, places = cooccurrence.encode(histories.values(), self.items)
        starts, taken = np.searchsorted(owners, np.arange(len(histories) + 1)), self.popularity[places]
        return [taken[start:end].mean() if end > start else np.nan for start, end in pairwise(starts)]

    def _diversity(self, first: pd.DataFrame) -> pd.Series:
        """1 - the mean cosine of a user's pairs: (|sum of n unit vectors|² - n) / (n² - n)."""
        users, found = first["user"].unique(), {}
        for start in range(0, len(users), USERS_AT_A_TIME):
            some = first[first["user"].isin(set(users[start : start + USERS_AT_A_TIME]))]
            vectors = np.asarray(self.vectors[some["place"].to_numpy()], dtype=np.float64)
            vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
            names, starts, sizes = np.unique(some["user"].to_numpy(dtype=str), return_index=True, return_counts=True)
            sums = np.add.reduceat(vectors, starts)
            pairs = np.where(sizes > 1, sizes * (sizes - 1), np.nan)
            found |= zip(names, 1 - ((sums**2).sum(axis=1) - sizes) / pairs, strict=True)
        return pd.Series(found, dtype=float)


def coverage(places: np.ndarray, items: int) -> float:
    """The share of so many items that users are recommended, all together. places: of items, [users, `K`], or NaN."""
    return np.count_nonzero(np.bincount(places[~np.isnan(places)].astype(int))) / max(items, 1)


def bias(row: Mapping, taken: float | None) -> dict:
    """popularity_bias of a row of a result table, with its interval, from its popularity and that of what was taken.

    The interval is that of the recommended items' popularity; what was taken is known.
    """
    ends = ("", "_low", "_high")
    if not taken or row[BEYOND[2]] is None:
        return {f"popularity_bias{end}": None for end in ends}
    return {f"popularity_bias{end}": round(row[f"{BEYOND[2]}{end}"] / taken - 1, 6) for end in ends}
