"""`engine: ray`: two workers write and encode what this process does, also where one of them dies."""

import os
import pickle
import signal
import sys

import numpy as np
import pyarrow as pa
import pytest
from helpers import one_line_error, run_of

from gloss_utils.base.errors import GlossError
from gloss_utils.data import splits
from gloss_utils.data.dataset import Dataset
from gloss_utils.data.prompts import item_text
from gloss_utils.language import generation as generate
from gloss_utils.runs import parameters as P
from gloss_utils.runs import workers as scale_out
from gloss_utils.runs.run import Run
from gloss_utils.search import encode_texts, load_encoder


@pytest.fixture(scope="module")
def session():
    """Ray, started once for this module."""
    with scale_out.session() as ray:
        yield ray


SEVERAL = {"engine": "ray", "workers": 2, "generation_batch_tokens": 4000}  # batches small enough to be several


def generated(run: Run):
    """The queries of all users, generated anew."""
    data = Dataset.load(run.folder.data)
    try:
        return generate.queries(run, splits.evaluation_examples(data, "test"), data, [])
    finally:
        for path in run.temporary:  # else the next call would find this one's batches
            path.unlink()


class Fragile(generate.Writer):
    """The first worker to write kills itself, once."""

    def write(self, inputs, numbers):
        try:
            self.parameters["died"].touch(exist_ok=False)
            os.kill(os.getpid(), signal.SIGKILL)
        except FileExistsError:
            return super().write(inputs, numbers)


def test_workers_write_what_this_process_does_though_one_is_killed(small_run, session, tmp_path, monkeypatch):
    local = generated(run_of(small_run, **SEVERAL | {"engine": "local"}))
    session.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import this module
    monkeypatch.setattr(generate.Writer, "load", Fragile.load)
    died, numbers, add = tmp_path / "died", [], generate.Journal.add
    monkeypatch.setattr(generate.Journal, "add", lambda self, n, rows: (numbers.append(n), add(self, n, rows)))
    found = generated(run_of(small_run, **SEVERAL, died=died))
    assert died.exists() and len(numbers) > 2 and sorted(numbers) == list(range(len(numbers)))
    # A worker's own number of threads may move the last digits of log-probabilities.
    gap = max(np.abs(np.subtract(a, b)).max() for a, b in zip(found["logprobs"], local["logprobs"], strict=True))
    assert found["texts"].tolist() == local["texts"].tolist(), f"log-probabilities are up to {gap:.1e} apart"
    assert found["lengths"].tolist() == local["lengths"].tolist() and gap < 1e-4
    assert not small_run[0].parts.exists()


def test_vectors_are_in_the_order_given(small_run, session, monkeypatch):
    monkeypatch.setattr(scale_out, "TEXTS_A_PART", 64)
    run, titles = run_of(small_run, **SEVERAL), Dataset.load(small_run[0].data).items["title"]
    texts = [item_text(title) for title in titles]
    expected, found = encode_texts(load_encoder(run["encoder"]), texts), scale_out.encode(run, texts)
    assert found.dtype == np.float32 and found.shape == expected.shape
    assert np.abs(found - expected).max() < 1e-6


def test_a_workers_error_is_one_line(small_run, session, tmp_path):
    with one_line_error("encoder", str(tmp_path)):
        scale_out.encode(run_of(small_run, **SEVERAL, encoder=str(tmp_path)), ["Title: a"])


def test_worker_answers_exactly_and_gives_up_a_part_that_kills(tmp_path):
    row = (["a text\n"], [-0.1 - 2**-56], [3])
    worker = scale_out._Worker(tmp_path, 1, lambda: "tool", lambda tool, part: [row, tool, part["places"]])
    part = pa.table({"number": [7], "places": [[4, 5]]})
    for _ in range(scale_out.TRIES):
        assert pickle.loads(worker(part)["answer"][0].as_py()) == (7, [row, "tool", [4, 5]])
    number, error = pickle.loads(worker(part)["answer"][0].as_py())
    assert number == 7 and isinstance(error, GlossError) and str(error) == scale_out.DYING


def test_ray_is_missing(monkeypatch):
    monkeypatch.setattr(P.importlib.util, "find_spec", lambda name: None)
    with one_line_error("parameter engine is 'ray'", "not installed", "pip install"):
        P.check_files({"engine": "ray"})
    P.check_files({"engine": "local"})


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nonsense"])
def test_no_cluster_at_the_address(small_run, monkeypatch, address):
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with one_line_error(f"RAY_ADDRESS is '{address}'"):
        scale_out.encode(run_of(small_run, **SEVERAL), ["Title: a"])
