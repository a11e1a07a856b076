"""The token trie against sets of sequences."""

import random

import pytest
import torch
from helpers import one_line_error

from gloss_utils.language.trie import ROOT, Trie

END = 0


def drawn(seed: int, count: int) -> list[list[int]]:
    rng = random.Random(seed)
    return [[*(rng.randint(1, 3) for _ in range(rng.randint(0, 5))), END] for _ in range(count)]


def walk(trie: Trie, prefix: list[int]) -> int:
    node = ROOT
    for token in prefix:
        tokens, nodes, filled = trie.children(torch.tensor([node]))
        node = int(nodes[filled][tokens[filled].tolist().index(token)])
    return node


@pytest.mark.parametrize("count", [1, 2, 5, 100])
def test_children_and_tails_of_every_prefix(count):
    for seed in range(20):
        sequences = drawn(seed, count)
        trie, distinct = Trie(sequences), {tuple(sequence) for sequence in sequences}
        prefixes = {sequence[:length] for sequence in distinct for length in range(len(sequence) + 1)}
        assert (trie.texts, trie.size, trie.depth) == (len(distinct), len(prefixes), max(map(len, distinct)))
        for prefix in prefixes:
            node = walk(trie, list(prefix))
            below = {sequence for sequence in distinct if sequence[: len(prefix)] == prefix}
            tokens, _, filled = trie.children(torch.tensor([node]))
            following = sorted({sequence[len(prefix)] for sequence in below if len(sequence) > len(prefix)})
            assert tokens[filled].tolist() == following
            tail, filled = trie.tails(torch.tensor([node]))
            (only,) = below if len(below) == 1 else [prefix]
            assert tail[filled].tolist() == list(only[len(prefix) :])


def test_children_of_many_nodes_at_once():
    trie = Trie([[1, 2, END], [1, 3, END], [2, END]])
    tokens, nodes, filled = trie.children(torch.tensor([[ROOT, walk(trie, [1])], [walk(trie, [2]), walk(trie, [2])]]))
    assert tokens.shape == nodes.shape == filled.shape == (2, 2, 2)
    assert tokens[filled].tolist() == [1, 2, 2, 3, END, END]


def test_a_text_that_goes_on_after_its_end():
    with one_line_error("goes on after its end-of-sequence token"):
        Trie([[1, END], [1, END, END]])
