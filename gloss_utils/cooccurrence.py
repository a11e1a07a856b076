"""What the training histories say of items: which follow which, and how often each occurs."""

from collections.abc import Collection

import numpy as np
import pandas as pd
from scipy import sparse

Histories = Collection[Collection[str]]


def encode(histories: Histories, items: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """All histories one after the other: whose each interaction is (the history's place), and the item's place in
    `items`. Items that are not among them are left out."""
    lengths = np.fromiter((len(history) for history in histories), np.int64)
    flat = np.array([item for history in histories for item in history], dtype=object)
    places = pd.Index(items).get_indexer(flat)
    owners = np.repeat(np.arange(len(lengths)), lengths)
    return owners[places >= 0], places[places >= 0]


def counts(histories: Histories, items: pd.Series) -> np.ndarray:
    """How often each item occurs, [items]."""
    return np.bincount(encode(histories, items)[1], minlength=len(items))


def following(
    histories: Histories, items: pd.Series, window: int, decay: float, backward: float, damping: float
) -> sparse.csr_matrix:
    """How strongly each item (row) is followed by each other (column) in histories, [items, items].

    Two interactions of a history at most `window` positions apart count decay ** (positions apart - 1) for the later
    item after the earlier, and `backward` times as much the other way round. A row is divided by how often its item
    occurs, to the power `damping`: 1 gives shares, 0 counts; between them, much evidence says more than little.
    """
    owners, places = encode(histories, items)
    rows, columns, values = [], [], []
    for apart in range(1, window + 1):
        same = owners[apart:] == owners[:-apart]
        earlier, later = places[:-apart][same], places[apart:][same]
        weight = np.full(len(earlier), decay ** (apart - 1))
        rows += [earlier, later]
        columns += [later, earlier]
        values += [weight, backward * weight]
    shape = (len(items), len(items))
    matrix = sparse.csr_matrix((np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))), shape)
    occur = np.maximum(np.bincount(places, minlength=len(items)), 1.0)
    return sparse.csr_matrix(sparse.diags_array(occur**-damping) @ matrix)


def recent(histories: Histories, items: pd.Series, recency: float) -> sparse.csr_matrix:
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
