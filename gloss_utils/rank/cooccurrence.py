"""What histories say of items: which follow which, and how often each occurs."""

from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import sparse

from gloss_utils.data.sequences import Lists, Sequences

ItemLists = Collection[Collection[str]]  # histories by place: items, oldest first
PAIRS_AT_A_TIME = 2**25  # some two gigabytes
ARRAYS = ("data", "indices", "indptr")  # of rows on the disk, as scipy calls them


def index_of(items: Sequence[str]) -> pd.Index:
    """The items as an index; what is one already stays the same one, which knows by now where its items are."""
    return items if isinstance(items, pd.Index) else pd.Index(items)


def as_arrays(sequences: Mapping[str, Sequence[str]]) -> Sequences:
    """Sequences by user as arrays."""
    if isinstance(sequences, Sequences):
        return sequences
    return Sequences.of(sequences, list(dict.fromkeys(item for items in sequences.values() for item in items)))


def lists_of(histories: Mapping[str, Sequence[str]]) -> Sequence[Sequence[str]]:
    """The histories by place, which can be cut into blocks."""
    lists = histories.values()
    return lists if isinstance(lists, Lists) else list(lists)


def encode(histories: ItemLists, items: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """All histories one after the other: whose each interaction is (the history's place), and the item's place in
    `items`. Items that are not among them are left out."""
    items = index_of(items)
    if isinstance(histories, Lists):
        lengths, places = histories.lengths, histories.places
        if histories.items is not items and len(places) > len(items):
            places = items.get_indexer(histories.items)[places]
        elif histories.items is not items:
            places = items.get_indexer(histories.items[places])
    else:
        lengths = np.fromiter(map(len, histories), np.int64)
        places = items.get_indexer(np.array([item for history in histories for item in history], dtype=object))
    owners = np.repeat(np.arange(len(lengths)), lengths)
    known = places >= 0
    return (owners, places) if known.all() else (owners[known], places[known])


def counts(histories: ItemLists, items: Sequence[str]) -> np.ndarray:
    """How often each item occurs, [items]."""
    return np.bincount(encode(histories, items)[1], minlength=len(items))


def following(
    histories: ItemLists,
    items: Sequence[str],
    window: int,
    decay: float,
    backward: float,
    damping: float,
    neighbours: int | None = None,
) -> sparse.csr_matrix:
    """How strongly each item (row) is followed by each other (column) in histories, [items, items].

    Two interactions of a history at most `window` positions apart count decay ** (positions apart - 1) for the later
    item after the earlier, and `backward` times as much the other way round. A row is divided by how often its item
    occurs, to the power `damping`: 1 gives shares, 0 counts; between them, much evidence says more than little.
    neighbours: how many of each row are kept, the `strongest`; null: all. Rows are counted some at a time, so that no
    more than `PAIRS_AT_A_TIME` pairs are held, or one row's.
    """
    pairs = Pairs(histories, items, window, decay, backward, damping, neighbours)
    return sparse.csr_matrix(sparse.vstack([pairs.following(block) for block in blocks(histories, items, window)]))


def cosine(histories: ItemLists, items: Sequence[str], window: int, neighbours: int) -> sparse.csr_matrix:
    """How often two items are at most `window` positions apart in a history, whatever their order, over the root of
    the product of how often each occurs, [items, items]; of each row the `strongest`."""
    scale, parts = 1 / np.sqrt(np.maximum(counts(histories, items), 1.0)), []
    pairs = Pairs(histories, items, window, 1.0, 1.0)
    for block in blocks(histories, items, window):
        rows = sparse.diags_array(scale[block.start : block.stop])
        parts.append(strongest(stored(rows @ pairs.counted(block) @ sparse.diags_array(scale)), neighbours))
    return sparse.csr_matrix(sparse.vstack(parts))


def blocks(histories: ItemLists, items: Sequence[str], window: int) -> list[range]:
    """The places of all items, in blocks of at most `PAIRS_AT_A_TIME` pairs, or of one item."""
    block = np.cumsum(counts(histories, items)) * 2 * window // PAIRS_AT_A_TIME
    return [range(*ends) for ends in pairwise([*np.flatnonzero(np.diff(block, prepend=-1)), len(items)])]


class Pairs:
    """Counts the pairs of some rows, as `following` says, without those of others.

    The interactions are sorted by item once; those of a block of rows are then looked at alone, with what stands
    around them, so that the work is as much as there are pairs. They are held in 12 bytes each.
    """

    def __init__(
        self,
        histories: ItemLists,
        items: Sequence[str],
        window: int,
        decay: float,
        backward: float,
        damping: float = 0.0,
        neighbours: int | None = None,
    ):
        self.how, self.damping, self.neighbours = (window, decay, backward), damping, neighbours
        self.owners, self.places = (each.astype(np.int32, copy=False) for each in encode(histories, items))
        self.offsets = np.concatenate([[0], np.cumsum(np.bincount(self.owners, minlength=len(histories)))])
        self.begin = np.concatenate([[0], np.cumsum(np.bincount(self.places, minlength=len(items)))])
        self.by_item = _sorted_by(self.places, len(items))

    def counted(self, block: range) -> sparse.csr_matrix:
        """What the pairs of these rows count, [rows, items]."""
        at, shape = self.by_item[self.begin[block.start] : self.begin[block.stop]], (len(block), len(self.begin) - 1)
        of_row = np.repeat(np.arange(len(block), dtype=np.int32), self._occur(block))
        owners = self.owners[at]
        after = self.offsets[owners + 1] - 1 - at  # interactions of the same history
        before = at - self.offsets[owners]
        pairs = list(_pairs(at, self.places, after, before, *self.how))
        if not pairs:
            return sparse.csr_matrix(shape)
        rows = np.concatenate([of_row[kept] for kept, _, _ in pairs])
        columns = np.concatenate([column for _, column, _ in pairs])
        values = np.concatenate([np.full(len(column), value) for _, column, value in pairs])
        del pairs
        return sparse.csr_matrix((values, (rows, columns)), shape)

    def following(self, block: range) -> sparse.csr_matrix:
        """These rows of `following`."""
        scale = sparse.diags_array(np.maximum(self._occur(block), 1.0) ** -self.damping)
        matrix = sparse.csr_matrix(scale @ self.counted(block))
        return matrix if self.neighbours is None else strongest(matrix, self.neighbours)

    def _occur(self, block: range) -> np.ndarray:
        return np.diff(self.begin[block.start : block.stop + 1])


def save(folder: Path, parts: Sequence[Path]):
    """Write the rows that are in these files (scipy's npz), one file after the other, as a folder of `ARRAYS`."""
    folder.mkdir()
    lengths = [np.diff(_of_part(part, "indptr")) for part in parts]
    indptr = np.cumsum(np.concatenate([[0], *lengths], dtype=np.int64))
    # scipy maps both arrays of places where their types are the same, and else copies one.
    places = np.int32 if indptr[-1] <= np.iinfo(np.int32).max else np.int64
    np.save(folder / "indptr.npy", indptr.astype(places))
    for name, kind in (("data", np.float64), ("indices", places)):
        with open(folder / f"{name}.npy", "wb") as file:
            about = {"descr": np.dtype(kind).str, "fortran_order": False, "shape": (int(indptr[-1]),)}
            np.lib.format.write_array_header_1_0(file, about)
            for part in parts:
                file.write(_of_part(part, name).astype(kind, copy=False))


def _of_part(part: Path, name: str) -> np.ndarray:
    with np.load(part) as arrays:
        return arrays[name]


def load(folder: Path, items: int) -> sparse.csr_matrix:
    """Rows that were saved, memory-mapped, [items, items]; items that came later have none."""
    data, indices, indptr = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ARRAYS)
    indptr = np.pad(indptr, (0, items + 1 - len(indptr)), mode="edge")
    return sparse.csr_matrix((data, indices, indptr), (items, items))


