"""Rivals that are measured on the same users: popularity, last-item search, item-kNN."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from gloss_utils.rank import candidates, cooccurrence
from gloss_utils.rank.candidates import Histories, Index
from gloss_utils.rank.evidence import hybrid
from gloss_utils.rank.weights import HybridSettings

LAST_ITEM = ("lis-bm25", "lis-dense", "lis-bm25-unseen", "lis-dense-unseen")
METHODS = ("popularity", *LAST_ITEM, "item-knn")


def rank_all(
    histories: Histories,
    training_sequences: Histories,
    titles: Mapping[str, str],
    indexes: Mapping[str, Index],
    settings: HybridSettings,
    depth: int,
) -> dict[str, pd.DataFrame]:
    """All rankings for the users of the histories, by method.

    training_sequences: see `splits.training_sequences`. titles: each item's, in the catalogue's order. indexes: "dense"
    and "bm25". settings: how `item_knn` counts.
    """
    items = pd.Index(list(titles))
    rankings = {"popularity": popularity(histories, training_sequences, items, depth)}
    for method in LAST_ITEM:
        index, unseen = indexes[method.split("-")[1]], method.endswith("unseen")
        rankings[method] = last_item_search(histories, index, titles, depth, unseen)
    rankings["item-knn"] = item_knn(histories, training_sequences, items, settings, depth)
    return rankings


def popularity(
    histories: Histories, training_sequences: Histories, items: Sequence[str], depth: int = 10
) -> pd.DataFrame:
    """Rank for every user the items that occur most often in the training sequences.

    Equally popular items keep the catalogue's order, in which `items` are; those that do not occur are not ranked.
    """
    counts = cooccurrence.counts(training_sequences.values(), items)
    order = np.argsort(-counts, kind="stable")[: min(depth, int((counts > 0).sum()))]
    top = pd.DataFrame({"item": pd.Index(items)[order], "score": counts[order].astype(float)})
    ranked = pd.DataFrame({"user": list(histories)}).merge(top.assign(rank=range(1, len(top) + 1)), how="cross")
    return ranked[candidates.RANKING_COLUMNS]


def last_item_search(
    histories: Histories, index: Index, titles: Mapping[str, str], depth: int = 10, unseen: bool = False
) -> pd.DataFrame:
    """Rank the items nearest to the last item's text (the last one that has a title).

    The item itself is not removed, unless `unseen`, which leaves out all the user has. titles: each item's, in the
    catalogue's order.
    """
    queries, items = candidates.last_item_texts(histories, titles), pd.Index(list(titles))
    if not unseen or queries.empty:
        return candidates.as_ranking(candidates.nearest_items(queries, index, items, depth), depth)
    # Look as deep as a history is long, users of like length together, so that one long history costs only itself.
    length = queries["user"].map(lambda user: int(np.ceil(np.log2(len(set(histories[user])) + 1))))
    parts = [
        candidates.without_seen(candidates.nearest_items(some, index, items, depth + 2**power), histories)
        for power, some in queries.groupby(length)
    ]
    order = {user: place for place, user in enumerate(histories)}
    found = pd.concat(parts)
    return candidates.as_ranking(found.sort_values("user", key=lambda users: users.map(order), kind="stable"), depth)


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
