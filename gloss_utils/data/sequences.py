"""The items of many users as arrays of numbers, which read like a dictionary of lists of ids.

Ten million users with Python lists of texts take gigabytes; these arrays take 4 bytes an interaction and may be
memory-mapped.
"""

import hashlib
from bisect import bisect_left, bisect_right
from collections.abc import ItemsView, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import overload

import numpy as np
import pandas as pd

from gloss_utils.data.ids import as_texts, places_of

AT_ONCE = 2**12  # lists whose ids are texts at one time while all are gone through


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
        # One by one: Arrow goes through all of a large catalogue's pieces to take some of it.
        return [self.items[at] for at in self.places[self.offsets[place] : self.offsets[place + 1]].tolist()]

    def __iter__(self) -> Iterator[list[str]]:
        for start in range(0, len(self), AT_ONCE):
            some = self[start : start + AT_ONCE]
            ids = some.items[some.places].tolist()
            yield from (ids[first:end] for first, end in pairwise(some.offsets.tolist()))

    @property
    def lengths(self) -> np.ndarray:
        """How long each list is, int64 [lists]."""
        return np.diff(self.offsets)

    def sha256(self) -> str:
        """What tells these lists from others of the same items."""
        found = hashlib.sha256(np.ascontiguousarray(self.offsets))
        found.update(np.ascontiguousarray(self.places))
        return found.hexdigest()

    def interactions_of(self, lists: np.ndarray) -> np.ndarray:
        """Where in `places` the interactions of the lists at these places are, one list after the other."""
        lengths = self.lengths[lists]
        before = lengths.cumsum() - lengths
        return np.arange(lengths.sum()) + np.repeat(self.offsets[lists] - before, lengths)

    def take(self, lists: np.ndarray) -> "Lists":
        """The lists at these places."""
        offsets = np.concatenate([[0], self.lengths[lists].cumsum()])
        return Lists(self.items, offsets, self.places[self.interactions_of(lists)])

    def within(self, lengths: np.ndarray) -> np.ndarray:
        """Whether an interaction is among so many of its list, from its beginning: bool [interactions]."""
        kept = np.clip(lengths, 0, self.lengths)
        runs = np.stack([kept, self.lengths - kept], axis=1).ravel()
        return np.repeat(np.tile([True, False], len(self)), runs)

    def first(self, lengths: np.ndarray) -> "Lists":
        """So many items of each list, from its beginning."""
        return self.where(self.within(lengths))

    def last(self, most: int) -> "Lists":
        """At most so many items of each list, up to its end."""
        return self.where(~self.within(self.lengths - most))

    def where(self, kept: np.ndarray) -> "Lists":
        """The lists without the interactions that are not kept. kept: bool [interactions]."""
        return Lists(self.items, np.concatenate([[0], self.counts(kept).cumsum()]), self.places[kept])

    def counts(self, kept: np.ndarray) -> np.ndarray:
        """How many interactions of each list are kept, int64 [lists]. kept: bool [interactions]."""
        before = np.zeros(len(kept) + 1, dtype=np.int64)
        np.cumsum(kept, out=before[1:])
        return np.diff(before[self.offsets])


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

    def items(self) -> ItemsView:
        """Users with their lists."""
        return _Pairs(self)

    def places(self, users: Sequence[str]) -> np.ndarray:
        """Where these users are among all; -1 where there is no such user.

        Where all are sorted, only the names from the first of these to the last are looked through.
        """
        begin, end = 0, len(self.users)
        if len(users) and self.users.is_monotonic_increasing:
            begin, end = bisect_left(self.users, min(users)), bisect_right(self.users, max(users))
        found = places_of(users, as_texts(self.users[begin:end]))
        return np.where(found < 0, -1, found + begin)

    @cached_property
    def _place(self) -> dict[str, int]:
        return {user: place for place, user in enumerate(self.users)}


class _Pairs(ItemsView):
    def __iter__(self) -> Iterator[tuple[str, list[str]]]:
        return zip(self._mapping.users, self._mapping.lists, strict=True)
