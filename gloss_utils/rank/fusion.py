"""Rankings beyond the paper's rule: `fused` (all that the generated texts say) and `hybrid` (and what the training
histories, the last item and popularity say), added up with weights that were fitted once, for all datasets.

Each kind of evidence gives an item a number that is 0 where it says nothing; an item's score is their weighted sum:

texts_dense, texts_bm25   votes of the generated texts for the items near them, under either retriever
last_dense, last_bm25     the same for the last item's own text
cooccurrence              how often the item follows those of the history in the training histories
popularity                log(1 + how often it occurs in the training histories)
sasrec                    1 / its rank among the first 50 of a SASRec; only where the weights name it

Votes, co-occurrence and SASRec count by their square roots: the second voter adds less than the first.
"""

from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from scipy import sparse

from gloss_utils.base.errors import GlossError
from gloss_utils.rank import cooccurrence, ranking

PARTS = {
    "generated texts": ("texts_dense", "texts_bm25"),
    "co-occurrence": ("cooccurrence",),
    "last item": ("last_dense", "last_bm25"),
    "popularity": ("popularity",),
    "SASRec": ("sasrec",),
}
FEATURES = tuple(feature for features in PARTS.values() for feature in features)
VOTES = ("texts_dense", "texts_bm25", "last_dense", "last_bm25")
SASREC = "sasrec"  # the one feature that weights may leave out
SASREC_DEPTH = 50
NEEDED = tuple(feature for feature in FEATURES if feature != SASREC)
USERS_AT_A_TIME = 2048
DECIMALS = 5


@dataclass(frozen=True)
class Settings:
    """What `params/ranking/weights.yaml` holds.

    top_k: items that a text votes for. neighbours: items that co-occurrence proposes. temperature_dense, temperature_
    bm25: how fast a vote falls with similarity. window, decay, backward, damping, recency: see `cooccurrence`.
    weights: of each feature. fitted_on: sha256 of the files that the weights were fitted on, and their names.
    """

    top_k: int
    neighbours: int
    temperature_dense: float
    temperature_bm25: float
    window: int
    decay: float
    backward: float
    damping: float
    recency: float
    weights: dict[str, float]
    fitted_on: dict[str, str]

    @classmethod
    def read(cls, path: str | Path) -> "Settings":
        """Raises `GlossError` where the file is missing or does not hold just these values."""
        try:
            values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
            wrong = _wrong(values)
        except OSError as error:
            wrong = f"cannot be read ({error.strerror})"
        except (yaml.YAMLError, UnicodeDecodeError):
            wrong = "is not YAML"
        if wrong:
            raise GlossError(f"parameter ranking_weights: {path} {wrong}; give a file like params/ranking/weights.yaml")
        return cls(**values)


def _wrong(values) -> str | None:
    names = [field.name for field in fields(Settings)]
    if not isinstance(values, dict) or set(values) != set(names):
        return f"has to hold {', '.join(names)}, and nothing else"
    if not isinstance(values["weights"], dict) or not set(NEEDED) <= set(values["weights"]) <= set(FEATURES):
        return f"has to hold weights for {', '.join(NEEDED)}, and may for {SASREC}"
    if not isinstance(values["fitted_on"], dict):
        return "has to hold fitted_on as sha256: name"
    for name, value in {**values, **values["weights"]}.items():
        if name in ("weights", "fitted_on"):
            continue
        whole = name in ("top_k", "neighbours", "window")
        least = 1 if whole else 1e-3 if name.startswith("temperature") else 0
        if (
            not isinstance(value, int if whole else (int, float))
            or isinstance(value, bool)
            or not least <= value < np.inf
        ):
            return f"has {name}: {value!r}; allowed is a {'whole ' if whole else ''}number from {least} up"
    return None


@dataclass
class Candidates:
    """Items that something speaks for, of some users: aligned arrays, sorted by user, then item.

    user, item: places in the users and in the catalogue. features: [rows, len(FEATURES)].
    """

    user: np.ndarray
    item: np.ndarray
    features: np.ndarray


