"""Checks on the real Amazon data and the released generations; skipped where they are not beside the checkout."""

import json

import pandas as pd
import pytest
from helpers import SHARED, real

from gloss_utils.base.files import read_json
from gloss_utils.data import splits
from gloss_utils.data.prompts import item_text
from gloss_utils.rank import as_run, last_item_search
from gloss_utils.report import per_user_metrics
from gloss_utils.runs import notebooks
from gloss_utils.runs.parameters import ROOT
from gloss_utils.search.bm25 import BM25Index

REPLAYS = ("beauty-llama-1b", "beauty-llama-3b", "toys-llama-1b")


@pytest.fixture(scope="module")
def published() -> dict:
    if not (SHARED / "reference/published.json").exists():
        pytest.skip("the reference numbers are not beside this checkout")
    return json.loads((SHARED / "reference/published.json").read_text())


@pytest.mark.parametrize("name", ["beauty", "toys"])
def test_last_item_search_on_test(published, name):
    """BM25 on all test users, within 0.0006 of the published Recall@5."""
    data = real(name)
    examples = splits.evaluation_examples(data, "test")
    index = BM25Index.build([item_text(title) for title in data.items["title"]])
    histories = dict(zip(examples["user"], examples["history"], strict=True))
    ranked = last_item_search(histories, index, data.titles(), 10)
    targets = dict(zip(examples["user"], examples["target"], strict=True))
    found = per_user_metrics(as_run(ranked), targets)
    assert len(found) == published["dataset_statistics"][name]["users"]
    assert found["recall@5"].mean() == pytest.approx(published["lis"]["bm25"][name][0], abs=0.0006)


@pytest.mark.slow
@pytest.mark.parametrize("name", REPLAYS)
def test_replay_of_released_generations(published, tmp_path, name):
    """The paper's own generations under its ranking rule, through all six notebooks, under both retrievers."""
    folder = notebooks.run(
        [str(ROOT / f"params/{name.split('-')[0]}.yaml")],
        [
            ("data_dir", str(SHARED / "data/amazon2014")),
            ("queries_file", str(SHARED / f"data/generations/{name}.validation.json.gz")),
            ("split", "validation"),
            ("run_dir", str(tmp_path / name)),
        ],
    )
    found = {(row["retriever"], row["queries"]): row for row in read_json(folder.metrics)["ablation"]}
    for retriever in ("dense", "bm25"):
        row, expected = found[retriever, 5], published["replay"][name]
        assert row["users"] == expected["users"]
        assert row["recall@5"] == pytest.approx(expected[retriever]["recall@5"], abs=0.0015)
        assert row["ndcg@5"] == pytest.approx(expected[retriever]["ndcg@5"], abs=0.006)
    users = pd.read_parquet(folder.per_user).groupby("method")["user"].nunique()
    assert (users == expected["users"]).all()
