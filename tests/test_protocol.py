"""One protocol: seen items left out and kept in for every method, the shuffle test, seeds, published numbers."""

import numpy as np
import pandas as pd
import pytest
from helpers import compared, run_of

from gloss_utils import evaluate
from gloss_utils.base.files import read_json
from gloss_utils.data import queries as query_files
from gloss_utils.data.dataset import Dataset
from gloss_utils.rank import as_run, baselines, read_trec
from gloss_utils.report import beyond, metrics, published, result_plots, segments, significance, tables
from gloss_utils.report.metrics import KEPT_IN, LEFT_OUT, METRICS, SEEN
from gloss_utils.runs.parameters import EVALUATE

MEASURED = {"popularity", "lis-bm25", "lis-dense", "item-knn", "ease", "star", "sasrec"}
MEASURED |= {"gloss-paper", "gloss-hybrid", "gloss"}  # the run ranks by learned


@pytest.fixture
def finished(small_run):
    folder = small_run[0]
    return folder, read_json(folder.metrics), query_files.read(folder.queries, 3, 0)


def test_every_method_is_measured_with_seen_items_left_out_and_kept_in(finished):
    folder, found, queries = finished
    rows = {(row["method"], row["seen"]): row for row in found["rows"] if row["segment"] == "all"}
    assert set(rows) == {(method, seen) for method in MEASURED for seen in SEEN}
    histories, targets = queries.set_index("user")["history"], metrics.targets_of(queries)
    for method, seen in rows:
        trec = read_trec(folder.ranking(method, seen))
        both = [item in histories[user] for user, item in zip(trec["query_id"], trec["doc_id"], strict=True)]
        if seen == LEFT_OUT:
            assert not any(both)
        elif method not in ("gloss-paper", "sasrec"):  # whose few texts, or few steps, may name nothing seen
            assert any(both)
        means = metrics.per_user_metrics(trec, targets).mean()
        for metric in METRICS:
            assert rows[method, seen][metric] == pytest.approx(means[metric], abs=1e-6)


def test_what_stage_4_offers_is_one_of_the_two(finished):
    folder, _, _ = finished
    for method, seen in (("gloss", LEFT_OUT), ("gloss-paper", KEPT_IN)):  # as by default
        pd.testing.assert_frame_equal(read_trec(folder.ranking(method)), read_trec(folder.ranking(method, seen)))


def test_comparisons_are_within_one_protocol(finished):
    folder, found, _ = finished
    per_user = pd.read_parquet(folder.per_user)
    assert {(row["seen"], row["other"]) for row in found["comparisons"]} == {
        (seen, method) for seen in SEEN for method in MEASURED - {"gloss"}
    }
    for row in found["comparisons"]:
        some = per_user[per_user["seen"] == row["seen"]].groupby("method")[row["metric"]].mean()
        assert row["difference"] == pytest.approx(some["gloss"] - some[row["other"]], abs=1e-6)


def test_beyond_accuracy_of_each_segment_by_a_plain_loop(finished):
    folder, found, _ = finished
    data, per_user = Dataset.load(folder.data), pd.read_parquet(folder.per_user)
    trec = read_trec(folder.ranking("ease", LEFT_OUT))
    for row in (row for row in found["rows"] if (row["method"], row["seen"]) == ("ease", LEFT_OUT) and row["users"]):
        inside = per_user[segments.members(per_user)[row["segment"]]]
        users = set(inside["user"])
        first = {item for user in users for item in trec.loc[trec["query_id"] == user, "doc_id"].head(5)}
        assert row["coverage@5"] == pytest.approx(len(first) / len(data.items), abs=1e-6)
        some = inside[(inside["method"] == "ease") & (inside["seen"] == LEFT_OUT)]
        assert row["novelty@5"] == pytest.approx(some["novelty@5"].mean(), abs=1e-6)
        assert row["popularity_bias"] == pytest.approx(some["popularity@5"].mean() / some["taken"].mean() - 1, abs=1e-4)
    assert {row["segment"] for row in found["rows"]} == {*segments.SEGMENTS, segments.NEW_ITEMS}
    shown = tables.beyond_accuracy(found["rows"])
    assert len(shown) == 2 * len(MEASURED) and shown["seen items"].unique().tolist() == list(SEEN)


