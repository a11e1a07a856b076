"""`engine: ray`: two workers write and encode what this process does, also where one of them dies."""

import json
import os
import shutil
import signal
import sys
from functools import partial

import numpy as np
import pytest
from helpers import one_line_error, run_of

from gloss_utils.base.errors import GlossError
from gloss_utils.base.files import fingerprint
from gloss_utils.data import interactions, raw_files, raw_lines, sources, splits
from gloss_utils.data.dataset import Dataset
from gloss_utils.data.prompts import item_text
from gloss_utils.data.rejects import Rejects
from gloss_utils.data.rules import build
from gloss_utils.rank import HybridSettings, cooccurrence
from gloss_utils.runs import asking, counting, parameters, resumed, workers
from gloss_utils.runs.parameters import RETRIEVE
from gloss_utils.runs.run import Run
from gloss_utils.search import encode_texts, load_encoder


@pytest.fixture(scope="module")
def session():
    """Ray, started once for this module."""
    with workers.session() as ray:
        ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import this module
        yield ray


SEVERAL = {"engine": "ray", "workers": 2, "generation_batch_tokens": 4000}  # batches small enough to be several


def generated(run: Run) -> list[tuple]:
    """What is written for all users, generated anew."""
    data = Dataset.load(run.folder.data)
    rows = asking.written(run, data, splits.evaluation_examples(data, "test")["history"])
    shutil.rmtree(run.folder.unfinished)  # else the next call would find this one's batches
    return rows


def fragile(work, died):
    """The same work, but the first worker at it kills itself, once."""

    def once(tool, part):
        try:
            died.touch(exist_ok=False)
            os.kill(os.getpid(), signal.SIGKILL)
        except FileExistsError:
            return work(tool, part)

    return once


def test_workers_write_what_this_process_does_though_one_is_killed(copied_run, session, tmp_path, monkeypatch):
    local = generated(run_of(copied_run, **SEVERAL | {"engine": "local"}))
    died, numbers, add, map_parts = tmp_path / "died", [], resumed.Journal.add, workers.map_parts
    monkeypatch.setattr(workers, "map_parts", lambda work, *rest, **more: map_parts(fragile(work, died), *rest, **more))
    monkeypatch.setattr(resumed.Journal, "add", lambda self, n, rows: (numbers.append(n), add(self, n, rows)))
    found = generated(run_of(copied_run, **SEVERAL))
    assert died.exists() and len(numbers) > 2 and sorted(numbers) == list(range(len(numbers)))
    # A worker's own number of threads may move the last digits of log-probabilities.
    gap = max(np.abs(np.subtract(a[1], b[1])).max() for a, b in zip(found, local, strict=True))
    assert [row[0] for row in found] == [row[0] for row in local], f"log-probabilities are up to {gap:.1e} apart"
    assert [row[2] for row in found] == [row[2] for row in local] and gap < 1e-4


def test_workers_score_what_this_process_does(copied_run, session):
    def scored(**values) -> list[float]:
        run = run_of(copied_run, **values)
        run.known["proposed"] = "some"
        data = Dataset.load(run.folder.data)
        examples = splits.evaluation_examples(data, "test").head(12)
        histories = dict(zip(examples["user"], examples["history"], strict=True))
        pairs = examples.assign(item=[list(data.items["item"].iloc[:3])] * len(examples))[["user", "item"]].explode(
            "item"
        )
        found = asking.scored(run, data, pairs, histories)
        shutil.rmtree(run.folder.unfinished)
        return found["logprob"].tolist()

    several = {"ask": 3, "generation_batch_tokens": 1000}
    local = scored(**several)
    assert len(set(local)) > 12
    assert scored(**several, engine="ray", workers=2) == pytest.approx(local, abs=1e-3)


def test_workers_count_what_this_process_does_though_one_is_killed(copied_run, session, tmp_path, monkeypatch):
    monkeypatch.setattr(cooccurrence, "PAIRS_AT_A_TIME", 20_000)
    data, made, died, map_parts = Dataset.load(copied_run[0].data), [], tmp_path / "died", workers.map_parts
    monkeypatch.setattr(workers, "map_parts", lambda work, *rest, **more: map_parts(fragile(work, died), *rest, **more))
    for engine in ("local", "ray"):
        run = run_of(copied_run, remake=["cooccurrence"], engine=engine, workers=2)
        run.stage = RETRIEVE
        counting.following(run, data, data.sequences(), HybridSettings.read(run["ranking_weights"]))
        made.append(fingerprint(run.open("cooccurrence")))
        assert died.exists() == (engine == "ray")
    assert made[0] == made[1]


