"""Metrics, segments and intervals."""

import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from helpers import dataset

from gloss_utils import evaluate, retrieve
from gloss_utils.base.files import fingerprint
from gloss_utils.rank import read_trec, write_qrels, write_trec
from gloss_utils.report import metrics, segments, tables
from gloss_utils.runs.folder import RunFolder


def trec(tmp_path, **rankings: list[str]) -> pd.DataFrame:
    """A run as it comes back from disk; every score is 1, so that only the order speaks."""
    rows = [(user, rank, item, 1.0) for user, items in rankings.items() for rank, item in enumerate(items, 1)]
    frame = pd.DataFrame(rows, columns=["user", "rank", "item", "score"])
    write_trec(tmp_path / "run.trec", frame, "m")
    return read_trec(tmp_path / "run.trec")


def test_metrics_by_hand(tmp_path):
    items = [f"i{number}" for number in range(1, 13)]
    places = {"first": 1, "second": 2, "fifth": 5, "sixth": 6, "tenth": 10, "eleventh": 11}
    targets = {user: f"i{place}" for user, place in places.items()} | {"missed": "i99", "none": "i1", "blank": "i1"}
    # `missed` has a target outside the catalogue, `none` no ranking; a stranger's ranking is nobody's business.
    run = trec(tmp_path, **dict.fromkeys([*places, "missed", "stranger"], items), blank=["i2"])
    found = metrics.per_user_metrics(run, targets)
    assert found.index.tolist() == list(targets) and found.index.name == "user"
    assert list(found.columns) == ["recall@1", "recall@5", "recall@10", "ndcg@1", "ndcg@5", "ndcg@10", "mrr@10"]
    gain = {place: 1 / math.log2(place + 1) for place in places.values()}
    expected = {
        "first": [1, 1, 1, 1, 1, 1, 1],
        "second": [0, 1, 1, 0, gain[2], gain[2], 1 / 2],
        "fifth": [0, 1, 1, 0, gain[5], gain[5], 1 / 5],
        "sixth": [0, 0, 1, 0, 0, gain[6], 1 / 6],
        "tenth": [0, 0, 1, 0, 0, gain[10], 1 / 10],
        "eleventh": [0] * 7,  # all metrics look at ten places
        "missed": [0] * 7,
        "none": [0] * 7,
        "blank": [0] * 7,
    }
    np.testing.assert_allclose(found, [expected[user] for user in targets], atol=1e-6)


def test_metrics_of_nothing_are_0(tmp_path):
    found = metrics.per_user_metrics(trec(tmp_path), {"u": "a", "v": "b"})
    assert found.index.tolist() == ["u", "v"] and (found.to_numpy() == 0).all()


def test_metrics_agree_with_ranx(tmp_path, monkeypatch):
    # Interpreted, ranx takes a second; compiling it takes most of a minute.
    monkeypatch.setattr(pytest.importorskip("numba").config, "DISABLE_JIT", 1)
    ranx = pytest.importorskip("ranx")
    rng = np.random.default_rng(7)
    users, items = [f"u{number}" for number in range(300)], [f"i{number}" for number in range(30)]
    targets = {user: str(rng.choice(items)) for user in users}
    rows = []
    for user in users[:-20]:  # the last have no ranking
        chosen = rng.permutation(items)[: rng.integers(1, 20)]
        scores = np.sort(rng.choice([1.0, 0.9, 0.5, 0.0, rng.random()], len(chosen)))[::-1]  # full of ties
        rows += zip([user] * len(chosen), range(1, len(chosen) + 1), chosen, scores, strict=True)
    write_trec(tmp_path / "run.trec", pd.DataFrame(rows, columns=["user", "rank", "item", "score"]), "random")
    write_qrels(tmp_path / "qrels.trec", targets)
    ours = metrics.per_user_metrics(read_trec(tmp_path / "run.trec"), targets)
    qrels = ranx.Qrels.from_file(str(tmp_path / "qrels.trec"), kind="trec")
    run = ranx.Run.from_file(str(tmp_path / "run.trec"), kind="trec")
    theirs = ranx.evaluate(qrels, run, metrics.METRICS, make_comparable=True)
    assert set(theirs) == set(ours.columns) and 0.2 < theirs["recall@10"] < 0.5
    for metric, mean in theirs.items():
        assert ours[metric].mean() == pytest.approx(mean, abs=1e-6), metric
        assert ours[metric].to_dict() == pytest.approx(dict(run.scores[metric]), abs=1e-6), metric


