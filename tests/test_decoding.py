"""The decoder against transformers' `generate`, against sums written out, and against models that it does not fit."""

import random

import pytest
import torch
import transformers
from helpers import small_llama
from peft import LoraConfig, get_peft_model

from benchmarks import agreement
from gloss_utils.language import beam_search, cache_tree, hf_generate
from gloss_utils.language.cache_tree import Tree
from gloss_utils.language.trie import Trie

VOCABULARY = 60
LENGTHS = (1, 5, 9, 9, 30, 12, 2)


def prompts(seed: int = 1, lengths=LENGTHS) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(VOCABULARY) for _ in range(length)] for length in lengths]


def titles(end: int, seed: int = 2) -> list[list[int]]:
    """Made-up titles: some begin alike, one goes on where another ends, some end in long tails."""
    rng = random.Random(seed)
    drawn = [[rng.randrange(10, 25) for _ in range(rng.randint(1, 7))] for _ in range(40)]
    tails = [[7, 8, *range(30, 45)], [7, 8, *range(30, 44), 46], [7, 9], [7, 9, 11], [50]]
    return [[*title, end] for title in drawn + tails]


def logprob(model, prompt: list[int], text: list[int]) -> float:
    """The log-probability of a text after a prompt, by one pass over both without a cache."""
    with torch.inference_mode():
        logits = model(torch.tensor([[*prompt, *text]])).logits[0, len(prompt) - 1 : -1].double()
    return float(logits.log_softmax(-1).gather(1, torch.tensor(text)[:, None]).sum())


def assert_same(found, expected):
    assert not agreement.differing(found, expected)
    for one, two in zip(found, expected, strict=True):
        assert one.logprobs == pytest.approx(two.logprobs, abs=1e-4)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("num_beams", [1, 2, 5])
def test_texts_order_and_scores_are_those_of_generate(num_beams, groups):
    model, ended, cut = small_llama(VOCABULARY, groups=groups), 0, 0
    for end in range(6):
        arguments = (model, prompts(end), num_beams, 12, end)
        found, expected = beam_search.beam_search(*arguments), hf_generate.beam_search(*arguments)
        excused = agreement.gaps(*arguments) if agreement.differing(found, expected) else {}
        assert all(gap <= agreement.GAP for gap in excused.values())
        same = [user for user in range(len(found)) if user not in excused]
        assert_same([found[user] for user in same], [expected[user] for user in same])
        for prompt, one in zip(prompts(end), found, strict=True):
            for text, total in zip(one.tokens, one.logprobs, strict=True):
                assert total == pytest.approx(logprob(model, prompt, text), abs=1e-4)
                ended += text[-1] == end
                cut += text[-1] != end
                assert len(text) == 12 or text[-1] == end
    assert ended and cut  # both ways to stop were met


def test_a_difference_that_is_no_near_tie_has_a_wide_gap(monkeypatch):
    model = small_llama(VOCABULARY)
    best = beam_search._Free.candidates

    def second_best_first(source, scores):  # a search that is wrong by a little
        values, tokens, parents = best(source, scores)
        return values[:, 1:], tokens[:, 1:], parents[:, 1:]

    monkeypatch.setattr(beam_search._Free, "candidates", second_best_first)
    gaps = agreement.gaps(model, prompts(), 3, 8, end=3)
    assert gaps and max(gaps.values()) > agreement.GAP


def passes(monkeypatch) -> list[tuple[int, int]]:
    """Record the shape (rows, tokens a row) of every pass through the model."""
    shapes, run = [], Tree._run

    def noting(self, tokens, *rest, **options):
        shapes.append(tuple(tokens.shape))
        return run(self, tokens, *rest, **options)

    monkeypatch.setattr(Tree, "_run", noting)
    return shapes


def test_each_prompt_runs_once_and_users_leave_when_they_are_final(monkeypatch):
    shapes, model = passes(monkeypatch), small_llama(VOCABULARY)
    for end in range(6):
        beam_search.beam_search(model, prompts(end), 3, 40, end)
        users, width = len(LENGTHS), max(LENGTHS)
        assert shapes[:3] == [(users, width - 1), (users, 1), (users, 3)]
        rows = [rows for rows, _ in shapes[2:]]
        assert all(tokens == 3 for _, tokens in shapes[2:]) and rows == sorted(rows, reverse=True)
        if rows[-1] < users:
            break
        shapes.clear()
    else:
        pytest.fail("no user was final before the others")


@pytest.mark.parametrize("num_beams", [1, 2, 5, 8])
def test_catalogue_texts_order_and_scores_are_those_of_generate(num_beams):
    model, end = small_llama(VOCABULARY, groups=2), 3
    allowed = {tuple(title) for title in titles(end)}
    trie = Trie(titles(end))
    for seed in range(4):
        arguments = (model, prompts(seed), num_beams, 1, end, trie)  # a text may be longer than max_new_tokens
        found = beam_search.beam_search(*arguments)
        assert_same(found, hf_generate.beam_search(*arguments))
        for prompt, one in zip(prompts(seed), found, strict=True):
            assert len({tuple(text) for text in one.tokens} & allowed) == len(one.tokens) == num_beams
            assert one.logprobs == pytest.approx([logprob(model, prompt, text) for text in one.tokens], abs=1e-4)


