"""One door to all rankings of a run: the paper's rule, `fused` and `hybrid`, for the users of some queries."""

from collections.abc import Callable, Mapping
from functools import cached_property

import pandas as pd

from gloss_utils.data import splits
from gloss_utils.data.dataset import Dataset
from gloss_utils.rank import fusion, ranking
from gloss_utils.search.index import BM25Index, DenseIndex

PAPER, FUSED, HYBRID = RULES = ("paper", "fused", "hybrid")
PAPER_TOP_K = 1
PAPER_EXCLUDE_SEEN = False


class Ranker:
    """Ranks for the users of some queries. What was searched for is kept, so that the next ranking need not."""

    def __init__(
        self,
        queries: pd.DataFrame,
        data: Dataset,
        indexes: Mapping[str, DenseIndex | BM25Index],
        parameters: Mapping,
        sasrec: Callable[[dict[str, list[str]]], pd.DataFrame] | None = None,
    ):
        """queries: user, history, target, texts. indexes: "dense" and "bm25". parameters: stage 4's; null ones take the
        rule's own values. sasrec: gives SASRec's ranking for these users, from what may be learnt."""
        self.queries, self.data, self.indexes, self.parameters = queries, data, indexes, parameters
        self.sasrec = sasrec
        self.histories = dict(zip(queries["user"], queries["history"], strict=True))
        self.rule = parameters["ranking"]
        self._found: dict[str, pd.DataFrame] = {}

    def rank(self, texts: int | None = None) -> pd.DataFrame:
        """By the rule that the parameters name, from each user's first so many `texts` (null: all)."""
        if self.rule != PAPER:
            return self.weighted({self.rule: self.weights}, texts)[self.rule]
        told = self.parameters
        return self.paper(told["retriever"], texts, told["top_k"] or PAPER_TOP_K, told["exclude_seen"])

    def paper(
        self, retriever: str, texts: int | None = None, top_k: int = PAPER_TOP_K, exclude_seen: bool | None = None
    ) -> pd.DataFrame:
        """By the paper's rule, whatever the parameters name."""
        found = self.first(retriever, top_k)
        return ranking.paper(
            found if texts is None else found[found["query"] <= texts],
            self.histories,
            self.parameters["seed"],
            self.parameters["ranking_depth"],
            PAPER_EXCLUDE_SEEN if exclude_seen is None else exclude_seen,
        )

    def first(self, retriever: str, top_k: int = PAPER_TOP_K) -> pd.DataFrame:
        """The paper's candidates: the `top_k` items of every text.

        Texts that catalogue-bound decoding wrote are not searched for: all items of just that text are candidates.
        """
        if self.parameters["decoding"] == "catalogue" and not self.parameters["queries_file"]:
            return ranking.named(self.queries, self.data.items)
        found = self.found(f"texts_{retriever}")
        return found[found.groupby(["user", "query"], sort=False).cumcount() < top_k]

    def weighted(self, weightings: dict[str, dict], texts: int | None = None) -> dict[str, pd.DataFrame]:
        """By the sum of all evidence (see `fusion`), one ranking a weighting."""
        exclude, evidence = self.parameters["exclude_seen"], self.evidence
        if texts is not None:
            heard = {feature: self.found(feature) for feature in self.votes if feature.startswith("texts")}
            evidence = evidence.hearing({name: rows[rows["query"] <= texts] for name, rows in heard.items()})
        return fusion.rankings(evidence, weightings, exclude is not False, self.parameters["ranking_depth"])

    @cached_property
    def settings(self) -> fusion.Settings:
        """What `ranking_weights` holds. Raises `GlossError` where it cannot be read."""
        return fusion.Settings.read(self.parameters["ranking_weights"])

    @property
    def weights(self) -> dict[str, float]:
        """What each feature counts under the rule: `fused` hears the texts alone, by one retriever."""
        return dict.fromkeys(self.votes, 1.0) if self.rule == FUSED else self.settings.weights

    @property
    def votes(self) -> tuple[str, ...]:
        """The features that are votes under the rule."""
        if self.rule == FUSED:
            return (f"texts_{self.parameters['retriever']}",)
        return fusion.VOTES + (fusion.SASREC,) * bool(self.settings.weights.get(fusion.SASREC))

    def found(self, feature: str) -> pd.DataFrame:
        """The candidates whose votes a feature is: of the generated texts, or of the last item's own text; or SASRec's
        ranking."""
        if feature not in self._found:
            self._found[feature] = self.sasrec(self.learnable) if feature == fusion.SASREC else self._nearest(feature)
        return self._found[feature]

    def _nearest(self, feature: str) -> pd.DataFrame:
        source, retriever = feature.split("_")
        texts = self.queries if source == "texts" else ranking.last_items(self.histories, self.data)
        top_k = self.parameters["top_k"] or (PAPER_TOP_K if self.rule == PAPER else self.settings.top_k)
        return ranking.candidates(texts, self.indexes[retriever], self.data.items["item"], top_k)

    @cached_property
    def learnable(self) -> dict[str, list[str]]:
        """What may be learnt from; of an evaluated user's own interactions none from the target on."""
        if self.parameters["split"] == "next":  # nothing is held out
            return self.data.sequences()
        return splits.training_sequences(self.data, self.queries)

    @cached_property
    def evidence(self) -> fusion.Evidence:
        """What votes and training histories say."""
        found = {feature: self.found(feature) for feature in self.votes}
        return fusion.Evidence(found, self.histories, self.learnable, self.data.items["item"], self.settings)
