"""A loss on what the catalogue leaves open: a hierarchical softmax over titles, in training, decoding and scoring."""

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from gloss_utils.base.errors import GlossError
from gloss_utils.language import beam_search, catalogue_loss, scoring
from gloss_utils.language.generation import Decoding
from gloss_utils.language.trie import Trie

END, VOCABULARY = 2, 40
TITLES = [[5, 6, 7, END], [5, 6, 8, END], [5, 6, 8, 9, END], [5, 10, END], [5, 10, 11, 12, 13, END]]
NEXT_LINE, WORDS = 20, [30, 31, 5, 33]  # 5 begins every title, but what follows here is none


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    made = LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, num_key_value_heads=2, **sizes)).eval()
    made.lm_head.weight.data *= 20  # so that what it says differs much
    return made


@pytest.fixture(scope="module")
def trie():
    return Trie(TITLES)


def training_text(history: list[list[int]], target: list[int]) -> list[int]:
    return [1, *WORDS, *(token for title in history for token in [*title[:-1], NEXT_LINE]), 34, *target]


def by_hand(model, prompt: list[int], title: list[int]) -> float:
    """The log-probability of a title among all of the catalogue's, token by token."""
    total = 0.0
    for place, token in enumerate(title):
        may_follow = {other[place] for other in TITLES if other[:place] == title[:place]}
        logits = model(torch.tensor([prompt + title[:place]])).logits[0, -1].detach().double()
        total += float(logits[token] - logits[sorted(may_follow)].logsumexp(0))
    return total


def test_choices_are_where_titles_part(trie):
    choices = catalogue_loss.Choices(trie, END)
    text = training_text([TITLES[0], TITLES[2]], TITLES[3])
    chosen = [(place, text[place]) for place, node in enumerate(choices.nodes(text)) if node != catalogue_loss.NOWHERE]
    # After 5: 6 or 10. After 5 6: 7 or 8. After 5 6 8: 9 or the end; after 5 10: 11 or the end, which is one for the
    # target alone. WORDS begin like a title, and are none.
    assert chosen == [(6, 6), (7, 7), (10, 6), (11, 8), (12, 9), (16, 10), (17, END)]
    assert choices.nodes(text)[6] == choices.nodes(text)[10] == choices.nodes(text)[16]


def test_a_text_that_was_cut_within_a_title_has_choices_after_it(trie):
    choices = catalogue_loss.Choices(trie, END)
    nodes = choices.nodes([1, 6, 8, NEXT_LINE, *TITLES[3]])
    assert [place for place, node in enumerate(nodes) if node != catalogue_loss.NOWHERE] == [5, 6]


def test_the_loss_is_that_of_titles_among_the_catalogue(model, trie):
    prompt = [1, *WORDS, 34]
    texts = [training_text([], title) for title in (TITLES[0], TITLES[4])]
    choices = catalogue_loss.Choices(trie, END)
    longest, count = max(map(len, texts)), 0
    batch = {
        "input_ids": torch.zeros(2, longest, dtype=torch.long),
        "attention_mask": torch.zeros(2, longest, dtype=torch.long),
        "labels": torch.full((2, longest), catalogue_loss.IGNORED),
        "nodes": torch.full((2, longest), catalogue_loss.NOWHERE),
    }
    for row, text in enumerate(texts):
        batch["input_ids"][row, : len(text)] = torch.tensor(text)
        batch["attention_mask"][row, : len(text)] = 1
        for place, node in enumerate(choices.nodes(text)):
            if node != catalogue_loss.NOWHERE:
                batch["labels"][row, place], batch["nodes"][row, place] = text[place], node
                count += 1
    expected = -sum(by_hand(model, prompt, title) for title in (TITLES[0], TITLES[4]))
    assert float(catalogue_loss.loss(model, batch, trie).detach()) == pytest.approx(expected / count, abs=1e-5)
    assert float(catalogue_loss.loss(model, batch, trie, 100).detach()) == pytest.approx(expected / 100, abs=1e-5)


def test_scores_are_among_the_catalogue_and_sum_up_to_1(model, trie):
    prompts = [[1, 30, 34], [1, *WORDS, 5, 6, 8, NEXT_LINE, 34]]
    expected = [[by_hand(model, prompt, title) for title in TITLES] for prompt in prompts]
    assert np.exp(expected).sum(axis=1) == pytest.approx([1, 1])
    assert np.std(expected) > 0.5  # so that a mistake would show
    for found in (
        scoring.score(model, prompts, [TITLES] * 2, trie=trie),
        scoring.plain(model, prompts, [TITLES] * 2, trie),
        scoring.Scorer(model, trie).write([(prompt, TITLES) for prompt in prompts], [0, 1]),
    ):
        assert np.allclose(found, expected, atol=1e-5)


def test_what_is_certain_is_not_run(model, trie, monkeypatch):
    ran, run = [], scoring.Tree._run
    monkeypatch.setattr(
        scoring.Tree, "_run", lambda tree, tokens, *rest, **more: ran.append(tokens) or run(tree, tokens, *rest, **more)
    )
    scoring.score(model, [[1, 30, 34]], [TITLES], trie=trie)
    assert sorted(ran[-1].flatten().tolist()) == [5, 6, 8, 10]  # after 11 and 9 the titles are certain


@pytest.mark.parametrize("beams", [2, 5])
def test_beams_are_the_likeliest_titles_of_the_catalogue(model, trie, beams):
    prompts = [[1, 30, 34], [1, *WORDS, 5, 6, 8, NEXT_LINE, 34], [1, 33]]
    found = beam_search.beam_search(model, prompts, beams, 9, END, trie, length_penalty=0.0, among=True)
    for prompt, decoded in zip(prompts, found, strict=True):
        expected = sorted(((by_hand(model, prompt, title), title) for title in TITLES), reverse=True)
        if beams == len(TITLES):
            assert decoded.tokens == [title for _, title in expected]
        said = dict(zip(map(tuple, decoded.tokens), decoded.logprobs, strict=True))
        assert said == pytest.approx({tuple(title): by_hand(model, prompt, list(title)) for title in said}, abs=1e-5)


def test_such_a_model_cannot_write_freely():
    with pytest.raises(GlossError, match="set decoding to catalogue"):
        Decoding(loss="catalogue", decoding="free")
    assert Decoding(loss="catalogue", decoding="catalogue").loss == "catalogue"
