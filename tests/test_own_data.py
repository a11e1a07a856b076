"""From two files of the user's own to what notebooks make of them."""

import gzip
import json

import pandas as pd
import pytest
from conftest import SMALL
from helpers import write_lines

from gloss_utils.base.files import read_json
from gloss_utils.data import demo
from gloss_utils.runs import notebooks
from gloss_utils.runs.parameters import ROOT


@pytest.fixture
def own(tmp_path) -> list[tuple[str, str]]:
    """The demo's users and items as two CSV files, with a few bad lines in them, and the parameters that name them."""
    demo.write(tmp_path / "r", tmp_path / "m", count=304, users=1500)
    interactions, items = tmp_path / "orders.csv", tmp_path / "goods.csv"
    reviews = [json.loads(line) for line in gzip.decompress((tmp_path / "r").read_bytes()).splitlines()]
    lines = [f"{r['reviewerID']},{r['asin']},{r['unixReviewTime']}" for r in reviews]
    write_lines(interactions, ["customer,sku,at", *lines, "nobody,B00001,never", "nobody"])
    goods = [item for item in demo.catalogue(304) if item["routine"]]
    pd.DataFrame(goods)[["asin", "title", "routine"]].to_csv(items, index=False)
    values = SMALL | {
        "interactions_file": str(interactions),
        "items_file": str(items),
        "user_column": "customer",
        "item_column": "sku",
        "time_column": "at",
        "item_id_column": "asin",
        "item_text": "{title} ({routine})",
        "run_dir": str(tmp_path / "run"),
        "ranking_weights": str(ROOT / "params/ranking/weights.yaml"),
    }
    return [(name, str(value)) for name, value in values.items()]


def test_notebook_1_reads_own_tables(own):
    folder = notebooks.run([str(ROOT / "params/my_data.yaml")], [*own, ("holdout", "time")], last="01")
    items, statistics = pd.read_parquet(folder.items), read_json(folder.statistics)
    assert len(items) == 300 and items["title"].str.contains(" (hair", regex=False).any()
    assert statistics["rejected"]["items"] == {} and sum(statistics["rejected"]["interactions"].values()) == 2
    kept = [json.loads(line) for line in folder.rejected_data.read_text().splitlines()]
    assert {one["record"] for one in kept} == {"nobody", "nobody,B00001,never"}
    page = (folder.notebooks / "01_explore_data.ipynb").read_text()
    assert "it has 1 columns, not 3" in page and statistics["periods"] is not None


def test_from_two_csv_files_to_recommendations(own):
    values = [*own, ("split", "next"), ("max_users", "12"), ("tiny_steps", "4")]
    folder = notebooks.run([str(ROOT / "params/my_data.yaml")], values, last="04")
    offered, titles = pd.read_parquet(folder.recommendations), pd.read_parquet(folder.items).set_index("item")["title"]
    assert list(offered.columns) == ["user", "rank", "item", "title", "score"] and offered["user"].nunique() == 12
    assert offered["title"].tolist() == titles[offered["item"]].tolist()
    assert offered["title"].str.contains("(", regex=False).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("holdout", "which"), [("leave_one_out", "first"), ("time", "first"), ("time", "last"), ("time", "all")]
)
def test_how_good_recommendations_from_two_csv_files_are(own, holdout, which):
    files, values = [str(ROOT / "params/my_data.yaml")], [*own, ("holdout", holdout), ("holdout_share", "0.3")]
    values += [("time_target", which)]
    folder = notebooks.run(files, values)
    rows = {row["method"]: row for row in read_json(folder.metrics)["rows"] if row["segment"] == "all"}
    assert (rows["gloss"]["targets"] > rows["gloss"]["users"]) == (which == "all")
    assert {"gloss", "gloss-paper", "popularity", "item-knn"} <= set(rows) and rows["gloss"]["users"] >= 5
    notebooks.run(files, [*values, ("split", "next")], last="04")
    offered = pd.read_parquet(folder.recommendations)
    assert offered["user"].nunique() == 60 and offered["title"].str.contains("(", regex=False).all()
