"""The token trie of a catalogue: what may follow a text that is being written.

No nodes are made. The texts are sorted by their tokens, so those that begin alike are neighbours, and a node is a range
of texts and a depth. That takes 24 bytes a text beside the tokens (4 bytes each), in flat arrays that processes share.
"""

import warnings
from array import array
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import count

import numpy as np
import torch

from gloss_utils.base.errors import GlossError

ROOT = 0
NODE_BITS = 63  # of a number that holds a node: of an int64 that is not negative
REMEMBERED = 2**16  # nodes whose children are kept as dicts


class Trie:
    """All texts of a catalogue as token ids, each with an end-of-sequence token, merged where they begin alike.

    A node is a number: its texts, `begin` to `until` - 1 of all as their tokens sort, and how many tokens they share
    there (see `_node`). The root is 0. N texts, of n sequences that were given.

    flat: the tokens of the sequences one after another, int32, [tokens]. start: where each begins in it, and the last
    ends, [n + 1]. first: which of the sequences each text is, the first of equal ones, int32, [N]. key, token: where
    a text parts from the one before, the number of tokens that they share · N + its place, rising, and the token with
    which it goes on, int32, [N]. So what parts at one depth within one range are neighbours.
    """

    def __init__(self, sequences: Iterable[Sequence[int]]):
        """sequences: at least one text's tokens, the end token last; equal ones count once. They are read once."""
        flat, start = array("i"), array("q", [0])
        for sequence in sequences:
            flat.extend(sequence)
            start.append(len(flat))
        self.flat, self.start = np.frombuffer(flat, np.intc), np.frombuffer(start, np.int64)
        order, shared = _sorted(self.flat, self.start)
        self.first, shared = order[shared >= 0], shared[shared >= 0]
        by_shared = np.argsort(shared, kind="stable")
        self.texts, self.depth = len(self.first), int(np.diff(self.start)[self.first].max())
        self.key = shared[by_shared] * np.int64(self.texts) + by_shared
        self.token = self.flat[self.start[self.first[by_shared]] + shared[by_shared]]
        self.range_bits, self.depth_bits = self.texts.bit_length(), self.depth.bit_length()
        if 2 * self.range_bits + self.depth_bits > NODE_BITS:
            raise GlossError(f"{self.texts:,} titles of up to {self.depth} tokens are too many for one trie")
        self._ready()

    def _ready(self):
        self._arrays, self.below = (), lru_cache(REMEMBERED)(self._below)
        self.to("cpu")

    def __getstate__(self) -> dict:
        return {name: value for name, value in vars(self).items() if name not in ("_arrays", "below")}

    def __setstate__(self, state: dict):
        vars(self).update(state)
        self._ready()

    def to(self, device) -> "Trie":
        """Look children up on this device; returns the trie itself. On a CPU the arrays are not copied."""
        if not self._arrays or self._arrays[0].device != torch.device(device):
            with warnings.catch_warnings(action="ignore"):  # arrays that processes share cannot be written to
                arrays = map(torch.from_numpy, (self.flat, self.start, self.first, self.key, self.token))
                self._arrays = tuple(values.to(device) for values in arrays)
        return self

    def _node(self, begin, until, depth):
        """The number of a node, or those of many: from the high bits, `begin`, `texts` - `until`, depth."""
        return ((begin << self.range_bits) | (self.texts - until)) << self.depth_bits | depth

    def span(self, nodes):
        """The texts below nodes (a number or a tensor): the first, and the one after the last."""
        within = nodes >> self.depth_bits
        return within >> self.range_bits, self.texts - (within & ((1 << self.range_bits) - 1))

    def _depth(self, nodes):
        return nodes & ((1 << self.depth_bits) - 1)

    def alone(self, nodes):
        """Whether one text only is below nodes, so that it is certain what follows."""
        begin, until = self.span(nodes)
        return until - begin == 1

    def _below(self, node: int) -> dict[int, int]:
        """`below(node)`: the children of one node, token -> node, tokens rising. The last ones asked for are kept."""
        (begin, until), depth = self.span(node), self._depth(node)
        place = self.start[self.first[begin]] + depth
        if place == self.start[self.first[begin] + 1]:
            return {}
        level = depth * self.texts
        inside = slice(*np.searchsorted(self.key, (level + begin + 1, level + until)))
        edges = [begin, *(self.key[inside] - level).tolist(), until]
        tokens = (int(self.flat[place]), *self.token[inside].tolist())
        return {token: self._node(*edges[child : child + 2], depth + 1) for child, token in enumerate(tokens)}

    def tokens(self, place: int) -> list[int]:
        """The tokens of the text at this place among all, as their tokens sort."""
        sequence = self.first[place]
        return self.flat[self.start[sequence] : self.start[sequence + 1]].tolist()

    def path(self, text: Sequence[int]) -> list[int]:
        """The node at which each token of a text of the catalogue, or of a text's beginning, is chosen."""
        return self._walk(text)[:-1]

    def place(self, text: Sequence[int]) -> int:
        """The place of a text of the catalogue among all, as their tokens sort."""
        return self.span(self._walk(text)[-1])[0]

    def _walk(self, text: Sequence[int]) -> list[int]:
        nodes = [ROOT]
        for token in text:
            nodes.append(self.below(nodes[-1])[token])
        return nodes

    def count(self, nodes: torch.Tensor) -> torch.Tensor:
        """How many tokens may follow each node."""
        return self._children(nodes)[-1]

    def _children(self, nodes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Where the first child is in `flat`, where the others begin in `key`, and how many children there are."""
        _, start, first, key, _ = self._arrays
        (begin, until), depth = self.span(nodes), self._depth(nodes)
        level, text = depth * self.texts, first[begin]
        place = start[text] + depth
        low = torch.searchsorted(key, level + begin + 1)  # the first child is not there: it does not part
        return place, low, torch.searchsorted(key, level + until) - low + (place < start[text + 1])

    def children(self, nodes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What may follow: tokens and nodes, [..., most children], and which of these places are filled."""
        flat, _, _, key, token = self._arrays
        nodes, which = nodes.unique(return_inverse=True)  # beams begin at one node, the one with most children
        (begin, until), depth = self.span(nodes), self._depth(nodes)
        level, (place, low, some) = depth * self.texts, self._children(nodes)
        places = torch.arange(max(1, int(some.max())) + 1, device=nodes.device)
        at = ((low - 1)[..., None] + places).clamp_(max=len(key) - 1)
        filled = places < some[..., None]
        edges = key[at].sub_(level[..., None])
        edges[..., 0] = begin
        torch.where(filled, edges, until[..., None], out=edges)
        at, filled = at[..., :-1], filled[..., :-1]
        tokens = token[at].long()
        tokens[..., 0] = flat[place.clamp_(max=len(flat) - 1)]
        # As `_node` has them, in less time: sums in place.
        nodes = edges[..., :-1] << (self.range_bits + self.depth_bits)
        nodes.sub_(edges[..., 1:], alpha=1 << self.depth_bits).add_(self._node(0, 0, depth + 1)[..., None])
        return tokens[which], nodes[which], filled[which]

    def tails(self, nodes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The tokens that are left from nodes with one text below, [..., longest tail], and which are filled."""
        flat, start, first, _, _ = self._arrays
        (begin, until), depth = self.span(nodes), self._depth(nodes)
        place, stop = start[first[begin]] + depth, start[first[begin] + 1]
        left = torch.where(until - begin == 1, stop - place, 0)
        places = torch.arange(int(left.max()), device=nodes.device)
        at = (place[..., None] + places).clamp_(max=len(flat) - 1)
        return flat[at].long(), places < left[..., None]


def _sorted(flat: np.ndarray, start: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The order of sequences by their tokens, and how many tokens each shares with the one before; -1 where it is equal
    to it. Of equal ones the first comes first.

    All sequences are sorted by their first token, those that have it in common by their second, and so on.
    """
    lengths, base = np.diff(start), int(flat.max()) + 2
    order, shared = np.arange(len(lengths), dtype=np.int32), np.full(len(lengths), -1, np.int32)
    shared[0] = 0
    places, group = order.copy(), np.zeros(len(order), np.int64)  # in `order`, not sorted yet; a group begins alike
    for depth in count():
        some = order[places]
        inside = depth < lengths[some]
        token = np.where(inside, flat[np.where(inside, start[some] + depth, 0)] + 1, 0)  # 0: a text has ended
        key = group * base + token
        by_key = np.argsort(key, kind="stable")
        order[places], key, token = some[by_key], key[by_key], token[by_key]
        differs = np.concatenate([[True], key[1:] != key[:-1], [True]])
        parts = differs[1:-1] & (group[1:] == group[:-1])
        if (token[:-1][parts] == 0).any():
            reason = "a text of the catalogue goes on after its end-of-sequence token"
            raise GlossError(f"{reason}; choose another base_model")
        shared[places[1:][parts]] = depth
        stays = ~(differs[:-1] & differs[1:]) & (token > 0)
        places, group = places[stays], differs[:-1].cumsum()[stays]
        if not len(places):
            return order, shared
