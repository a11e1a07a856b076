"""Notebook 6: results by group of users, and an item that comes after training."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import pandas as pd
from pandas.io.formats.style import Styler

from gloss_utils import evaluate, retrieve
from gloss_utils.base.errors import GlossError
from gloss_utils.base.files import read_json
from gloss_utils.data import queries as query_files
from gloss_utils.data.dataset import Dataset
from gloss_utils.data.prompts import item_text
from gloss_utils.data.rules import cut_title
from gloss_utils.rank.baselines import last_item_search
from gloss_utils.rank.ranker import FUSED, LEARNED
from gloss_utils.report import published, result_plots, segments, tables
from gloss_utils.report.metrics import LEFT_OUT, by_new_target, targets_of
from gloss_utils.report.result_plots import METRIC
from gloss_utils.runs.parameters import SEGMENTS, texts_per_user
from gloss_utils.runs.run import Run, open_run
from gloss_utils.search.bm25 import BM25Index
from gloss_utils.search.dense import DenseIndex

if TYPE_CHECKING:  # the language room loads torch and transformers, which is left out where a file gave the texts
    from transformers import PreTrainedTokenizerBase

    from gloss_utils.language import TitleTrie


FAVOURS = (-2, -1, -0.5, 0, 0.5, 1, 2)  # of new items, in the curve


def start(notebook: dict) -> Run:
    """Start the stage from its notebook's `globals()`."""
    return open_run(SEGMENTS, notebook)


def prepare(run: Run) -> dict:
    """The run's result table, as stage 5 left it."""
    found = read_json(run.folder.metrics)
    if not found["rows"]:
        print("Split next has no targets: there are no segments to compare.")
    return evaluate.table(run, found)


def by_segment(table: dict, metric: str) -> Styler | None:
    """A metric by method and segment."""
    if not table["rows"]:
        return None
    return tables.segments(table["rows"], metric).style.set_caption(f"{metric}, with 95 % interval")


def beyond_accuracy(table: dict, segment: str) -> pd.DataFrame | None:
    """Coverage, novelty, diversity and popularity bias of a segment's users, by method."""
    return tables.beyond_accuracy(table["rows"], segment) if table["rows"] else None


def draw_segments(run: Run, table: dict) -> plt.Figure | None:
    """Draw Recall@5 by segment and method; None where there is nothing to draw."""
    figure = result_plots.segments([table])
    return run.save_figure(figure, "06_segments") if figure else None


def draw_history_length(run: Run, table: dict) -> plt.Figure | None:
    """Draw Recall@5 against the length of the history; None where there is nothing to draw."""
    if not table["rows"]:
        return None
    columns, left_out = ["user", "method", "interactions", METRIC], [("seen", "==", LEFT_OUT)]
    per_user = pd.read_parquet(run.folder.per_user, columns=columns, filters=left_out)
    binned = segments.by_history_length(per_user, METRIC, run["seed"])
    return run.save_figure(result_plots.history_length(binned), "06_history_length")


def published_segments(run: Run) -> Styler | None:
    """Recall@5 of the same segments in the paper."""
    return evaluate.published_numbers(run, published.segment_results)


# ---- new items


def draw_new_items(run: Run) -> plt.Figure | None:
    """Draw what favouring new items gives and costs; None where the ranking is not learned, or no target is new."""
    if run["ranking"] != LEARNED or run["split"] == "next":
        return None
    data = Dataset.load(run.open("data"))
    queries = query_files.read(run.folder.queries, texts_per_user(run), 0)
    targets, new = targets_of(queries), data.new_items()
    if not new & set(targets.values()):
        return None
    ranker = retrieve.ranker(run, queries, data)
    favours = sorted({*FAVOURS, run["new_item_favour"]})
    exclude_seen = ranker.exclude_seen is not False
    found = ranker.learned.favouring(favours, ranker.depth, exclude_seen)
    curves = {"learned, histories alone": found}
    for name, index in ranker.indexes.items():
        searched = last_item_search(ranker.histories, index, ranker.titles, ranker.depth, exclude_seen)
        curves[f"last item, {name}"] = dict.fromkeys(favours, searched)
    rows = [
        {"label": label, "favour": favour} | row
        for label, rankings in curves.items()
        for favour, ranking in rankings.items()
        for row in by_new_target(ranking, targets, new, METRIC, run["seed"])
    ]
    figure = result_plots.favour(pd.DataFrame(rows), run["new_item_favour"])
    return run.save_figure(figure, "06_new_items")


