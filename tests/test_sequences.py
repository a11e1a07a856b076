"""Sequences as arrays are what dictionaries of lists are."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from gloss_utils.data.sequences import Lists, Sequences

ITEMS = pd.Index(["cup", "pot", "tea", "jar"])
PLAIN = {"bob": ["tea", "cup", "tea"], "ann": [], "eve": ["jar"]}


@pytest.fixture
def sequences() -> Sequences:
    return Sequences.of(PLAIN, ITEMS)


def test_they_read_like_the_dictionary(sequences):
    assert dict(sequences) == PLAIN and list(sequences) == list(PLAIN) and len(sequences) == 3
    assert list(sequences.values()) == list(PLAIN.values())
    assert sequences["eve"] == ["jar"] and sequences.get("dan") is None and sequences.values()[-1] == ["jar"]
    assert sequences.lists.places.dtype == np.int32


def test_slices_are_lists_of_their_own(sequences):
    assert list(sequences.lists[1:]) == [[], ["jar"]]
    assert list(sequences.lists[2:1]) == []
    assert sequences.lists[1:].offsets.tolist() == [0, 0, 1]


def test_lists_are_taken_and_cut(sequences):
    lists = sequences.lists
    assert list(lists.take(np.array([2, 0]))) == [["jar"], ["tea", "cup", "tea"]]
    assert list(lists.first(np.array([2, 5, 0]))) == [["tea", "cup"], [], []]
    assert list(lists.where(ITEMS[lists.places] != "tea")) == [["cup"], [], ["jar"]]
    assert list(lists.last(2)) == [["cup", "tea"], [], ["jar"]]
    assert lists.lengths.tolist() == [3, 0, 1]
    assert lists.counts(ITEMS[lists.places] == "tea").tolist() == [2, 0, 0]


def test_all_are_gone_through_in_parts(sequences, monkeypatch):
    monkeypatch.setattr("gloss_utils.data.sequences.AT_ONCE", 2)
    assert list(sequences.lists) == list(PLAIN.values())
    assert list(sequences.items()) == list(PLAIN.items())


def test_users_are_found_by_name(sequences):
    assert sequences.places(["eve", "dan", "bob"]).tolist() == [2, -1, 0]
    assert sequences.places([]).tolist() == []
    by_name = Sequences(pd.Index(["ann", "bob", "eve"]), sequences.lists)
    assert by_name.places(["bob", "carl", "zoe", "aaron", "eve"]).tolist() == [1, -1, -1, -1, 2]
    assert by_name.places(["carl"]).tolist() == [-1]
    chunks = pa.chunked_array([["bob"], ["ann", "eve"]]).to_pandas()
    assert Sequences(pd.Index(chunks), sequences.lists).places(pd.Series(["eve", "dan"])).tolist() == [2, -1]


def test_an_unknown_item_is_named():
    with pytest.raises(KeyError, match="urn"):
        Lists.of([["cup", "urn"]], ITEMS)
