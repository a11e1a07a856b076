"""`base_model: tiny`: a small Llama that has read nothing but the catalogue, for machines without a GPU or a network.

Its tokenizer is a byte-level BPE trained on the catalogue's titles; the model is trained on prompts filled with titles
in random order, never on anyone's history. It is saved as an ordinary model folder, and QLoRA starts from it as from
any other base model.
"""

import random
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from gloss_utils import prompts, training
from gloss_utils.run_folder import Run, fingerprint, read_json, write_json, write_whole

TITLES_A_LIST = 8
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


def random_lists(titles: list[str], count: int, seed: int) -> tuple[list[list[str]], list[str]]:
    """`count` lists of titles in random order, and a random title to end each with."""
    rng = random.Random(seed)
    lists = [rng.sample(titles, k=min(len(titles), rng.randint(2, TITLES_A_LIST))) for _ in range(count)]
    return [titles[:-1] for titles in lists], [titles[-1] for titles in lists]


def prepare(run: Run, titles: list[str]) -> Path:
    """Train the base model once and save it in the run folder; later calls with the same settings find it there."""
    folder = run.folder.base
    names = ("seed", "tiny_layers", "tiny_width", "tiny_vocabulary", "tiny_steps", "tiny_learning_rate", "max_length")
    made_from = {name: run[name] for name in names} | {"titles": titles}
    record, weights = folder / "made_from.json", folder / "model.safetensors"
    if weights.exists() and record.exists() and read_json(record) == made_from | {"weights": fingerprint(weights)}:
        return folder
    training.seed_everything(run["seed"])
    tokenizer = train_tokenizer(titles, run["tiny_vocabulary"])
    model = new_model(tokenizer, run["tiny_layers"], run["tiny_width"])
    texts = prompts.encode_training(
        tokenizer, *random_lists(titles, run["tiny_steps"] * TEXTS_A_STEP, run["seed"]), run["max_length"]
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
    )
    training.train(model, tokenizer, texts, [], settings, run.folder.checkpoints / "base", made_from, name="base model")
    with write_whole(folder) as part:
        model.save_pretrained(part)
        tokenizer.save_pretrained(part)
        made_from["weights"] = fingerprint(part / "model.safetensors")
        write_json(part / "made_from.json", made_from)
    training.forget(run.folder.checkpoints)
    return folder
