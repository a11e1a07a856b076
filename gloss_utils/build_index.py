"""Notebook 3: two indexes of the catalogue's `Title: …` texts, one by meaning (dense) and one by words (BM25)."""

from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from pandas.io.formats.style import Styler

from gloss_utils.data.dataset import Dataset
from gloss_utils.data.prompts import item_text
from gloss_utils.report import data_plots, tables
from gloss_utils.runs.parameters import INDEX
from gloss_utils.runs.resumed import rows_of
from gloss_utils.runs.run import Run, open_run
from gloss_utils.search.bm25 import BM25Index
from gloss_utils.search.dense import DenseIndex, build_dense
from gloss_utils.search.encoder import Encoder, encode_texts, load_encoder

TEXTS_PER_PART = 2048
NEIGHBOURS = 3  # of a title, that are shown


@dataclass
class Indexes:
    """The catalogue and its indexes."""

    data: Dataset
    dense: DenseIndex
    bm25: BM25Index


def start(notebook: dict) -> Run:
    """Start stage 3 from its notebook's `globals()`. Raises `GlossError` where that cannot be done."""
    return open_run(INDEX, notebook)


def prepare(run: Run) -> Indexes:
    """Build both indexes of the catalogue and write them to the run's `index/`."""
    data = Dataset.load(run.open("data"))
    revision = run.revision("encoder")
    texts = [item_text(title) for title in data.items["title"]]
    if not run.keeps("dense"):
        encoder = Encoder(run["encoder"], revision)
        encode = partial(encode_in_parts, run, encoder)
        with run.writing("dense") as part:
            build_dense(part, texts, encoder, run["index"], run["rerank_from_disk"], encode)
    if not run.keeps("bm25"):
        with run.writing("bm25") as part:
            BM25Index.build(texts).save(part)
    return Indexes(data, DenseIndex.load(run.open("dense")), BM25Index.load(run.open("bm25")))


def encode_in_parts(run: Run, encoder: Encoder, texts: list[str]) -> np.ndarray:
    """Vectors of texts, float32 [texts, dimensions], L2-normalised, by this process or by Ray workers. What was cut off
    goes on after its last part. Raises `GlossError` where the encoder cannot be loaded, or workers die again and again.
    """
    load = partial(load_encoder, encoder.name, encoder.revision) if run.ray_workers else lambda: encoder.model
    return rows_of(run, "dense", texts, TEXTS_PER_PART, load, encode_texts, "encoding")


def what_was_built(run: Run, indexes: Indexes) -> Styler:
    """The kind of dense index, why it was chosen, and its size."""
    about, items = indexes.dense.about, len(indexes.dense)
    bytes_per_item = {path.name: f"{path.stat().st_size / items:,.0f}" for path in run.folder.dense_index.iterdir()}
    rows = {
        "kind": about["kind"],
        "why": about["why"],
        "similarities": "exact" if about.get("rerank", True) else "inner products with compressed vectors",
        "items": f"{items:,}",
        "index, bytes per item": bytes_per_item["index.faiss"],
        "vectors on disk, bytes per item": bytes_per_item.get("vectors.npy", "in the index"),
    }
    return tables.in_full(pd.DataFrame({"value": rows}))


def neighbours(indexes: Indexes, titles: list[str] | None = None) -> Styler:
    """The nearest other items of some titles (by default five of the catalogue) in both indexes, side by side."""
    catalogue, parts = indexes.data.items["title"], []
    titles = titles or catalogue.iloc[:: max(1, len(catalogue) // 5)].iloc[:5].tolist()
    for name, index in (("dense", indexes.dense), ("bm25", indexes.bm25)):
        rows = []
        for title in dict.fromkeys(titles):
            ids, scores = index.search([item_text(title)], NEIGHBOURS + int((catalogue == title).sum()))
            others = [(catalogue[i], s) for i, s in zip(ids[0], scores[0], strict=True) if catalogue[i] != title]
            rows += [(title, rank, *other) for rank, other in enumerate(others[:NEIGHBOURS], 1)]
        columns = ["title", "rank", f"{name}: item", f"{name}: score"]
        parts.append(pd.DataFrame(rows, columns=columns).set_index(["title", "rank"]))
    return tables.in_full(pd.concat(parts, axis=1))


def catalogue_map(run: Run, indexes: Indexes) -> Figure:
    """The catalogue's items in two dimensions, in groups named by their words."""
    figure = data_plots.catalogue_map(indexes.dense.vectors(), indexes.data.items["title"], run["seed"])
    return run.save_figure(figure, "03_catalogue_map")
