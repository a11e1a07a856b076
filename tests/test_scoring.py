"""Log-probabilities of given texts: exactly what plain passes of prompt and text give, and each token runs once."""

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks import scoring as benchmark
from gloss_utils.language import cache_tree, scoring

VOCABULARY, END = 90, 2


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, num_key_value_heads=2, **sizes)).eval()


def made(users: int, texts: int, seed: int = 0):
    """Prompts of 1 to 30 tokens, and texts of 1 to 9 that begin alike, end with END or not, or stand there twice."""
    rng = np.random.default_rng(seed)
    draw = lambda most: rng.integers(3, VOCABULARY, rng.integers(1, most + 1)).tolist()  # noqa: E731
    prompts, found = [draw(30) for _ in range(users)], []
    for _ in range(users):
        stem = draw(4)
        some = [[*stem[: rng.integers(0, len(stem) + 1)], *draw(5)] for _ in range(rng.integers(1, texts + 1))]
        found.append([*some, stem, [*stem, END], some[0], [END]])
    return prompts, found


@pytest.mark.parametrize("batch_tokens", [1, 100, 16384])
def test_scores_are_those_of_plain_passes(model, batch_tokens):
    prompts, texts = made(7, 12)
    texts[3] = []
    texts[4] = [[5]]
    found, expected = scoring.score(model, prompts, texts, batch_tokens), scoring.plain(model, prompts, texts)
    assert [len(row) for row in found] == [len(some) for some in texts]
    assert all(np.abs(np.subtract(*rows)).max(initial=0) < 1e-4 for rows in zip(found, expected, strict=True))
    assert np.std(np.concatenate(expected)) > 1  # so that a mistake would show


def test_plain_passes_are_the_losses_of_the_model(model):
    prompt, text = [5, 6, 7], [8, 9, END]
    labels = torch.tensor([[-100] * 3 + text])
    loss = model(torch.tensor([prompt + text]), labels=labels).loss.item()
    assert scoring.plain(model, [prompt], [[text]])[0][0] == pytest.approx(-3 * loss, abs=1e-5)


def test_a_prompt_runs_once_and_so_does_what_texts_begin_with(model, monkeypatch):
    ran, run = [], cache_tree.Tree._run
    monkeypatch.setattr(
        cache_tree.Tree,
        "_run",
        lambda tree, tokens, *rest, **more: ran.append(tokens.numel()) or run(tree, tokens, *rest, **more),
    )
    scoring.score(model, [[5] * 20], [[[6, 7, 8, 9], [6, 7, 8, 10], [6, 7, 11, 12], [6, 7]]])
    assert ran == [*ran[:-3], 19, 1, 4]  # behind the probe: 6, 7, 8 and 11; nothing follows the others


def test_logits_are_held_for_few_users_at_a_time(model, monkeypatch):
    prompts, texts = made(5, 6, seed=1)
    expected = scoring.score(model, prompts, texts)
    monkeypatch.setattr(cache_tree, "TAIL_LOGITS", 1)
    assert all(
        np.allclose(*rows, atol=1e-5) for rows in zip(scoring.score(model, prompts, texts), expected, strict=True)
    )


def test_a_model_with_another_cache_is_asked_text_by_text(model, monkeypatch):
    prompts, texts = made(2, 3)
    monkeypatch.setattr(cache_tree, "unfit", lambda model: "its memory is a state")
    monkeypatch.setattr(scoring, "_score_batch", None)
    assert scoring.score(model, prompts, texts) == scoring.plain(model, prompts, texts)


def test_the_benchmark_measures_the_same_texts_by_all_ways(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["scoring", "--length", "20", "--texts", "4", "--runs", "1", "--users", "2"])
    benchmark.main()
    import json

    found = json.loads(capsys.readouterr().out)
    assert found["largest_difference"] < 1e-4 and found["cost_ratio"] > 0
