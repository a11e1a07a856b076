"""The demo: the same bytes every time, the shape and the blemishes of real data, and how hard it is."""

import ast
import gzip
import json
import re
from collections import Counter
from itertools import pairwise

import helpers
import numpy as np
import pandas as pd
import pytest

from gloss_utils.data import demo, item_text, sources, splits
from gloss_utils.data.rules import build
from gloss_utils.rank import HybridSettings, as_run, baselines
from gloss_utils.report import per_user_metrics, targets_of
from gloss_utils.runs.parameters import ROOT
from gloss_utils.search import BM25Index


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """The demo's review and metadata records, as its files have them."""
    paths = sources.find("demo", tmp_path_factory.mktemp("demo")).paths
    lines = [gzip.decompress(path.read_bytes()).decode().splitlines() for path in paths]
    return list(map(json.loads, lines[0])), list(map(ast.literal_eval, lines[1]))


def test_the_demo_has_the_same_bytes_every_time(tmp_path):
    paths = [(tmp_path / f"reviews{turn}", tmp_path / f"meta{turn}") for turn in range(2)]
    for pair in paths:
        demo.write(*pair)
    assert [path.read_bytes() for path in paths[0]] == [path.read_bytes() for path in paths[1]]


def test_the_demo_is_as_large_as_it_says(raw):
    assert len({line["reviewerID"] for line in raw[0]}) == demo.USERS == 2000
    assert len({line["asin"] for line in raw[1]}) == demo.ITEMS + 2  # one has no title, one is never bought
    data = build(*_frames(raw), None, 0)
    assert 1950 < len(data.items) == len({line["asin"] for line in raw[0]}) - 1 < demo.ITEMS
    assert data.statistics["users_with_any"] == 2000
    assert 1950 <= len(data.users) < 2000  # some are too short
    assert data.users["validation"].sum() == len(data.users) // 20


def test_the_demo_has_the_shape_of_real_data(raw):
    """The bounds hold what was measured of Amazon's Beauty: see docs/measurements.md."""
    data = build(*_frames(raw), None, 0)
    lengths, counts = data.users["interactions"], data.interactions["item"].value_counts()
    assert lengths.quantile([0.5, 0.75, 0.9]).tolist() == [6, 9, pytest.approx(14, abs=1)]
    assert 0.33 < counts.iloc[: len(counts) // 10].sum() / counts.sum() < 0.48  # of the top tenth
    assert (counts <= 5).mean() > 0.4
    pairs = Counter(pair for items in data.sequences().values() for pair in pairwise(items))
    assert 0.14 < sum(count for count in pairs.values() if count > 1) / pairs.total() < 0.23
    words = {item: set(re.findall(r"[a-z]+", title.lower())) for item, title in data.titles().items()}
    shared = [len(words[one] & words[other]) >= 2 for one, other in pairs.elements()]
    assert 0.18 < np.mean(shared) < 0.36


def test_in_the_demo_titles_say_something_and_other_users_more(raw):
    data = build(*_frames(raw), None, 0)
    examples, titles = splits.evaluation_examples(data, "test"), data.titles()
    known = splits.training_sequences(data, examples)
    histories = dict(zip(examples["user"], examples["history"], strict=True))
    index = BM25Index.build([item_text(title) for title in titles.values()])
    settings = HybridSettings.read(ROOT / "params/ranking/weights.yaml")
    rankings = {
        "words": baselines.last_item_search(histories, index, titles),
        "others": baselines.item_knn(histories, known, list(titles), settings),
        "popularity": baselines.popularity(histories, known, list(titles)),
    }
    targets = targets_of(examples)
    recall = {name: per_user_metrics(as_run(found), targets)["recall@5"].mean() for name, found in rankings.items()}
    assert 0.03 < recall["words"] < 0.1 and 0.08 < recall["others"] < 0.15 and recall["popularity"] < recall["words"]


def test_the_demo_has_the_blemishes_of_real_data(raw):
    reviews, metadata = raw
    untitled = {line["asin"] for line in metadata if "title" not in line}
    assert len(untitled & {line["asin"] for line in reviews}) == 1
    assert any("&amp;" in line.get("title", "") for line in metadata)
    listed = Counter(line["asin"] for line in metadata)
    assert max(listed.values()) == 2
    assert set(listed) - {line["asin"] for line in reviews}  # described, never bought
    assert sum(count - 1 for count in Counter(map(json.dumps, reviews)).values()) == 1
    days = Counter((line["reviewerID"], line["unixReviewTime"]) for line in reviews)
    assert sum(count > 1 for count in days.values()) > 50
    items = [line["asin"] for line in reviews]
    assert items == sorted(items)
    dropped = build(*_frames(raw), None, 0).statistics["dropped"]
    assert (dropped["duplicate_reviews"], dropped["items_without_title"]) == (1, 1)
    assert dropped["reviews_of_items_without_title"] > 10


def _frames(raw):
    reviews, metadata = raw
    rows = ((r["reviewerID"], r["asin"], r["unixReviewTime"], r["overall"]) for r in reviews)
    titles = pd.DataFrame([(m["asin"], m.get("title")) for m in metadata], columns=["item", "title"])
    return helpers.reviews(*rows), titles
