"""Rankings from sequences held as arrays: the same to the last bit as from dictionaries, and no list of a user made."""

import numpy as np
import pandas as pd
import pytest
from helpers import dense
from scipy import sparse

from gloss_utils.data.sequences import Lists, Sequences
from gloss_utils.rank import Ease, Evidence, HybridSettings, Ranker, Star, baselines, cooccurrence, examples
from gloss_utils.rank.examples import labelled
from gloss_utils.rank.signals import CLOSELY, COUNTING, Signals
from gloss_utils.report.beyond import Catalogue
from gloss_utils.runs.parameters import ROOT
from gloss_utils.search.bm25 import BM25Index

ITEMS = [f"i{place}" for place in range(40)]
SETTINGS = HybridSettings.read(ROOT / "params/ranking/weights.yaml")
VECTORS = np.random.default_rng(4).standard_normal((40, 6)).astype(np.float32)


class NoLists(Lists):
    """Lists of which no single one may be asked for."""

    def __getitem__(self, place):
        assert isinstance(place, slice), "a list of one user was made"
        found = super().__getitem__(place)
        return NoLists(found.items, found.offsets, found.places)

    def __iter__(self):
        raise AssertionError("lists of all users were made")


def plain(users: int = 200) -> dict[str, list[str]]:
    rng = np.random.default_rng(2)
    return {f"u{user}": [ITEMS[place] for place in rng.zipf(1.4, rng.integers(0, 12)) % 35] for user in range(users)}


def arrays() -> Sequences:
    found = Sequences.of(plain(), ITEMS)
    return Sequences(found.users, NoLists(found.lists.items, found.lists.offsets, found.lists.places))


def near() -> dict[str, sparse.csr_matrix]:
    similar = sparse.csr_matrix(np.maximum(VECTORS @ VECTORS.T, 0))
    return {"dense": similar, "bm25": similar}


def same(one, other):
    """Sparse matrices of the same bits."""
    for name in ("indptr", "indices", "data"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


@pytest.mark.parametrize("items", [ITEMS, ITEMS[::-1], ITEMS[3:]])
def test_counting(items):
    lists = list(plain().values())
    for some in (arrays().values(), arrays().values()[:2]):  # more interactions than items, and fewer
        for found, expected in zip(
            cooccurrence.encode(some, items), cooccurrence.encode(lists[: len(some)], items), strict=True
        ):
            np.testing.assert_array_equal(found, expected)
    for counting in (COUNTING, CLOSELY):
        same(
            cooccurrence.following(arrays().values(), items, **counting),
            cooccurrence.following(lists, items, **counting),
        )
    for latest in (None, 3):
        same(
            cooccurrence.recent(arrays().values(), items, 0.5, latest),
            cooccurrence.recent(lists, items, 0.5, latest),
        )
    cut = cooccurrence.latest(arrays().values(), 4)
    assert [cut.items[some].tolist() for some in np.split(cut.places, cut.offsets[1:-1])] == [
        history[-4:] for history in lists
    ]


def test_signals_and_the_examples_that_trees_learn_from():
    one, other = (Signals(some.values(), ITEMS, near()) for some in (arrays(), plain()))
    for signal, matrix in other.by_item.items():
        same(one.by_item[signal], matrix)
    for signal, matrix in other.of(list(plain().values())).items():
        same(one.of(arrays().values())[signal], matrix)
    assert examples.hide(arrays(), ITEMS, 1) == Sequences.of(examples.hide(plain(), ITEMS, 1), ITEMS)
    one, other = (labelled(some, ITEMS, near(), 1, 50) for some in (arrays(), plain()))
    assert other.is_label.any()
    pd.testing.assert_frame_equal(one.candidates, other.candidates, check_exact=True)
    np.testing.assert_array_equal(one.is_label, other.is_label)


def test_baselines_and_what_is_beyond_accuracy():
    histories = {user: items for user, items in plain().items() if len(items) > 3}
    for kind in (Ease, lambda known, items: Star(known, items, VECTORS)):
        pd.testing.assert_frame_equal(kind(arrays(), ITEMS).rank(histories), kind(plain(), ITEMS).rank(histories))
    one, other = (Catalogue(ITEMS, some, VECTORS) for some in (arrays(), plain()))
    np.testing.assert_array_equal(one.popularity, other.popularity)
    np.testing.assert_array_equal(one.novelty, other.novelty)


@pytest.mark.parametrize("rule", ["hybrid", "learned"])
def test_rankers_and_their_baselines(rule):
    titles = {item: f"{item} soap" for item in ITEMS}
    texts = [f"Title: {title}" for title in titles.values()]
    indexes = {"dense": dense(texts, VECTORS), "bm25": BM25Index.build(texts)}
    queries = pd.DataFrame({"user": list(plain()), "history": list(plain().values())}).assign(texts=[texts[3:5]] * 200)
    one, other = (Ranker(queries, titles, indexes, some, SETTINGS, rule) for some in (arrays(), plain()))
    pd.testing.assert_frame_equal(one.rank(), other.rank(), check_exact=True)
    for name, rank in baselines.by_name(other).items():
        found = baselines.by_name(one)[name](other.histories, exclude_seen=True)
        pd.testing.assert_frame_equal(found, rank(other.histories, exclude_seen=True), check_exact=True)


def test_those_who_are_ranked_for_may_be_arrays_too():
    one, other = (Evidence(some, some, ITEMS, SETTINGS) for some in (arrays(), plain()))
    for some, expected in zip(one.candidates({}, 5), other.candidates({}, 5), strict=True):
        pd.testing.assert_frame_equal(some, expected)


def test_only_the_pairs_of_a_block_of_rows_are_looked_at(monkeypatch):
    """One pass: however small the blocks, all of them together look at each pair once."""
    looked, real = [], cooccurrence._pairs
    monkeypatch.setattr(cooccurrence, "_pairs", lambda *given: looked.extend(found := list(real(*given))) or found)
    pairs = sum(2 * min(5, len(items) - 1 - place) for items in plain().values() for place in range(len(items)))
    for at_a_time in (2**25, 100):
        monkeypatch.setattr(cooccurrence, "PAIRS_AT_A_TIME", at_a_time)
        looked.clear()
        cooccurrence.following(arrays().values(), ITEMS, 5, 0.7, 0.1, 0.4)
        assert sum(len(kept) for kept, _, _ in looked) == pairs


def test_products_in_blocks_of_rows_are_the_same(monkeypatch):
    follows = cooccurrence.following(arrays().values(), ITEMS, **COUNTING)
    whole = cooccurrence.strongest(cooccurrence.stored(follows @ follows), 5)
    monkeypatch.setattr(cooccurrence, "PAIRS_AT_A_TIME", 300)
    same(cooccurrence.strongest_of_product(follows, follows, 5), whole)
