"""The token trie against sets of sequences."""

import pickle
import random

import numpy as np
import pytest
import torch
from helpers import one_line_error

from gloss_utils.language import trie as trie_module
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
        trie, distinct = Trie(iter(sequences)), {tuple(sequence) for sequence in sequences}
        prefixes = {sequence[:length] for sequence in distinct for length in range(len(sequence) + 1)}
        assert (trie.texts, trie.depth) == (len(distinct), max(map(len, distinct)))
        assert len({walk(trie, list(prefix)) for prefix in prefixes}) == len(prefixes)
        for prefix in prefixes:
            node = walk(trie, list(prefix))
            below = {sequence for sequence in distinct if sequence[: len(prefix)] == prefix}
            tokens, nodes, filled = trie.children(torch.tensor([node]))
            following = sorted({sequence[len(prefix)] for sequence in below if len(sequence) > len(prefix)})
            assert tokens[filled].tolist() == following
            assert trie.below(node) == dict(zip(following, nodes[filled].tolist(), strict=True))
            assert trie.alone(node) == (len(below) == 1)
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


@pytest.mark.parametrize("count", [1, 30])
def test_texts_are_in_the_order_of_their_tokens(count):
    sequences = drawn(3, count)
    trie, ordered = Trie(sequences), sorted(set(map(tuple, sequences)))
    assert trie.first.tolist() == [sequences.index(list(text)) for text in ordered]  # the first of equal ones
    assert [trie.place(text) for text in ordered] == list(range(len(ordered)))
    for text in ordered:
        assert trie.path(text) == [walk(trie, list(text[:length])) for length in range(len(text))]


def test_processes_share_the_arrays():
    trie, buffers = Trie(drawn(1, 50)), []
    pickled = pickle.dumps(trie, protocol=5, buffer_callback=buffers.append)  # as Ray does
    assert len(pickled) < 1000
    read_only = [memoryview(buffer).toreadonly() for buffer in buffers]
    shared = pickle.loads(pickled, buffers=read_only)
    for name in ("flat", "start", "first", "key", "token"):
        assert np.shares_memory(getattr(shared, name), getattr(trie, name))
        assert not getattr(shared, name).flags.writeable
    nodes = torch.tensor([ROOT])
    assert all(map(torch.equal, shared.children(nodes), trie.children(nodes)))


def test_a_trie_holds_little_more_than_its_tokens():
    rng = np.random.default_rng(0)
    trie = Trie(np.hstack([rng.integers(1, 1000, (500, 21)), np.zeros((500, 1), int)]).tolist())
    held = sum(value.nbytes for value in vars(trie).values() if isinstance(value, np.ndarray))
    assert held / 500 <= 22 * 4 + 25


def test_what_does_not_fit_in_the_number_of_a_node(monkeypatch):
    monkeypatch.setattr(trie_module, "NODE_BITS", 8)
    with one_line_error("3 titles of up to 16 tokens are too many"):
        Trie([[1, END], [2, END], [3] * 15 + [END]])
    assert Trie([[1, END], [2, END], [3] * 14 + [END]]).texts == 3
