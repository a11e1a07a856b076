"""What a language model thinks of the items that histories propose, and of those that it writes: a second stage on top
of `learned`.

Three things are known of each proposed item: its score by histories, its log-probability as the next title, and which
of the generated texts name it. A conditional logit weighs them, and heeds the model only so far as the first places of
a list gain by it (`fit`). It is fitted on users whose targets neither the model nor the trees have read, so that each
counts as far as it helps on new data. Where there are no such users, it is fitted on evaluated ones, and ranks for
others alone (five folds).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from scipy.optimize import minimize

from gloss_utils.rank.candidates import Histories, as_ranking
from gloss_utils.rank.text_weights import FOLDS, fold_of, ndcg

HISTORIES, PROBABILITIES, TEXTS = PARTS = ("histories", "probabilities", "generated texts")
FEATURES = {
    "history": HISTORIES,  # the score by histories
    "history_place": HISTORIES,  # 1 / its place
    "logprob": PROBABILITIES,  # of the item's line and the end token, after the user's prompt
    "alone": PROBABILITIES,  # the same after an empty history: a title that is likely for everybody says nothing
    "per_token": PROBABILITIES,  # logprob / tokens
    "model_place": PROBABILITIES,  # 1 / the item's place among the user's by logprob
    "written": TEXTS,  # the sum, over the texts that name the item, of their probability per token
    "written_place": TEXTS,  # 1 / the number of the first of these texts
}
PENALTY = 1.0  # on squared weights, each per standard deviation of its feature; labels are some thousand users
STEPS, FIRST = np.linspace(0, 1, 9), 10  # from histories alone to all that is known; NDCG of so many places
HEEDED = "heeded"  # the column that says how far the model is heeded, 0 to 1
DECIMALS = 9  # of scores, so that ties do not depend on the machine


def named_items(nearest: pd.DataFrame, queries: pd.DataFrame) -> pd.DataFrame:
    """Which items generated texts name: user, item, `written`, `written_place`.

    nearest: the nearest item of each text (see `candidates.nearest_items`). queries: user, logprobs, lengths; where a
    text's are unknown, its probability counts as 1.
    """
    told = queries[["user", "logprobs", "lengths"]].explode(["logprobs", "lengths"], ignore_index=True)
    told["query"] = told.groupby("user", sort=False).cumcount() + 1
    first = nearest.drop_duplicates(["user", "query"])[["user", "query", "item"]].merge(told, on=["user", "query"])
    per_token = (first["logprobs"].astype(float) / first["lengths"].astype(float)).fillna(0.0)
    first = first.assign(written=np.exp(per_token), written_place=1 / first["query"])
    return first.groupby(["user", "item"], sort=False).agg({"written": "sum", "written_place": "max"}).reset_index()


def features(proposed: pd.DataFrame, said: pd.DataFrame, alone: pd.DataFrame, named: pd.DataFrame) -> pd.DataFrame:
    """What is known of each proposed item: user, item and `FEATURES`.

    proposed: a ranking by histories (user, rank, item, score). said: user, item, logprob. alone: item, logprob, tokens.
    named: see `named_items`. An item that the model was not asked for counts as the user's least likely one; after an
    empty history, as the median one.
    """
    rows = proposed.rename(columns={"score": "history"})
    rows = rows.merge(said, on=["user", "item"], how="left", validate="one_to_one")
    rows = rows.merge(named, on=["user", "item"], how="left").fillna({"written": 0.0, "written_place": 0.0})
    rows["logprob"] = rows["logprob"].fillna(rows.groupby("user")["logprob"].transform("min")).fillna(0.0)
    own = alone.set_index("item")[["logprob", "tokens"]]
    own = own.reindex(rows["item"]).fillna(own.median()).set_axis(rows.index)
    place = rows.groupby("user")["logprob"].rank(ascending=False, method="first")
    rows = rows.assign(history_place=1 / rows["rank"], alone=own["logprob"], model_place=1 / place)
    rows["per_token"] = rows["logprob"] / own["tokens"]
    return rows[["user", "item", *FEATURES]].astype(dict.fromkeys(FEATURES, float))


def fit(examples: pd.DataFrame, names: Iterable[str]) -> tuple[pd.Series, float]:
    """The weight of each feature (see `likeliest`), on the way from those that histories alone choose to those of all;
    and how far the way is gone, from 0 to 1.

    A likelihood counts the last places of a list as it counts the first, and so heeds the model more than the first
    places gain by. How far is chosen by NDCG@`FIRST` of users for whom the weights were not fitted.
    """
    names = list(names)
    own = [name for name in names if FEATURES[name] == HISTORIES]

    def ends(some: pd.DataFrame) -> np.ndarray:
        return np.stack([likeliest(some, own).reindex(names, fill_value=0.0), likeliest(some, names)])

    if len(own) in (0, len(names)):
        return likeliest(examples, names), 1.0
    fold, gained = examples["user"].map(fold_of).to_numpy(dtype=int), np.zeros(len(STEPS))
    for left_out in np.unique(fold):
        (start, end), judged = ends(examples[fold != left_out]), examples[fold == left_out]
        (user, users), is_target = pd.factorize(judged["user"]), judged["is_target"].to_numpy()
        scores = [judged[names].to_numpy() @ (start + step * (end - start)) for step in STEPS]
        gained += [ndcg(user, score, is_target, len(users), FIRST).sum() for score in scores]
    (start, end), step = ends(examples), STEPS[gained.argmax()]
    return pd.Series(start + step * (end - start), index=names), float(step)


def likeliest(examples: pd.DataFrame, names: Iterable[str]) -> pd.Series:
    """The weights under which the targets are likeliest, each against its user's other items.

    examples: of users, `features` and `is_target`; users without their target among their items say nothing. Weights
    are 0 where nobody is left.
    """
    names = list(names)
    rows = examples[examples.groupby("user", sort=False)["is_target"].transform("any")]
    if rows.empty:
        return pd.Series(0.0, index=names)
    values, target = rows[names].to_numpy(dtype=float), rows["is_target"].to_numpy()
    mean, spread = values.mean(axis=0), np.maximum(values.std(axis=0), 1e-9)
    values = (values - mean) / spread
    user = pd.factorize(rows["user"])[0]

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        scores = values @ weights
        best = np.full(user.max() + 1, -np.inf)
        np.maximum.at(best, user, scores)
        raised = np.exp(scores - best[user])
        sums = np.bincount(user, raised)
        likelihood = (scores - best[user])[target].sum() - np.log(sums)[user[target]].sum()
        slope = values[target].sum(axis=0) - values.T @ (raised / sums[user])
        return PENALTY * weights @ weights - likelihood, 2 * PENALTY * weights - slope

    return pd.Series(minimize(loss, np.zeros(len(names)), jac=True, method="L-BFGS-B").x / spread, index=names)


@dataclass
class Asked:
    """Ranks what histories propose by all that is known of it.

    said: user, item, logprob, of the users that are ranked for. alone: item, logprob, tokens, of all items. examples:
    what weights are fitted on (`features`, `is_target`). count: items per user that histories propose. of_others:
    whether the examples are of other users than those that are ranked for; if not, each fold of these gets the weights
    that the others choose.
    """

    said: pd.DataFrame
    alone: pd.DataFrame
    examples: pd.DataFrame
    count: int
    of_others: bool
    _fitted: dict = field(default_factory=dict)

    def weights(self, parts: Iterable[str] = PARTS) -> pd.DataFrame:
        """The weights of the features of some parts, one row per fold (one in all where examples are of others), and
        before them the column `HEEDED`: how far the model is heeded (see `fit`)."""
        names = tuple(name for name, part in FEATURES.items() if part in set(parts))
        if names not in self._fitted:
            if self.of_others:
                found = [fit(self.examples, names)]
            else:
                fold = self.examples["user"].map(fold_of)
                found = [fit(self.examples[fold != left_out], names) for left_out in range(FOLDS)]
            self._fitted[names] = pd.DataFrame([{HEEDED: step, **weights} for weights, step in found])
        return self._fitted[names]

    def rank(
        self, proposed: pd.DataFrame, named: pd.DataFrame, histories: Histories, depth: int, parts=PARTS
    ) -> pd.DataFrame:
        """The first `depth` items of each user: user, rank, item, score. Arguments as of `features`."""
        rows = features(proposed, self.said, self.alone, named)
        weights = self.weights(parts).drop(columns=HEEDED)
        fold = np.zeros(len(rows), dtype=int) if self.of_others else rows["user"].map(fold_of).to_numpy(dtype=int)
        score = (rows[weights.columns].to_numpy() * weights.to_numpy()[fold]).sum(axis=1)
        rows = rows.assign(score=np.round(score, DECIMALS))
        return as_ranking(rows.sort_values("score", ascending=False, kind="stable"), histories, depth)


def with_targets(rows: pd.DataFrame, targets: Mapping[str, str | None]) -> pd.DataFrame:
    """`features` with `is_target`."""
    return rows.assign(is_target=(rows["item"] == rows["user"].map(dict(targets))).to_numpy())
