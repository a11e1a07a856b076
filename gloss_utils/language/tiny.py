"""A tiny base model: a small Llama that has read only the catalogue's titles, for machines without a GPU or a network.

Its tokenizer is a byte-level BPE trained on the titles. The model is trained on prompts filled with titles that share
words, never on a user's history: so it learns the titles, and that a list has a subject. It is saved as an ordinary
model folder, and QLoRA starts from it as from any other base model.
"""

import random
from dataclasses import asdict, dataclass
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed

from gloss_utils.base.files import digest
from gloss_utils.data import prompts
from gloss_utils.language import training

TITLES_PER_LIST = 8  # at most
RELATED = 12  # neighbours of a title that may follow it in a list
STAY, LATEST = 0.85, 0.7  # how often the next title is near an earlier one, and how often that is the latest
TEXTS_PER_STEP = 16


@dataclass(frozen=True)
class TinyModel:
    """Size and training of a tiny base model. width: a multiple of 64. max_length: tokens per training text."""

    layers: int
    width: int
    vocabulary: int
    steps: int
    learning_rate: float
    max_length: int
    seed: int
    bf16_on_cpu: bool = False


def train_tokenizer(titles: list[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer on the catalogue's titles and the words around them in a prompt."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<|begin|>", "<|end|>", "<|pad|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([prompts.prompt([title]) for title in titles], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|begin|>",
        eos_token="<|end|>",
        pad_token="<|pad|>",
        clean_up_tokenization_spaces=False,
    )


def new_model(tokenizer: PreTrainedTokenizerFast, layers: int, width: int) -> LlamaForCausalLM:
    """An untrained Llama; about 2 M parameters with 4 layers of width 192 and a vocabulary of 2,000."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=round(width / 24) * 64,  # 8/3 of the width, in 4-bit blocks of 64 weights
            num_hidden_layers=layers,
            num_attention_heads=max(1, width // 64),
            max_position_embeddings=2048,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def related_lists(titles: list[str], count: int, seed: int) -> tuple[list[list[str]], list[str]]:
    """`count` lists of titles, and a last title for each: random walks among titles that share words (by BM25), with
    jumps to any other title.

    No title is in a list twice.
    """
    from gloss_utils.search.bm25 import BM25Index  # the room `search` takes seconds to import, and few train this model

    rng, titles = random.Random(seed), sorted(set(titles))
    places, scores = BM25Index.build(titles).search(titles, RELATED + 1)
    near = [
        [place for place, score in zip(*row, strict=True) if score > 0 and place != own]
        for own, row in enumerate(zip(places.tolist(), scores.tolist(), strict=True))
    ]
    walks = [_walk(near, min(len(titles), rng.randint(2, TITLES_PER_LIST)), rng) for _ in range(count)]
    lists = [[titles[place] for place in walk] for walk in walks]
    return [titles[:-1] for titles in lists], [titles[-1] for titles in lists]


def _walk(near: list[list[int]], length: int, rng: random.Random) -> list[int]:
    walk = [rng.randrange(len(near))]
    while len(walk) < length:
        beside = near[walk[-1] if rng.random() < LATEST else rng.choice(walk)]
        place = rng.choice(beside) if beside and rng.random() < STAY else rng.randrange(len(near))
        if place not in walk:
            walk.append(place)
    return walk


def train_base(titles: list[str], settings: TinyModel, checkpoints: Path):
    """Train a base model on titles; returns it and its tokenizer.

    checkpoints: a folder for the states of the training, which goes on from there where it was cut off.
    """
    set_seed(settings.seed)
    tokenizer = train_tokenizer(titles, settings.vocabulary)
    model = new_model(tokenizer, settings.layers, settings.width)
    lists, ends = related_lists(titles, settings.steps * TEXTS_PER_STEP, settings.seed)
    how = training.Settings(
        learning_rate=settings.learning_rate,
        lr_scheduler="cosine",
        warmup_steps=settings.steps // 20,
        weight_decay=0.01,
        optimizer="adamw_torch",
        batch_size=TEXTS_PER_STEP // 4,  # less padding than in one batch
        gradient_accumulation=4,
        epochs=1,
        seed=settings.seed,
        bf16_on_cpu=settings.bf16_on_cpu,
    )
    texts = prompts.encode_training(tokenizer, lists, ends, settings.max_length)
    made_from = asdict(settings) | {"titles": digest(titles)}
    training.train(model, tokenizer, texts, [], how, checkpoints, made_from, name="base model")
    return model, tokenizer