# ---- an item that comes after training


@dataclass
class Shop:
    """All that knows the catalogue: the tables, both indexes, and, where there is a tokenizer, the decoder's trie."""

    data: Dataset
    indexes: dict[str, DenseIndex | BM25Index]
    tokenizer: "PreTrainedTokenizerBase | None" = None
    catalogue: "TitleTrie | None" = None

    def add(self, items: pd.DataFrame) -> "Shop":
        """A shop with more items (columns item, title), which come last in the catalogue's order; the old one stays.

        Titles are cut as the catalogue's. Only the new texts are encoded; no model is trained. Raises `GlossError`
        where an id is there already or a title is blank.
        """
        known = items["item"].isin(self.data.items["item"]) | items["item"].duplicated()
        blank = items["title"].fillna("").str.strip() == ""
        if known.any() or blank.any():
            first = (known | blank).to_numpy().argmax()
            reason = "has no title" if blank.iloc[first] else "is in the catalogue already"
            raise GlossError(f"item {items['item'].iloc[first]!r} {reason}")
        added = items[["item", "title"]].assign(title=items["title"].map(cut_title), new=True)
        catalogue = pd.concat([self.data.items, added], ignore_index=True)
        texts = [item_text(title) for title in added["title"]]
        indexes = {name: index.extended(texts) for name, index in self.indexes.items()}
        written = None
        if self.tokenizer:
            from gloss_utils.language import TitleTrie

            written = TitleTrie(self.tokenizer, catalogue["title"].tolist())
        return Shop(replace(self.data, items=catalogue), indexes, self.tokenizer, written)


def open_shop(run: Run) -> Shop:
    """The shop of a run; with a tokenizer where the run has fine-tuned a model."""
    tokenizer = None
    if run.folder.record("adapter") is not None and not run["queries_file"]:
        from gloss_utils.language import load_tokenizer  # loads torch and transformers

        tokenizer = load_tokenizer(run.open("adapter"))
    return Shop(Dataset.load(run.open("data")), retrieve.load_indexes(run), tokenizer)


def example(shop: Shop, title: str | None) -> pd.DataFrame:
    """One item to add: of this title; None takes the best-seller's in a new edition."""
    counts, items = shop.data.popularity(), shop.data.items
    best = items[counts == counts.max()].sort_values("item")["title"].iloc[0]
    return pd.DataFrame({"item": ["added-item"], "title": [title or f"New Edition {best}"]})


def story(run: Run, before: Shop, after: Shop) -> Styler:
    """What happens to the last item that was added: how each index finds it, to how many users it is recommended, and
    whether the decoder may write it."""
    item, title = after.data.items.iloc[-1][["item", "title"]]
    text, place = item_text(title), len(after.data.items) - 1
    queries = query_files.read(run.folder.queries, texts_per_user(run), 0, targets=False)
    rows = {"item": title}
    for name, index in after.indexes.items():
        ids = index.search([text], 2)[0][0]
        others = [before.data.items["title"][other] for other in ids if other != place]
        rows[f"found by its title, {name}"] = "yes" if place in ids else "no"
        rows[f"nearest other item, {name}"] = others[0] if others else "none"
    for rule in dict.fromkeys((run["ranking"], FUSED)):
        ranked = retrieve.ranker(run, queries, after.data, after.indexes, rule).rank()
        count = (ranked["item"] == item).sum()
        rows[f"users to whom it is recommended, ranking {rule}"] = f"{count:,} of {len(queries):,}"
    if after.catalogue:
        rows["the decoder may write it"] = "yes" if after.catalogue.of_items([title]).nnz else "no"
    return tables.in_full(pd.DataFrame({"value": rows}))
