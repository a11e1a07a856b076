"""Candidates: the items that texts lead to. A frame with columns user, query (the text's number, from 1), item, score,
strength (the score as a share of a perfect match's: 1 for a perfect match, 0 or less for none)."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import numpy as np
import pandas as pd

from gloss_utils.data.prompts import item_text

COLUMNS = ["user", "query", "item", "score", "strength"]
RANKING_COLUMNS = ["user", "rank", "item", "score"]

Histories = Mapping[str, Sequence[str]]  # user -> items, oldest first


class Index(Protocol):
    """What texts are searched with: the indexes of `gloss_utils.search`, or another with these two methods."""

    def search(self, texts: list[str], k: int) -> tuple[np.ndarray, np.ndarray]:
        """Places in the catalogue and scores of the k nearest items, [texts, k], best first."""

    def strength(self, scores: np.ndarray) -> np.ndarray:
        """Scores as shares of a perfect match's."""


def nearest_items(queries: pd.DataFrame, index: Index, items: Sequence[str], k: int = 1) -> pd.DataFrame:
    """Candidates: the k nearest items of every text.

    queries: columns user, texts (list, in the order generated). items: ids in the catalogue's order. Blank texts lead
    to no item.
    """
    texts = _numbered(queries)
    texts = texts[texts["texts"].fillna("").str.strip().astype(bool)]
    if texts.empty:
        return pd.DataFrame(columns=COLUMNS)
    places, scores = index.search(texts["texts"].tolist(), k)
    found = texts.loc[texts.index.repeat(places.shape[1]), ["user", "query"]].reset_index(drop=True)
    named = items if isinstance(items, pd.Index) else pd.Index(items)
    item, strength = named[places.ravel()].to_numpy(), index.strength(scores).ravel()
    return found.assign(item=item, score=scores.ravel(), strength=strength)


class ExactTitles:
    """Candidates without a search, for texts that are items' exact texts. Of each item 16 bytes are held: its text's
    hash, and its place among these."""

    def __init__(self, titles: Mapping[str, str]):
        """titles: each item's title, in the catalogue's order, in which items of one title are equally near to it
        (METHOD, 5)."""
        self.titles, self.items = titles, pd.Index(list(titles))
        found = hashes(item_text(title) for title in titles.values())
        self.order = np.argsort(found, kind="stable")
        self.hashes = found[self.order]

    def find(self, queries: pd.DataFrame, k: int = 1) -> pd.DataFrame:
        """The first k items of each text, at similarity 1. queries: columns user, texts."""
        texts = _numbered(queries)
        wanted = hashes(texts["texts"])
        first, end = (np.searchsorted(self.hashes, wanted, side) for side in ("left", "right"))
        rows = np.repeat(np.arange(len(texts)), end - first)
        nth = np.arange(len(rows)) - np.repeat(np.cumsum(end - first) - (end - first), end - first)
        found = texts.iloc[rows].assign(item=self.items[self.order[first[rows] + nth]])
        same = [item_text(self.titles[item]) == text for item, text in zip(found["item"], found["texts"], strict=True)]
        found = found[np.array(same, dtype=bool)]
        found = found[found.groupby(["user", "query"], sort=False).cumcount() < k]
        return found.assign(score=1.0, strength=1.0)[COLUMNS].reset_index(drop=True)


def hashes(texts: Iterable[str]) -> np.ndarray:
    """A number of 64 bits for each text, the same for equal ones."""
    return pd.util.hash_array(np.array(list(texts), dtype=object))


def _numbered(queries: pd.DataFrame) -> pd.DataFrame:
    texts = queries[["user", "texts"]].explode("texts", ignore_index=True)
    return texts.assign(query=texts.groupby("user", sort=False).cumcount() + 1)


def last_item_texts(histories: Histories, titles: Mapping[str, str]) -> pd.DataFrame:
    """The text of the last item that has a title, as the only query of each user who has one: user, texts."""
    known = ((user, [item for item in history if item in titles]) for user, history in histories.items())
    rows = [(user, [item_text(titles[history[-1]])]) for user, history in known if history]
    return pd.DataFrame(rows, columns=["user", "texts"])


def as_ranking(candidates: pd.DataFrame, histories: Histories, depth: int, exclude_seen: bool = False) -> pd.DataFrame:
    """The first `depth` candidates of each user as a ranking, in the order given; users in that of the histories.

    exclude_seen: leave out what is in the user's history.
    """
    if exclude_seen:
        seen = {user: set(history) for user, history in histories.items()}
        pairs = zip(candidates["user"], candidates["item"], strict=True)
        candidates = candidates[np.array([item not in seen[user] for user, item in pairs], dtype=bool)]
    place = {user: place for place, user in enumerate(histories)}
    candidates = candidates.sort_values("user", key=lambda users: users.map(place), kind="stable")
    rank = candidates.groupby("user", sort=False).cumcount() + 1
    return candidates.assign(rank=rank)[rank <= depth][RANKING_COLUMNS].reset_index(drop=True)
