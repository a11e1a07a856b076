"""The index by words: BM25 (METHOD, 4). The one door to bm25s."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from gloss_utils.base.files import write_whole
from gloss_utils.search.order import Found, distinct, rounded, top_k


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


class BM25Index:
    """BM25: Lucene's variant, k1 = 1.5, b = 0.75, English stop words, no stemming."""

    def __init__(self, bm25: bm25s.BM25):
        self.bm25 = bm25

    @classmethod
    def build(cls, texts: list[str]) -> "BM25Index":
        """Index the catalogue's texts."""
        bm25 = bm25s.BM25(method="lucene", k1=1.5, b=0.75)
        tokens = _tokenize(texts)
        # Sorted, so that the files have the same bytes each time: bm25s itself numbers words in the order of a set.
        numbers = {token: number for number, token in enumerate(sorted({token for text in tokens for token in text}))}
        bm25.index(([[numbers[token] for token in text] for text in tokens], numbers), show_progress=False)
        return cls(bm25)

    def save(self, folder: Path):
        """Write the index as a folder, whole or not at all."""
        with write_whole(folder) as part:
            self.bm25.save(part, show_progress=False)

    @classmethod
    def load(cls, folder: Path) -> "BM25Index":
        """Read a saved index."""
        return cls(bm25s.BM25.load(folder))

    def strength(self, scores: np.ndarray) -> np.ndarray:
        """Scores [texts, k] divided by the best score of their text."""
        return scores / np.maximum(scores[:, :1], np.finfo(float).tiny)

    def search(self, texts: list[str], k: int) -> Found:
        """The k best items of each text: places in the catalogue and scores, [texts, min(k, items)].

        A text that shares no word with the catalogue scores 0 everywhere: the first items come back.
        """
        some, places = distinct(texts)
        items = self.bm25.scores["num_docs"]
        k = min(k, items)
        ids, scores = np.empty((len(some), k), dtype=np.int64), np.empty((len(some), k))
        for row, tokens in enumerate(_tokenize(some)):
            known = [token for token in tokens if token in self.bm25.vocab_dict]
            found = rounded(self.bm25.get_scores(known)) if known else np.zeros(items)
            near = np.flatnonzero(found >= np.partition(found, items - k)[items - k])
            ids[row : row + 1], scores[row : row + 1] = top_k(near[None], found[None, near], k)
        return ids[places], scores[places]


def _tokenize(texts: list[str]) -> list[list[str]]:
    return bm25s.tokenize(texts, stopwords="english", return_ids=False, show_progress=False)
