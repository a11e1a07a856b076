"""The token trie of a catalogue, held in arrays: what may follow a text that is being written."""

from collections.abc import Iterable, Sequence
from itertools import chain, pairwise

import numpy as np
import torch

from gloss_utils.base.errors import GlossError

ROOT = 0


class Trie:
    """All texts of a catalogue as token ids, each with an end-of-sequence token, merged where they begin alike.

    Nodes are numbered from 0, the root. A node's children are neighbours: tokens `child_token[first[n] : first[n] +
    count[n]]`, rising, and nodes `child_node[...]` likewise. `tail[n]` is how many tokens are left where only one text
    passes through n, else 0; they are the last `tail[n]` tokens of that text, which end in `flat` before `stop[n]`.
    Those that pass through n are the texts `begin[n]` to `until[n]` - 1 of all, as their tokens sort.
    """

    def __init__(self, sequences: Iterable[Sequence[int]]):
        """sequences: at least one text's tokens, the end token last; equal ones count once."""
        ordered = sorted(set(map(tuple, sequences)))
        shared = [_shared(one, two) for one, two in pairwise(ordered)]
        before, after = np.array([0, *shared]), np.array([*shared, 0 if len(ordered) > 1 else -1])
        lengths = np.array([len(sequence) for sequence in ordered])
        stops, made = lengths.cumsum(), lengths - before  # a text makes the nodes that it does not share with the last
        offset = 1 + made.cumsum() - made
        text = np.repeat(np.arange(len(ordered)), made)
        depth = np.arange(made.sum()) - np.repeat(offset - 1, made) + np.repeat(before, made) + 1
        parents = np.arange(made.sum())  # within a text, the node before; a first node has one of an earlier text
        path, until = [ROOT], np.full(made.sum() + 1, len(ordered))
        for place, (first, count, common) in enumerate(
            zip(offset.tolist(), made.tolist(), before.tolist(), strict=True)
        ):
            parents[first - 1] = path[common]
            until[path[common + 1 :]] = place
            path[common + 1 :] = range(first, first + count)
        flat = np.fromiter(chain.from_iterable(ordered), np.int64, int(lengths.sum()))
        tokens = flat[(stops - lengths)[text] + depth - 1]
        alone = depth > after[text]
        by_parent = np.argsort(parents, kind="stable")
        count = np.bincount(parents, minlength=len(parents) + 1)

        self.depth, self.size, self.texts = int(lengths.max()), len(parents) + 1, len(ordered)
        self.flat = torch.from_numpy(flat)
        self.child_token = torch.from_numpy(tokens[by_parent])
        self.child_node = torch.from_numpy(by_parent + 1)
        self.count = torch.from_numpy(count)
        self.first = torch.from_numpy(count.cumsum() - count)
        root_tail = int(lengths[0]) if len(ordered) == 1 else 0
        self.tail = torch.from_numpy(np.concatenate([[root_tail], np.where(alone, lengths[text] - depth, 0)]))
        self.stop = torch.from_numpy(np.concatenate([[stops[0]], stops[text]]))
        self.begin = torch.from_numpy(np.concatenate([[0], text]))
        self.until = torch.from_numpy(until)
        self._paths: dict[tuple[int, ...], list[int]] = {}

    def to(self, device) -> "Trie":
        """Move the arrays to a device; returns the trie itself."""
        for name in ("flat", "child_token", "child_node", "count", "first", "tail", "stop", "begin", "until"):
            setattr(self, name, getattr(self, name).to(device))
        return self

    def path(self, text: Sequence[int]) -> list[int]:
        """The node at which each token of a text of the catalogue, or of a text's beginning, is chosen."""
        text = tuple(text)
        if text not in self._paths:
            node, path = ROOT, []
            for token in text:
                path.append(node)
                first = int(self.first[node])
                children = self.child_token[first : first + int(self.count[node])]
                node = int(self.child_node[first + int(torch.searchsorted(children, token))])
            self._paths[text] = path
        return self._paths[text]

    def children(self, nodes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What may follow: tokens and nodes, [..., most children], and which of these places are filled."""
        count = self.count[nodes]
        places = torch.arange(int(count.max()), device=nodes.device)
        filled = places < count[..., None]
        at = (self.first[nodes][..., None] + places).clamp_(max=len(self.child_token) - 1)
        return self.child_token[at], self.child_node[at], filled

    def tails(self, nodes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The tokens that are left from nodes with one continuation, [..., longest tail], and which are filled."""
        left = self.tail[nodes]
        places = torch.arange(int(left.max()), device=nodes.device)
        at = (self.stop[nodes] - left)[..., None] + places
        return self.flat[at.clamp_(max=len(self.flat) - 1)], places < left[..., None]


def _shared(one: tuple[int, ...], two: tuple[int, ...]) -> int:
    for place, (left, right) in enumerate(zip(one, two, strict=False)):
        if left != right:
            return place
    raise GlossError("a text of the catalogue goes on after its end-of-sequence token; choose another base_model")