@pytest.mark.parametrize("bound", [False, True])
@pytest.mark.parametrize("length_penalty", [0.0, 0.5])
def test_other_length_penalties_are_those_of_generate(length_penalty, bound):
    model, end, moved = small_llama(VOCABULARY, groups=2), 3, 0
    trie = Trie(titles(end)) if bound else None
    for seed in range(4):
        for num_beams in (1, 4):
            arguments = (model, prompts(seed), num_beams, 12, end, trie)
            found = beam_search.beam_search(*arguments, length_penalty)
            assert_same(found, hf_generate.beam_search(*arguments, length_penalty))
            moved += len(agreement.differing(found, beam_search.beam_search(*arguments)))
        for prompt, one in zip(prompts(seed), found, strict=True):
            assert one.logprobs == pytest.approx([logprob(model, prompt, text) for text in one.tokens], abs=1e-4)
            scores = [total / len(text) ** length_penalty for text, total in zip(one.tokens, one.logprobs, strict=True)]
            assert scores == sorted(scores, reverse=True)
    assert moved


def test_all_titles_come_where_beams_are_as_many():
    model, end = small_llama(VOCABULARY), 3
    some = [[5, end], [5, 6, end], [7, 8, 9, 10, end], [11, end]]
    for one in beam_search.beam_search(model, prompts(), 4, 1, end, Trie(some)):
        assert sorted(one.tokens) == sorted(some)
        means = [total / len(text) for text, total in zip(one.tokens, one.logprobs, strict=True)]
        assert means == sorted(means, reverse=True)
    for one in beam_search.beam_search(model, prompts(), 6, 1, end, Trie(some)):
        assert sorted(one.tokens) == sorted(some)  # and no beam that is none


def test_tails_with_one_continuation_are_scored_in_one_pass(monkeypatch):
    shapes, model, end = passes(monkeypatch), small_llama(VOCABULARY), 3
    apart = [[first, *range(20, 20 + length), end] for first, length in zip(range(4, 12), range(1, 25, 3), strict=True)]
    expected = hf_generate.beam_search(model, prompts(), 3, 1, end, Trie(apart))
    found = beam_search.beam_search(model, prompts(), 3, 1, end, Trie(apart))
    assert_same(found, expected)
    assert len(shapes) == 3  # the prompts, their last tokens, and all tails at once
    monkeypatch.setattr(cache_tree, "TAIL_LOGITS", 1)  # or one user at a time, where memory is short
    assert_same(beam_search.beam_search(model, prompts(), 3, 1, end, Trie(apart)), expected)
    assert len(shapes) == 3 + 2 + len(LENGTHS)


def test_the_cache_grows_where_a_trie_is_deep(monkeypatch):
    model, trie = small_llama(VOCABULARY), Trie(titles(3))
    expected = beam_search.beam_search(model, prompts(), 3, 1, 3, trie)
    monkeypatch.setattr(cache_tree, "RESERVED_STEPS", 1)
    assert beam_search.beam_search(model, prompts(), 3, 1, 3, trie) == expected


def grid(users: int, texts: int, steps: int) -> torch.Tensor:
    return ((torch.arange(texts).double() + 0.5) / texts)[None, :, None].expand(users, -1, steps)


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (2.0, 0.7), (1.0, 0.3)])
def test_samples_follow_the_distribution(temperature, top_p):
    model, texts = small_llama(VOCABULARY, spread=0.1), 4000
    found = beam_search.sample(model, prompts()[:2], grid(2, texts, 1), 3, temperature, top_p)
    for prompt, one in zip(prompts(), found, strict=False):
        with torch.inference_mode():
            expected = (model(torch.tensor([prompt])).logits[0, -1].double() / temperature).softmax(-1)
        likely, order = expected.sort(descending=True)
        kept = order[: int((likely.cumsum(0) < top_p).sum()) + 1]
        expected = torch.zeros_like(expected).index_copy(0, kept, expected[kept])
        drawn = torch.bincount(torch.tensor([text[0] for text in one.tokens]), minlength=VOCABULARY) / texts
        assert drawn.numpy() == pytest.approx((expected / expected.sum()).numpy(), abs=2 / texts)