def test_the_figure_of_accuracy_against_coverage(finished):
    _, found, _ = finished
    table = {"name": "run", "dataset": "demo", "parameters": {"base_model": "tiny", "decoding": "free"}} | found
    [axis] = result_plots.coverage([table]).axes
    rows = {row["method"]: row for row in found["rows"] if row["segment"] == "all" and row["seen"] == LEFT_OUT}
    [dots] = [some for some in axis.collections if len(some.get_offsets()) == len(rows)]
    points = sorted((round(x, 6), round(y, 6)) for x, y in np.asarray(dots.get_offsets()))
    assert points == sorted((row["coverage@5"], row["recall@5"]) for row in rows.values())
    assert result_plots.coverage([table | {"rows": [{"method": "gloss", "segment": "all"}]}]) is None


def test_rows_of_one_protocol():
    rows = [{"method": "a", "seen": seen} for seen in SEEN] + [{"method": "b", "seen": KEPT_IN}, {"method": "c"}]
    assert [(row["method"], row.get("seen"), row["note"]) for row in tables.one_protocol(rows)] == [
        ("a", LEFT_OUT, ""),
        ("b", KEPT_IN, ", seen in"),
        ("c", None, ""),
    ]


# ---- shuffled histories


def test_a_shuffle_takes_nothing_from_what_knows_no_order(small_run, copied_run, finished, monkeypatch):
    folder, _, queries = finished
    run, data = run_of(copied_run, shuffle_test=True), Dataset.load(folder.data)
    run.stage = EVALUATE
    ranker, per_user = evaluate.retrieve.ranker(run, queries, data), pd.read_parquet(folder.per_user)
    monkeypatch.setattr(evaluate.retrieve, "USERS_AT_ONCE", 20)  # no order hangs on the block
    found = evaluate.prepare(run)["shuffled"]
    rows, others = {row["method"]: row for row in found}, baselines.by_name(ranker)
    assert set(rows) == MEASURED - {"gloss-paper", "gloss-hybrid"}
    for method in ("popularity", "ease"):
        assert all(rows[method][f"{metric}_lost{end}"] == 0 for metric in METRICS for end in ("", "_low", "_high"))
    before = per_user[per_user["seen"] == LEFT_OUT].groupby("method")[METRICS].mean()
    other, targets = ranker.shuffled(run["seed"]), metrics.targets_of(queries)
    for method in ("lis-dense", "item-knn"):
        values = metrics.per_user_metrics(as_run(others[method](other.histories, exclude_seen=True)), targets).mean()
        for metric in METRICS:
            assert rows[method][f"{metric}_lost"] == pytest.approx(
                before.loc[method, metric] - values[metric], abs=2e-6
            )
    assert any(rows["lis-dense"][f"{metric}_lost"] != 0 for metric in METRICS)
    assert tables.shuffled(list(rows.values())).index.tolist() == list(rows)
    assert read_json(small_run[0].metrics)["shuffled"] == []  # by default


# ---- seeds


def test_the_spread_over_seeds():
    rows = [
        {"method": "sasrec", "seen": LEFT_OUT, "seed": seed, "recall@5": recall, "ndcg@5": 0.5}
        for seed, recall in ((3, 0.1), (1, 0.2), (2, 0.6))
    ]
    shown = tables.over_seeds([*rows, rows[0] | {"method": "one"}])
    spread = np.std([0.1, 0.2, 0.6], ddof=1)
    assert shown.to_dict("records") == [
        {
            "method": "sasrec",
            "seen": LEFT_OUT,
            "seeds": "1, 2, 3",
            "recall@5": f"0.3000 ± {spread:.4f} (0.1000 to 0.6000)",
            "ndcg@5": "0.5000 ± 0.0000 (0.5000 to 0.5000)",
        }
    ]
    assert tables.over_seeds([]).empty


def test_runs_that_differ_by_seed_alone_are_grouped():
    def table(seed: int, recall: float, **more) -> dict:
        row = {
            "method": "gloss",
            "seen": LEFT_OUT,
            "split": "test",
            "segment": "all",
            "recall@5": recall,
            "ndcg@5": 0.1,
        }
        other = row | {"segment": "power", "recall@5": 0.9}
        return {
            "name": f"run-{seed}",
            "dataset": "toys",
            "parameters": {"seed": seed, "k": 1} | more,
            "rows": [row, other],
        }

    shown = tables.seeds_of_runs([table(1, 0.1), table(2, 0.3), table(3, 0.2), table(4, 0.9, k=2)])
    assert shown["seeds"].tolist() == ["1, 2, 3"]
    assert shown["recall@5"].tolist() == ["0.2000 ± 0.1000 (0.1000 to 0.3000)"]
    assert tables.seeds_of_runs([table(1, 0.1)]).empty


