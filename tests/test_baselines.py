"""Baselines on a catalogue small enough to reason about: item-kNN and SASRec. Popularity and last-item search are in
test_ranking."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers import dataset

from gloss_utils.data import splits
from gloss_utils.language import training
from gloss_utils.rank import HybridSettings, item_knn, sasrec

SETTINGS = HybridSettings.read(Path(__file__).parents[1] / "params/ranking/weights.yaml")


def shown(ranked: pd.DataFrame) -> dict[str, str]:
    assert list(ranked.columns) == ["user", "rank", "item", "score"]
    for _, rows in ranked.groupby("user"):
        assert rows["rank"].tolist() == list(range(1, len(rows) + 1)) and rows["score"].is_monotonic_decreasing
    return {user: "".join(rows["item"]) for user, rows in ranked.groupby("user", sort=False)}


def test_item_knn_offers_what_follows():
    sequences = {"p": list("abc"), "q": list("abd"), "r": list("abc")}
    histories = {"u": ["a"], "v": ["a", "b"], "w": ["x"], "z": list("abcd")}
    found = shown(item_knn(histories, sequences, list("abcdef"), SETTINGS, 3))
    assert found["u"] == "bcd"  # b follows a thrice, c twice, d once
    assert found["v"] == "cd"  # what v has is left out, and e and f do not occur
    assert found["w"] == "abc"  # nothing follows an unknown item: by popularity
    assert "z" not in found  # has all that occurs
    assert list(found) == ["u", "v", "w"]


# Everybody goes round the ring abcdefgh, from wherever they begin; z is bought last, once.
RING = "abcdefgh" * 3
SEQUENCES = {f"u{n:02}": RING[n % 8 : n % 8 + 4 + n % 3] for n in range(48)} | {"v": "abcz"}


@pytest.fixture
def ring():
    return dataset(SEQUENCES, validation=["u05", "u06", "u07"], items="abcdefghz")


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(sasrec, "BATCH", 8)
    monkeypatch.setattr(sasrec, "DROPOUT", 0.0)
    monkeypatch.setattr(sasrec, "LEARNING_RATE", 0.02)


def histories_of(examples: pd.DataFrame) -> dict[str, list[str]]:
    return dict(zip(examples["user"], examples["history"], strict=True))


def test_sasrec_learns_the_order(ring, quick, tmp_path):
    evaluated, items = splits.evaluation_examples(ring, "test"), ring.items["item"]
    sequences = list(splits.training_sequences(ring, evaluated).values())
    validation = sasrec.validation_users(ring, evaluated, "test")
    settings = sasrec.Settings(epochs=12, width=32, seed=1)

    def trained(settings: sasrec.Settings) -> sasrec.SASRec:
        return sasrec.train(sequences, validation, items, settings, tmp_path / "checkpoints")

    model, histories = trained(settings), histories_of(evaluated)
    found = sasrec.rank(model, histories, sequences, items, 3)
    first = found[found["rank"] == 1].set_index("user")["item"]
    of_ring = evaluated[evaluated["user"] != "v"].set_index("user")["target"]
    assert (first[of_ring.index] == of_ring).mean() > 0.9
    assert all(not set(items) & set(histories[user]) for user, items in shown(found).items())
    assert "z" not in set(found["item"])  # only ever a target: no id-based method may rank it
    few = shown(sasrec.rank(model, {"s": ["x"], "t": ["x", "d"], "n": []}, sequences, items, 99))
    assert list(few) == ["t"] and few["t"][0] == "e" and sorted(few["t"]) == list("abcefgh")

    model.save_pretrained(tmp_path / "model")
    again = sasrec.rank(sasrec.load(tmp_path / "model"), histories, sequences, items, 3)
    pd.testing.assert_frame_equal(again, found)


@pytest.mark.parametrize("split", ["test", "validation", "next"])
def test_sasrec_is_trained_on_no_target(ring, monkeypatch, split, tmp_path):
    seen = {}

    def train(model, padding, texts, validation, *_, **__):
        seen.update(texts=texts, validation=validation)
        raise InterruptedError

    monkeypatch.setattr(training, "train", train)
    evaluated = splits.evaluation_examples(ring, split)
    sequences = list(splits.training_sequences(ring, evaluated).values())
    validation = sasrec.validation_users(ring, evaluated, split)
    with pytest.raises(InterruptedError):
        sasrec.train(sequences, validation, ring.items["item"], sasrec.Settings(12), tmp_path)
    assert seen["texts"] == [[ord(item) - ord("a") + 1 for item in s] for s in sequences if len(s) > 1]
    assert max(map(max, seen["texts"])) == 8  # z is never among them
    # Validation users tell when to stop, unless it is they who are evaluated.
    assert len(seen["validation"]) == (3 if split == "test" else 0)
    targets = ring.interactions.groupby("user")["item"].last()
    for user, ids in zip(["u05", "u06", "u07"], seen["validation"], strict=False):
        assert len(ids) == len(SEQUENCES[user]) - 1 and SEQUENCES[user][-1] == targets[user]


def test_sasrec_keeps_the_epoch_that_ranks_best(ring, quick, monkeypatch, tmp_path):
    evaluated, weights = splits.evaluation_examples(ring, "test"), []

    def ndcg(model, validation, sequences, items):
        assert len(validation) == 3 and list(items) == list(ring.items["item"])
        weights.append(model.lm_head.weight.detach().clone())
        return [0.1, 0.3, 0.2, 0.3, 0.1][len(weights) - 1]

    monkeypatch.setattr(sasrec, "ndcg", ndcg)
    monkeypatch.setattr(sasrec, "PATIENCE", 3)
    sequences = list(splits.training_sequences(ring, evaluated).values())
    validation = sasrec.validation_users(ring, evaluated, "test")
    model = sasrec.train(sequences, validation, ring.items["item"], sasrec.Settings(9, 8, 1), tmp_path)
    assert len(weights) == 5  # the third epoch in a row is no better than the second
    assert [bool((model.lm_head.weight == found).all()) for found in weights] == [False, True, False, False, False]


def test_sasrec_reads_the_newest_items():
    long = ["a"] * 60 + ["b"]
    found = sasrec.encode([long, [], ["b", "x", "a"]], ["a", "b"])
    assert found == [[1] * (sasrec.LENGTH - 1) + [2], [], [2, 1]]
    assert np.array(sasrec.encode([], ["a", "b"])).size == 0