# ---- segments


def assign(counts, cold, power, everyone=(1,)) -> list[str]:
    counts = pd.Series(counts, index=[f"u{number}" for number in range(len(counts))])
    segment = segments.assign(counts, cold, power, pd.Series(everyone))
    assert segment.index.equals(counts.index)
    return segment.tolist()


def test_segment_boundaries():
    cold, regular, power = "cold-start", "regular", "power"
    # METHOD: cold-start n <= 5, power n > 14 (Beauty) or n > 13 (Toys).
    assert assign([3, 5, 6, 14, 15, 200], 5, 15) == [cold, cold, regular, regular, power, power]
    assert assign([5, 13, 14], 5, 14) == [cold, regular, power]
    # The 90th percentile of 1 … 101 is 91; power users are above it. It is that of everyone, not of those evaluated.
    everyone = range(1, 102)
    assert assign([90, 91, 92], 5, None, everyone) == [regular, regular, power]
    assert assign([4, 5, 6, 7], 5, None, [4] * 95 + [100] * 5) == [cold, cold, power, power]


def test_interactions_are_counted_in_the_dataset_whatever_the_split():
    data = dataset({"u": "abcde", "v": "abc"})
    queries = pd.DataFrame({"user": ["v", "u", "stranger"], "history": [["a"], ["a", "b"], ["x", "y", "z"]]})
    lengths = queries.set_index("user")["history"].map(len)
    assert evaluate.interactions_of(data, lengths, "test").to_dict() == {"v": 3, "u": 5, "stranger": 4}
    assert evaluate.interactions_of(data, lengths, "validation").to_dict() == {"v": 3, "u": 5, "stranger": 5}
    further = lengths.set_axis(["v@target2", "u@target3", "stranger"])  # the second and third target of v and u
    assert evaluate.interactions_of(data, further, "test").tolist() == [3, 5, 4]


def test_summary_by_method_and_segment():
    rows = [
        ("gloss", "cold-start", 1.0),
        ("gloss", "cold-start", 0.0),
        ("gloss", "regular", 1.0),
        ("popularity", "cold-start", 0.0),
        ("popularity", "cold-start", 0.0),
        ("popularity", "regular", 1.0),
    ]
    per_user = pd.DataFrame(rows, columns=["method", "segment", "value"])
    per_user = per_user.assign(**dict.fromkeys(metrics.METRICS, per_user["value"]), user=list("abcabc"))
    per_user["mrr@10"] = [0.5, 0, 0.25, 0, 0, 0.5]
    per_user["new_item"], per_user["seen"] = False, "left out"
    found = metrics.summarise(per_user, "test", 3)
    assert [(row["method"], row["segment"], row["users"]) for row in found] == [
        (method, segment, users)
        for method in ("gloss", "popularity")
        for segment, users in (("all", 3), ("cold-start", 2), ("regular", 1), ("power", 0))
    ]
    by = {(row["method"], row["segment"]): row for row in found}
    assert by["gloss", "all"]["recall@5"] == 0.666667 and by["gloss", "all"]["mrr@10"] == 0.25
    assert by["gloss", "cold-start"]["ndcg@5"] == 0.5 and by["gloss", "regular"]["mrr@10"] == 0.25
    assert by["popularity", "cold-start"]["recall@1"] == by["popularity", "cold-start"]["recall@1_high"] == 0
    assert all(row["split"] == "test" for row in found)
    for row in found:
        for metric in metrics.METRICS:
            low, mean, high = (row[f"{metric}{suffix}"] for suffix in ("_low", "", "_high"))
            if row["segment"] == "power":
                assert (low, mean, high) == (None, None, None)
            else:
                assert low <= mean <= high
    assert by["gloss", "all"]["recall@5_low"] == 0 and by["gloss", "all"]["recall@5_high"] == 1
    assert found == metrics.summarise(per_user, "test", 3)


