"""The benchmarks run, on little, and print what they promise."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from helpers import dataset, dense, small_llama

from benchmarks import (
    catalogue_decoding,
    data,
    decoding,
    encoding,
    generation,
    made_up,
    peers,
    retrieval,
    scale,
    threads,
    timing,
)
from benchmarks import index as index_benchmark
from benchmarks import learned as learned_benchmark
from benchmarks import new_items as new_items_benchmark
from benchmarks import ranking as rank_benchmark
from gloss_utils.data import queries, splits
from gloss_utils.data.dataset import Dataset
from gloss_utils.language import models, scoring, shapes
from gloss_utils.rank import HybridSettings, learned
from gloss_utils.rank.weights import FEATURES
from gloss_utils.search import BM25Index, DenseIndex


def test_rivals_take_turns_after_a_warm_up():
    calls = []
    rivals = {name: lambda run, name=name: calls.append((name, run)) or run for name in "ab"}
    seconds, answers = timing.alternate(rivals, runs=2)
    assert calls == [("a", 0), ("b", 0), ("a", 1), ("b", 1), ("a", 2), ("b", 2)]
    assert {name: len(values) for name, values in seconds.items()} == {"a": 2, "b": 2}
    assert answers == [{"a": 1, "b": 1}, {"a": 2, "b": 2}]
    assert timing.ratio({"a": [1.0, 2.0, 9.0], "b": [5.0, 6.0, 4.0]}, "a", "b") == 2.5


def test_memory_is_that_of_the_process_alone():
    held = bytearray(300 * 2**20)
    found = timing.in_fresh_process("benchmarks.timing")
    assert 0 < found["peak"] < timing.peak_memory() - len(held) / 2**21  # a child does not inherit its parent's peak
    with pytest.raises(RuntimeError, match=r"benchmarks.no_such .*failed"):
        timing.in_fresh_process("benchmarks.no_such")


def test_threads(monkeypatch):
    assert min(threads.measure("ours", 2).values()) > 0
    jobs, busy = [], threads.beside

    def beside(count):
        jobs.append(count)
        return busy(count)

    walls = {"ours": 2.0, "openmp's default": 6.0, "one thread": 3.0}
    monkeypatch.setattr(threads, "beside", beside)
    monkeypatch.setattr(threads, "measure", lambda name, steps: {"wall": walls[name], "processor": 1.0})
    found = threads.compare(2, 1)
    assert jobs == [0, 0, 0, 1, 1, 1] and found["ours beside a busy job / alone"] == 1
    assert found["alone"]["times as long as ours"] == {"openmp's default": 3, "one thread": 1.5}


def test_data(tmp_path):
    found = data.compare(tmp_path, 0.002, 1)
    assert found["equal"] and found["speedup"] > 0 and found["peak_memory_ratio"] > 0
    assert {"seconds", "mebibytes"} == set(found["ours"]) == set(found["x10"]) == set(found["metadata_x10"])


def test_generation():
    model = small_llama(60)
    found = generation.compare(model, models.pack(small_llama(60)), length=12, runs=1)
    assert found["speedup"] > 0 and found["distance_to_floor"] > 0 and found["prompts"] == generation.USERS
    assert len(found["gaps"]) < generation.USERS and found["overlap"] > 0.5
    assert set(generation.overlaps(model, length=12)) == {"bfloat16", "4bit"}


def test_peers_that_are_not_installed_are_named(monkeypatch, capsys):
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["", "--shape", "tiny", "--lengths", "8", "--runs", "1"])
    peers.main()
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["not_measured"] == {"ctranslate2": "not installed", "openvino": "not installed"}
    (row,) = found["by_length"]["8"].values()
    assert row["seconds"] > 0 and row["same_texts"] == row["times_as_long_as_ours"] == 1


def test_peers_are_compared_by_texts_and_scores():
    model = small_llama(60)
    halves = {"half": lambda prompts: [[*some[:2], [5], [6], [7]] for some in peers.ours(model, prompts)]}
    rows = peers.compare(model, halves, length=12, runs=2)
    assert rows["half"]["same_texts"] == 0.4 and rows["ours"]["same_texts"] == 1
    assert rows["half"]["logprob_per_token"] < rows["ours"]["logprob_per_token"]
    prompts = generation.new_prompts(model, 12, 1)
    texts = peers.ours(model, prompts)
    scores = scoring.plain(model, prompts, texts)
    pairs = [pair for row, some in zip(scores, texts, strict=True) for pair in zip(row, some, strict=True)]
    assert peers.score(model, 12, [texts]) == pytest.approx(
        np.mean([total / len(text) for total, text in pairs]), rel=1e-5
    )


def test_ctranslate2_writes_the_same(tmp_path):
    pytest.importorskip("ctranslate2")
    model = shapes.new_model("tiny")
    peers.write(model, tmp_path)
    prompts = generation.new_prompts(model, 12, 1)
    assert peers.share(peers.ctranslate2(tmp_path, "float32")(prompts), peers.ours(model, prompts)) == 1


def test_the_floor_counts_every_pass(monkeypatch):
    model, length = small_llama(60), 30
    layers = sum(weight.numel() for name, weight in model.named_parameters() if "proj" in name)
    steps = range(1, generation.NEW_TOKENS)
    tokens = length + 5 * len(steps)  # all but the last of a prompt, the last, and five beams a step
    headed = 2 + 5 * len(steps)  # of which the first pass computes logits for one
    columns = (length - 1) ** 2 / 2 + length + sum(5 * (length + 5 * step) for step in steps)
    flops = 2 * layers * tokens + 2 * 60 * 64 * headed + 4 * 64 * 2 * columns
    monkeypatch.setattr(generation, "rates", lambda *given: (1.0, float("inf")))
    assert generation.floor(model, length) == pytest.approx(8 * flops)
    monkeypatch.setattr(generation, "rates", lambda *given: (float("inf"), 1.0))
    weights = (layers + 60 * 64) * (2 + len(steps))
    cache = 2 * 64 * 2 * 8 * (length - 1 + length + sum(length + 5 * step for step in steps))
    assert generation.floor(model, length) == pytest.approx(4 * (weights + cache))


def test_catalogue_decoding(small_run, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["", "--run", str(small_run[0].root), "--users", "4", "--runs", "1"])
    catalogue_decoding.main()
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["speedup"] > 0 and found["users"] == 4
    shares = found["share_of_texts"]["catalogue"]
    assert shares["exact_titles"] == shares["distinct_exact_titles"] == 1.0 and shares["distinct_items_found"] >= 1.0


def test_decoding(small_run, monkeypatch, capsys):
    ways = ["--users", "30", "--beams", "2", "5", "--penalties", "0", "--guides", "0", "0.9", "--free"]
    monkeypatch.setattr(sys, "argv", ["", str(small_run[0].root), *ways])
    decoding.main()
    head, _, *rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines() if "|" in line]
    rows = [dict(zip(head, row, strict=False)) for row in rows]
    assert [row["texts"] for row in rows] == ["histories", *["free", "catalogue", "catalogue"] * 2]
    assert [row["beams"] for row in rows[1:]] == ["2"] * 3 + ["5"] * 3
    recalls = [
        [float(part) for part in rows[at]["Recall@5, @10, @20, @50, seen kept in"].split(" / ")] for at in (3, 6)
    ]
    assert all(values == sorted(values) for values in recalls) and recalls[0][0] <= recalls[1][0]
    assert all(float(row["s a user"]) > 0 for row in rows[1:])


@pytest.fixture
def small_catalogue(monkeypatch):
    monkeypatch.setattr(retrieval, "TITLES", 60)
    monkeypatch.setattr(retrieval, "ITEMS", 63)


def test_retrieval(small_catalogue, capsys):
    result = retrieval.main(["--users", "40", "--sample", "30", "--runs", "1"])
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == result
    assert result["texts"] == 200 and result["distinct_non_titles"] == 0.06 and result["every_text_scaled_from"] == 30
    assert result["speedup"] > 0 and set(result["seconds"]) == {"ours", "every text"}


def test_retrieval_finds_the_same(small_catalogue):
    result = retrieval.main(["--users", "40", "--full"])
    assert (result["texts"], result["other_items"], result["similarities_apart"]) == (200, 0, 0)


def test_retrieval_that_finds_something_else_is_told(small_catalogue, monkeypatch):
    wrong = DenseIndex.encode
    monkeypatch.setattr(DenseIndex, "encode", lambda self, texts: wrong(self, texts)[::-1].copy())
    result = retrieval.main(["--users", "10", "--full"])
    assert result["texts"] == 50 and result["other_items"] > 25 and result["similarities_apart"] > 2


def test_neighbours_that_stay_the_same_are_counted():
    def at(*degrees: int) -> np.ndarray:
        return np.stack([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))], axis=1)

    ours, moved, turned = at(0, 10, 25, 45, 70), at(0, 10, 30, 45, 70), at(0, 10, 90, 45, 70)
    assert encoding.nearest(ours, 2).tolist() == [[1, 2], [0, 2], [1, 3], [2, 4], [3, 2]]
    assert encoding.kept(ours, ours, 2) == (1.0, 1.0)
    assert encoding.kept(ours, moved, 2) == (0.8, 1.0)  # the third now stands nearer to the fourth
    first, two = encoding.kept(ours, turned, 2)
    assert (first, two) == (0.4, 0.6)


@pytest.mark.slow
def test_retrieval_of_all_texts_finds_the_same():
    result = retrieval.main(["--full"])
    assert result["texts"] == 111_815 and result["other_items"] == result["similarities_apart"] == 0


# ---- fitting the weights of hybrid


def choices(users: list[str], name: str = "file") -> rank_benchmark.Texts:
    """Users with 4 candidates each; the first feature tells the target, the others are noise, the last is constant."""
    rng = np.random.default_rng(len(users))
    target = rng.integers(4, size=len(users))
    features = rng.random((len(users) * 4, len(FEATURES)))
    features[:, 0] += np.repeat(target, 4) == np.tile(range(4), len(users))
    features[:, -1] = 0
    candidates = pd.DataFrame(features, columns=FEATURES)
    candidates = candidates.assign(user=np.repeat(np.arange(len(users)), 4), item=np.tile(range(4), len(users)))
    queries = pd.DataFrame({"user": users})
    return rank_benchmark.Texts(name, "beauty", SimpleNamespace(queries=queries), candidates, target)


def test_fit_finds_what_tells_the_target():
    text = choices([f"u{n}" for n in range(300)])
    everyone = np.ones(300, dtype=bool)
    weights = rank_benchmark.fit([text], [everyone], list(FEATURES))
    first, *others = weights.values()
    assert list(weights) == list(FEATURES) and min(others) >= 0 and others[-1] == 0
    assert first > 1 and first > 3 * max(others)
    assert list(rank_benchmark.fit([text], [everyone], ["last_dense"])) == ["last_dense"]
    text.target[:] = -1
    text.target[:2] = [0, 1]  # only these two users count
    few = rank_benchmark.fit([text], [everyone], list(FEATURES))
    text.target[2:] = 3
    assert few == rank_benchmark.fit([text], [np.arange(300) < 2], list(FEATURES))


def test_weights_have_not_seen_the_users_that_they_rank_for(monkeypatch):
    users = [f"u{n}" for n in range(200)]
    texts = [choices(users), choices([*users[::-1], "other"], "another file of the same users")]
    seen = []

    def fit(_, fitted_on, features):
        seen.append([set(np.array(t.ranker.queries["user"])[on]) for t, on in zip(texts, fitted_on, strict=True)])
        return len(seen) - 1

    for text in texts:
        text.ranker.weighted = lambda weightings: weightings
    monkeypatch.setattr(rank_benchmark, "fit", fit)
    # Each fit is a bit of its own, so that a user's sum tells which fits ranked for that user.
    marks = lambda text, fit: np.full((len(text.target), 2), 2.0**fit)  # noqa: E731
    monkeypatch.setattr(rank_benchmark, "metrics_of", marks)
    found = rank_benchmark.out_of_fold(texts, [])
    assert len(seen) == rank_benchmark.FOLDS * rank_benchmark.FOLDINGS
    for text, metrics in zip(texts, found, strict=True):
        for user, (score, _) in zip(text.ranker.queries["user"], metrics, strict=True):
            bits = round(score * rank_benchmark.FOLDINGS)
            used = [number for number in range(len(seen)) if bits >> number & 1]
            assert len(used) == rank_benchmark.FOLDINGS
            assert not any(user in of_file for number in used for of_file in seen[number])


def test_means_over_files_count_each_file_alike_and_each_user_once():
    one, other = (choices([f"{name}{n}" for n in range(50)], name) for name in "ab")
    texts = [one, one, other]
    other.dataset = "toys"
    values = [np.full((50, 1), value) for value in (0.1, 0.3, 0.8)]
    ((mean, low, high),) = learned_benchmark.mean_over_files(texts, values)
    assert mean == pytest.approx(0.4) and low <= mean <= high
    doubled = np.repeat([0.0, 1.0], 25)[:, None]
    ((_, low, high),) = learned_benchmark.mean_over_files([one], [doubled])
    assert learned_benchmark.mean_over_files([one, one], [doubled, doubled])[0][1:] == pytest.approx((low, high))


def made_up_shop() -> tuple[Dataset, dict]:
    """A dataset of 100 users and 40 items, and its indexes."""
    rng, letters = np.random.default_rng(0), [chr(0x4E00 + place) for place in range(40)]
    shop = dataset({f"u{n}": "".join(rng.choice(letters, 5)) for n in range(100)}, items="".join(letters))
    texts = [f"Title: {title}" for title in shop.items["title"]]
    return shop, {"dense": dense(texts, rng.standard_normal((40, 8))), "bm25": BM25Index.build(texts)}


def test_learned_is_fitted_once_for_all_files_of_the_same_users(tmp_path, monkeypatch):
    shop, indexes = made_up_shop()
    examples, fits, fit = splits.evaluation_examples(shop, "test"), [], learned.fit
    for name, title in {"one": 0, "other": 1}.items():
        own = examples.assign(texts=[[f"Title: {shop.items['title'].iloc[title]}"]] * len(examples))
        queries.write(tmp_path / name, own.assign(logprobs=[[None]] * 100, lengths=[[None]] * 100))
    texts = [
        rank_benchmark.gather("shop", str(tmp_path / name), shop, indexes, HybridSettings.read(rank_benchmark.WEIGHTS))
        for name in ("one", "other")
    ]
    monkeypatch.setattr(learned, "fit", lambda *given: (fits.append(given), fit(*given))[1])
    monkeypatch.setattr(rank_benchmark, "out_of_fold", lambda texts, features: [None] * len(texts))
    found = learned_benchmark.measure(texts, parts=False)
    assert len(fits) == 1
    first, second = found[learned_benchmark.ALONE]
    assert first.shape == (100, 2) and (first == second).all()


def test_fitting_and_ranking_are_timed():
    shop, indexes = made_up_shop()
    found = learned_benchmark.seconds(shop, indexes)
    assert found["users ranked for"] == found["training users"] == 100 and min(found.values()) > 0


def test_kinds_of_index(tmp_path, capsys, monkeypatch):
    def here(module, step, kind, folder):
        step = {
            "--build": lambda *given: {"seconds": index_benchmark.build(*given)},
            "--measure": index_benchmark.measure,
        }[step]
        return step(Path(folder), kind)

    monkeypatch.setattr(timing, "in_fresh_process", here)
    monkeypatch.setattr(index_benchmark, "NOISE", (0.1,))
    vectors = np.random.default_rng(0).standard_normal((400, 32)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    dense([str(place) for place in range(400)], vectors).save(tmp_path / "dense")
    result = index_benchmark.main(["--index", str(tmp_path / "dense"), "--sizes", "600", "--work", str(tmp_path)])
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == result
    rows = {row["kind"]: row for row in result["rows"]}
    assert list(rows) == list(index_benchmark.KINDS)
    assert rows["flat"]["recall_at_10"] > 0.99 and rows["ivfpq+rerank"]["recall_at_10"] >= rows["ivfpq"]["recall_at_10"]
    assert all(row["index_file_bytes_per_item"] > 0 for row in rows.values())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dense"]


def test_what_parts_of_stages_cost():
    found = {name: part(100) for name, part in scale.PARTS.items() if name != "encoding"}
    assert found["bm25"]["ms_per_text"] > 0 and found["bm25"]["texts"] > 50 and found["trie"]["bytes_per_item"] > 50


def test_made_up_files_go_through_stage_one(tmp_path):
    made_up.write_files(tmp_path, 50, 80, 600)
    before = (tmp_path / made_up.INTERACTIONS).read_bytes()
    found = scale.stage_one(tmp_path)
    assert 40 < found["users"] <= 50 and 60 < found["items"] < 80 and 500 < found["interactions"] <= 600
    assert found["rules"]["peak_mib"] > 0 and len(Dataset.load(tmp_path / scale.DATA).places) <= found["interactions"]
    assert scale.stage_three(tmp_path)["items"] == found["items"]
    ranked, users = scale.stage_four(tmp_path), {}
    for method in scale.METHODS:
        users[method] = {line.split()[0] for line in (tmp_path / f"{method}.trec").read_text().splitlines()}
        assert len(users[method]) == ranked[method]["users"] > 20
    assert ranked["neighbours"] > 0 and ranked["hybrid"]["users"] == len(users["paper"])  # one block is the sample
    assert scale.stage_five(tmp_path)["users"] == len(users["paper"])
    per_user = pd.read_parquet(tmp_path / "per_user.parquet")
    assert per_user.groupby("method")["user"].nunique().to_dict() == {name: len(who) for name, who in users.items()}
    assert not {"ranked", "measured"} & {path.name for path in tmp_path.iterdir()}
    made_up.write_files(tmp_path, 50, 80, 600)
    assert (tmp_path / made_up.INTERACTIONS).read_bytes() == before


def test_new_items_are_measured_apart():
    rng, letters = np.random.default_rng(0), [chr(0x4E00 + place) for place in range(40)]
    shop = dataset({f"u{n}": "".join(rng.choice(letters, 5)) for n in range(200)}, items="".join(letters))
    texts = [f"Title: {title}" for title in shop.items["title"]]
    indexes = {"dense": dense(texts, rng.standard_normal((40, 8))), "bm25": BM25Index.build(texts)}
    rows = new_items_benchmark.measure(shop, indexes, [0, 100], users=60)
    assert [row["method"] for row in rows] == [
        "last item, dense", "last item, bm25", "learned, favour 0", "learned, favour 100",
    ]  # fmt: skip
    none, all_new = rows[2:]
    assert 0 < none["new_users"] < 30 and (none["lost"][0] == 0).all()
    assert all_new["new"][0] > none["new"][0] and all_new["lost"][0][0] > 0
