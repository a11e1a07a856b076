"""Rankings by all evidence: `fused` (what the generated texts say) and `hybrid` (and what the training histories, the
last item and popularity say), added up with weights that were fitted once, for all datasets.

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
from gloss_utils.rank.candidates import RANKING_COLUMNS, Histories
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
    evidence = Evidence(found, histories, training_sequences, items, settings)
    return evidence.rankings({"": settings.weights if weights is None else weights}, exclude_seen, depth)[""]


def fused(
    found: Mapping[str, pd.DataFrame],
    histories: Histories,
    training_sequences: Histories,
    items: Sequence[str],
    settings: HybridSettings,
    depth: int = 10,
    exclude_seen: bool = True,
) -> pd.DataFrame:
    """Rank by the votes in `found` alone, each feature with weight 1; equal scores by popularity. See `hybrid`."""
    weights = dict.fromkeys(found, 1.0)
    return hybrid(found, histories, training_sequences, items, settings, depth, exclude_seen, weights)


def without_part(part: str, weights: Mapping[str, float]) -> dict[str, float]:
    """The weights without those of a part (see `weights.PARTS`)."""
    return {feature: weight for feature, weight in weights.items() if feature not in PARTS[part]}


@dataclass
class Candidates:
    """Items that something speaks for, of some users: aligned arrays, sorted by user, then item.

    user, item: places in the users and in the catalogue. features: [rows, len(FEATURES)].
    """

    user: np.ndarray
    item: np.ndarray
    features: np.ndarray


class Evidence:
    """All that is known of some users and items. It is gathered once; `rankings` weighs it in any number of ways."""

    def __init__(
        self,
        found: Mapping[str, pd.DataFrame],
        histories: Histories,
        training_sequences: Histories,
        items: Sequence[str],
        settings: HybridSettings,
    ):
        """See `hybrid`."""
        self.users, self.items, self.settings = pd.Index(list(histories)), pd.Index(items), settings
        self.votes = self._votes(found)
        sequences = list(training_sequences.values())
        self.counts = cooccurrence.counts(sequences, items)
        self.popular = np.lexsort((np.arange(len(items)), -self.counts))
        counting = {name: getattr(settings, name) for name in ("window", "decay", "backward", "damping", "neighbours")}
        self.following = cooccurrence.following(sequences, items, **counting)
        self.recent = cooccurrence.recent(list(histories.values()), items, settings.recency)

    def _votes(self, found: Mapping[str, pd.DataFrame]) -> dict[str, sparse.csr_matrix]:
        temperature = {"dense": self.settings.temperature_dense, "bm25": self.settings.temperature_bm25}
        return {
            feature: votes(rows, self.users, self.items, temperature[feature.split("_")[1]])
            for feature, rows in found.items()
        }

    def with_votes(self, found: Mapping[str, pd.DataFrame]) -> "Evidence":
        """The same, with other candidates in the place of what was found for these features."""
        other = copy(self)
        other.votes = self.votes | self._votes(found)
        return other

    def rankings(
        self, weightings: Mapping[str, Mapping[str, float]], exclude_seen: bool, depth: int
    ) -> dict[str, pd.DataFrame]:
        """Rank every user's candidates by the weighted sum of their features, rounded to 5 decimals, by each weighting.

        A feature without weight counts nothing. Of equal scores the item that occurs more often in training sequences
        comes first, then the catalogue's order. A ranking has `depth` items, or as many as may be ranked.
        """
        parts = {name: [] for name in weightings}
        for some in self.candidates(exclude_seen, depth):
            for name, weights in weightings.items():
                score = np.round(some.features @ [weights.get(feature, 0.0) for feature in FEATURES], DECIMALS)
                order = np.lexsort((some.item, -self.counts[some.item], -score, some.user))
                user = some.user[order]
                rank = np.arange(len(user)) - np.searchsorted(user, user) + 1
                kept = rank <= depth
                best = order[kept]
                columns = self.users[some.user[best]], rank[kept], self.items[some.item[best]], score[best]
                parts[name].append(pd.DataFrame(dict(zip(RANKING_COLUMNS, columns, strict=True))))
        return {name: pd.concat(frames, ignore_index=True) for name, frames in parts.items()}

    def candidates(self, exclude_seen: bool, depth: int) -> Iterator[Candidates]:
        """The candidates of all users, some users at a time.

        They are the items with a vote, the `neighbours` that co-occur most with the history, and the `depth` most
        popular; where these are fewer than `depth`, as many popular ones more, if the catalogue has them.
        exclude_seen: leave out what the user has.
        """
        for start in range(0, len(self.users), USERS_AT_A_TIME):
            rows = slice(start, start + USERS_AT_A_TIME)
            known = {feature: matrix[rows] for feature, matrix in self.votes.items()}
            recent = self.recent[rows]
            follows = recent @ self.following
            seen = _keys(recent)[: None if exclude_seen else 0]
            proposed = [*known.values(), cooccurrence.strongest(follows, self.settings.neighbours)]
            keys = self._filled([_keys(matrix) for matrix in proposed], seen, recent.shape[0], depth)
            yield self._with_features(start, known | {"cooccurrence": follows}, keys)

    def _filled(self, proposed: list[np.ndarray], seen: np.ndarray, users: int, depth: int) -> np.ndarray:
        items, everyone = len(self.items), np.arange(users)
        popular = (everyone[:, None] * items + self.popular[:depth]).ravel()
        keys = np.setdiff1d(np.concatenate([*proposed, popular]), seen)
        have = np.bincount(keys // items, minlength=users)
        short = everyone[have < depth]
        if len(short):
            # Each looks as far as they may need to: as far as the longest history takes much memory for all.
            far = np.minimum(depth + have[short] + np.bincount(seen // items, minlength=users)[short], items)
            rank = np.arange(far.sum()) - np.repeat(np.cumsum(far) - far, far)
            keys = np.setdiff1d(np.concatenate([keys, np.repeat(short, far) * items + self.popular[rank]]), seen)
        return keys

    def _with_features(self, start: int, known: dict[str, sparse.csr_matrix], keys: np.ndarray) -> Candidates:
        user, item = np.divmod(keys, len(self.items))
        features = np.zeros((len(keys), len(FEATURES)))
        for feature, matrix in known.items():
            features[:, FEATURES.index(feature)] = np.sqrt(matrix[user, item])
        features[:, FEATURES.index("popularity")] = np.log1p(self.counts[item])
        return Candidates(start + user, item, features)


def votes(found: pd.DataFrame, users: pd.Index, items: pd.Index, temperature: float) -> sparse.csr_matrix:
    """What texts say, [users, items]: a user's b-th text gives an item 1/b · exp((strength - 1) / temperature).

    found: candidates, whose strength is 1 for a perfect match. An item without strength gets no vote, several votes for
    one item are added.
    """
    some = found[found["strength"] > 0]
    strength, query = (some[name].to_numpy(dtype=float) for name in ("strength", "query"))
    places = _places(some["user"], users), _places(some["item"], items)
    values = np.exp((strength - 1) / temperature) / query
    return sparse.csr_matrix((values, places), (len(users), len(items)))


def _places(column: pd.Series, among: pd.Index) -> np.ndarray:
    codes, values = pd.factorize(column)
    return among.get_indexer(values)[codes]


def _keys(matrix: sparse.csr_matrix) -> np.ndarray:
    """user × items + item of every entry."""
    matrix.sort_indices()
    users = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    return users * matrix.shape[1] + matrix.indices
