"""Rankings by all evidence: the rule `fused` (what the generated texts say) and `hybrid` (and what the training
histories, the last item and popularity say), added up with weights that were fitted once, for all datasets.

Each kind of evidence gives an item a number that is 0 where it says nothing; an item's score is their weighted sum:

texts_dense, texts_bm25   votes of the generated texts for the items near them, under either retriever
last_dense, last_bm25     the same for the last item's own text
cooccurrence              how often the item follows those of the history in the training sequences
popularity                log(1 + how often it occurs in the training sequences)

Votes and co-occurrence count by their square roots: the second voter adds less than the first.
"""

from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import sparse

from gloss_utils.rank import cooccurrence
from gloss_utils.rank.candidates import Histories, as_ranking
from gloss_utils.rank.weights import FEATURES, PARTS, HybridSettings

USERS_AT_A_TIME = 2048
DECIMALS = 5


def hybrid(
    found: Mapping[str, pd.DataFrame],
    histories: Histories,
    training_sequences: Histories,
    items: Sequence[str],
    settings: HybridSettings,
    depth: int = 10,
    exclude_seen: bool = True,
    weights: Mapping[str, float] | None = None,
) -> pd.DataFrame:
    """Rank every user's candidates by the weighted sum of all evidence: columns user, rank, item, score.

    found: candidates (see `candidates.nearest_items`) by the feature that they vote for, any of `weights.VOTES`.
    histories: of the users that are ranked for. training_sequences: what may be learned from (see
    `splits.training_sequences`). items: ids in the catalogue's order. depth: items per ranking, or as many as there
    are. exclude_seen: leave out what the user has. weights: of features; by default those of the settings.
    """
    weightings = {"": settings.weights if weights is None else weights}
    return Evidence(histories, training_sequences, items, settings).rankings(found, weightings, depth, exclude_seen)[""]


def without_part(part: str, weights: Mapping[str, float]) -> dict[str, float]:
    """The weights without those of a part (see `weights.PARTS`)."""
    return {feature: weight for feature, weight in weights.items() if feature not in PARTS[part]}


@dataclass
class Evidence:
    """What histories and training sequences say of users and items (see `hybrid`). It is counted once; `rankings` adds
    any votes to it and weighs it in any number of ways. following: what `cooccurrence.following` says (null: it is
    counted now)."""

    histories: Histories
    training_sequences: Histories
    items: Sequence[str]
    settings: HybridSettings
    following: sparse.csr_matrix | None = None

    def __post_init__(self):
        self.items = cooccurrence.index_of(self.items)
        sequences = self.training_sequences.values()
        self.counts = cooccurrence.counts(sequences, self.items)
        self.popular = np.argsort(-self.counts, kind="stable")
        if self.following is None:
            self.following = cooccurrence.following(sequences, self.items, **self.settings.counting())

    def of(self, histories: Histories) -> "Evidence":
        """The same for other users: what was counted stays."""
        other = copy(self)
        other.histories = histories
        return other

    def rankings(
        self,
        found: Mapping[str, pd.DataFrame],
        weightings: Mapping[str, Mapping[str, float]],
        depth: int = 10,
        exclude_seen: bool = True,
    ) -> dict[str, pd.DataFrame]:
        """Rank every user's candidates by the weighted sum of their features, rounded to 5 decimals, by each weighting.

        A feature without weight counts nothing. Of equal scores the item that occurs more often in training sequences
        comes first, then the catalogue's order. A ranking has `depth` items, or as many as may be ranked.
        """
        best, names = {name: [] for name in weightings}, pd.Index(list(self.histories))
        for some in self.candidates(found, depth, exclude_seen):
            users, items, features = (some[column].to_numpy() for column in ("user", "item", list(FEATURES)))
            for name, weights in weightings.items():
                score = np.round(features @ [weights.get(feature, 0.0) for feature in FEATURES], DECIMALS)
                order = np.lexsort((items, -self.counts[items], -score, users))
                rows = some[["user", "item"]].assign(score=score).iloc[order].groupby("user").head(depth)
                best[name].append(rows.assign(user=names[rows["user"]], item=self.items[rows["item"]]))
        return {name: as_ranking(pd.concat(frames), self.histories, depth) for name, frames in best.items()}

    def candidates(
        self, found: Mapping[str, pd.DataFrame], depth: int, exclude_seen: bool = True
    ) -> Iterator[pd.DataFrame]:
        """The candidates of all users, some users at a time: columns user and item (places), and `FEATURES`.

        They are the items with a vote, the `neighbours` that co-occur most with the history, and the `depth` most
        popular; where these are fewer than `depth`, as many popular ones more, if the catalogue has them.
        exclude_seen: leave out what the user has.
        """
        users = pd.Index(list(self.histories))
        votes = {feature: self._votes(feature, rows, users) for feature, rows in found.items()}
        items, lists = len(self.items), cooccurrence.lists_of(self.histories)
        for start in range(0, len(users), USERS_AT_A_TIME):
            rows = slice(start, start + USERS_AT_A_TIME)
            voted = {feature: matrix[rows] for feature, matrix in votes.items()}
            recent = cooccurrence.recent(lists[rows], self.items, self.settings.recency)
            follows, some = recent @ self.following, recent.shape[0]
            near = cooccurrence.strongest(follows, self.settings.neighbours)
            popular = np.arange(some)[:, None] * items + self.popular[:depth]
            seen = cooccurrence.keys(recent)[: None if exclude_seen else 0]
            keys = [*map(cooccurrence.keys, voted.values()), cooccurrence.keys(near), popular.ravel()]
            keys = np.setdiff1d(np.concatenate(keys), seen)
            keys = cooccurrence.filled_up(keys, seen, some, items, depth, self.popular)
            user, item = np.divmod(keys, items)
            features = dict.fromkeys(FEATURES, 0.0) | {"popularity": np.log1p(self.counts[item])}
            for feature, matrix in (voted | {"cooccurrence": follows}).items():
                features[feature] = np.sqrt(np.asarray(matrix[user, item]).ravel())
            yield pd.DataFrame({"user": start + user, "item": item} | features)

    def _votes(self, feature: str, found: pd.DataFrame, users: pd.Index) -> sparse.csr_matrix:
        return votes(found, users, self.items, getattr(self.settings, f"temperature_{feature.split('_')[1]}"))


def votes(found: pd.DataFrame, users: pd.Index, items: pd.Index, temperature: float) -> sparse.csr_matrix:
    """What texts say, [users, items]: a user's b-th text gives an item 1/b · exp((strength - 1) / temperature).

    found: candidates. An item without strength gets no vote, several votes for one item are added.
    """
    some = found[found["strength"] > 0]
    strength, query = (some[name].to_numpy(dtype=float) for name in ("strength", "query"))
    values = np.exp((strength - 1) / temperature) / query
    places = users.get_indexer(some["user"]), items.get_indexer(some["item"])
    return sparse.csr_matrix((values, places), (len(users), len(items)))
