"""The texts, and how they are cut."""

import pytest

from gloss_utils.data import prompts
from gloss_utils.language.tiny import train_tokenizer

TITLES = ["Rose Toner &amp; Mist, 3.4 oz", "Silk Conditioner", "Crème Brûlée ☕ Scrub", "Lash Mascara"]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TITLES, 400)


@pytest.fixture
def without_begin():
    tokenizer = train_tokenizer(TITLES, 400)
    tokenizer.bos_token = None
    return tokenizer


def test_layout_of_a_prompt():
    text = prompts.prompt(["Soap &amp; Co", "Brush"])
    instruction, rest = text.split("\n\n", 1)
    assert instruction and "\n" not in instruction and "Title:" not in instruction
    assert rest == "### Purchase history:\nTitle: Soap &amp; Co\nTitle: Brush\n\n### Next item:\n"
    assert prompts.item_text("Soap") == "Title: Soap"


def test_a_prompt_in_tokens(tokenizer):
    (ids,) = prompts.encode_prompts(tokenizer, [TITLES[:2]], 1000)
    assert ids[0] == tokenizer.bos_token_id and tokenizer.bos_token_id not in ids[1:]
    assert tokenizer.eos_token_id not in ids
    assert tokenizer.decode(ids[1:]) == prompts.prompt(TITLES[:2])


def test_a_training_text_is_the_prompt_then_the_targets_line_and_the_end(tokenizer):
    histories, targets = [TITLES[:2], TITLES[1:3]], [TITLES[2], TITLES[3]]
    texts = prompts.encode_training(tokenizer, histories, targets, 1000)
    starts = prompts.encode_prompts(tokenizer, histories, 1000)
    assert len(texts) == 2
    for text, start, target in zip(texts, starts, targets, strict=True):
        assert text[: len(start)] == start
        assert tokenizer.decode(text[len(start) : -1]) == f"Title: {target}"
        assert text[-1] == tokenizer.eos_token_id and tokenizer.eos_token_id not in text[:-1]


@pytest.mark.parametrize("length", [16, 17, 40])
def test_the_cut_takes_the_oldest_and_keeps_the_begin_token(tokenizer, length):
    (whole,) = prompts.encode_prompts(tokenizer, [TITLES * 3], 10_000)
    (cut,) = prompts.encode_prompts(tokenizer, [TITLES * 3], length)
    assert len(whole) > 60
    assert cut == [tokenizer.bos_token_id, *whole[-(length - 1) :]]
    (whole,) = prompts.encode_training(tokenizer, [TITLES * 3], [TITLES[0]], 10_000)
    (cut,) = prompts.encode_training(tokenizer, [TITLES * 3], [TITLES[0]], length)
    assert cut == [tokenizer.bos_token_id, *whole[-(length - 1) :]]
    assert cut[-1] == tokenizer.eos_token_id


def test_a_text_of_exactly_the_length_is_not_cut(tokenizer):
    (whole,) = prompts.encode_prompts(tokenizer, [TITLES], 10_000)
    assert prompts.encode_prompts(tokenizer, [TITLES], len(whole)) == [whole]
    assert prompts.encode_prompts(tokenizer, [TITLES], len(whole) - 1) == [[whole[0], *whole[2:]]]


def test_a_tokenizer_without_a_begin_token(without_begin):
    (whole,) = prompts.encode_prompts(without_begin, [TITLES], 10_000)
    assert without_begin.decode(whole) == prompts.prompt(TITLES)
    assert prompts.encode_prompts(without_begin, [TITLES], 20) == [whole[-20:]]


def test_no_histories_no_texts(tokenizer):
    assert prompts.encode_prompts(tokenizer, [], 100) == []
    assert prompts.encode_training(tokenizer, [], [], 100) == []
