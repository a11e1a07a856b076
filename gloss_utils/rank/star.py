"""STAR, a baseline: its retrieval, without the language model that ranks again (Lee et al., "STAR: A Simple
Training-free Approach for Recommendations using Large Language Models", 2024, arXiv:2410.16458).

The score of an item c for a history whose last items are j = 1 … l, the newest first:

    sum over j of rating_j · DECAY ^ (j - 1) · (SHARE · semantic(j, c) + (1 - SHARE) · collaborative(j, c))

semantic: the cosine of the two items' text embeddings. collaborative: the users who took both items, divided by the
root of the product of how many took each. All ratings are 1 here, where only that an item was taken
counts. The paper embeds titles, descriptions, categories and more with a large model; here the texts and the encoder
are the run's.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import sparse

from gloss_utils.rank import cooccurrence
from gloss_utils.rank.candidates import Histories
from gloss_utils.rank.ease import has
from gloss_utils.rank.scores import best

HISTORY, DECAY, SHARE = 3, 0.7, 0.5  # the paper's: items of the history, lambda, and the share of meaning
MOST_ITEMS = 50_000  # 384 multiplications each for every user; vectors of so many take 150 MB


class Star:
    """Both similarities of items."""

    def __init__(self, training_sequences: Histories, items: Sequence[str], vectors: np.ndarray):
        """items: ids in the catalogue's order. vectors: of their texts, float [items, dimensions].

        Raises `ValueError` where there are more than `MOST_ITEMS` items.
        """
        if len(items) > MOST_ITEMS:
            raise ValueError(f"STAR scores each of {len(items):,} items for every user")
        self.items = cooccurrence.index_of(items)
        held = has(training_sequences.values(), self.items)
        takers = np.asarray(held.sum(axis=0)).ravel()
        scale = sparse.diags_array(1 / np.sqrt(np.maximum(takers, 1.0)))
        self.collaborative = sparse.csr_matrix(scale @ (held.T @ held) @ scale)
        length = np.linalg.norm(vectors, axis=1, keepdims=True)
        self.vectors = np.asarray(vectors, dtype=np.float64) / np.maximum(length, 1e-12)

    def rank(self, histories: Histories, depth: int = 10, exclude_seen: bool = True) -> pd.DataFrame:
        """Rank all items for each user who has one of the catalogue; columns user, rank, item, score."""

        def scores(users: Sequence[Sequence[str]]) -> np.ndarray:
            weights = cooccurrence.recent(users, self.items, DECAY, HISTORY)
            found = SHARE * (weights @ self.vectors) @ self.vectors.T
            found += (1 - SHARE) * (weights @ self.collaborative).toarray()
            found[weights.getnnz(axis=1) == 0] = -np.inf
            return found

        return best(scores, histories, self.items, depth, exclude_seen)
