"""A made-up catalogue of any size, as two CSV files, and texts for its users.

Interactions are in no order of time, popularity falls as 1 / rank, some users have many interactions; ids are texts;
titles have four to thirteen words that are as rare as in real ones, and one in a hundred is missing.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from gloss_utils.data import splits
from gloss_utils.data.dataset import Dataset
from gloss_utils.data.prompts import item_text

SEED, AT_ONCE, WORDS, VOCABULARY = 3407, 2**20, (4, 13), 200_000
BEGIN, END = 1_300_000_000, 1_700_000_000  # seconds
INTERACTIONS, ITEMS = "interactions.csv", "items.csv"


def ids(letter: str, numbers: np.ndarray) -> pa.Array:
    """Texts as A000349128374, whose order is not that of the numbers."""
    scrambled = pa.array(numbers.astype(np.int64) * 2_654_435_761 % 2**40)
    return pc.binary_join_element_wise(letter, pc.utf8_lpad(scrambled.cast(pa.string()), 13, "0"), "")


def titles(rng: np.random.Generator, items: int, first: int = 0) -> pa.Array:
    """Titles of words that are as rare as in real ones (Zipf), and of one that no other title has."""
    lengths = rng.integers(WORDS[0], WORDS[1] + 1, items)
    ends = np.concatenate([[0], lengths.cumsum()]).astype(np.int32)
    words = pa.array([f"w{number}" for number in range(VOCABULARY)]).take(rng.zipf(1.2, ends[-1]) % VOCABULARY)
    own = pa.array(np.arange(first, first + items)).cast(pa.string())
    return pc.binary_join_element_wise(pc.binary_join(pa.ListArray.from_arrays(ends, words), " "), own, " n")


def write_files(folder: Path, users: int, items: int, interactions: int):
    """Write both raw files."""
    rng = np.random.default_rng(SEED)
    plain = pa.csv.WriteOptions(quoting_style="none")
    with pa.csv.CSVWriter(
        folder / INTERACTIONS, pa.schema({"user": "string", "item": "string", "time": "int64"}), write_options=plain
    ) as out:
        for start in range(0, interactions, AT_ONCE):
            size = min(AT_ONCE, interactions - start)
            who, what = users * rng.random(size) ** 1.5, float(items + 1) ** rng.random(size) - 1
            when = rng.integers(BEGIN, END, size)
            out.write_table(pa.table({"user": ids("A", who), "item": ids("B", what), "time": when}))
    order = rng.permutation(items)
    with pa.csv.CSVWriter(folder / ITEMS, pa.schema({"item": "string", "title": "string"}), write_options=plain) as out:
        for start in range(0, items, AT_ONCE):
            some = order[start : start + AT_ONCE]
            named = pc.if_else(pa.array(rng.random(len(some)) < 0.01), "", titles(rng, len(some), start))
            out.write_table(pa.table({"item": ids("B", some), "title": named}))


def queries(data: Dataset, each: int, users_at_once: int) -> Iterator[pd.DataFrame]:
    """Test users, some at a time, each with texts that are exact titles of items, drawn as often as they are bought."""
    rng = np.random.default_rng(SEED)
    for some in splits.example_blocks(data, "test", users_at_once):
        drawn = data.places[rng.integers(len(data.places), size=len(some) * each)]
        texts = [item_text(title) for title in data.items["title"].iloc[drawn]]
        texts = [texts[start : start + each] for start in range(0, len(texts), each)]
        unknown = [[None] * each] * len(some)
        yield some.assign(texts=texts, logprobs=unknown, lengths=unknown)
