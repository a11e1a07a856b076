"""The items of many users as arrays of numbers, which read like a dictionary of lists of ids.

Ten million users with Python lists of texts take gigabytes; these arrays take 4 bytes an interaction and may be
memory-mapped.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import overload

import numpy as np
import pandas as pd


@dataclass(frozen=True, eq=False)
class Lists(Sequence):
    """Lists of items, one after the other.

    items: the ids, by place. offsets: where each list begins in `places`, and where the last ends, [lists + 1].
    places: of the items of all lists, int32 [interactions].
    """

    items: pd.Index
    offsets: np.ndarray
    places: np.ndarray

    @classmethod
    def of(cls, lists: Iterable[Sequence[str]], items: pd.Index) -> "Lists":
        """Lists of ids as arrays. Raises `KeyError` where an id is not among the items."""
        lists = list(lists)
        offsets = np.cumsum([0, *map(len, lists)], dtype=np.int64)
        flat = np.array([item for some in lists for item in some], dtype=object)
        places = items.get_indexer(flat).astype(np.int32)
        if (places < 0).any():
            raise KeyError(flat[places < 0][0])
        return cls(items, offsets, places)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @overload
    def __getitem__(self, place: int) -> list[str]: ...

    @overload
    def __getitem__(self, place: slice) -> "Lists": ...

    def __getitem__(self, place):
        """One list of ids, or, of a slice without a step, these lists."""
        if isinstance(place, slice):
            first, end, _ = place.indices(len(self))
            offsets = self.offsets[first : max(first, end) + 1]
            return Lists(self.items, offsets - offsets[0], self.places[offsets[0] : offsets[-1]])
        place = range(len(self))[place]
        return self.items[self.places[self.offsets[place] : self.offsets[place + 1]]].tolist()

    @property
    def lengths(self) -> np.ndarray:
        """How long each list is, int64 [lists]."""
        return np.diff(self.offsets)

    def take(self, lists: np.ndarray) -> "Lists":
        """The lists at these places."""
        lengths = self.lengths[lists]
        offsets = np.concatenate([[0], lengths.cumsum()])
        at = np.arange(offsets[-1]) + np.repeat(self.offsets[lists] - offsets[:-1], lengths)
        return Lists(self.items, offsets, self.places[at])

    def first(self, lengths: np.ndarray) -> "Lists":
        """So many items of each list, from its beginning."""
        owners = np.repeat(np.arange(len(self)), self.lengths)
        kept = np.arange(len(self.places)) - self.offsets[owners] < lengths[owners]
        return self.where(kept)

    def where(self, kept: np.ndarray) -> "Lists":
        """The lists without the interactions that are not kept. kept: bool [interactions]."""
        before = np.concatenate([[0], np.cumsum(kept)])
        return Lists(self.items, before[self.offsets], self.places[kept])


@dataclass(frozen=True, eq=False)
class Sequences(Mapping):
    """Each user's items, oldest first. users: names, in order."""

    users: pd.Index
    lists: Lists

    @classmethod
    def of(cls, sequences: Mapping[str, Sequence[str]], items: Iterable[str]) -> "Sequences":
        """A dictionary of lists as arrays."""
        return cls(pd.Index(list(sequences), dtype=object), Lists.of(sequences.values(), pd.Index(items)))

    def __getitem__(self, user: str) -> list[str]:
        return self.lists[self._place[user]]

    def __iter__(self) -> Iterator[str]:
        return iter(self.users)

    def __len__(self) -> int:
        return len(self.users)

    def values(self) -> Lists:
        """The lists, in the order of the users."""
        return self.lists

    @cached_property
    def _place(self) -> dict[str, int]:
        return {user: place for place, user in enumerate(self.users)}