def _pairs(at: np.ndarray, places: np.ndarray, after: np.ndarray, before: np.ndarray, window: int, decay, backward):
    """Yields which of the interactions `at` have one so many positions later, or before, its item, and what such a pair
    counts. after, before: how many there are of the same history."""
    ways = [(after, 1, 1.0), (before, -1, backward)] if backward else [(after, 1, 1.0)]
    for apart in range(1, min(window, max(after.max(initial=0), before.max(initial=0))) + 1):
        for room, way, value in ways:
            kept = np.flatnonzero(room >= apart)
            yield kept, places[at[kept] + way * apart].astype(np.int32, copy=False), value * decay ** (apart - 1)


def _sorted_by(places: np.ndarray, items: int) -> np.ndarray:
    """Where each item's interactions are, one item after the other: a stable counting sort."""
    one_each = np.ones(len(places), dtype=np.int8), places, np.arange(len(places) + 1)
    return sparse.csc_matrix(one_each, (items, len(places))).tocsr().indices


def recent(histories: ItemLists, items: Sequence[str], recency: float, latest: int | None = None) -> sparse.csr_matrix:
    """Each history as a row of weights, [histories, items]: 1 for its last item, `recency` ** k for k before that.
    latest: how many of the last items count; null: all."""
    owners, places = encode(histories, items)
    ends = np.searchsorted(owners, owners, side="right")
    back = ends - 1 - np.arange(len(owners))
    kept = slice(None) if latest is None else back < latest
    entries = recency ** back[kept], (owners[kept], places[kept])
    return sparse.csr_matrix(entries, (len(histories), len(items)))


