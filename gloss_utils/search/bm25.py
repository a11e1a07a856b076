"""The index by words: BM25 (METHOD, 4). The one door to bm25s, whose words and scores these are."""

import math
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from gloss_utils.base.files import write_whole
from gloss_utils.search.order import DECIMALS, Found, distinct, rounded, top_k
from gloss_utils.search.postings import Postings


@contextmanager
def _without_jax() -> Iterator[None]:
    """Let jax be as good as not installed: bm25s computes something with it at import, for which jax takes three
    quarters of a GPU's memory. Nothing is lost, because the best items are selected here."""
    there = {name: sys.modules.pop(name) for name in ("jax", "jax.lax") if name in sys.modules}
    sys.modules["jax"] = None  # Python's way to say that a module cannot be imported
    try:
        yield
    finally:
        del sys.modules["jax"]
        sys.modules.update(there)


with _without_jax():
    import bm25s

K1, B = 1.5, 0.75
FEW = 2**15  # items: to score all of so few is faster than to leave most out
ENOUGH = 500  # candidates: to score all of so few is faster than to leave some out
STEP = 10.0**-DECIMALS  # of rounded scores
SAMPLE = 2**16  # postings, of which the k-th best is a lower bound for that of all
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
        never looked at (see `_Query`); places and scores are the same as if all had been scored.
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
        numbers = {word: [part.number(word) for part in self.parts] for word in dict.fromkeys(words)}
        rarity = {}
        for word, found in numbers.items():
            having = sum(part.count(number) for part, number in zip(self.parts, found, strict=True))
            rarity[word] = np.float32(math.log(1 + (self.items - having + 0.5) / (having + 0.5)))
        first, ids, scores = 0, [], []
        for column, part in enumerate(self.parts):
            known = [(numbers[word][column], rarity[word]) for word in words if numbers[word][column] is not None]
            near, found = _Query(part, known, self.mean).best(k)
            ids.append(near + first)
            scores.append(found)
            first += len(part)
        ids, scores = top_k(np.concatenate(ids)[None], np.concatenate(scores)[None], k)
        return ids[0], scores[0]


class _Query:
    """The words of one text against the postings of a part of the catalogue.

    The rarest word's postings come first. Once k items are known, an item that has only the words that are left can
    be among the best only if these may give it as much as the k-th best has (MaxScore: Turtle and Flood, 1995). So few
    of the common words' postings are taken, or none: these words are only looked up for the items found before.
    """

    def __init__(self, part: Postings, words: list[tuple[int, np.float32]], mean: float):
        """words: numbers and rarities, in the text's order. mean: of the lengths of the catalogue's texts."""
        self.part, tables, self.ways = part, {}, []
        saturation, often = K1 * ((1 - B) + B * part.length / mean), part.often.astype(np.float32)
        for (number, rarity), times in Counter(words).items():
            tables[number] = (rarity * (often / (saturation + often))).astype(np.float32)  # with bm25s's rounding
            most = np.minimum(part.most[number], part.length)
            limit = (times * rarity * (most / (saturation + most))).astype(np.float32)
            # A word's postings, what it gives by pair, and what it may give an item of that length at most.
            self.ways.append((*part.of(number), np.minimum(times * tables[number], limit), limit))
        self.ways.sort(key=lambda way: len(way[0]))
        self.words = [(*part.of(number), tables[number]) for number, _ in words]

    def best(self, k: int) -> Found:
        """Places and rounded scores of the best min(k, items); items with the score 0 in the catalogue's order."""
        all_of_them = len(self.part) <= max(FEW, k)
        places = np.arange(len(self.part)) if all_of_them else self.candidates(k)
        scores = rounded(self.all_scores() if all_of_them else self.scores(places))
        (places,), (scores,) = top_k(places[None, scores > 0], scores[None, scores > 0], k)
        left = min(k, len(self.part)) - len(places)
        others = np.setdiff1d(np.arange(min(k, len(self.part))), places)[:left]
        return np.concatenate([places, others]), np.concatenate([scores, np.zeros(left)])

    def all_scores(self) -> np.ndarray:
        """The scores of all items, float32."""
        scores = np.zeros(len(self.part), dtype=np.float32)
        for where, codes, gain in self.words:
            scores[where] += gain[codes]
        return scores

    def scores(self, places: np.ndarray) -> np.ndarray:
        """The scores of some items, float32, added as bm25s does: word by word, in the text's order."""
        scores = np.zeros(len(places), dtype=np.float32)
        for where, codes, gain in self.words:
            has, at = self.part.look_up(where, places)
            scores[has] += gain[codes[at]]
        return scores

    def candidates(self, k: int) -> np.ndarray:
        """Places, in any order, among which are all items that can be among the k best with a score above 0."""
        # Of each candidate: its place, the pair of one of its postings (for the length), and what it has so far. least:
        # what a candidate has to be able to reach (less is rounded to 0). kth: the k-th best of what they have.
        places, pairs, sums = np.empty(0, np.int32), self.part.codes[:0], np.empty(0, np.float32)
        limits = np.array([limit for *_, limit in self.ways]).reshape(len(self.ways), len(self.part.length))
        left = limits[::-1].cumsum(axis=0)[::-1]  # what the words from this one on may give
        slack = STEP + FLOAT * len(self.words) * float(left.max(initial=0))
        least, kth = 0.4 * STEP, 0.0
        for (where, codes, gain, limit), before in zip(self.ways, left, strict=True):
            rest = before - limit
            if len(places) < k:
                least = max(least, _kth_gain(gain, codes[:SAMPLE], k) - slack)
            elif len(places) <= ENOUGH and before.max() < least:
                break  # those few are scored at once
            has, at = self.part.look_up(where, places)
            sums[has] += gain[codes[at]]
            enters = gain + rest >= least
            if enters.any():
                new = codes <= np.flatnonzero(enters)[-1]
                new[at] = False
                new = np.flatnonzero(new)
                new = new[enters[codes[new]]]
                places = np.concatenate([places, where[new]])
                pairs = np.concatenate([pairs, codes[new]])
                sums = np.concatenate([sums, gain[codes[new]]])
            if len(places) > k:
                best = np.flatnonzero(sums >= kth)  # most often many fewer than all
                if len(best) < k:
                    best = np.arange(len(sums))
                best = best[np.argpartition(-sums[best], k - 1)[:k]]
                kth = sums[best[-1]]
                least = max(least, kth - slack)
                if rest.max() >= least or len(places) > ENOUGH:
                    least = max(least, float(self.scores(places[best]).min()) - slack)
                able = np.flatnonzero(sums + rest[pairs] >= least)
                places, pairs, sums = places[able], pairs[able], sums[able]
        return places


def _kth_gain(gain: np.ndarray, codes: np.ndarray, k: int) -> float:
    """The k-th best gain of postings; -inf where there are fewer."""
    order = np.argsort(-gain)
    better = np.bincount(codes, minlength=len(gain))[order].cumsum()
    return float(gain[order[np.searchsorted(better, k)]]) if better[-1] >= k else -np.inf


def _tokenize(texts: list[str]):
    return bm25s.tokenize(texts, stopwords="english", show_progress=False)
