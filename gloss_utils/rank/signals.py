"""What histories, counts and the items' own texts say of users and items: the signals that `learned` combines.

A signal is a matrix [users, items] of numbers from 0 up, 0 where it says nothing:

cooccurrence              how often an item follows those of the history in the training sequences, as for `hybrid`
second_hop                the same, by way of an item between
cosine                    how often two items are in one sequence, whatever their order, as a cosine
successors                what follows the last item closely
near_dense, near_words    co-occurrence of the items that are near in meaning, or in words, to those of the history
like_dense, like_words    items near in meaning, or in words, to those that co-occur
last_dense, last_words    similarity to the last item
nearest_dense, nearest_words, mean_dense, mean_words    to the nearest item of the history, and to all of it
popularity                log(1 + how often the item occurs in the training sequences)

A new item, one that no training sequence holds, takes part by its 20 nearest items by text: it has their mean counts,
twice, since a mean of many is smoother than what one item has.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy import sparse

from gloss_utils.data.prompts import item_text
from gloss_utils.rank import cooccurrence
from gloss_utils.rank.candidates import Index
from gloss_utils.rank.cooccurrence import stored

SEARCHED = {"dense": "dense", "bm25": "words"}  # by index, how signals call it
PARTS = {
    "co-occurrence": ("cooccurrence", "successors"),
    "further co-occurrence": ("second_hop", "cosine"),
    "co-occurrence by texts": ("near_dense", "near_words", "like_dense", "like_words"),
    "last item": ("last_dense", "last_words"),
    "texts of the history": ("nearest_dense", "nearest_words", "mean_dense", "mean_words"),
    "popularity": ("popularity",),
}
SIGNALS = tuple(signal for signals in PARTS.values() for signal in signals)

COUNTING = {"window": 20, "decay": 0.7, "backward": 0.1, "damping": 0.4, "neighbours": 100}  # as weights.yaml
CLOSELY = {"window": 3, "decay": 0.5, "backward": 0.0, "damping": 0.4, "neighbours": 100}
TOGETHER = 50  # positions apart, at most
RECENCY, SLOW_RECENCY = 0.55, 0.9  # what an item of the history weighs less for each one after it
COMMON = 0.1  # what popularity has of `likely_next`
NEIGHBOURS, NEAREST, FURTHER = 100, 20, 200  # by text, those that stand for an item, and by way of an item between
DOUBLED = 2.0  # what new items have of their neighbours
LATEST = 10  # items of a history whose texts are compared one by one


def text_neighbours(titles: Mapping[str, str], indexes: Mapping[str, Index]) -> dict[str, sparse.csr_matrix]:
    """Each item's most similar items by text, under each index: strengths above 0, [items, items], its own included.

    titles: each item's, in the catalogue's order. indexes: "dense" and "bm25".
    """
    texts, found = [item_text(title) for title in titles.values()], {}
    for name, index in indexes.items():
        places, scores = index.search(texts, NEIGHBOURS)
        rows, strength = np.repeat(np.arange(len(texts)), places.shape[1]), index.strength(scores).ravel()
        entries = np.maximum(strength, 0.0), (rows, places.ravel())
        found[name] = stored(sparse.csr_matrix(entries, (len(texts), len(texts))))
    return found


def likely_next(
    histories: Sequence[Sequence[str]], sequences: Sequence[Sequence[str]], items: Sequence[str]
) -> tuple[sparse.csr_matrix, np.ndarray]:
    """What may come after these histories, by co-occurrence in the training sequences: shares, in two parts.

    One is each user's own, [users, items]; the other is for all of them, [items]: by popularity, and above 0 for every
    item, so that nothing is impossible.
    """
    follows = cooccurrence.following(sequences, items, **COUNTING)
    own = _shares(stored(cooccurrence.recent(histories, items, RECENCY)) @ follows)
    counts = cooccurrence.counts(sequences, items) + 1.0
    return (1 - COMMON) * own, COMMON * counts / counts.sum()


class Signals:
    """The signals of a world, which is all that may be learnt from; it is counted once."""

    def __init__(
        self,
        sequences: Sequence[Sequence[str]],
        items: Sequence[str],
        near: Mapping[str, sparse.csr_matrix],
    ):
        """sequences: items, oldest first. items: ids in the catalogue's order. near: see `text_neighbours`."""
        self.items, self.near = cooccurrence.index_of(items), near
        counts = cooccurrence.counts(sequences, self.items)
        self.new = counts == 0
        fill = _fill(near["dense"], ~self.new)
        self.counts = counts + DOUBLED * (counts @ fill)
        alike = {name: _shares(cooccurrence.strongest(_without_itself(near[name]), NEAREST)) for name in SEARCHED}
        follows = cooccurrence.following(sequences, self.items, **COUNTING)
        between = {"second_hop": (_shares(follows), follows)}
        for name, called in SEARCHED.items():
            between |= {f"near_{called}": (alike[name], follows), f"like_{called}": (follows, alike[name])}
        matrices = {
            "cooccurrence": follows,
            "successors": cooccurrence.following(sequences, self.items, **CLOSELY),
            "cosine": cooccurrence.cosine(sequences, self.items, TOGETHER, FURTHER),
        } | {signal: cooccurrence.strongest_of_product(*pair, FURTHER) for signal, pair in between.items()}
        rows, columns = (sparse.identity(len(counts), format="csr") + factor * fill for factor in (1.0, DOUBLED))
        self.by_item = {
            signal: stored(rows.T @ matrix @ columns) if fill.nnz else matrix for signal, matrix in matrices.items()
        }

    def of(self, histories: Sequence[Sequence[str]]) -> dict[str, sparse.csr_matrix]:
        """The signals of users with these histories, oldest item first; all but popularity, which is no user's own."""
        recent, slow, last = (
            stored(cooccurrence.recent(histories, self.items, recency)) for recency in (RECENCY, SLOW_RECENCY, 0.0)
        )
        weighted = {"cosine": slow, "successors": last}
        found = {signal: weighted.get(signal, recent) @ matrix for signal, matrix in self.by_item.items()}
        for name, called in SEARCHED.items():
            found[f"last_{called}"] = last @ self.near[name]
            found[f"nearest_{called}"] = _nearest(histories, self.items, self.near[name])
            found[f"mean_{called}"] = slow @ self.near[name]
        return {signal: stored(matrix) for signal, matrix in found.items()}


