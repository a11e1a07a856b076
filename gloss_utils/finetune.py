"""Stage 2: QLoRA fine-tuning (METHOD, 2): a 4-bit base model, low-rank adapters, next-token loss on the whole text.

With a GPU and unsloth installed, unsloth loads the model; otherwise transformers, peft and bitsandbytes do, on the CPU
too. Either way the adapter is saved in PEFT's format.
"""

# ruff: noqa: E402
import importlib.util
from pathlib import Path

import pandas as pd
import torch

UNSLOTH = torch.cuda.is_available() and importlib.util.find_spec("unsloth") is not None
if UNSLOTH:
    import unsloth  # it patches transformers and peft, so it has to come before them

from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

from gloss_utils import prompts, splits, tiny, training
from gloss_utils.errors import GlossError
from gloss_utils.explore_data import Dataset
from gloss_utils.models import TINY, compute_dtype, load_base, one_line, with_padding
from gloss_utils.run_folder import Run, write_json, write_whole


def _with_unsloth(run: Run, base: str | Path):
    with one_line(base):
        model, tokenizer = unsloth.FastLanguageModel.from_pretrained(
            str(base),
            max_seq_length=run["max_length"],
            dtype=compute_dtype(),
            load_in_4bit=run["load_in_4bit"],
            use_exact_model_name=True,  # else it trains on its own copy of the weights, which generation does not load
        )
    model = unsloth.FastLanguageModel.get_peft_model(
        model,
        r=run["lora_rank"],
        lora_alpha=run["lora_alpha"],
        lora_dropout=run["lora_dropout"],
        target_modules=run["lora_modules"],
        bias="none",
        random_state=run["seed"],
        use_gradient_checkpointing="unsloth" if run["gradient_checkpointing"] else False,
    )
    return model, with_padding(tokenizer)


def _with_peft(run: Run, base: str | Path):
    model, tokenizer = load_base(base, run["load_in_4bit"])
    if run["load_in_4bit"]:
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=run["gradient_checkpointing"])
    config = LoraConfig(
        r=run["lora_rank"],
        lora_alpha=run["lora_alpha"],
        lora_dropout=run["lora_dropout"],
        target_modules=run["lora_modules"],
        bias="none",
        task_type="CAUSAL_LM",
    )
    try:
        return get_peft_model(model, config), tokenizer
    except ValueError as error:
        raise GlossError(
            f"parameter lora_modules is {run['lora_modules']!r}, which base model {base} does not have; "
            f"{' '.join(str(error).split())[:200]}"
        ) from error


def facts(result: dict) -> pd.DataFrame:
    """What training took, for looking at."""
    trainable, everything = result["trainable_parameters"], result["all_parameters"]
    return pd.DataFrame(
        {
            "value": {
                "base model": result["base_model"],
                "trained with": result["trained_with"],
                "device": result["device"],
                "training / validation texts": f"{result['training_texts']:,} / {result['validation_texts']:,}",
                "trainable parameters": f"{trainable:,} of {everything:,} ({trainable / everything:.1%})",
                "optimiser steps": f"{result['steps']:,}",
                "tokens per second": f"{result['tokens_per_second'] or 0:,.0f}",
                "peak memory": f"{result['peak_memory_gb']:.2f} GiB",
            }
        }
    )


def encode(data: Dataset, examples, tokenizer, max_length: int) -> list[list[int]]:
    """Training texts of examples (user, history, target), as token ids."""
    titles = data.titles()
    histories = [[titles[item] for item in history] for history in examples["history"]]
    return prompts.encode_training(tokenizer, histories, [titles[item] for item in examples["target"]], max_length)


def _settings(run: Run) -> training.Settings:
    return training.Settings(
        learning_rate=run["learning_rate"],
        scheduler=run["lr_scheduler"],
        warmup_steps=run["warmup_steps"],
        weight_decay=run["weight_decay"],
        optimizer=run["optimizer"],
        batch_size=run["batch_size"],
        gradient_accumulation=run["gradient_accumulation"],
        epochs=run["epochs"],
        seed=run["seed"],
        patience=run["patience"],
        report_to=run["report_to"],
        logs=str(run.folder.tracking),
        gradient_checkpointing=run["gradient_checkpointing"] and not UNSLOTH,
    )


def prepare(run: Run, data: Dataset) -> dict | None:
    """Stage 2's work: fine-tune on the training split, stop early on the validation users, save the adapter.

    Returns (and writes to `model/training.json`) the loss history, parameter counts, speed and peak memory; None where
    the queries come from a file and there is nothing to do.
    """
    if run["queries_file"]:
        print(f"Nothing to do: the queries are read from {run['queries_file']}.")
        return None
    training.check_reporter(run["report_to"])
    if run["base_model"] == TINY:
        base = tiny.prepare(run, data.items["title"].tolist())
    else:
        base = run["base_model"]
        if Path(base).is_dir():
            run.read_from_outside(base)
    training.seed_everything(run["seed"])
    model, tokenizer = (_with_unsloth if UNSLOTH else _with_peft)(run, base)
    examples = splits.training_examples(data)
    if examples.empty:
        raise GlossError("no drawn user has a training example; raise max_users")
    held_out = data.users[data.users["drawn"] & data.users["validation"]]
    validation = splits.evaluation_examples(data, "validation") if len(held_out) else examples[:0]
    made_from = {"parameters": run.parameters, "titles": data.items["title"].tolist()}
    trainable, everything = model.get_nb_trainable_parameters()
    result = training.train(
        model,
        tokenizer,
        encode(data, examples, tokenizer, run["max_length"]),
        encode(data, validation, tokenizer, run["max_length"]),
        _settings(run),
        run.folder.checkpoints / "adapter",
        made_from,
        name="fine-tuning",
    )
    result |= {
        "base_model": run["base_model"],
        "trained_with": "unsloth" if UNSLOTH else "transformers",
        "training_texts": len(examples),
        "validation_texts": len(validation),
        "trainable_parameters": trainable,
        "all_parameters": everything,
    }
    with write_whole(run.folder.adapter) as part:
        model.save_pretrained(part, save_embedding_layers=False)
        tokenizer.save_pretrained(part)
    write_json(run.folder.training, result)
    training.forget(run.folder.checkpoints)
    run.outputs += [run.folder.adapter, run.folder.training] + ([run.folder.base] if run["base_model"] == TINY else [])
    return result