def test_samples_end_and_carry_the_models_own_scores():
    model, end, ended = small_llama(VOCABULARY, spread=0.1), 3, 0
    uniforms = torch.rand(len(LENGTHS), 6, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = beam_search.sample(model, prompts(), uniforms, end, temperature=1.5)
    for user, (prompt, one) in enumerate(zip(prompts(), found, strict=True)):
        assert one.logprobs == pytest.approx([logprob(model, prompt, text) for text in one.tokens], abs=1e-4)
        assert all(end not in text[:-1] and (len(text) == 40 or text[-1] == end) for text in one.tokens)
        ended += sum(text[-1] == end for text in one.tokens)
        assert len({tuple(text) for text in one.tokens}) > 1
        means = [total / len(text) for text, total in zip(one.tokens, one.logprobs, strict=True)]
        assert means == sorted(means, reverse=True)
        alone = beam_search.sample(model, [prompt], uniforms[user : user + 1], end, temperature=1.5)
        assert alone[0].tokens == one.tokens  # whatever the batch
        [by_sum] = beam_search.sample(model, [prompt], uniforms[user : user + 1], end, 1.5, length_penalty=0.0)
        assert by_sum.logprobs == sorted(alone[0].logprobs, reverse=True)
    assert ended
    plain = hf_generate.sample(model, prompts(), uniforms, end, temperature=1.5)
    for prompt, one in zip(prompts(), plain, strict=True):
        assert one.logprobs == pytest.approx([logprob(model, prompt, text) for text in one.tokens], abs=1e-4)


def test_nothing_to_continue():
    model = small_llama(VOCABULARY)
    assert beam_search.beam_search(model, [], 3, 5, 3) == beam_search.sample(model, [], torch.rand(0, 2, 5), 3) == []


def make(kind: str, **values):
    shape = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    none = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    config = transformers.CONFIG_MAPPING[kind](**(shape | none | values))
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("llama", {"num_key_value_heads": 1}),
        ("qwen2", {"num_key_value_heads": 1}),
        ("qwen3", {"num_key_value_heads": 1, "head_dim": 16}),
        ("mistral", {"num_key_value_heads": 1, "sliding_window": None}),
        ("gpt2", {}),
        ("gpt_neox", {}),
    ],
)
def test_models_that_fit(kind, values):
    model = make(kind, intermediate_size=64, **values)
    assert cache_tree.unfit(model) is None
    assert_same(beam_search.beam_search(model, prompts(), 3, 6, 3), hf_generate.beam_search(model, prompts(), 3, 6, 3))
    assert cache_tree.unfit(model.to(torch.bfloat16)) is None
    assert model.config._attn_implementation == "sdpa"  # as it was


@pytest.mark.parametrize(
    ("kind", "values", "reason"),
    [
        ("mistral", {"num_key_value_heads": 1, "sliding_window": 8, "intermediate_size": 64}, "attend to everything"),
        ("gemma2", {"num_key_value_heads": 1, "head_dim": 16, "intermediate_size": 64}, "attend to everything"),
        ("mamba", {}, "a state, not a cache"),
        ("bloom", {}, "does not take this cache"),
    ],
)
def test_models_that_do_not_fit(kind, values, reason):
    assert reason in cache_tree.unfit(make(kind, **values))


def test_a_model_that_makes_its_own_positions_is_found_out(monkeypatch):
    model = small_llama(VOCABULARY)
    forward = model.model.forward
    monkeypatch.setattr(model.model, "forward", lambda **given: forward(**(given | {"position_ids": None})))
    assert "more than the positions and the mask" in cache_tree.unfit(model)


NASTY = {  # what a base model's generation_config.json may hold
    "repetition_penalty": 3.0,
    "length_penalty": -2.0,
    "top_k": 2,
    "top_p": 0.1,
    "min_p": 0.5,
    "temperature": 0.01,
    "no_repeat_ngram_size": 1,
    "suppress_tokens": [1, 2, 3, 4],
    "begin_suppress_tokens": [5, 6],
    "bad_words_ids": [[7], [8]],
    "min_new_tokens": 9,
    "forced_bos_token_id": 11,
    "forced_eos_token_id": 12,
    "eos_token_id": [20, 21, 22],
    "early_stopping": True,
    "encoder_repetition_penalty": 2.0,
    "max_length": 3,
    "do_sample": True,
    "use_cache": False,
}


@pytest.mark.parametrize("with_adapter", [False, True])
def test_generate_takes_nothing_from_the_base_models_own_generation_config(with_adapter):
    model, end = small_llama(VOCABULARY), 3
    uniforms = torch.rand(len(LENGTHS), 4, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = hf_generate.beam_search(model, prompts(), 4, 12, end)
    drawn = hf_generate.sample(model, prompts(), uniforms, end, temperature=0.7)
    assert not agreement.differing(beam_search.beam_search(model, prompts(), 4, 12, end), expected)
    if with_adapter:
        model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=2)).eval()  # which changes nothing yet
    nasty = transformers.GenerationConfig(**NASTY)
    model.generation_config = nasty
    plain = model.generate(torch.tensor([prompts()[4]]), max_new_tokens=12, num_beams=4, pad_token_id=end)
    assert plain[0, 30:].tolist() != expected[4].tokens[0]  # the config would have counted
    assert_same(hf_generate.beam_search(model, prompts(), 4, 12, end), expected)
    assert_same(hf_generate.sample(model, prompts(), uniforms, end, temperature=0.7), drawn)
    assert_same(beam_search.beam_search(model, prompts(), 4, 12, end), expected)
    assert model.generation_config is nasty
