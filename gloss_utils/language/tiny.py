"""`base_model: tiny`: a small Llama that has read nothing but the catalogue, for machines without a GPU or a network.

Its tokenizer is a byte-level BPE trained on the catalogue's titles; the model is trained on prompts filled with titles
that share words, never on anyone's history: so it learns the titles, and to look back at what a list is about. It is
saved as an ordinary model folder, and QLoRA starts from it as from any other base model.
"""

import random
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from gloss_utils.base.files import is_signed, sign, write_whole
from gloss_utils.data import prompts
from gloss_utils.language import training
from gloss_utils.runs.run import Run
from gloss_utils.search.bm25 import BM25Index

TITLES_A_LIST = 8
RELATED = 12  # titles that are near enough to stand beside a title in a list
STAY, LATEST = 0.85, 0.7  # how often the next title is near one before, and how often that one is the latest
TEXTS_A_STEP = 16


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
            intermediate_size=_multiple(width * 8 / 3, 64),
            num_hidden_layers=layers,
            num_attention_heads=max(1, width // 64),
            num_key_value_heads=max(1, width // 64),
            max_position_embeddings=2048,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def _multiple(size: float, of: int) -> int:
    # 4-bit layers are quantised in blocks of 64 weights.
    return round(size / of) * of


def related_lists(titles: list[str], count: int, seed: int) -> tuple[list[list[str]], list[str]]:
    """`count` lists of titles, and a title to end each with: walks among titles that share words (by BM25), with leaps.

    No title is in a list twice.
    """
    rng, titles = random.Random(seed), sorted(set(titles))
    places, scores = BM25Index.build(titles).search(titles, RELATED + 1)
    near = [
        [place for place, score in zip(*row, strict=True) if score > 0 and place != own]
        for own, row in enumerate(zip(places.tolist(), scores.tolist(), strict=True))
    ]
    walks = [_walk(near, min(len(titles), rng.randint(2, TITLES_A_LIST)), rng) for _ in range(count)]
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


def prepare(run: Run, titles: list[str]) -> Path:
    """Train the base model once and save it in the run folder; later calls with the same settings find it there."""
    folder = run.folder.base
    names = (
        "seed",
        "tiny_layers",
        "tiny_width",
        "tiny_vocabulary",
        "tiny_steps",
        "tiny_learning_rate",
        "max_length",
        "bf16_on_cpu",
    )
    made_from = {name: run[name] for name in names} | {"titles": titles}
    if is_signed(folder, made_from):
        return folder
    training.seed_everything(run["seed"])
    tokenizer = train_tokenizer(titles, run["tiny_vocabulary"])
    model = new_model(tokenizer, run["tiny_layers"], run["tiny_width"])
    texts = prompts.encode_training(
        tokenizer, *related_lists(titles, run["tiny_steps"] * TEXTS_A_STEP, run["seed"]), run["max_length"]
    )
    settings = training.Settings(
        learning_rate=run["tiny_learning_rate"],
        scheduler="cosine",
        warmup_steps=run["tiny_steps"] // 20,
        weight_decay=0.01,
        optimizer="adamw_torch",
        batch_size=TEXTS_A_STEP // 4,  # less padding than in one batch
        gradient_accumulation=4,
        epochs=1,
        seed=run["seed"],
        bf16_on_cpu=run["bf16_on_cpu"],
    )
    training.train(model, tokenizer, texts, [], settings, run.folder.checkpoints / "base", made_from, name="base model")
    with write_whole(folder) as part:
        model.save_pretrained(part)
        tokenizer.save_pretrained(part)
        sign(part, made_from)
    training.forget(run.folder.checkpoints)
    return folder
