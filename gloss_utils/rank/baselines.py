"""Rivals that are measured on the same users: popularity, last-item search, item-kNN."""

from collections.abc import Mapping, Sequence

import pandas as pd

from gloss_utils.rank import cooccurrence
from gloss_utils.rank.candidates import Histories, Index, as_ranking, last_item_texts, nearest_items
from gloss_utils.rank.evidence import hybrid
from gloss_utils.rank.ranker import Ranker
from gloss_utils.rank.weights import HybridSettings

LAST_ITEM = ("lis-bm25", "lis-dense", "lis-bm25-unseen", "lis-dense-unseen")


def rank_all(ranker: Ranker) -> dict[str, pd.DataFrame]:
    """The rankings of these rivals, by method, for the users of a ranker."""
    histories, known, items, depth = ranker.histories, ranker.training_sequences, ranker.items, ranker.depth
    rankings = {"popularity": popularity(histories, known, items, depth)}
    for method in LAST_ITEM:
        index, unseen = ranker.indexes[method.split("-")[1]], method.endswith("unseen")
        rankings[method] = last_item_search(histories, index, ranker.titles, depth, unseen)
    return rankings | {"item-knn": item_knn(histories, known, items, ranker.settings, depth)}


def popularity(
    histories: Histories, training_sequences: Histories, items: Sequence[str], depth: int = 10
) -> pd.DataFrame:
    """Rank for every user the items that occur most often in the training sequences.

    Equally popular items keep the catalogue's order, in which `items` are; those that do not occur are not ranked.
    """
    counts = pd.Series(cooccurrence.counts(training_sequences.values(), items), pd.Index(items, name="item"), float)
    top = counts[counts > 0].sort_values(ascending=False, kind="stable").rename("score").reset_index()
    return as_ranking(pd.DataFrame({"user": list(histories)}).merge(top[:depth], how="cross"), histories, depth)


def last_item_search(
    histories: Histories, index: Index, titles: Mapping[str, str], depth: int = 10, unseen: bool = False
) -> pd.DataFrame:
    """Rank the items nearest to the last item's text (the last one that has a title).

    The item itself is not removed, unless `unseen`, which leaves out all the user has. titles: each item's, in the
    catalogue's order.
    """
    queries, items = last_item_texts(histories, titles), list(titles)
    if not unseen or queries.empty:
        return as_ranking(nearest_items(queries, index, items, depth), histories, depth)
    # Look past a history, users with histories of like length together, so that a long one costs only itself.
    deep = queries["user"].map(lambda user: depth + 2 ** len(set(histories[user])).bit_length())
    found = [nearest_items(some, index, items, k) for k, some in queries.groupby(deep)]
    return as_ranking(pd.concat(found), histories, depth, exclude_seen=True)


def item_knn(
    histories: Histories,
    training_sequences: Histories,
    items: Sequence[str],
    settings: HybridSettings,
    depth: int = 10,
) -> pd.DataFrame:
    """Rank the items that follow those of the history most in the training sequences, counted as for `hybrid`.

    What the user has and items that do not occur are not ranked; where too little follows, popular items fill up.
    """
    weights = {"cooccurrence": 1.0}
    ranked = hybrid({}, histories, training_sequences, items, settings, depth, weights=weights)
    occur = {item for sequence in training_sequences.values() for item in sequence}
    return ranked[ranked["item"].isin(occur)].reset_index(drop=True)  # those that do not occur come last
