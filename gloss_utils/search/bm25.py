"""The index by words: BM25 (METHOD, 4). The one door to bm25s, whose words and scores these are."""

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from gloss_utils.base.files import write_whole
from gloss_utils.search.order import DECIMALS, Found, distinct, top_k
from gloss_utils.search.postings import Postings


@contextmanager
def _without_jax_and_numba() -> Iterator[None]:
    """Let both be as good as not installed: bm25s computes something with jax at import, for which jax takes three
    quarters of a GPU's memory, and loads numba. Nothing is lost, because the best items are selected here."""
    there = {name: sys.modules.pop(name) for name in ("jax", "jax.lax", "numba") if name in sys.modules}
    sys.modules |= {"jax": None, "numba": None}  # Python's way to say that a module cannot be imported
    try:
        yield
    finally:
        del sys.modules["jax"], sys.modules["numba"]
        sys.modules.update(there)


with _without_jax_and_numba():
    import bm25s

K1, B = 1.5, 0.75
WINDOW = 2**13  # items that are looked at together
FEWER = 16  # times fewer items than a word has postings are each looked up, rather than all postings gone through
FLOAT = 2.0**-22  # the relative error of a sum of 32-bit floats, for each that is added, with much to spare


class BM25Index:
    """BM25: Lucene's variant, k1 = 1.5, b = 0.75, English stop words, no stemming."""

    def __init__(self, parts: list[Postings]):
        """parts: of the catalogue, one behind the other."""
        self.parts = parts
        self.items, total = (sum(int(part.sizes[column]) for part in parts) for column in (0, 1))
        self.mean = total / max(self.items, 1)

    @classmethod
    def build(cls, texts: list[str]) -> "BM25Index":
        """Index the catalogue's texts."""
        return cls([Postings.build(texts, _tokenize)])

    def extended(self, texts: list[str]) -> "BM25Index":
        """An index with more texts behind its own, which answers as one that is built of all texts.

        Only these texts are read. Each call adds a part through which every search goes: add many texts at a time.
        """
        return BM25Index([*self.parts, Postings.build(texts, _tokenize)])

    def save(self, folder: Path):
        """Write the index as a folder, whole or not at all."""
        with write_whole(folder) as whole:
            for number, part in enumerate(self.parts):
                (whole / str(number)).mkdir(parents=True)
                part.save(whole / str(number))

    @classmethod
    def load(cls, folder: Path) -> "BM25Index":
        """Read a saved index; it is memory-mapped."""
        return cls([Postings.load(part) for part in sorted(folder.iterdir(), key=lambda part: int(part.name))])

    def strength(self, scores: np.ndarray) -> np.ndarray:
        """Scores [texts, k] divided by the best score of their text."""
        return scores / np.maximum(scores[:, :1], np.finfo(float).tiny)

    def search(self, texts: list[str], k: int) -> Found:
        """The k best items of each text: places in the catalogue and scores, [texts, min(k, items)].

        A text that shares no word with the catalogue scores 0 everywhere: the first items come back. Most items are
        never looked at (see maxscore.py); places and scores are the same as if all had been scored.
        """
        some, places = distinct(texts)
        k = min(k, self.items)
        ids, scores = np.empty((len(some), k), dtype=np.int64), np.empty((len(some), k))
        tokens = _tokenize(some)
        words = list(tokens.vocab)
        for row, numbers in enumerate(tokens.ids):
            ids[row], scores[row] = self._search([words[number] for number in numbers], k)
        return ids[places], scores[places]

    def _search(self, words: list[str], k: int) -> Found:
        """The k best items of one text's words."""
        numbers = {word: [part.number(word) for part in self.parts] for word in words}
        having = {word: sum(map(Postings.count, self.parts, found)) for word, found in numbers.items()}
        first, ids, scores = 0, np.empty(0, np.int64), np.empty(0)
        for column, part in enumerate(self.parts):
            known = {word: found[column] for word, found in numbers.items() if found[column] is not None}
            if known and k:
                near, found = self._best(part, known, having, [word for word in words if word in known], k)
                (ids,), (scores,) = top_k(np.append(ids, near + first)[None], np.append(scores, found)[None], k)
            first += len(part)
        ids, scores = ids[scores > 0], scores[scores > 0]
        if len(ids) < k:  # the others have the score 0, and are in the catalogue's order
            others = np.setdiff1d(np.arange(k), ids)[: k - len(ids)]
            ids, scores = np.append(ids, others), np.append(scores, np.zeros(len(others)))
        return ids, scores

    def _best(self, part: Postings, numbers: dict[str, int], having: dict[str, int], words: list[str], k: int) -> Found:
        """The k best items of a part. numbers: of the words there. having: how many items of all have each."""
        from gloss_utils.search.maxscore import best  # numba, which no process loads that does not search

        rows = {word: row for row, word in enumerate(sorted(numbers, key=having.get))}
        order, some = np.array([rows[word] for word in words]), np.array([numbers[word] for word in rows])
        rarity = [math.log(1 + (self.items - having[word] + 0.5) / (having[word] + 0.5)) for word in rows]
        rarity, times = np.array(rarity, np.float32)[:, None], np.bincount(order)[:, None]
        saturation, often = K1 * ((1 - B) + B * part.length / self.mean), part.often.astype(np.float32)
        gain = (rarity * (often / (saturation + often))).astype(np.float32)  # with bm25s's rounding
        # What a word may give to an item of this length at most, and what all words from this one on may.
        most = np.minimum(part.most[some, None], part.length)
        limit = times * rarity * (most / (saturation + most))
        rest = np.vstack([limit[::-1].cumsum(axis=0)[::-1], 0 * limit[:1]]).astype(np.float32)
        gains = (times * gain).astype(np.float32)
        alone = np.minimum(gains, limit).astype(np.float32) + rest[1:]
        spans = np.stack([part.starts[some], part.starts[some + 1]], axis=1)
        unit = 10.0**DECIMALS
        slack = 1 / unit + FLOAT * len(words) * float(rest[0].max())
        bounds = (gain, gains, alone, rest, order, 0.4 / unit, slack)  # a score of less is rounded to 0
        return best(part.places, part.codes, spans, *bounds, k, unit, WINDOW, FEWER)


def _tokenize(texts: list[str]):
    return bm25s.tokenize(texts, stopwords="english", show_progress=False)
