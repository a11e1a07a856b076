"""A user's story, from history to recommendations, and what the generated texts are like, for looking at."""

from collections.abc import Callable, Iterable, Mapping

import ipywidgets
import numpy as np
import pandas as pd
from IPython.display import HTML

from gloss_utils.data.prompts import item_text
from gloss_utils.rank.candidates import hashes
from gloss_utils.report.html import TEMPLATES
from gloss_utils.report.tables import as_written


class TextsSummary:
    """What was generated, in numbers, counted some users at a time. Of texts 8 bytes each are kept: a hash."""

    def __init__(self, titles: Iterable[str]):
        """titles: the catalogue's."""
        self.exact = np.unique(hashes(item_text(title) for title in titles))
        self.users = self.ranked = self.targets = self.hits = 0
        self.texts: list[np.ndarray] = []

    def add(self, queries: pd.DataFrame, ranking: pd.DataFrame):
        """Count more users. queries: user, target (null: unknown), texts. ranking: user, item."""
        self.users, self.ranked = self.users + len(queries), self.ranked + len(ranking)
        self.texts.append(hashes(text for texts in queries["texts"] for text in texts))
        self.targets += int(queries["target"].notna().sum())
        self.hits += len(_hits(queries, ranking))

    def table(self) -> pd.DataFrame:
        """Share of distinct texts, of exact titles, of users whose target is ranked."""
        texts = np.concatenate(self.texts)
        rows = {
            "users": f"{self.users:,}",
            "texts": f"{len(texts):,}",
            "distinct texts": f"{len(np.unique(texts)) / len(texts):.1%}",
            "texts that are an item's exact title": f"{np.isin(texts, self.exact).mean():.1%}",
            "items ranked per user": f"{self.ranked / self.users:.2f}",
        }
        if self.targets:
            rows["users whose target is ranked"] = f"{self.hits / self.users:.1%}"
        return pd.DataFrame({"value": rows})


def telling_user(queries: pd.DataFrame, ranking: pd.DataFrame) -> str:
    """A user worth showing: the first whose target was ranked and whose history is short; else the first."""
    hits = _hits(queries, ranking)
    return next(iter(hits.loc[hits["history"].map(len) <= 8, "user"]), queries["user"].iloc[0])


def _hits(queries: pd.DataFrame, ranking: pd.DataFrame) -> pd.DataFrame:
    found = ranking.merge(queries, on="user")
    return found[found["item"] == found["target"]]


def story(
    query: pd.Series, ranking: pd.DataFrame, titles: Mapping[str, str], without_texts: pd.DataFrame | None = None
) -> HTML:
    """One user's story: history, generated texts, recommended items with the target marked.

    query: user, history, target, texts, logprobs, lengths. ranking: user, item, score, of any users. without_texts: the
    same without the generated texts; an item's place in it is shown beside the item.
    """
    alone = None
    if without_texts is not None:
        alone = without_texts.loc[without_texts["user"] == query["user"], "item"].tolist()
    shown = {
        "texts": list(zip(map(as_written, query["texts"]), query["logprobs"], query["lengths"], strict=True)),
        "ranked": ranking.loc[ranking["user"] == query["user"], ["item", "score"]].to_numpy(),
        "named": lambda item: as_written(titles.get(item, f"{item} (not in the catalogue)")),
        "place": lambda item: _place(item, alone),
        "alone": alone,
    }
    return HTML(TEMPLATES.get_template("story.html.j2").render(query=query, **shown))


def _place(item: str, ranked: list[str] | None) -> str:
    if ranked is None:
        return ""
    return str(ranked.index(item) + 1) if item in ranked else f"not in the first {len(ranked)}"


def browse(users: list[str], first: str, show: Callable[[str], HTML]) -> ipywidgets.VBox:
    """In JupyterLab: a box to choose one of the users in, at first `first`, with what `show` returns for it below."""
    known = set(users)
    box = ipywidgets.Combobox(value=first, options=users[:500], description="User", placeholder="type a user id")
    return ipywidgets.interactive(lambda user: show(user) if user in known else None, {"auto_display": True}, user=box)
