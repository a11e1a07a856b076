"""The benchmarks run, on little, and print what they promise."""

import json
import sys

import pytest
from helpers import small_llama

from benchmarks import catalogue_decoding, generation, timing
from gloss_utils import models


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


def test_generation():
    model = small_llama(60)
    found = generation.compare(model, models.pack(small_llama(60)), length=12, runs=1)
    assert found["speedup"] > 0 and found["distance_to_floor"] > 0 and found["prompts"] == generation.USERS
    assert len(found["gaps"]) < generation.USERS and found["overlap"] > 0.5
    assert set(generation.overlaps(model, length=12)) == {"bfloat16", "4bit"}


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
