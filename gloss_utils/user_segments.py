"""Items that come after training: into the indexes and what the decoder may write, in one call, without training."""

from dataclasses import dataclass, replace

import pandas as pd
from transformers import PreTrainedTokenizerBase

from gloss_utils import retrieve
from gloss_utils.base.errors import GlossError
from gloss_utils.data import queries as query_files
from gloss_utils.data.dataset import Dataset, cut_title
from gloss_utils.data.prompts import item_text
from gloss_utils.language.generation import Catalogue, load_tokenizer
from gloss_utils.rank.ranker import FUSED, Ranker
from gloss_utils.runs.run import Run
from gloss_utils.search.bm25 import BM25Index
from gloss_utils.search.dense import DenseIndex


@dataclass
class Shop:
    """All that knows the catalogue: the tables, both indexes, and, where there is a tokenizer, the decoder's trie."""

    data: Dataset
    indexes: dict[str, DenseIndex | BM25Index]
    tokenizer: PreTrainedTokenizerBase | None = None
    catalogue: Catalogue | None = None

    def add(self, items: pd.DataFrame) -> "Shop":
        """A shop with more items (columns item, title), which come last in the catalogue's order; the old one stays.

        Titles are cut as the catalogue's. Only the new texts are encoded; no model is trained. Raises `GlossError`
        where an id is there already or a title is blank.
        """
        known = items["item"].isin(self.data.items["item"]) | items["item"].duplicated()
        blank = items["title"].fillna("").str.strip() == ""
        if known.any() or blank.any():
            wrong = items.loc[known | blank, "item"].iloc[0]
            raise GlossError(f"item {wrong!r} {'has no title' if blank.any() else 'is in the catalogue already'}")
        added = items[["item", "title"]].assign(title=items["title"].map(cut_title), new=True)
        catalogue = pd.concat([self.data.items, added], ignore_index=True)
        texts = [item_text(title) for title in catalogue["title"]]
        indexes = {
            "dense": self.indexes["dense"].extended(texts[-len(added) :]),
            "bm25": BM25Index.build(texts),  # what a word weighs hangs on all texts
        }
        written = Catalogue(self.tokenizer, catalogue["title"].tolist()) if self.tokenizer else None
        return Shop(replace(self.data, items=catalogue), indexes, self.tokenizer, written)


def open_shop(run: Run, data: Dataset) -> Shop:
    """The shop of a run; with a tokenizer where the run has fine-tuned a model."""
    tokenizer = load_tokenizer(run) if run.folder.adapter.exists() else None
    return Shop(data, retrieve.load_indexes(run), tokenizer)


def example(shop: Shop, title: str | None) -> pd.DataFrame:
    """One item to add: of this title, by default the best-seller's in a new edition."""
    best = shop.data.titles()[shop.data.interactions["item"].mode()[0]]
    return pd.DataFrame({"item": ["added-item"], "title": [title or f"New Edition {best}"]})


def story(run: Run, before: Shop, after: Shop) -> pd.DataFrame:
    """What happens to the last item that was added: where each index finds it, who is offered it, can it be written."""
    item, title = after.data.items.iloc[-1][["item", "title"]]
    text, place = item_text(title), len(after.data.items) - 1
    queries = query_files.read(run.folder.queries, run["num_beams"], 0, targets=False)
    rows = {"item": title}
    for name, index in after.indexes.items():
        ids = index.search([text], 2)[0][0]
        others = [before.data.items["title"][other] for other in ids if other != place]
        rows[f"found by its title, {name}"] = "yes" if place in ids else "no"
        rows[f"nearest other item, {name}"] = others[0] if others else "none"
    for rule in dict.fromkeys((run["ranking"], FUSED)):
        told, sasrec = run.parameters | {"ranking": rule}, retrieve.trained(run, queries, before.data)
        ranked = Ranker(queries, after.data, after.indexes, told, sasrec).rank()
        rows[f"users who are offered it, ranking {rule}"] = f"{(ranked['item'] == item).sum():,} of {len(queries):,}"
    if after.catalogue:
        rows["the decoder may write it"] = "yes" if text in after.catalogue.text.values() else "no"
    return pd.DataFrame({"value": rows})
