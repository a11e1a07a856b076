"""What histories say of items: which follow which, and how often each occurs."""

from collections.abc import Collection, Sequence
from itertools import pairwise

import numpy as np
import pandas as pd
from scipy import sparse

Histories = Collection[Collection[str]]  # items, oldest first
PAIRS_AT_A_TIME = 2**26  # a few gigabytes


def encode(histories: Histories, items: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """All histories one after the other: whose each interaction is (the history's place), and the item's place in
    `items`. Items that are not among them are left out."""
    lengths = np.fromiter(map(len, histories), np.int64)
    flat = np.array([item for history in histories for item in history], dtype=object)
    places = pd.Index(items).get_indexer(flat)
    owners = np.repeat(np.arange(len(lengths)), lengths)
    return owners[places >= 0], places[places >= 0]


def counts(histories: Histories, items: Sequence[str]) -> np.ndarray:
    """How often each item occurs, [items]."""
    return np.bincount(encode(histories, items)[1], minlength=len(items))


def following(
    histories: Histories,
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
    owners, places = encode(histories, items)
    occur = np.bincount(places, minlength=len(items))
    block = np.cumsum(occur) * 2 * window // PAIRS_AT_A_TIME
    parts = []
    for first, end in pairwise([*np.flatnonzero(np.diff(block, prepend=-1)), len(items)]):
        rows, columns, values = [], [], []
        for row, column, value in _pairs(owners, places, window, decay, backward):
            kept = (row >= first) & (row < end)
            rows.append(row[kept] - first)
            columns.append(column[kept])
            values.append(np.full(len(rows[-1]), value))
        entries = np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))
        matrix = sparse.csr_matrix(entries, (end - first, len(items)))
        matrix = sparse.csr_matrix(sparse.diags_array(np.maximum(occur[first:end], 1.0) ** -damping) @ matrix)
        parts.append(matrix if neighbours is None else strongest(matrix, neighbours))
    return sparse.csr_matrix(sparse.vstack(parts))


def _pairs(owners: np.ndarray, places: np.ndarray, window: int, decay: float, backward: float):
    """Yields the items of rows and of columns, and what each such pair counts."""
    for apart in range(1, window + 1):
        same = np.flatnonzero(owners[apart:] == owners[:-apart])
        earlier, later = places[same], places[same + apart]
        yield earlier, later, decay ** (apart - 1)
        yield later, earlier, backward * decay ** (apart - 1)


def recent(histories: Histories, items: Sequence[str], recency: float) -> sparse.csr_matrix:
    """Each history as a row of weights, [histories, items]: 1 for its last item, `recency` ** k for k before that."""
    owners, places = encode(histories, items)
    ends = np.searchsorted(owners, owners, side="right")
    weights = recency ** (ends - 1 - np.arange(len(owners)))
    return sparse.csr_matrix((weights, (owners, places)), (len(histories), len(items)))


def strongest(matrix: sparse.csr_matrix, count: int) -> sparse.csr_matrix:
    """Each row's `count` largest entries, all above 0; of equal ones those of the first columns."""
    matrix.sort_indices()
    rows = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    falling = np.argsort(rows - matrix.data / (2 * matrix.max()), kind="stable") if matrix.nnz else rows
    place = np.arange(matrix.nnz) - matrix.indptr[rows]
    kept = np.sort(falling[place < count])
    return sparse.csr_matrix((matrix.data[kept], (rows[kept], matrix.indices[kept])), matrix.shape)


def keys(matrix: sparse.csr_matrix) -> np.ndarray:
    """row × columns + column of every entry."""
    entries = matrix.tocoo()
    return entries.row.astype(np.int64) * matrix.shape[1] + entries.col
