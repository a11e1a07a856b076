"""Which texts have a word, and how often: what BM25 is computed from, in arrays that can be memory-mapped.

A posting is a text that has a word: the text's place, and the number of a pair: how often it has the word, and how many
words it has in all. For a word, only this pair decides the score, so that some hundred pairs stand for millions of
postings. No score is kept: those of all texts change with every text that is added.
"""

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from scipy import sparse

BLOCK = 2**15  # texts whose words are Python objects at a time
SHIFT = 32  # bits: two numbers in one


@dataclass
class Postings:
    """letters: of all words, sorted, in UTF-8, uint8. ends: of each word among them, int64 [words]. starts: of each
    word's postings, int64 [words + 1]. places: rising for each word, int32 [postings]. codes: where in `often` and
    `length` a posting's pair is, unsigned [postings]. often, length: the pairs, int32 [pairs], roughly by falling
    score. most: how often a text has the word at most, int32 [words]. sizes: of texts and of their words, int64 [2].
    """

    letters: np.ndarray
    ends: np.ndarray
    starts: np.ndarray
    places: np.ndarray
    codes: np.ndarray
    often: np.ndarray
    length: np.ndarray
    most: np.ndarray
    sizes: np.ndarray

    def __post_init__(self):
        for field in fields(self):  # as if they were memory-mapped: numba compiles for one kind
            getattr(self, field.name).flags.writeable = False

    @classmethod
    def build(cls, texts: list[str], tokenize: Callable) -> "Postings":
        """The postings of texts. tokenize: from texts to `ids`, lists of numbers, and `vocab`, words and these numbers.

        The texts' words are in arrays, a block after the other, and have the numbers in which they were met at first.
        """
        words, pairs, parts = {}, {}, []
        for start in range(0, len(texts), BLOCK):
            found = tokenize(texts[start : start + BLOCK])
            lengths = np.array([len(text) for text in found.ids], dtype=np.int64)
            numbers = np.fromiter((number for text in found.ids for number in text), np.int64, lengths.sum())
            met = np.array([words.setdefault(word, len(words)) for word in found.vocab], dtype=np.int64)
            keys = (np.arange(len(lengths)).repeat(lengths) << SHIFT) + met[numbers]
            keys, often = np.unique(keys, return_counts=True)
            texts_of, numbers = keys >> SHIFT, keys & (2**SHIFT - 1)
            some, codes = np.unique((often << SHIFT) + lengths[texts_of], return_inverse=True)
            met = np.array([pairs.setdefault(pair, len(pairs)) for pair in some.tolist()], dtype=np.int64)
            counts = np.bincount(texts_of, minlength=len(lengths))
            codes = met[codes].astype(np.min_scalar_type(len(pairs)))
            parts.append((counts.astype(np.int32), numbers.astype(np.int32), codes, lengths.sum(keepdims=True)))
        columns = [list(column) for column in zip(*parts, strict=True)] or [[np.zeros(0, np.int32)]] * 4
        del parts
        counts, numbers, codes, totals = (np.concatenate(columns.pop(0)) for _ in range(4))
        return cls._sorted(words, pairs, counts, numbers, codes, int(totals.sum()))

    @classmethod
    def _sorted(cls, words: dict, pairs: dict, counts, numbers, codes, total: int) -> "Postings":
        """From words and pairs as they were met, and postings text by text, to sorted words' postings."""
        items, both = len(counts), np.array(list(pairs), dtype=np.int64)
        often, length = both >> SHIFT, both & (2**SHIFT - 1)
        by_weight = np.lexsort((length, often, -often / (often + length / max(total / max(items, 1), 1))))
        often, length = often[by_weight].astype(np.int32), length[by_weight].astype(np.int32)
        codes = _inverse(by_weight).astype(np.min_scalar_type(max(len(pairs) - 1, 0)))[codes]
        names = sorted(words)
        numbers = _inverse(np.fromiter(map(words.get, names), np.int64, len(names)))[numbers]
        starts = np.concatenate([[0], counts.cumsum(dtype=np.int64)])
        by_word = sparse.csr_matrix((codes, numbers, starts), shape=(items, len(names))).tocsc()
        del counts, numbers, codes
        letters = [name.encode() for name in names]
        return cls(
            letters=np.frombuffer(b"".join(letters), dtype=np.uint8),
            ends=np.fromiter(map(len, letters), np.int64, len(letters)).cumsum(),
            starts=by_word.indptr.astype(np.int64),
            places=by_word.indices.astype(np.int32, copy=False),
            codes=by_word.data,
            often=often,
            length=length,
            most=np.maximum.reduceat(often[by_word.data], by_word.indptr[:-1]),
            sizes=np.array([items, total], dtype=np.int64),
        )

    def save(self, folder: Path):
        """Write the arrays to a folder."""
        for field in fields(self):
            np.save(folder / f"{field.name}.npy", getattr(self, field.name))

    @classmethod
    def load(cls, folder: Path) -> "Postings":
        """Memory-map the arrays of a folder: what is not looked at is not read, and processes share what is."""
        names = [field.name for field in fields(cls)]
        return cls(**{name: np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r")) for name in names})

    def __len__(self) -> int:
        return int(self.sizes[0])

    def number(self, word: str) -> int | None:
        """Where among the sorted words a word is; None: it is not there."""
        sought = word.encode()
        number = bisect_left(range(len(self.ends)), sought, key=self._word)
        return number if number < len(self.ends) and self._word(number) == sought else None

    def count(self, number: int | None) -> int:
        """How many texts have a word."""
        return 0 if number is None else int(self.starts[number + 1] - self.starts[number])

    def _word(self, number: int) -> bytes:
        return self.letters[self.ends[number - 1] if number else 0 : self.ends[number]].tobytes()


def _inverse(order: np.ndarray) -> np.ndarray:
    """Where each place is in an order of places, int32."""
    inverse = np.empty(len(order), dtype=np.int32)
    inverse[order] = np.arange(len(order), dtype=np.int32)
    return inverse