def _without_itself(near: sparse.csr_matrix) -> sparse.csr_matrix:
    entries = near.tocoo()
    other = entries.row != entries.col
    return sparse.csr_matrix((entries.data[other] ** 2, (entries.row[other], entries.col[other])), near.shape)


def _shares(matrix: sparse.csr_matrix) -> sparse.csr_matrix:
    """Each row divided by its sum."""
    sums = np.asarray(matrix.sum(axis=1)).ravel()
    return sparse.csr_matrix(sparse.diags_array(1 / np.where(sums > 0, sums, 1.0)) @ matrix)


def _fill(near: sparse.csr_matrix, known: np.ndarray) -> sparse.csr_matrix:
    """For each item without counts (column), the share of each of its nearest items that have some (row)."""
    new = sparse.diags_array((~known).astype(float)) @ near @ sparse.diags_array(known.astype(float))
    nearest = cooccurrence.strongest(stored(new), NEAREST)
    nearest.data[:] = 1.0
    return sparse.csr_matrix(_shares(nearest).T)


def _nearest(histories: Sequence[Sequence[str]], items: pd.Index, near: sparse.csr_matrix) -> sparse.csr_matrix:
    """The similarity of each item to the nearest of a history's `LATEST` items, [histories, items]."""
    owners, places = cooccurrence.encode(cooccurrence.latest(histories, LATEST), items)
    entries = near[places].tocoo()
    keys = owners[entries.row].astype(np.int64) * len(items) + entries.col
    order = np.lexsort((-entries.data, keys))
    keys, first = np.unique(keys[order], return_index=True)
    return sparse.csr_matrix((entries.data[order][first], np.divmod(keys, len(items))), (len(histories), len(items)))