def latest(histories: Sequence[Sequence[str]], count: int) -> Sequence[Sequence[str]]:
    """The last so many items of each history."""
    if not isinstance(histories, Lists):
        return [history[-count:] for history in histories]
    ends = np.repeat(histories.offsets[1:], histories.lengths)
    return histories.where(ends - np.arange(len(histories.places)) <= count)


def strongest(matrix: sparse.csr_matrix, count: int) -> sparse.csr_matrix:
    """Each row's `count` largest entries, all above 0; of equal ones those of the first columns."""
    matrix.sort_indices()
    rows = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    falling = np.argsort(rows - matrix.data / (2 * matrix.max()), kind="stable") if matrix.nnz else rows
    place = np.arange(matrix.nnz) - matrix.indptr[rows]
    kept = np.sort(falling[place < count])
    return sparse.csr_matrix((matrix.data[kept], (rows[kept], matrix.indices[kept])), matrix.shape)


def strongest_of_product(left: sparse.csr_matrix, right: sparse.csr_matrix, count: int) -> sparse.csr_matrix:
    """The `strongest` of left @ right, of which no more than `PAIRS_AT_A_TIME` sums' terms are held, or one row's."""
    terms, parts = np.cumsum(left.astype(bool).astype(np.int64) @ np.diff(right.indptr)), []
    block = terms // PAIRS_AT_A_TIME
    for first, end in pairwise([*np.flatnonzero(np.diff(block, prepend=-1)), left.shape[0]]):
        parts.append(strongest(stored(left[first:end] @ right), count))
    return sparse.csr_matrix(sparse.vstack(parts))


def stored(matrix) -> sparse.csr_matrix:
    """The matrix without stored zeros, its columns in order."""
    matrix = sparse.csr_matrix(matrix)
    matrix.eliminate_zeros()
    matrix.sort_indices()
    return matrix


def filled_up(
    keys: np.ndarray, seen: np.ndarray, users: int, items: int, depth: int, popular: np.ndarray
) -> np.ndarray:
    """The keys, and for users with fewer than `depth` as many popular items more, if the catalogue has them.

    keys, seen: see `keys`; of candidates, and of what no candidate may be. popular: places, most popular first.
    """
    have, had = (np.bincount(some // items, minlength=users) for some in (keys, seen))
    # Each user looks as far as this one may need to: as far as the longest history takes much memory for all.
    more = [user * items + popular[: depth + have[user] + had[user]] for user in np.flatnonzero(have < depth)]
    return np.setdiff1d(np.concatenate([keys, *more]), seen) if more else keys


def keys(matrix: sparse.csr_matrix) -> np.ndarray:
    """row × columns + column of every entry."""
    entries = matrix.tocoo()
    return entries.row.astype(np.int64) * matrix.shape[1] + entries.col
