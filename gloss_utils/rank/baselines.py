"""Baselines that are measured on the same users: popularity, last-item search, item-kNN, EASE, STAR.

TGH (arXiv:2605.07125), another training-free ranker, is not here: its definition was not at hand.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import pandas as pd

from gloss_utils.rank import cooccurrence
from gloss_utils.rank.candidates import Histories, Index, as_ranking, last_item_texts, nearest_items
from gloss_utils.rank.ease import Ease
from gloss_utils.rank.evidence import Evidence
from gloss_utils.rank.ranker import Ranker
from gloss_utils.rank.star import Star
from gloss_utils.rank.weights import HybridSettings

NAMES = ("popularity", "lis-bm25", "lis-dense", "item-knn", "ease", "star")
Baseline = Callable[..., pd.DataFrame]  # called as rank(histories, exclude_seen=…)


def by_name(ranker: Ranker) -> dict[str, Baseline]:
    """What ranks by each of these baselines' methods, counted on what the ranker may learn from.

    EASE and STAR are left out of a catalogue that is too large for them, with a line that says so.
    """
    known, items, depth = ranker.training_sequences, ranker.items, ranker.depth
    found = {
        "popularity": partial(_by_popularity, _popular(known, items), depth),
        "item-knn": partial(_by_neighbours, ranker.evidence, depth),
    }
    for name, index in ranker.indexes.items():
        found[f"lis-{name}"] = partial(last_item_search, index=index, titles=ranker.titles, depth=depth)
    for name, kind, more in (("star", Star, (ranker.indexes["dense"].vectors(),)), ("ease", Ease, ())):
        try:
            found[name] = partial(kind(known, items, *more).rank, depth=depth)
        except ValueError as error:
            print(f"{error}: it is left out")
    return {name: found[name] for name in NAMES if name in found}


def popularity(
    histories: Histories,
    training_sequences: Histories,
    items: Sequence[str],
    depth: int = 10,
    exclude_seen: bool = False,
) -> pd.DataFrame:
    """Rank for every user the items that occur most often in the training sequences.

    Equally popular items keep the catalogue's order, in which `items` are; those that do not occur are not ranked.
    exclude_seen: leave out what the user has.
    """
    return _by_popularity(_popular(training_sequences, items), depth, histories, exclude_seen)


def _popular(training_sequences: Histories, items: Sequence[str]) -> pd.DataFrame:
    counts = pd.Series(cooccurrence.counts(training_sequences.values(), items), pd.Index(items, name="item"), float)
    return counts[counts > 0].sort_values(ascending=False, kind="stable").rename("score").reset_index()


def _by_popularity(top: pd.DataFrame, depth: int, histories: Histories, exclude_seen: bool) -> pd.DataFrame:
    users = pd.DataFrame({"user": list(histories)})
    if not exclude_seen or users.empty:
        return as_ranking(users.merge(top[:depth], how="cross"), histories, depth)
    found = [some.merge(top[:k], how="cross") for k, some in users.groupby(_deep(users["user"], histories, depth))]
    return as_ranking(pd.concat(found), histories, depth, exclude_seen=True)


def _deep(users: pd.Series, histories: Histories, depth: int) -> pd.Series:
    """How far to look past each user's history. Users with histories of like length get the same depth, and are ranked
    for together, so that a long history costs only itself."""
    return users.map(lambda user: depth + 2 ** len(set(histories[user])).bit_length())


def last_item_search(
    histories: Histories, index: Index, titles: Mapping[str, str], depth: int = 10, exclude_seen: bool = False
) -> pd.DataFrame:
    """Rank the items nearest to the last item's text (the last one that has a title).

    The item itself is not removed, unless `exclude_seen`, which leaves out all the user has. titles: each item's, in
    the catalogue's order.
    """
    queries, items = last_item_texts(histories, titles), pd.Index(list(titles))
    if not exclude_seen or queries.empty:
        return as_ranking(nearest_items(queries, index, items, depth), histories, depth)
    by_depth = queries.groupby(_deep(queries["user"], histories, depth))
    found = [nearest_items(some, index, items, k) for k, some in by_depth]
    return as_ranking(pd.concat(found), histories, depth, exclude_seen=True)


def item_knn(
    histories: Histories,
    training_sequences: Histories,
    items: Sequence[str],
    settings: HybridSettings,
    depth: int = 10,
    exclude_seen: bool = True,
) -> pd.DataFrame:
    """Rank the items that follow those of the history most in the training sequences, counted as for `hybrid`.

    Items that do not occur are not ranked; where too little follows, popular items fill up. exclude_seen: nor is what
    the user has.
    """
    return _by_neighbours(Evidence(histories, training_sequences, items, settings), depth, histories, exclude_seen)


def _by_neighbours(known: Evidence, depth: int, histories: Histories, exclude_seen: bool) -> pd.DataFrame:
    ranked = known.of(histories).rankings({}, {"": {"cooccurrence": 1.0}}, depth, exclude_seen)[""]
    return ranked[ranked["item"].isin(known.items[known.counts > 0])].reset_index(drop=True)  # the others come last
