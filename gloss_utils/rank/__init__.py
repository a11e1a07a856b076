"""Ranking: from candidates, or histories alone, to the items that each user is offered.

In: candidates (columns user, query, item, score, strength; `nearest_items` searches for them), histories (user ->
items, oldest first), training sequences (the same, of all that may be learned from), item ids in the catalogue's order.
Out: a ranking, columns user, rank (from 1), item, score; `write_trec` writes it for any evaluation tool.

`paper_rule` and `hybrid` rank by generated texts; `Learned` by what trees learn from training users, with or
without texts (`text_neighbours` says which items have texts alike); `Asked` ranks again what `Learned` proposes, by
what a language model thinks of it. `popularity`, `last_item_search`, `item_knn`, `Ease` and `Star` are baselines.
`gloss_utils.rank.sasrec`, a baseline that is trained, has to be imported by itself: it needs torch.
"""

from gloss_utils.rank.asked import Asked
from gloss_utils.rank.baselines import item_knn, last_item_search, popularity
from gloss_utils.rank.candidates import ExactTitles, nearest_items
from gloss_utils.rank.ease import Ease
from gloss_utils.rank.evidence import Evidence, hybrid
from gloss_utils.rank.learned import Learned
from gloss_utils.rank.paper import paper_rule
from gloss_utils.rank.ranker import Ranker
from gloss_utils.rank.signals import likely_next, text_neighbours
from gloss_utils.rank.star import Star
from gloss_utils.rank.trec import as_run, read_trec, write_qrels, write_trec
from gloss_utils.rank.weights import HybridSettings

__all__ = [
    "Asked",
    "Ease",
    "Evidence",
    "ExactTitles",
    "HybridSettings",
    "Learned",
    "Ranker",
    "Star",
    "as_run",
    "hybrid",
    "item_knn",
    "last_item_search",
    "likely_next",
    "nearest_items",
    "paper_rule",
    "popularity",
    "read_trec",
    "text_neighbours",
    "write_qrels",
    "write_trec",
]
