"""Which texts of a catalogue a user's history makes likely, as a prior over the nodes of their trie.

The mass of a node is the sum of the weights of the texts below it. As their tokens sort, these are neighbours, so it is
a difference of two cumulative sums, whatever the size of the catalogue.
"""

import numpy as np
import torch
from scipy import sparse

from gloss_utils.language.trie import ROOT, Trie


class Guide:
    """Weights of a batch of users, [U, texts of the trie], and how much they count: `share`, from 0 to 1.

    At each node, a child's log-probability is mixed with the log of the child's part of the node's mass. Along a path
    these parts multiply, so a beam's score is (1 - share) · its log-probability + share · log(mass of its node / mass
    of the root).
    """

    def __init__(self, trie: Trie, share: float, own: sparse.csr_matrix, common: np.ndarray, device):
        """own: each user's weights, from 0 up, most of them 0; common: what each text has for every user, above 0. Both
        in the order of the trie's texts."""
        trie.to(device)
        own, places = sparse.csr_matrix(own), trie.texts + 1
        own.sort_indices()
        users = np.repeat(np.arange(own.shape[0]), np.diff(own.indptr))
        self.trie, self.share, self.places = trie, share, places
        self.keys = torch.from_numpy(users * places + own.indices).to(device)
        self.sums = _sums(own.data).to(device)
        self.common = _sums(common).to(device)
        self.whole = self._mass(torch.arange(len(own.indptr) - 1, device=device), self.keys.new_tensor(ROOT)).log()

    def score(self, logprobs, users, nodes, filled: torch.Tensor) -> torch.Tensor:
        """The scores of beams with these log-probabilities at these nodes, [rows, ...], in the places that are filled.

        users: of each row.
        """
        scores, users = (1 - self.share) * logprobs, users.view(-1, *[1] * (nodes.ndim - 1)).expand_as(nodes)[filled]
        mass = self._mass(users, nodes[filled]).log() - self.whole[users]
        scores[filled] += self.share * mass.to(scores.dtype)
        return scores

    def _mass(self, users: torch.Tensor, nodes: torch.Tensor) -> torch.Tensor:
        begin, until = self.trie.span(nodes)
        low, high = (torch.searchsorted(self.keys, users * self.places + place) for place in (begin, until))
        return self.sums[high] - self.sums[low] + self.common[until] - self.common[begin]


def _sums(values: np.ndarray) -> torch.Tensor:
    """Cumulative sums, from the 0 before the first."""
    return torch.from_numpy(np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)]))