def mapped(work, parts: dict, load=lambda: "tool", count: int = 2) -> dict:
    return dict(workers.map_parts(work, load, parts.items(), count))


@pytest.mark.slow
def test_vectors_are_those_of_this_process(small_run, session):
    texts = [item_text(title) for title in Dataset.load(small_run[0].data).items["title"]]
    name = run_of(small_run)["encoder"]
    expected = encode_texts(load_encoder(name), texts)
    parts = {start: texts[start : start + 64] for start in range(0, len(texts), 64)}
    found = mapped(encode_texts, parts, partial(load_encoder, name))
    assert sorted(found) == list(parts)
    vectors = np.concatenate([found[start] for start in parts])
    assert vectors.dtype == np.float32 and vectors.shape == expected.shape
    assert np.abs(vectors - expected).max() < 1e-6


def test_workers_read_and_group_what_this_process_does(session, tmp_path, monkeypatch):
    monkeypatch.setattr(raw_lines, "BLOCK", 1000)
    monkeypatch.setattr(raw_files, "ROWS", 20)
    monkeypatch.setattr(interactions, "AT_ONCE", 50)
    records = [{"user": f"u{n * 7 % 90}", "item": f"i{n % 60}", "time": n} for n in range(400)]
    lines = [json.dumps(record) if n % 50 else "no JSON" for n, record in enumerate(records)]
    (tmp_path / "taken.jsonl").write_text("\n".join(lines))
    rows = [f'i{n},"A title\nof two lines, {n}"' if n % 9 else f'i{n},"a quote that is not closed' for n in range(70)]
    (tmp_path / "items.csv").write_text("\n".join(["item,title", *rows]))
    own = sources.OwnTables(tmp_path / "taken.jsonl", tmp_path / "items.csv")
    found = []
    for count in (None, 2):
        rejects = Rejects()
        with workers.each_in_order(count) as each:
            taken, items = sources.read(sources.find("table", own=own), rejects, 0.5, each=each)
            data = build(taken, items, each=each)
        ids = taken.users.to_pylist(), taken.items.to_pylist(), taken.records.whole().tobytes()
        tables = data.users.to_csv(), data.items.to_csv(), data.places.tobytes(), data.times.tobytes(), data.statistics
        found.append((ids, tables, items.to_csv(), rejects.records))
    assert found[0] == found[1] and len(rejects.records) > 10 and len(items) > 50 and len(data.users) > 60


def test_a_workers_error_is_one_line(session, tmp_path):
    with one_line_error("encoder", str(tmp_path)):
        mapped(encode_texts, {0: ["Title: a"]}, partial(load_encoder, str(tmp_path)))


def test_answers_are_exact_and_each_part_is_done_once(session, tmp_path):
    def work(tool, part):
        with open(tmp_path / str(part), "a") as done:
            done.write(".")
        return [tool, part, -0.1 - 2**-56, {"a text\n": None}]

    parts = {number: number + 5 for number in range(9)}
    assert mapped(work, parts) == {n: ["tool", part, -0.1 - 2**-56, {"a text\n": None}] for n, part in parts.items()}
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {str(part): "." for part in parts.values()}
    assert mapped(work, {}) == {}
    with pytest.raises(ZeroDivisionError):  # other errors than those for the user are not hidden
        mapped(lambda tool, part: 1 / part, {0: 0}, count=1)


@pytest.mark.slow
def test_a_part_that_kills_its_workers_is_given_up(session, tmp_path):
    def work(tool, part):
        with open(tmp_path / "tries", "a") as tries:
            tries.write(".")
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(GlossError) as caught:
        mapped(work, {7: None})
    assert str(caught.value) == workers.DYING and (tmp_path / "tries").read_text() == "." * workers.TRIES


def test_ray_is_missing(monkeypatch):
    monkeypatch.setattr(parameters.importlib.util, "find_spec", lambda name: None)
    with one_line_error("parameter engine is 'ray'", "not installed", "pip install"):
        parameters.check_files({"engine": "ray"})
    parameters.check_files({"engine": "local"})


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nonsense"])
def test_no_cluster_at_the_address(monkeypatch, address):
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with one_line_error(f"RAY_ADDRESS is '{address}'"):
        mapped(len, {0: None})