# ---- what is shown


def test_tables_show_intervals_and_mark_what_is_in_sample():
    row = {"segment": "all", "users": 1234, "in_sample": True, "method": "gloss"}
    row |= {
        f"{metric}{end}": value
        for metric in metrics.METRICS
        for end, value in (("", 0.5), ("_low", 0.4), ("_high", 0.6))
    }
    others = {"in_sample": False, "method": "sasrec", "loss": "sampled softmax"}
    rows = [other | {"seen": seen} for other in (row | others, row) for seen in metrics.SEEN]
    rows[1]["recall@5"] = 0.55  # of SASRec, seen items kept in
    shown = tables.methods([*rows, row | {"segment": "power", "seen": "left out"}])
    assert shown.index.tolist() == ["sasrec, sampled softmax", "gloss (in-sample)"]
    names = ["recall@5", "ndcg@5", "recall@10", "mrr@10"]
    assert shown.columns.tolist() == [
        ("", "users"),
        *(("seen items left out", name) for name in names),
        *(("seen items kept in", name) for name in names),
    ]
    value = "0.5000 [0.4000, 0.6000]"
    expected = ["1,234", *[value] * 4, "0.5500 [0.4000, 0.6000]", *[value] * 3]
    assert shown.loc["sasrec, sampled softmax"].tolist() == expected


def test_segments_are_shown_with_their_users():
    row = {"method": "gloss", "recall@5": 0.5, "recall@5_low": 0.4, "recall@5_high": 0.6}
    shown = tables.segments(
        [row | {"segment": name, "users": 1234, "seen": "left out"} for name in ("all", segments.NEW_ITEMS)], "recall@5"
    )
    assert shown.columns.tolist() == ["all (1,234 users)", "new-items (1,234 users)"]


def test_tables_of_differences():
    compared = [
        {
            "seen": "kept in",
            "other": other,
            "metric": metric,
            "difference": 0.01,
            "difference_low": -0.02,
            "difference_high": 0.04,
            "p_corrected": 0.5,
        }
        for metric in ("recall@5", "ndcg@5")
        for other in ("popularity", "item-knn")
    ]
    shown = tables.comparisons(compared)
    assert shown.index.tolist() == ["popularity", "item-knn"] and shown.columns.tolist() == [
        f"{metric}, seen items kept in" for metric in ("recall@5", "ndcg@5")
    ]
    assert shown.loc["item-knn", "ndcg@5, seen items kept in"] == "+0.0100 [-0.0200, +0.0400], p = 0.5000"
    names = ("recall@5", "recall@5_lost", "ndcg@5", "ndcg@5_lost")
    ends = {f"{name}{end}": 0.1 for name in names for end in ("", "_low", "_high")}
    shown = tables.parts([{"left_out": part} | ends for part in ("none", "last item")])
    assert shown["recall@5"].tolist() == ["0.1000 [0.1000, 0.1000]"] * 2
    assert shown["recall@5, lost"].to_dict() == {"none": "", "last item": "+0.1000 [+0.1000, +0.1000]"}


def test_texts_that_the_weights_were_fitted_on_are_marked(tmp_path):
    settings = SimpleNamespace(fitted_on={"cafe": "released.json.gz"})
    hybrid, paper = (SimpleNamespace(rule=rule, settings=settings) for rule in ("hybrid", "paper"))
    folder = RunFolder(tmp_path)
    folder.queries.write_text("texts")
    assert retrieve.in_sample(folder, {"/some/file": "cafe", "/weights": "beef"}, hybrid) == "released.json.gz"
    assert retrieve.in_sample(folder, {"/some/file": "beef"}, hybrid) is None
    assert retrieve.in_sample(folder, {"/some/file": "cafe"}, paper) is None  # which has no weights
    settings.fitted_on[fingerprint(folder.queries)] = "queries.jsonl"
    assert retrieve.in_sample(folder, {}, hybrid) == "queries.jsonl"  # which the run's model wrote
