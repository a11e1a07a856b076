"""What a step of each stage costs per item, interaction or user: the numbers that docs/scaling.md multiplies.

    python -m benchmarks.scaling [--items 100000] [--users 100000] [--bm25] [--trie]

Titles and histories are made up: popularity falls as 1 / rank, a history has 10 items on average, as in Amazon 2023.
Memory is what is held at the end of a step, measured on its arrays, or the growth of the process where it says so.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import psutil

from benchmarks.retrieval import made_up_queries
from gloss_utils.data.prompts import item_text
from gloss_utils.language.models import peak_memory
from gloss_utils.language.trie import Trie
from gloss_utils.rank import Evidence, HybridSettings
from gloss_utils.runs.parameters import ROOT
from gloss_utils.search import DEFAULT_ENCODER, BM25Index, encode_texts, load_encoder

SEED, HISTORY, WORDS, TOKENS_A_WORD = 3407, 10, 9, 2


def titles(count: int) -> list[str]:
    """Titles of nine words on average; words as rare as in real ones (Zipf), none of two titles the same."""
    rng = np.random.default_rng(SEED)
    lengths = rng.integers(WORDS // 2, WORDS * 3 // 2 + 1, size=count)
    words = rng.zipf(1.2, size=lengths.sum()) % 200_000
    ends = lengths.cumsum()
    return [
        f"{' '.join(f'w{word}' for word in words[end - n : end])} n{place}"
        for place, (end, n) in enumerate(zip(ends, lengths, strict=True))
    ]


def histories(users: int, items: int) -> list[list[str]]:
    """Histories of made-up items."""
    rng = np.random.default_rng(SEED)
    chance = 1 / np.arange(1, items + 1)
    lengths = rng.geometric(1 / HISTORY, size=users)
    drawn = rng.choice(items, size=lengths.sum(), p=chance / chance.sum())
    return [[f"i{place}" for place in part] for part in np.split(drawn, lengths.cumsum()[:-1])]


class Step:
    """Measures a block: seconds, and how much the process grew."""

    def __enter__(self):
        self.process, self.begun = psutil.Process(), time.perf_counter()
        self.before = self.process.memory_info().rss
        return self

    def __exit__(self, *_):
        self.seconds = time.perf_counter() - self.begun
        self.grown = self.process.memory_info().rss - self.before


def catalogue(count: int) -> dict:
    """Encoder and trie, per item."""
    texts = [item_text(title) for title in titles(count)]
    encoder = load_encoder(DEFAULT_ENCODER)
    with Step() as encoding:
        encode_texts(encoder, texts[:512])
    return {"texts_encoded_per_second": round(512 / encoding.seconds, 1)} | of_trie(texts)


def of_trie(texts: list[str]) -> dict:
    """The trie of made-up tokens, which are made one text at a time; what this takes alone is left out. In processor
    time: in a second of the clock other work on the machine would count."""
    codes, count = {}, len(texts)

    def sequences() -> Iterator[list[int]]:
        for text in texts:
            words = ((word, part) for word in text.split() for part in range(TOKENS_A_WORD))
            yield [codes.setdefault(word, len(codes) + 1) for word in words] + [0]

    deque(sequences(), maxlen=0)  # the codes are known from here on
    begun = time.process_time()
    deque(sequences(), maxlen=0)
    made = time.process_time()
    with Step() as growing:
        trie = Trie(sequences())
    seconds = time.process_time() - made - (made - begun)
    held = sum(value.nbytes for value in vars(trie).values() if isinstance(value, np.ndarray))
    return {
        "trie_build_processor_us_per_item": round(1e6 * seconds / count, 2),
        "trie_bytes_per_item": round(held / count, 1),
        "trie_tokens_per_item": round(len(trie.flat) / count, 1),
        "trie_growth_bytes_per_item": round(growing.grown / count, 1),
    }


def of_bm25(count: int) -> dict:
    """The index by words, built, saved, memory-mapped and asked, in processor time: in a second of the clock other work
    on the machine would count. Asked are titles of the catalogue, one text in ten with words that it has not, and texts
    of nothing but the commonest words."""
    texts = [item_text(title) for title in titles(count)]
    begun = time.process_time()
    built = BM25Index.build(texts)
    seconds, peak = time.process_time() - begun, peak_memory()
    drawn = np.random.default_rng(SEED).choice(count, min(count, 100), replace=False)
    asked = (
        made_up_queries([texts[place].removeprefix("Title: ") for place in drawn], 40)["texts"]
        .explode()
        .unique()
        .tolist()
    )
    common = ["Title: w1", "Title: w2 w1", "Title: w3 w1 w1", "Title: w1 w2 w3 w4", "Title: w2 w5"]
    with tempfile.TemporaryDirectory() as folder:
        built.save(Path(folder) / "bm25")
        del built, texts
        size = sum(file.stat().st_size for file in Path(folder).rglob("*.npy"))
        index = BM25Index.load(Path(folder) / "bm25")
        index.search([*asked, *common], 20)  # the files are in memory from here on
        times = {
            name: [_milliseconds(index, text) for text in some] for name, some in (("", asked), ("common_", common))
        }
        added = index.extended(["Title: one more"])
        longer = [_milliseconds(added, text) for text in asked]
    return {
        "bm25_build_processor_us_per_item": round(1e6 * seconds / count, 1),
        "bm25_peak_bytes_per_item": round(2**20 * peak / count),
        "bm25_bytes_per_item": round(size / count, 1),
        "bm25_texts": len(asked),
        "bm25_ms_per_text": round(statistics.median(times[""]), 2),
        "bm25_ms_worst": round(max(times[""]), 2),
        "bm25_ms_with_an_item_added": round(statistics.median(longer), 2),
        "bm25_ms_common_words": [round(value, 1) for value in times["common_"]],
    }


def _milliseconds(index: BM25Index, text: str) -> float:
    begun = time.process_time()
    index.search([text], 20)
    return 1000 * (time.process_time() - begun)


def ranking(users: int, items: int) -> dict:
    """Co-occurrence per interaction, and hybrid's candidates (of co-occurrence and popularity) per user."""
    settings = HybridSettings.read(ROOT / "params/ranking/weights.yaml")
    sequences = {str(user): history for user, history in enumerate(histories(users, items))}
    interactions = sum(map(len, sequences.values()))
    catalogue = pd.Series([f"i{place}" for place in range(items)])
    with Step() as counting:
        evidence = Evidence(sequences, sequences, catalogue, settings)
    matrix = evidence.following
    some = evidence.of(dict(list(sequences.items())[:4096]))
    with Step() as rating:
        some.rankings({}, {"": settings.weights}, 10)
    held = matrix.data.nbytes + matrix.indices.nbytes + matrix.indptr.nbytes
    return {
        "interactions": interactions,
        "cooccurrence_us_per_interaction": round(1e6 * counting.seconds / interactions, 2),
        "cooccurrence_entries_per_interaction": round(matrix.nnz / interactions, 2),
        "cooccurrence_bytes_per_item": round(held / items, 1),
        "cooccurrence_growth_bytes_per_interaction": round(counting.grown / interactions, 1),
        "ranked_users_per_second": round(len(some.histories) / rating.seconds, 1),
    }


def main(arguments: list[str] | None = None) -> dict:
    """Print and return what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--users", type=int, default=100_000)
    parser.add_argument("--bm25", action="store_true", help="measure the index by words alone")
    parser.add_argument("--trie", action="store_true", help="measure the trie alone")
    options = parser.parse_args(arguments)
    result = {"items": options.items, "users": options.users}
    if options.bm25 or not options.trie:
        result |= of_bm25(options.items)
    if options.trie:
        result |= of_trie([item_text(title) for title in titles(options.items)])
    if not options.bm25 and not options.trie:
        result |= catalogue(options.items) | ranking(options.users, options.items)
    print(json.dumps(result))
    return result


if __name__ == "__main__":
    main()
