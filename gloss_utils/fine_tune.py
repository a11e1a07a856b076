"""Stage 2: QLoRA fine-tuning (METHOD, 2): a 4-bit base model, low-rank adapters, next-token loss on the whole text.

With one GPU and unsloth installed, unsloth loads the model; otherwise transformers, peft and bitsandbytes do, on the
CPU too. Either way the adapter is saved in PEFT's format. On several GPUs, in the place of notebook 2:

    accelerate launch --multi_gpu --num_processes 2 -m gloss_utils.fine_tune FILE... [-p NAME VALUE]...
"""

# ruff: noqa: E402
import argparse
import importlib.util
import os
import sys
import time
from pathlib import Path

import pandas as pd
import torch

PROCESSES = int(os.environ.get("WORLD_SIZE", 1))  # as `accelerate launch` started them
UNSLOTH = PROCESSES == 1 and torch.cuda.is_available() and importlib.util.find_spec("unsloth") is not None
if UNSLOTH:
    import unsloth  # it patches transformers and peft, so it has to come before them

from accelerate.utils import parse_flag_from_env
from bitsandbytes.nn import Linear4bit
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

from gloss_utils.base.errors import GlossError
from gloss_utils.base.files import read_json, write_json, write_whole
from gloss_utils.base.hub import only_safetensors
from gloss_utils.data import prompts, splits
from gloss_utils.data.dataset import Dataset
from gloss_utils.language import tiny, training
from gloss_utils.language.models import TINY, compute_dtype, load_base, one_line, with_padding
from gloss_utils.runs import parameters as P
from gloss_utils.runs.run import Run, open_run


def _with_unsloth(run: Run, base: str | Path):
    only_safetensors(base)
    with one_line(base):
        model, tokenizer = unsloth.FastLanguageModel.from_pretrained(
            str(base),
            max_seq_length=run["max_length"],
            dtype=compute_dtype(),
            load_in_4bit=run["load_in_4bit"],
            use_safetensors=True,
            trust_remote_code=False,
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


def _keep_trainable(model):
    # On processors with AVX512-BF16, evaluating would repack the 4-bit weights, in a form that passes no gradient on;
    # saving the model undoes that, not to the bit, and only in the process that saves.
    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def _with_peft(run: Run, base: str | Path):
    model, tokenizer = load_base(base, run["load_in_4bit"])
    if run["load_in_4bit"]:
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=run["gradient_checkpointing"])
        _keep_trainable(model)
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


def with_adapters(run: Run, base: str | Path):
    """A base model with new low-rank adapters, which alone are trained, and its tokenizer."""
    return (_with_unsloth if UNSLOTH else _with_peft)(run, base)


def facts(result: dict) -> pd.DataFrame:
    """What training took, for looking at."""
    trainable, everything = result["trainable_parameters"], result["all_parameters"]
    return pd.DataFrame(
        {
            "value": {
                "base model": result["base_model"],
                "trained with": result["trained_with"],
                "device": result["device"],
                "processes": result["processes"],
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


def settings(run: Run) -> training.Settings:
    """What a run's parameters say about training."""
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
        bf16_on_cpu=run["bf16_on_cpu"],
    )


def prepare(run: Run, data: Dataset) -> dict | None:
    """Stage 2's work: fine-tune on the training split, stop early on the validation users, save the adapter.

    Returns (and writes to `model/training.json`) the loss history, parameter counts, speed and peak memory; None where
    the queries come from a file and there is nothing to do. Of several processes, only the main one writes the results.
    """
    together = training.processes()
    if run["queries_file"]:
        together.print(f"Nothing to do: the queries are read from {run['queries_file']}.")
        return None
    training.check_reporter(run["report_to"])
    if run["base_model"] == TINY:
        base = tiny.prepare(run, data.trained_titles())
    else:
        base = run["base_model"]
        if Path(base).is_dir():
            run.read_from_outside(base)
    training.seed_everything(run["seed"])
    model, tokenizer = with_adapters(run, base)
    examples = splits.training_examples(data)
    if examples.empty:
        raise GlossError("no drawn user has a training example; raise max_users")
    validation = splits.held_out_examples(data, "validation")
    made_from = {"parameters": run.parameters, "inputs": run.inputs, "titles": data.trained_titles()}
    trainable, everything = model.get_nb_trainable_parameters()
    result = training.train(
        model,
        tokenizer,
        encode(data, examples, tokenizer, run["max_length"]),
        encode(data, validation, tokenizer, run["max_length"]),
        settings(run),
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
    weights = training.put_together(model)
    if together.is_main_process:
        with write_whole(run.folder.adapter) as part:
            model.save_pretrained(part, state_dict=weights, save_embedding_layers=False)
            tokenizer.save_pretrained(part)
            config = read_json(part / "adapter_config.json")  # whose modules come from a set, in no order
            write_json(part / "adapter_config.json", config | {"target_modules": sorted(run["lora_modules"])})
        write_json(run.folder.training, result)
        training.forget(run.folder.checkpoints)
    run.outputs += [run.folder.adapter, run.folder.training] + ([run.folder.base] if run["base_model"] == TINY else [])
    return result


def _run_first(files: list[str], overrides: list[tuple[str, str]]):
    # The main process alone: the stage before, and the base model that all processes load.
    from gloss_utils.runs import notebooks

    own = notebooks.resolve(P.FINE_TUNE, notebooks.given(files, overrides))
    training.share(own["batch_size"], own["gradient_accumulation"], PROCESSES)
    if parse_flag_from_env("ACCELERATE_USE_FSDP") and own["optimizer"] != "adamw_torch":
        raise GlossError(
            f"parameter optimizer is {own['optimizer']!r}, which cannot work on FSDP's shards; set it to adamw_torch"
        )
    with training.alone():
        notebooks.run(files, overrides, last="01")
        run = open_run(P.FINE_TUNE, own)
        if run["base_model"] == TINY and not run["queries_file"]:
            tiny.prepare(run, Dataset.load(run.folder.data).trained_titles())


def _run_together(files: list[str], overrides: list[tuple[str, str]]):
    # What notebook 2 does, in every process.
    from gloss_utils.report import data_plots
    from gloss_utils.runs import notebooks

    together = training.processes()
    together.wait_for_everyone()
    run = open_run(P.FINE_TUNE, notebooks.resolve(P.FINE_TUNE, notebooks.given(files, overrides)))
    if not run.folder.why_run(P.FINE_TUNE, run.own):
        together.print(f"{P.FINE_TUNE}: up to date")
        return
    result = prepare(run, Dataset.load(run.folder.data))
    if together.is_main_process:
        if result:
            run.save_figure(data_plots.loss_curves(result), "02_loss")
        print(run.finish())


def main(arguments: list[str] | None = None) -> int:
    """Fine-tune in all processes that `accelerate launch` started; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="accelerate launch -m gloss_utils.fine_tune",
        description="Run stage 2 in several processes, and stage 1 before it where it is not up to date.",
    )
    P.add_arguments(parser)
    options = parser.parse_args(arguments)
    overrides = [tuple(pair) for pair in options.overrides]
    is_first = os.environ.get("RANK", "0") == "0"
    try:
        if is_first:
            _run_first(options.files, overrides)
        _run_together(options.files, overrides)
    except GlossError as error:
        if not is_first:
            time.sleep(5)  # the launcher ends this process if the main one says the same, and once is enough
        print(f"error: {error}", file=sys.stderr)
        return 1
    training.processes().destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
