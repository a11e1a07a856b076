"""The ranking that learns: boosted trees (lightgbm, XE-NDCG) over the signals of histories, fitted on training users.

A training user's last learnable item is the label. The counts with which it is to be predicted are made without it, as
those with which an evaluated user's target is predicted are. The trees use no validation label and no test label.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import sparse

from gloss_utils.base.errors import GlossError
from gloss_utils.rank import text_weights
from gloss_utils.rank.candidates import RANKING_COLUMNS, Histories, as_ranking
from gloss_utils.rank.choices import NEW, candidates, features_of, signal_of
from gloss_utils.rank.cooccurrence import lists_of
from gloss_utils.rank.evidence import DECIMALS, votes
from gloss_utils.rank.examples import USERS, Labelled, cut_back, labelled
from gloss_utils.rank.signals import PARTS, SIGNALS, Signals
from gloss_utils.rank.text_weights import TEXTS

if TYPE_CHECKING:
    import lightgbm

FEWEST_ROWS = 200  # a leaf
SETTINGS = {
    "objective": "rank_xendcg",
    "num_leaves": 31,
    "learning_rate": 0.05,
    "feature_fraction": 0.5,
    "lambda_l2": 10.0,
    "max_bin": 63,
    "num_threads": 1,  # more wait for each other where the machine is busy: fifty times as long was seen
    "deterministic": True,
    "force_row_wise": True,
    "verbosity": -1,
}
TREES = 200
FAVOUR = 0.5  # of new items: over all users as good as less, and the new ones get more (`benchmarks.new_items`)
BYTES_AN_ITEM = 17_000  # of all signals, as held for Beauty's 12,101 items
HEAT = (0.12, 0.3)  # of the votes of texts, by meaning and by words, as weights.yaml


def check_fits(items: int, memory: int):
    """Raise a `GlossError` where the signals of so many items need more memory, in bytes, than there is."""
    needed = items * BYTES_AN_ITEM
    if needed > memory:
        raise GlossError(
            f"ranking learned holds some {BYTES_AN_ITEM // 1000} kB for each item in memory, {needed / 1e9:,.0f} GB "
            f"for {items:,}, and there are {memory / 1e9:,.0f} GB; take ranking hybrid, which holds co-occurrence alone"
        )


def fit(examples: Labelled, signals: Iterable[str] = SIGNALS, seed: int = 1) -> "lightgbm.Booster | None":
    """Boosted trees over the features of some signals; null where there is nothing to learn from."""
    import lightgbm  # takes a second, which other rankings need not wait

    if not examples.is_label.any():
        return None
    features = [*features_of(list(signals)), NEW]
    rows = examples.candidates
    sizes = rows.groupby("user", sort=False).size().to_numpy()
    fewest = max(1, min(FEWEST_ROWS, len(rows) // 100))
    label = examples.is_label.astype(np.int8)
    data = lightgbm.Dataset(
        rows[features].to_numpy(), label, group=sizes, feature_name=features, weight=examples.weight
    )
    return lightgbm.train(SETTINGS | {"seed": seed, "min_data_in_leaf": fewest}, data, TREES)


@dataclass
class Texts:
    """Generated texts and what weighs them (see `text_weights`).

    found: candidates (see `candidates.nearest_items`) by the feature of `TEXTS` that they vote for. targets: user ->
    item, or null where none is known; a user's own says nothing of how that user's texts are weighed.
    """

    found: Mapping[str, pd.DataFrame]
    targets: Mapping[str, str | None]


@dataclass
class Learned:
    """Ranks for users by what is learnt from training sequences; counted and fitted once, at the first ranking.

    histories: of the users that are ranked for, and training_sequences: of all that may be learnt from, user -> items,
    oldest first. items: ids in the catalogue's order. near: see `signals.text_neighbours`. favour: what is added to the
    scores of new items, as a multiple of how widely a user's scores spread (their standard deviation); below 0 it
    holds them back. seed: of the
    training users and the trees. trees: those that were fitted before, as `trees_text` gave them. users: how many
    training users give a label, at most. held: histories of training users whose next items nothing has read. world:
    what ranks for other users, and is taken in place of counting and fitting again.
    """

    histories: Histories
    training_sequences: Histories
    items: Sequence[str]
    near: Mapping[str, sparse.csr_matrix]
    favour: float = FAVOUR
    seed: int = 1
    trees: str | None = None
    users: int = USERS
    held: Histories | None = None
    world: "Learned | None" = None

    def __getstate__(self) -> dict:
        """What other processes rank by: counts and trees, without the examples that these were learnt from."""
        known = {name: getattr(self, name) for name in ("signals", "model")}
        return {name: value for name, value in vars(self).items() if name != "examples"} | known

    def of(self, histories: Histories) -> "Learned":
        """The same for other users; what was counted and fitted is not made again."""
        return replace(self, histories=histories, world=self.world or self)

    @cached_property
    def signals(self) -> Signals:
        """Of the world in which users are ranked for."""
        if self.world:
            return self.world.signals
        return Signals(self.training_sequences.values(), self.items, self.near)

    @cached_property
    def examples(self) -> Labelled:
        """What is learnt from."""
        return labelled(self.training_sequences, self.items, self.near, self.seed, self.users, self.held)

    @cached_property
    def model(self) -> "lightgbm.Booster | None":
        """The trees over all signals; null where there is nothing to learn from."""
        if self.world:
            return self.world.model
        if self.trees is None:
            return fit(self.examples, SIGNALS, self.seed)
        import lightgbm

        return lightgbm.Booster(model_str=self.trees) if self.trees else None

    @cached_property
    def models(self) -> dict[str, "lightgbm.Booster | None"]:
        """The trees ("none"), and by the part of `signals.PARTS` that is left out, those fitted without it."""
        if self.world:
            return self.world.models
        kept = {part: [signal for signal in SIGNALS if signal not in signals] for part, signals in PARTS.items()}
        examples = self.examples
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # trees of one part are grown by one thread
            found = pool.map(lambda signals: fit(examples, signals, self.seed), kept.values())
        return {"none": self.model} | dict(zip(kept, found, strict=True))

    @cached_property
    def trees_text(self) -> str:
        """The trees in lightgbm's text form; empty where there was nothing to learn from."""
        return self.model.model_to_string() if self.model else ""

    def rank(self, depth: int = 10, exclude_seen: bool = True, texts: "Texts | None" = None) -> pd.DataFrame:
        """Rank every user's candidates: columns user, rank, item, score. Equal scores are ordered by popularity, then
        as in the catalogue. exclude_seen: leave out what the user has. texts: votes of generated texts; null: by
        histories alone."""
        return self._rankings({"": self.model}, [self.favour], depth, exclude_seen, texts)["", self.favour]

    def rank_for_held(self, depth: int) -> pd.DataFrame:
        """Rank for the `held` users as `rank` does, in a world that has seen all but their next items."""
        if not self.held:
            return pd.DataFrame(columns=RANKING_COLUMNS)
        known, frames = cut_back(self.training_sequences, self.held), []
        world = Signals(known.values(), self.items, self.near)
        for some in candidates(world, lists_of(self.held), depth):
            rows = some[["user", "item", NEW]].assign(score=_score(self.model, some))
            rows["score"] = self._favoured(rows, "score", self.favour)
            frames.append(self._best(rows, depth, world, list(self.held)))
        return as_ranking(pd.concat(frames), self.held, depth)

    def favouring(self, favours: Sequence[float], depth: int = 10, exclude_seen: bool = True) -> dict:
        """The ranking by histories for each of several values of `favour`."""
        found = self._rankings({"": self.model}, favours, depth, exclude_seen)
        return {favour: found["", favour] for favour in favours}

    def without_parts(self, depth: int = 10, exclude_seen: bool = True, texts: "Texts | None" = None) -> dict:
        """The ranking ("none"), and by the part of `signals.PARTS` that is left out, those of trees that were fitted
        without it; where texts count, these are weighed again for each, and are a part, too."""
        found = self._rankings(self.models, [self.favour], depth, exclude_seen, texts)
        found = {part: found[part, self.favour] for part in self.models}
        return found | ({"generated texts": self.rank(depth, exclude_seen)} if texts else {})

    def text_weights(self, texts: "Texts") -> pd.DataFrame:
        """How much each text feature counts, by the fold of users that it counts for: columns fold, `TEXTS`."""
        (rows,) = self._scored({"": self.model}, 1, True, texts)
        found = self._weights(rows.assign(score=self._favoured(rows, "", self.favour)), texts)
        return found.drop_duplicates().reset_index(drop=True)

    def importances(self) -> pd.DataFrame:
        """Each signal's share of what the splits of all trees gain (part, signal, gain), most first."""
        gain = dict.fromkeys((*SIGNALS, NEW), 0.0)
        if self.model is not None:
            values = self.model.feature_importance("gain")
            for name, value in zip(self.model.feature_name(), values, strict=True):
                gain[signal_of(name)] += value
        rows = [
            (part, signal, gain[signal])
            for part, signals in (PARTS | {"new items": (NEW,)}).items()
            for signal in signals
        ]
        frame = pd.DataFrame(rows, columns=["part", "signal", "gain"]).sort_values(
            "gain", ascending=False, kind="stable"
        )
        return frame.assign(gain=frame["gain"] / max(frame["gain"].sum(), 1e-12)).reset_index(drop=True)

    def _rankings(self, models: Mapping, favours: Sequence[float], depth: int, exclude_seen: bool, texts=None) -> dict:
        """By the name of a model and the favour of new items."""
        best = {(name, favour): [] for name in models for favour in favours}
        for rows in self._scored(models, depth, exclude_seen, texts):
            for name, favour in best:
                scored = rows[["user", "item"]].assign(score=self._favoured(rows, name, favour))
                if texts:
                    weights = self._weights(rows.assign(score=scored["score"]), texts).to_numpy()
                    scored["score"] += (weights[rows["user"]] * rows[list(TEXTS)].to_numpy()).sum(axis=1)
                best[name, favour].append(self._best(scored, depth, self.signals, list(self.histories)))
        return {key: as_ranking(pd.concat(frames), self.histories, depth) for key, frames in best.items()}

    def _scored(self, models: Mapping, depth: int, exclude_seen: bool, texts: "Texts | None"):
        """All users' candidates, some users at a time, or all in one piece where texts count: columns user, item, NEW,
        each model's scores, and where texts count `TEXTS`."""
        voted = {}
        if texts:
            users, heats = pd.Index(list(self.histories)), dict(zip(TEXTS, HEAT, strict=True))
            voted = {name: votes(texts.found[name], users, self.signals.items, heats[name]) for name in TEXTS}
        frames = []
        more = sum(voted.values()) if texts else None
        for some in candidates(self.signals, lists_of(self.histories), depth, exclude_seen, more):
            rows = some[["user", "item", NEW]].copy()
            for name, model in models.items():
                rows[name] = _score(model, some)
            for name, matrix in voted.items():
                rows[name] = np.sqrt(np.asarray(matrix[rows["user"], rows["item"]]).ravel())
            if texts:
                frames.append(rows)
            else:
                yield rows
        if texts:
            yield pd.concat(frames, ignore_index=True)

    def _weights(self, scored: pd.DataFrame, texts: "Texts") -> pd.DataFrame:
        """Of `TEXTS` for each user, none of which the user's own target has weighed."""
        users = pd.Index(list(self.histories))
        named = scored.assign(user=users[scored["user"]], item=self.signals.items[scored["item"]])
        return text_weights.out_of_fold(named, {user: texts.targets.get(user) for user in users})

    def _favoured(self, rows: pd.DataFrame, name: str, favour: float) -> np.ndarray:
        """A model's scores with what favours new items."""
        score, new = (rows[column].to_numpy(dtype=float) for column in (name, NEW))
        if not favour or not new.any():
            return score
        spread = rows.groupby("user")[name].transform("std", ddof=0).to_numpy()
        return score + favour * new * spread

    def _best(self, scored: pd.DataFrame, depth: int, world: Signals, users: Sequence[str]) -> pd.DataFrame:
        """Each user's `depth` best candidates, users and items by their ids."""
        score, user, item = (scored[column].to_numpy() for column in ("score", "user", "item"))
        score = np.round(score, DECIMALS)
        order = np.lexsort((item, -world.counts[item], -score, user))
        rows = scored[["user", "item"]].assign(score=score).iloc[order].groupby("user").head(depth)
        return rows.assign(user=pd.Index(users)[rows["user"]], item=world.items[rows["item"]])


def _score(model: "lightgbm.Booster | None", some: pd.DataFrame) -> np.ndarray:
    """The trees' scores of candidates; where there was nothing to learn from, co-occurrence."""
    if model is None:
        return some["cooccurrence"].to_numpy(dtype=float)
    pieces = np.array_split(some[model.feature_name()].to_numpy(), os.cpu_count() or 1)
    with ThreadPoolExecutor(len(pieces)) as pool:
        return np.concatenate(list(pool.map(partial(model.predict, num_threads=1), pieces)))
