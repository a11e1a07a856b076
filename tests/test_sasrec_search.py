"""SASRec's losses, the search for its settings within a budget, and training with several seeds."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import one_line_error, run_of

from gloss_utils import retrieve
from gloss_utils.base.files import read_json
from gloss_utils.data import queries as query_files
from gloss_utils.data import splits
from gloss_utils.data.dataset import Dataset
from gloss_utils.rank import sasrec, sasrec_search
from gloss_utils.rank.sasrec import SAMPLED_SOFTMAX, Settings
from gloss_utils.runs.baselines import baselines_of

RING = "abcdefgh" * 3
ITEMS = list("abcdefghz")
SEQUENCES = [list(RING[n % 8 : n % 8 + 4 + n % 3]) for n in range(48)]
VALIDATION = pd.DataFrame(
    [(f"v{n}", list(RING[n : n + 3]), RING[n + 3]) for n in range(8)], columns=["user", "history", "target"]
)
TO_LEARN = sasrec_search.TrainingData(SEQUENCES, VALIDATION, ITEMS)


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(sasrec, "BATCH", 8)
    monkeypatch.setattr(sasrec, "DROPOUT", 0.0)
    monkeypatch.setattr(sasrec, "LEARNING_RATE", 0.02)
    grid = {"width": (8, 16), "dropout": (0.0,), "learning_rate": (1e-6, 0.02), "loss": sasrec.LOSSES}
    monkeypatch.setattr(sasrec_search, "GRID", grid)


def test_sampled_softmax_by_a_plain_loop(monkeypatch):
    monkeypatch.setattr(sasrec, "NEGATIVES", 5)
    torch.manual_seed(3)
    model = sasrec.new_model(9, Settings(1, 8, loss=SAMPLED_SOFTMAX, dropout=0.0))
    tokens = torch.tensor([[1, 4, 2, 9], [3, 5, 0, 0]])
    mask = (tokens != 0).long()
    labels = tokens.masked_fill(mask == 0, -100)
    torch.manual_seed(7)
    loss = model.train()(tokens, mask, labels)["loss"].item()
    torch.manual_seed(7)
    others, table = torch.randint(1, 10, (5,)).tolist(), model.lm_head.weight.detach()
    hidden, found = model.transformer(tokens, attention_mask=mask).last_hidden_state.detach(), []
    for row, place in ((0, 0), (0, 1), (0, 2), (1, 0)):
        right = int(tokens[row, place + 1])
        scores = [float(hidden[row, place] @ table[item]) for item in (right, *(o for o in others if o != right))]
        found.append(np.log(np.exp(scores).sum()) - scores[0])
    assert loss == pytest.approx(np.mean(found), rel=1e-5)
    # What is not learnt from is measured over all items, whatever the loss of training.
    every = model.eval()(tokens, mask, labels)["loss"].item()
    model.config.sasrec_loss = sasrec.CROSS_ENTROPY
    assert every == pytest.approx(model.train()(tokens, mask, labels)["loss"].item(), rel=1e-6) != loss


def test_sampled_softmax_learns_the_order(quick, tmp_path):
    model = TO_LEARN.train(Settings(12, 32, 1, SAMPLED_SOFTMAX), tmp_path)
    assert TO_LEARN.ndcg(model) > 0.9


def test_the_criterion_by_a_plain_loop(quick, tmp_path):
    model = TO_LEARN.train(Settings(2, 8, 1), tmp_path)
    ranked = sasrec.rank(model, dict(zip(VALIDATION["user"], VALIDATION["history"], strict=True)), SEQUENCES, ITEMS, 10)
    total = 0.0
    for user, _, target in VALIDATION.itertuples(index=False):
        items = ranked.loc[ranked["user"] == user, "item"].tolist()
        total += 1 / np.log2(items.index(target) + 2) if target in items[:10] else 0.0
    assert TO_LEARN.ndcg(model) == pytest.approx(total / len(VALIDATION)) and 0 < total < len(VALIDATION)


def test_trials_begin_with_the_given_settings_and_are_all_different():
    given = Settings(3, 64, 5)
    trials = sasrec_search.drawn(given, 36)
    own = replace(given, dropout=sasrec.DROPOUT, learning_rate=sasrec.LEARNING_RATE)
    assert trials[0] == given and own not in trials
    assert len(trials) == len(set(trials)) == 36 and {trial.epochs for trial in trials} == {3}
    assert trials[:4] == sasrec_search.drawn(given, 4) and not sasrec_search.drawn(given, 0)
    assert trials != sasrec_search.drawn(Settings(3, 64, 6), 36)
    assert len(sasrec_search.drawn(Settings(3, 48, 5), 99)) == 37  # a width that the grid does not have


def test_a_search_takes_the_best_trial_and_keeps_to_its_budget(quick, tmp_path):
    given = Settings(6, 8, 1, learning_rate=1e-6)  # which learns nothing
    models, about = sasrec_search.train(TO_LEARN, given, 4, 2, tmp_path / "work")
    values = [trial["ndcg@10"] for trial in about["trials"]]
    assert about["budget"] == len(values) == 4 and about["validation_users"] == 8
    best = about["trials"][int(np.argmax(values))]
    assert max(values) > values[0]
    assert {name: about["chosen"][name] for name in sasrec_search.GRID} == {
        name: best[name] for name in sasrec_search.GRID
    }
    assert list(models) == about["seeds"] == [1, 2]
    assert TO_LEARN.ndcg(models[1]) == pytest.approx(max(values), abs=1e-6)  # the first seed is that of the trials
    weights = [model.lm_head.weight.detach() for model in models.values()]
    assert not torch.equal(*weights)

    sasrec_search.save(models, about, tmp_path / "saved")
    loaded, read = sasrec_search.load(tmp_path / "saved")
    assert read == about and all(
        torch.equal(loaded[seed].lm_head.weight, models[seed].lm_head.weight) for seed in models
    )


def test_a_search_that_was_cut_off_goes_on_and_ends_with_the_same(quick, tmp_path, monkeypatch):
    given, trained = Settings(2, 8, 1), []
    whole = sasrec_search.train(TO_LEARN, given, 3, 1, tmp_path / "whole")
    train = sasrec_search.TrainingData.train

    def cut(data, settings, checkpoints):
        if len(trained) == 2:
            raise KeyboardInterrupt
        trained.append(settings)
        return train(data, settings, checkpoints)

    monkeypatch.setattr(sasrec_search.TrainingData, "train", cut)
    with pytest.raises(KeyboardInterrupt):
        sasrec_search.train(TO_LEARN, given, 3, 1, tmp_path / "cut")
    monkeypatch.setattr(
        sasrec_search.TrainingData, "train", lambda data, settings, at: trained.append(at) or train(data, settings, at)
    )
    again = sasrec_search.train(TO_LEARN, given, 3, 1, tmp_path / "cut")
    values = [trial["ndcg@10"] for trial in whole[1]["trials"]]
    best = f"trial-{1 + int(np.argmax(values))}"
    assert [path.name for path in trained[2:]] == ["trial-3", best]  # two trials were finished; the best is taken as is
    assert again[1] == whole[1] and torch.equal(again[0][1].lm_head.weight, whole[0][1].lm_head.weight)


def test_without_a_search_the_given_settings_are_trained(quick, tmp_path):
    models, about = sasrec_search.train(TO_LEARN, Settings(1, 8, 1), 0, 1, tmp_path)
    assert about["trials"] == [] and about["budget"] == 0 and about["chosen"]["width"] == 8 and list(models) == [1]


# ---- in a run


def test_a_search_reads_no_target_of_an_evaluated_user(small_run):
    run = run_of(small_run)
    data = Dataset.load(run.folder.data)
    queries = query_files.read(run.folder.queries, 3, 0)
    found = sasrec.validation_users(data, queries, "test")
    assert (
        len(found) and sasrec.validation_users(data, splits.held_out_examples(data, "validation"), "validation").empty
    )
    known, targets = (
        splits.training_sequences(data, queries),
        dict(zip(queries["user"], queries["target"], strict=True)),
    )
    sequences = data.sequences()
    for user, history, target in found.itertuples(index=False):
        assert [*history, target] == sequences[user][: len(history) + 1] and len(history) + 1 < len(sequences[user])
        assert known[user] == history  # nor is what is searched by learnt from
        assert user not in targets or sequences[user][-1] == targets[user]


def test_a_search_without_validation_users_is_an_error(small_run, monkeypatch):
    run = run_of(small_run, split="validation", sasrec_search=2)
    data = Dataset.load(run.folder.data)
    queries = splits.evaluation_examples(data, "validation").assign(texts=[["x"]] * 1)
    ranker = retrieve.ranker(run, queries, data)
    with one_line_error("sasrec_search is 2", "split validation", "0"):
        baselines_of(run, data, ranker, queries)


def test_the_small_run_says_how_sasrec_was_trained(small_run):
    found = read_json(small_run[0].metrics)
    assert (
        found["sasrec"]["budget"] == 0
        and found["sasrec"]["seeds"] == [3407]
        and found["trials"] == found["seeds"] == []
    )
    assert {row["loss"] for row in found["rows"] if row["method"] == "sasrec"} == {"cross-entropy"}
    assert not any("loss" in row for row in found["rows"] if row["method"] != "sasrec")
