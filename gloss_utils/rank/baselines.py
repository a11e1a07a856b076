"""Rivals that are measured on the same users: popularity, last-item search, item-kNN."""

import numpy as np
import pandas as pd

from gloss_utils.data.dataset import Dataset
from gloss_utils.rank import cooccurrence, fusion, ranking
from gloss_utils.search.index import BM25Index, DenseIndex

LAST_ITEM = ("lis-bm25", "lis-dense", "lis-bm25-unseen", "lis-dense-unseen")
METHODS = ("popularity", *LAST_ITEM, "item-knn")


def rank(
    queries: pd.DataFrame,
    data: Dataset,
    indexes: dict[str, DenseIndex | BM25Index],
    settings: fusion.Settings,
    depth: int,
    learnable: dict[str, list[str]],
) -> dict[str, pd.DataFrame]:
    """All rankings for the users of `queries` (user, history, target), by method. learnable: see
    `splits.training_sequences`."""
    histories = dict(zip(queries["user"], queries["history"], strict=True))
    rankings = {"popularity": popularity(histories, learnable, data, depth)}
    for method in LAST_ITEM:
        retriever, unseen = method.split("-")[1], method.endswith("unseen")
        rankings[method] = last_item_search(histories, indexes[retriever], data, depth, unseen)
    rankings["item-knn"] = item_knn(histories, learnable, data, depth, settings)
    return rankings


def popularity(
    histories: dict[str, list[str]], learnable: dict[str, list[str]], data: Dataset, depth: int
) -> pd.DataFrame:
    """Baseline: the items that occur most often in `learnable` (see `splits.training_sequences`), for every user.

    Equally popular items keep the metadata's order; items that do not occur are not ranked.
    """
    counts = cooccurrence.counts(learnable.values(), data.items["item"])
    order = np.argsort(-counts, kind="stable")[: min(depth, int((counts > 0).sum()))]
    top = data.items["item"].iloc[order].tolist()
    users = list(histories)
    return pd.DataFrame(
        {
            "user": np.repeat(np.array(users, dtype=object), len(top)),
            "rank": np.tile(np.arange(1, len(top) + 1), len(users)),
            "item": top * len(users),
            "score": np.tile(counts[order].astype(float), len(users)),
        }
    )


def last_item_search(
    histories: dict[str, list[str]], index: DenseIndex | BM25Index, data: Dataset, depth: int, unseen: bool = False
) -> pd.DataFrame:
    """Baseline: the last item's text is the query (the last one the catalogue knows), its nearest items the ranking.

    The item itself is not removed, unless `unseen`, which leaves out all the user has.
    """
    queries = ranking.last_items(histories, data)
    if queries.empty:
        return pd.DataFrame(columns=ranking.COLUMNS)
    if not unseen:
        return ranking.ranked(ranking.candidates(queries, index, data.items["item"], depth), depth)
    # Look as deep as a history is long, users of like length together, so that one long history costs only itself.
    length = queries["user"].map(lambda user: int(np.ceil(np.log2(len(set(histories[user])) + 1))))
    parts = [
        ranking.without(ranking.candidates(some, index, data.items["item"], depth + 2**power), histories)
        for power, some in queries.groupby(length)
    ]
    order = {user: place for place, user in enumerate(histories)}
    found = pd.concat(parts)
    return ranking.ranked(found.sort_values("user", key=lambda users: users.map(order), kind="stable"), depth)


def item_knn(
    histories: dict[str, list[str]],
    learnable: dict[str, list[str]],
    data: Dataset,
    depth: int,
    settings: fusion.Settings,
) -> pd.DataFrame:
    """Baseline: the items that follow those of the history most in `learnable`, counted as for `hybrid`.

    What the user has and items that do not occur are not ranked; where too little follows, popular items fill up.
    """
    evidence = fusion.Evidence({}, histories, learnable, data.items["item"], settings)
    ranked = fusion.rankings(evidence, {"": {"cooccurrence": 1.0}}, True, depth)[""]
    occur = data.items["item"][evidence.counts > 0]
    return ranked[ranked["item"].isin(occur)].reset_index(drop=True)  # those that do not occur come last
