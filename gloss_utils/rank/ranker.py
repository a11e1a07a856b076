"""One door to all rankings by name, for the users of some queries: it searches, and ranks."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix

from gloss_utils.rank.asked import PARTS, Asked, named_items
from gloss_utils.rank.candidates import ExactTitles, Histories, Index, last_item_texts, nearest_items
from gloss_utils.rank.evidence import Evidence
from gloss_utils.rank.learned import FAVOUR, Learned, Texts
from gloss_utils.rank.paper import TOP_K, paper_rule
from gloss_utils.rank.signals import text_neighbours
from gloss_utils.rank.text_weights import TEXTS
from gloss_utils.rank.weights import VOTES, HybridSettings

PAPER, FUSED, HYBRID, LEARNED = RULES = ("paper", "fused", "hybrid", "learned")


@dataclass
class Ranker:
    """Ranks for the users of some queries. What was searched for is kept, so that the next ranking need not.

    queries: user, history, texts. titles: each item's title, in the catalogue's order. indexes: "dense" and "bm25".
    training_sequences: see `splits.training_sequences`. settings: may be null under the paper's rule.
    rule: of `RULES`. retriever: "dense" or "bm25", which the paper's rule and fused search with. top_k: items per text
    (null: paper 1, else the settings' top_k). exclude_seen: leave out what the user has (null: paper no, else yes).
    depth: items per ranking, at most. seed: of the order of ties under the paper's rule, and of what is learned.
    exact_titles: the texts are items' exact texts (catalogue-bound decoding), which the paper's rule need not search
    for. text_targets: user -> item, by which learned weighs other users' texts (null: texts count nothing there).
    new_item_favour, trees, held: see `learned.Learned`. asked: what the model thinks of the items that learned proposes
    (null: it is not asked), by which these are ranked again. following: see `evidence.Evidence`. world: a ranker for
    other users with all the rest alike, whose counts and trees are taken (null: they are made).
    """

    queries: pd.DataFrame
    titles: Mapping[str, str]
    indexes: Mapping[str, Index]
    training_sequences: Histories
    settings: HybridSettings | None = None
    rule: str = HYBRID
    retriever: str = "dense"
    top_k: int | None = None
    exclude_seen: bool | None = None
    depth: int = 10
    seed: int = 3407
    exact_titles: bool = False
    text_targets: Mapping[str, str] | None = None
    new_item_favour: float = FAVOUR
    trees: str | None = None
    held: Histories | None = None
    asked: Asked | None = None
    following: csr_matrix | None = None
    world: "Ranker | None" = None

    def __post_init__(self):
        self.histories = dict(zip(self.queries["user"], self.queries["history"], strict=True))
        self.items = self.world.items if self.world else pd.Index(list(self.titles))
        self.votes = (f"texts_{self.retriever}",) if self.rule == FUSED else VOTES
        self._found: dict[str, pd.DataFrame] = {}
        self._proposed: dict[tuple[int, bool], pd.DataFrame] = {}

    def __getstate__(self) -> dict:
        """For other processes, what is counted and learned is so once, here."""
        needed = {PAPER: (), LEARNED: ("evidence", "learned")}.get(self.rule, ("evidence",))
        return vars(self) | {name: getattr(self, name) for name in needed}

    def rank(self, texts: float = math.inf, exclude_seen: bool | None = None) -> pd.DataFrame:
        """By the rule, from each user's first so many `texts`. exclude_seen: instead of the ranker's own."""
        exclude_seen = self.exclude_seen if exclude_seen is None else exclude_seen
        if self.rule == PAPER:
            return self.paper(self.retriever, texts, self.top_k or TOP_K, bool(exclude_seen))
        if self.rule == LEARNED:
            return self.by_learned(texts, exclude_seen)
        if self.rule == HYBRID:
            return self.hybrid(texts, exclude_seen)
        return self.weighted({"": dict.fromkeys(self.votes, 1.0)}, texts, exclude_seen)[""]

    def shuffled(self, seed: int) -> "Ranker":
        """The same with each history in a random order, drawn for each user apart; what is learnt, and the generated
        texts, stay as they are."""
        histories = [
            [history[place] for place in np.random.default_rng([seed, *user.encode()]).permutation(len(history))]
            for user, history in self.histories.items()
        ]
        return self.of(self.queries.assign(history=pd.Series(histories, self.queries.index, object)))

    def of(self, queries: pd.DataFrame) -> "Ranker":
        """The same for the users of other queries; what was counted, and learned, is not made again."""
        return replace(self, queries=queries, world=self.world or self)

    def of_block(self, queries: pd.DataFrame) -> "Ranker":
        """`of`, but of a ranker that has its users the same: they are the only block."""
        return self.of(queries) if self.queries.empty else self

    def paper(
        self, retriever: str, texts: float = math.inf, top_k: int = TOP_K, exclude_seen: bool = False
    ) -> pd.DataFrame:
        """By the paper's rule, whatever the rule."""
        found = self.paper_candidates(retriever, top_k)
        return paper_rule(found[found["query"] <= texts], self.histories, self.seed, self.depth, exclude_seen)

    def paper_candidates(self, retriever: str, top_k: int = TOP_K) -> pd.DataFrame:
        """The candidates of the paper's rule: the `top_k` items of every text."""
        if self.exact_titles:
            return self.exact.find(self.queries, top_k)
        found = self.candidates(f"texts_{retriever}")
        return found[found.groupby(["user", "query"], sort=False).cumcount() < top_k]

    def hybrid(self, texts: float = math.inf, exclude_seen: bool | None = None) -> pd.DataFrame:
        """By the fixed weights of the settings, also beside learned."""
        return self.weighted({"": self.settings.weights}, texts, exclude_seen)[""]

    def weighted(
        self, weightings: Mapping[str, Mapping], texts: float = math.inf, exclude_seen: bool | None = None
    ) -> dict[str, pd.DataFrame]:
        """By the sum of all evidence (see `evidence`), from each user's first so many `texts`; one ranking per
        weighting."""
        exclude_seen = self.exclude_seen if exclude_seen is None else exclude_seen
        found = {feature: self.candidates(feature) for feature in self.votes}
        found |= {name: found[name][found[name]["query"] <= texts] for name in TEXTS if name in found}
        return self.evidence.rankings(found, weightings, self.depth, exclude_seen is not False)

    def candidates(self, feature: str) -> pd.DataFrame:
        """The candidates whose votes a feature is: of the generated texts, or of the last item's own text."""
        if feature not in self._found:
            source, retriever = feature.split("_")
            texts = self.queries if source == "texts" else last_item_texts(self.histories, self.titles)
            top_k = self.top_k or (TOP_K if self.rule == PAPER else self.settings.top_k)
            self._found[feature] = nearest_items(texts, self.indexes[retriever], self.items, top_k)
        return self._found[feature]

    def by_learned(self, texts: float = math.inf, exclude_seen: bool | None = None) -> pd.DataFrame:
        """By what is learned, whatever the rule; from each user's first so many `texts`, where they count."""
        exclude_seen = self.exclude_seen if exclude_seen is None else exclude_seen
        if self.asked and texts:
            return self.by_all(PARTS, texts, exclude_seen)
        return self.learned.rank(self.depth, exclude_seen is not False, self.weighed(texts))

    def by_all(self, parts: Sequence[str], texts: float = math.inf, exclude_seen: bool | None = None) -> pd.DataFrame:
        """By some of `asked.PARTS`, with weights that were fitted to these parts."""
        exclude_seen = self.exclude_seen if exclude_seen is None else exclude_seen
        proposed = self.proposed(self.asked.count, exclude_seen is not False)
        return self.asked.rank(proposed, self.named(texts), self.histories, self.depth, parts)

    def proposed(self, count: int, exclude_seen: bool = True) -> pd.DataFrame:
        """So many items per user, as histories rank them under learned, for a model to be asked about."""
        if (count, exclude_seen) not in self._proposed:
            self._proposed[count, exclude_seen] = self.learned.rank(count, exclude_seen)
        return self._proposed[count, exclude_seen]

    def named(self, texts: float = math.inf) -> pd.DataFrame:
        """The items that each user's first so many texts name (see `asked.named_items`)."""
        nearest = self.paper_candidates("dense", 1)
        return named_items(nearest[nearest["query"] <= texts], self.queries)

    def weighed(self, texts: float = math.inf) -> Texts | None:
        """Each user's first so many `texts` and what weighs them under learned; null where nothing may weigh them."""
        if not self.text_targets or not texts or self.asked:
            return None
        found = {feature: self.candidates(feature) for feature in TEXTS}
        found = {feature: rows[rows["query"] <= texts] for feature, rows in found.items()}
        return Texts(found, self.text_targets)

    @cached_property
    def exact(self) -> ExactTitles:
        """The catalogue's texts, which others need not search for."""
        return self.world.exact if self.world else ExactTitles(self.titles)

    @cached_property
    def learned(self) -> Learned:
        """What the training sequences teach."""
        if self.world:
            return self.world.learned.of(self.histories)
        near = text_neighbours(self.titles, self.indexes)
        known = self.histories, self.training_sequences, self.items, near
        return Learned(*known, self.new_item_favour, self.seed, self.trees, held=self.held)

    @cached_property
    def evidence(self) -> Evidence:
        """What histories and training sequences say."""
        if self.world:
            return self.world.evidence.of(self.histories)
        return Evidence(self.histories, self.training_sequences, self.items, self.settings, self.following)
