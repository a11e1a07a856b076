"""The texts that the language model reads and writes, and that the indexes hold."""

from collections.abc import Iterable

INSTRUCTION = (
    "A shopper's purchases are listed from the first to the latest. "
    "Write the title of the item that this shopper buys next."
)


def item_text(title: str) -> str:
    """An item's line, `Title: …`: the model writes such lines, and the indexes hold them."""
    return f"Title: {title}"


def prompt(titles: Iterable[str]) -> str:
    """The prompt of a history of titles, oldest first (METHOD, 1)."""
    history = "\n".join(item_text(title) for title in titles)
    return f"{INSTRUCTION}\n\n### Purchase history:\n{history}\n\n### Next item:\n"


def encode_training(tokenizer, histories: list[list[str]], targets: list[str], max_length: int) -> list[list[int]]:
    """Token ids of training texts: the prompt of a history's titles, the target's line, end of sequence.

    Cut from the left to `max_length` tokens, so that the newest items stay. The begin-of-sequence token, if the
    tokenizer has one, stays too.
    """
    before = encode_texts(tokenizer, [prompt(titles) for titles in histories])
    after = encode_texts(tokenizer, [item_text(target) for target in targets])
    return [
        _cut(tokenizer, [*ids, *more, tokenizer.eos_token_id], max_length)
        for ids, more in zip(before, after, strict=True)
    ]


def encode_prompts(tokenizer, histories: list[list[str]], max_length: int) -> list[list[int]]:
    """Token ids of the prompts of histories of titles, cut from the left to `max_length` tokens."""
    texts = [prompt(titles) for titles in histories]
    return [_cut(tokenizer, ids, max_length) for ids in encode_texts(tokenizer, texts)]


def encode_texts(tokenizer, texts: list[str]) -> list[list[int]]:
    """Token ids of texts, without special tokens: what looks like one is read as plain text."""
    if not texts:
        return []
    return tokenizer(texts, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]


def _cut(tokenizer, ids: list[int], max_length: int) -> list[int]:
    begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    return begin + ids[max(0, len(ids) - (max_length - len(begin))) :]