# ---- users with several targets, and values that are not there


def test_users_with_several_targets_are_drawn_whole():
    rng = np.random.default_rng(1)
    of_user = rng.random(40)
    users = [f"u{user}" if number == 1 else f"u{user}@target{number}" for user in range(40) for number in range(1, 6)]
    values = np.repeat(of_user, 5)[:, None]  # a user's targets are all alike
    owners = significance.owners_of(users)
    low, high = significance.intervals(values, 3, owners)
    expected = significance.intervals(of_user[:, None], 3)
    assert (low, high) == (pytest.approx(expected[0]), pytest.approx(expected[1]))
    narrow = significance.intervals(values, 3)
    assert high - low > 1.5 * (narrow[1] - narrow[0])
    assert significance.owners_of(["u", "v"]) is None
    sums = significance.by_owner(values[:, 0], owners)
    assert sums == pytest.approx(5 * of_user)
    assert metrics.means(values, 3, users)[1] == pytest.approx(low)
    assert metrics.users_of(users) == 40


def test_targets_of_one_user_count_as_one_user_by_new_target():
    targets = {"u": "a", "u@target2": "b", "v": "c"}
    ranking = pd.DataFrame(
        [(user, 1, item, 1.0) for user, item in targets.items()], columns=["user", "rank", "item", "score"]
    )
    found = {row["group"]: row for row in metrics.by_new_target(ranking, targets, {"a", "b"}, "recall@5", 1)}
    assert found["new targets"] == {"group": "new targets", "users": 1, "mean": 1.0, "low": 1.0, "high": 1.0}
    assert found["other targets"]["users"] == 1


def test_a_paired_test_swaps_all_targets_of_a_user_together():
    users = [f"u{user}" + f"@target{number}" * (number > 1) for user in range(6) for number in range(1, 31)]
    better = np.repeat([1.0, 1.0, 1.0, 1.0, 0.0, 1.0], 30)
    frames = [
        pd.DataFrame({"user": users, "method": method, "recall@5": values})
        for method, values in (("gloss", better), ("other", 1 - better))
    ]
    [row] = compared(pd.concat(frames), "gloss", ("recall@5",), 1)
    assert row["p"] > 0.05  # six users cannot show more, however many targets they have
    assert row["difference"] == pytest.approx(better.mean() * 2 - 1, abs=1e-6)


def test_what_is_not_there_does_not_count():
    values = np.array([[1.0, np.nan, np.nan], [3.0, 2.0, np.nan], [5.0, 4.0, np.nan]])
    mean, low, high = metrics.means(values, 1)
    assert mean[:2].tolist() == [3.0, 3.0] and np.isnan(mean[2]) and np.isnan([low[2], high[2]]).all()
    assert low[1] >= 2 and high[1] <= 4 and low[0] < low[1]
    assert metrics.rounded(["x", "y", "z"], mean, low, high)["z_low"] is None


# ---- published numbers


def test_published_numbers_say_what_was_done_with_seen_items():
    shown = published.results("beauty", "test")
    assert shown["seen items"].isin([*SEEN, "not stated"]).all()
    assert shown.loc["GLoSS-8B", "seen items"] == KEPT_IN and shown.loc["last item, BM25", "seen items"] == KEPT_IN
    names = ["seen items", "recall@10", "ndcg@10"]
    assert shown.loc["eSASRec", names].tolist() == [LEFT_OUT, 0.0921, 0.0531]
    assert published.results("toys", "test").loc["eSASRec", names].tolist() == [LEFT_OUT, 0.097, 0.058]
    assert (
        shown.loc["eSASRec", ["recall@5", "ndcg@5"]].isna().all()
        and "eSASRec" not in published.results("sports", "test").index
    )
    assert not {"STAR", "TGH"} & set(shown.index)  # none is known


def test_names_of_beyond_accuracy_are_measured_columns():
    assert set(beyond.BEYOND) | {beyond.TAKEN} <= set(evaluate.COLUMNS)
