"""Prints README's table of baselines on the test split: `python -m tests.baselines DATA_DIR` (raw Beauty and Toys)."""

import sys

import pandas as pd

from gloss_utils import baselines, evaluate, explore_data, fusion, ranking, sources, splits
from gloss_utils.explore_data import Dataset
from gloss_utils.index import DEFAULT_ENCODER, BM25Index, DenseIndex
from gloss_utils.parameters import ROOT
from gloss_utils.prompts import item_text

DEPTH, SEED = 10, 3407


def load(name: str, data_dir) -> Dataset:
    """Read a dataset from its raw files."""
    review_file, metadata_file = sources.locate(name, data_dir)
    reviews, _ = sources.read_reviews(review_file, 0)
    metadata, _ = sources.read_metadata(metadata_file, set(reviews["item"]), 0)
    return explore_data.build(reviews, metadata, None, SEED)


def measure(data: Dataset) -> list[dict]:
    """Rows of metrics of every baseline, for all test users."""
    texts = [item_text(title) for title in data.items["title"]]
    indexes = {"dense": DenseIndex.build(texts, DEFAULT_ENCODER), "bm25": BM25Index.build(texts)}
    examples = splits.evaluation_examples(data, "test")
    targets = dict(zip(examples["user"], examples["target"], strict=True))
    settings = fusion.Settings.read(ROOT / "params/ranking/weights.yaml")
    frames = [
        evaluate.per_user_metrics(ranking.as_run(ranked), targets)
        .rename_axis("user")
        .reset_index()
        .assign(method=method, segment="", new_item=False)
        for method, ranked in baselines.rank(examples, data, indexes, settings, DEPTH).items()
    ]
    return [row for row in evaluate.summarise(pd.concat(frames), "test", SEED) if row["segment"] == "all"]


def main(data_dir: str):
    """Print one Markdown row a dataset and method."""
    for name in ("beauty", "toys"):
        for row in measure(load(name, data_dir)):
            cells = (f"{row[m]:.4f} [{row[f'{m}_low']:.4f}, {row[f'{m}_high']:.4f}]" for m in ("recall@5", "ndcg@5"))
            print(f"| {name} | {row['users']:,} | {row['method']} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