class Evidence:
    """All that is known of some users and items, with one verb: `candidates`."""

    def __init__(
        self,
        found: dict[str, pd.DataFrame],
        histories: dict[str, list[str]],
        learnable: dict[str, list[str]],
        items: pd.Series,
        settings: Settings,
    ):
        """found: what `ranking.candidates` returned, by the feature that it counts for; of `sasrec`, its ranking.
        histories: of the users that are to be ranked for. learnable: see `splits.training_sequences`. items: ids, in
        the catalogue's order."""
        self.users, self.items, self.settings = pd.Index(list(histories)), pd.Index(items), settings
        self.votes = self._votes(found)
        sequences = list(learnable.values())
        self.counts = cooccurrence.counts(sequences, items)
        self.popular = np.lexsort((np.arange(len(items)), -self.counts))
        self.following = cooccurrence.following(
            sequences,
            items,
            settings.window,
            settings.decay,
            settings.backward,
            settings.damping,
            settings.neighbours,
        )
        self.recent = cooccurrence.recent(list(histories.values()), items, settings.recency)

    def _votes(self, found: dict[str, pd.DataFrame]) -> dict[str, sparse.csr_matrix]:
        temperature = {"dense": self.settings.temperature_dense, "bm25": self.settings.temperature_bm25}
        return {
            feature: by_rank(rows, self.users, self.items)
            if feature == SASREC
            else votes(rows, self.users, self.items, temperature[feature.split("_")[1]])
            for feature, rows in found.items()
        }

    def hearing(self, found: dict[str, pd.DataFrame]) -> "Evidence":
        """The same, with other candidates in the place of what was found for these features."""
        other = copy(self)
        other.votes = self.votes | self._votes(found)
        return other

    def candidates(self, exclude_seen: bool, depth: int) -> Iterator[Candidates]:
        """The candidates of all users, some users at a time.

        They are the items with a vote, the `neighbours` that co-occur most with the history, and the `depth` most
        popular; where these are fewer than `depth`, as many popular ones more, if the catalogue has them.
        exclude_seen: leave out what the user has.
        """
        for start in range(0, len(self.users), USERS_AT_A_TIME):
            rows = slice(start, start + USERS_AT_A_TIME)
            known = {feature: matrix[rows] for feature, matrix in self.votes.items()}
            known["cooccurrence"] = self.recent[rows] @ self.following
            seen = _keys(self.recent[rows])[: None if exclude_seen else 0]
            proposed = [_keys(matrix) for feature, matrix in known.items() if feature != "cooccurrence"]
            proposed += [_keys(cooccurrence.strongest(known["cooccurrence"], self.settings.neighbours))]
            yield self._with_features(start, known, self._filled(proposed, seen, self.recent[rows].shape[0], depth))

    def _filled(self, proposed: list[np.ndarray], seen: np.ndarray, users: int, depth: int) -> np.ndarray:
        items = len(self.items)
        everyone = np.arange(users)
        keys = _without(np.concatenate([*proposed, _pairs(everyone, self.popular[:depth], items)]), seen)
        have = np.bincount(keys // items, minlength=users)
        short = everyone[have < depth]
        if len(short):
            # Each looks as far as they may need to: as far as the longest history takes much memory for all.
            far = np.minimum(depth + have[short] + np.bincount(seen // items, minlength=users)[short], items)
            rank = np.arange(far.sum()) - np.repeat(np.cumsum(far) - far, far)
            keys = _without(np.concatenate([keys, np.repeat(short, far) * items + self.popular[rank]]), seen)
        return keys

    def _with_features(self, start: int, known: dict[str, sparse.csr_matrix], keys: np.ndarray) -> Candidates:
        user, item = np.divmod(keys, len(self.items))
        features = np.zeros((len(keys), len(FEATURES)))
        for feature, matrix in known.items():
            there, at = _among(keys, _keys(matrix))
            features[there, FEATURES.index(feature)] = np.sqrt(matrix.data[at[there]])
        features[:, FEATURES.index("popularity")] = np.log1p(self.counts[item])
        return Candidates(start + user, item, features)


def votes(found: pd.DataFrame, users: pd.Index, items: pd.Index, temperature: float) -> sparse.csr_matrix:
    """What queries say, [users, items]: a user's b-th text gives an item 1/b · exp((strength - 1) / temperature).

    found: what `ranking.candidates` returns; its strength is 1 for a perfect match. An item without strength gets no
    vote, several votes for one item are added.
    """
    some = found[found["strength"] > 0]
    strength, query = (some[name].to_numpy(dtype=float) for name in ("strength", "query"))
    return _of_users_and_items(np.exp((strength - 1) / temperature) / query, some, users, items)


def by_rank(ranked: pd.DataFrame, users: pd.Index, items: pd.Index) -> sparse.csr_matrix:
    """What a ranking (user, rank, item) says, [users, items]: 1 / rank of its first `SASREC_DEPTH` items."""
    some = ranked[ranked["rank"] <= SASREC_DEPTH]
    return _of_users_and_items(1 / some["rank"].to_numpy(dtype=float), some, users, items)


def _of_users_and_items(values: np.ndarray, rows: pd.DataFrame, users: pd.Index, items: pd.Index) -> sparse.csr_matrix:
    places = _places(rows["user"], users), _places(rows["item"], items)
    return sparse.csr_matrix((values, places), (len(users), len(items)))


def _places(column: pd.Series, among: pd.Index) -> np.ndarray:
    codes, values = pd.factorize(column)
    return among.get_indexer(values)[codes]


def _pairs(users: np.ndarray, items: np.ndarray, width: int) -> np.ndarray:
    return (users[:, None] * width + items).ravel()


def _without(keys: np.ndarray, seen: np.ndarray) -> np.ndarray:
    keys = np.sort(keys)  # much faster than np.unique
    keys = keys[np.diff(keys, prepend=-1) > 0]
    return keys[~_among(keys, seen)[0]]


def _among(keys: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which keys are among the known ones (sorted), and at which places of these."""
    if not len(known):
        return np.zeros(len(keys), dtype=bool), np.zeros(len(keys), dtype=np.int64)
    at = np.minimum(np.searchsorted(known, keys), len(known) - 1)
    return known[at] == keys, at


def _keys(matrix: sparse.csr_matrix) -> np.ndarray:
    """user × items + item of every entry."""
    matrix.sort_indices()
    users = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    return users * matrix.shape[1] + matrix.indices


def rankings(
    evidence: Evidence, weightings: dict[str, dict[str, float]], exclude_seen: bool, depth: int
) -> dict[str, pd.DataFrame]:
    """Rank every user's candidates by the weighted sum of their features, rounded to 5 decimals, by each weighting.

    A feature without weight counts nothing. Of equal scores the item that occurs more often in training histories
    comes first, then the catalogue's order. A ranking has `depth` items, or as many as may be ranked.
    """
    parts = {name: [] for name in weightings}
    for some in evidence.candidates(exclude_seen, depth):
        for name, weights in weightings.items():
            score = np.round(some.features @ [weights.get(feature, 0.0) for feature in FEATURES], DECIMALS)
            order = np.lexsort((some.item, -evidence.counts[some.item], -score, some.user))
            user = some.user[order]
            rank = np.arange(len(user)) - np.searchsorted(user, user) + 1
            kept = rank <= depth
            best = order[kept]
            columns = evidence.users[some.user[best]], rank[kept], evidence.items[some.item[best]], score[best]
            parts[name].append(pd.DataFrame(dict(zip(ranking.COLUMNS, columns, strict=True))))
    return {name: pd.concat(frames, ignore_index=True) for name, frames in parts.items()}


def parts(weights: dict[str, float]) -> list[str]:
    """The parts (see `PARTS`) that the weights name."""
    return [part for part, features in PARTS.items() if set(features) <= set(weights)]


def leaving_out(part: str, weights: dict[str, float]) -> dict[str, float]:
    """The weights without those of a part (see `PARTS`)."""
    return {feature: weight for feature, weight in weights.items() if feature not in PARTS[part]}
