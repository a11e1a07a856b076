"""Candidates: the items that texts lead to. A frame with columns user, query (the text's number, from 1), item, score,
strength (the score as a share of a perfect match's: 1 for a perfect match, 0 or less for none)."""

from collections.abc import Collection, Mapping, Sequence
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
        return pd.DataFrame({column: [] for column in COLUMNS})
    places, scores = index.search(texts["texts"].tolist(), k)
    width = places.shape[1]
    return pd.DataFrame(
        {
            "user": np.repeat(texts["user"].to_numpy(), width),
            "query": np.repeat(texts["query"].to_numpy(), width),
            "item": pd.Index(items).to_numpy()[places.ravel()],
            "score": scores.ravel(),
            "strength": index.strength(scores).ravel(),
        }
    )


def items_of_exact_titles(queries: pd.DataFrame, titles: Mapping[str, str]) -> pd.DataFrame:
    """Candidates without a search, for texts that are items' exact texts: all items of a text, at similarity 1.

    queries: columns user, texts. titles: each item's title.
    """
    known = pd.DataFrame({"item": list(titles), "texts": [item_text(title) for title in titles.values()]})
    return _numbered(queries).merge(known, on="texts").assign(score=1.0, strength=1.0)[COLUMNS]


def last_item_texts(histories: Histories, titles: Mapping[str, str]) -> pd.DataFrame:
    """The text of the last item that has a title, as the only query of each user who has one: user, texts."""
    known = ((user, [item for item in history if item in titles]) for user, history in histories.items())
    rows = [(user, [item_text(titles[history[-1]])]) for user, history in known if history]
    return pd.DataFrame(rows, columns=["user", "texts"])


def without_seen(candidates: pd.DataFrame, histories: Mapping[str, Collection[str]]) -> pd.DataFrame:
    """The candidates that are not in their user's history."""
    seen = {user: set(history) for user, history in histories.items()}
    new = [item not in seen[user] for user, item in zip(candidates["user"], candidates["item"], strict=True)]
    return candidates[np.array(new, dtype=bool)]


def as_ranking(candidates: pd.DataFrame, depth: int) -> pd.DataFrame:
    """The first `depth` candidates of each user as a ranking, in the order given."""
    rank = candidates.groupby("user", sort=False).cumcount() + 1
    return candidates.assign(rank=rank)[rank <= depth][RANKING_COLUMNS].reset_index(drop=True)


def _numbered(queries: pd.DataFrame) -> pd.DataFrame:
    texts = queries[["user", "texts"]].explode("texts", ignore_index=True)
    texts["query"] = texts.groupby("user", sort=False).cumcount() + 1
    return texts
