"""The baseline EASE (Steck, "Embarrassingly Shallow Autoencoders for Sparse Data", WWW 2019, arXiv:1905.03375).

A linear model that predicts what a user has from everything else that the user has. It is solved in closed form: with X
[users, items] 0 or 1, P = (X'X + penalty · I)^-1 and B = -P / diag(P) with a diagonal of 0, the scores of a history x
are x B. The order of a history plays no part.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import scipy.linalg
from scipy import sparse

from gloss_utils.rank import cooccurrence
from gloss_utils.rank.candidates import Histories
from gloss_utils.rank.scores import best

PENALTY = 20.0  # on Beauty's validation users better than 100 and than 500, the paper's for MovieLens-20M
MOST_ITEMS = 20_000  # the inverse of so many takes 3.2 GB, and as much to compute


class Ease:
    """The item-to-item weights that the training sequences give."""

    def __init__(self, training_sequences: Histories, items: Sequence[str], penalty: float = PENALTY):
        """items: ids in the catalogue's order. penalty: the ridge's (lambda in the paper).

        Raises `ValueError` where more than `MOST_ITEMS` items occur in the sequences.
        """
        self.items = cooccurrence.index_of(items)
        held = has(training_sequences.values(), self.items)
        self.known = np.flatnonzero(held.getnnz(axis=0))
        if len(self.known) > MOST_ITEMS:
            raise ValueError(f"EASE inverts a matrix of {len(self.known):,} × {len(self.known):,} items")
        held = held[:, self.known]
        gram = (held.T @ held).toarray() + penalty * np.eye(len(self.known))
        self.weights = scipy.linalg.inv(gram, overwrite_a=True, check_finite=False, assume_a="pos")
        self.weights /= -np.diag(self.weights).copy()
        np.fill_diagonal(self.weights, 0.0)

    def rank(self, histories: Histories, depth: int = 10, exclude_seen: bool = True) -> pd.DataFrame:
        """Rank for each user the items that occur in the training sequences; columns user, rank, item, score."""

        def scores(users: Sequence[Sequence[str]]) -> np.ndarray:
            found = np.full((len(users), len(self.items)), -np.inf)
            found[:, self.known] = has(users, self.items)[:, self.known] @ self.weights
            return found

        return best(scores, histories, self.items, depth, exclude_seen)


def has(histories: Sequence[Sequence[str]], items: pd.Index) -> sparse.csr_matrix:
    """What each history holds: 1 or 0, [histories, items]."""
    owners, places = cooccurrence.encode(histories, items)
    matrix = sparse.csr_matrix((np.ones(len(owners)), (owners, places)), (len(histories), len(items)))
    matrix.data[:] = 1.0
    return matrix
