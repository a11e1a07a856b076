"""Stage 2: QLoRA fine-tuning (METHOD, 2) on the training split, stopped early by the loss on the validation users.

With one GPU and unsloth installed, unsloth loads the model (not with GLOSS_UNSLOTH=off in the environment); otherwise
transformers, peft and bitsandbytes do, on the CPU too. On several GPUs, in place of notebook 2:

    accelerate launch --multi_gpu --num_processes 2 -m gloss_utils.fine_tune FILE... [-p NAME VALUE]...
"""

# ruff: noqa: E402
import argparse
import os
import sys
import time
from collections.abc import Callable

import pandas as pd

from gloss_utils.base.unsloth_first import SWITCH, import_unsloth

PROCESSES = int(os.environ.get("WORLD_SIZE", 1))  # as `accelerate launch` started them
import_unsloth()  # before transformers and peft, which it patches

from accelerate.utils import parse_flag_from_env

from gloss_utils.base.errors import GlossError
from gloss_utils.base.files import read_json, write_json
from gloss_utils.data import prompts, splits
from gloss_utils.data.dataset import Dataset
from gloss_utils.language import qlora, tiny, training
from gloss_utils.language.generation import CATALOGUE, Decoding, TitleTrie, Writer, plan_batches, write_batches
from gloss_utils.language.memory import BATCH_TOKENS
from gloss_utils.language.models import TINY, load_base
from gloss_utils.rank import Ranker, as_run
from gloss_utils.rank.ranker import PAPER
from gloss_utils.report import data_plots
from gloss_utils.report.metrics import per_user_metrics, targets_of
from gloss_utils.runs import given
from gloss_utils.runs.parameters import FINE_TUNE
from gloss_utils.runs.run import Run, is_main, open_run

RECALL = "recall@5"


def start(notebook: dict) -> Run:
    """Start the stage from its notebook's `globals()`."""
    return open_run(FINE_TUNE, notebook)


def prepare(run: Run) -> dict | None:
    """Stage 2's work: fine-tune and save the adapter; one that was made from the same is kept.

    Returns the loss history, parameter counts, speed and peak memory, as they are noted in the adapter's folder; None
    where the queries come from a file and there is nothing to do. Of several processes, the main one writes the files.
    """
    together = training.processes()
    if run["queries_file"]:
        together.print(f"Nothing to do: the queries are read from {run['queries_file']}.")
        return None
    training.check_reporter(run["report_to"])
    data = Dataset.load(run.open("data"))
    if run["base_model"] == TINY:
        tiny_base(run, data)
    revision = run.revision("base_model")
    with together.main_process_first():  # it may link an adapter from another run folder
        kept = run.keeps("adapter")
    if not kept:
        _train(run, data, revision)
    together.wait_for_everyone()
    return read_json(run.folder.training)


def training_settings(run: Run) -> training.Settings:
    """How a run's parameters say that the adapters are trained."""
    checkpointing = run["gradient_checkpointing"] and not qlora.uses_unsloth()  # which has its own
    return run.settings(training.Settings, logs=str(run.folder.tracking), gradient_checkpointing=checkpointing)


def tiny_base(run: Run, data: Dataset):
    """Train the tiny base model on the titles that are not held out, and save it, where it is not there yet."""
    if run.keeps("base"):
        return
    sizes = {name: run[f"tiny_{name}"] for name in ("layers", "width", "vocabulary", "steps", "learning_rate")}
    settings = run.settings(tiny.TinyModel, **sizes)
    model, tokenizer = tiny.train_base(data.trained_titles(), settings, run.unfinished("base"))
    with run.writing("base") as part:
        model.save_pretrained(part)
        tokenizer.save_pretrained(part)


def encode(data: Dataset, examples: pd.DataFrame, tokenizer, max_length: int) -> list[list[int]]:
    """Training texts of examples (user, history, target), as token ids."""
    titles = data.titles()
    histories = [[titles[item] for item in history] for history in examples["history"]]
    return prompts.encode_training(tokenizer, histories, [titles[item] for item in examples["target"]], max_length)


def _train(run: Run, data: Dataset, revision: str | None):
    settings, made_from, in_full = training_settings(run), run.made_from("adapter"), run["tuning"] == "full"
    adapters = run.settings(qlora.QLoRA)
    without = set(splits.ranking_examples(data, run["ranking_share"], run["seed"])["user"])
    examples, validation = splits.training_examples(data, without), splits.held_out_examples(data, "validation")
    if examples.empty:
        raise GlossError("no drawn user has a training example; raise max_users")
    if in_full:
        model, tokenizer = load_base(run.base_model, load_in_4bit=False, revision=revision)
        model = model.float()
        trainable = everything = model.num_parameters()
    else:
        model, tokenizer = qlora.with_adapters(run.base_model, adapters, revision)
        trainable, everything = model.get_nb_trainable_parameters()
    texts = [encode(data, part, tokenizer, run["max_length"]) for part in (examples, validation)]
    trie = TitleTrie(tokenizer, data.trained_titles()).trie if run["loss"] == CATALOGUE else None
    judge, folder = _judge(run, data, validation, tokenizer), run.unfinished("adapter")
    result = training.train(model, tokenizer, *texts, settings, folder, made_from, "fine-tuning", trie, judge)
    result |= {
        "base_model": run["base_model"],
        "trained_with": "unsloth" if qlora.uses_unsloth() else "transformers",
        "training_texts": len(examples),
        "validation_texts": len(validation),
        "trainable_parameters": trainable,
        "all_parameters": everything,
    }
    weights = training.gather_weights(model)
    if training.processes().is_main_process:
        with run.writing("adapter") as part:
            if in_full:
                model.save_pretrained(part, state_dict=weights)
                tokenizer.save_pretrained(part)
            else:
                qlora.save_adapter(part, model, tokenizer, adapters, weights)
            write_json(part / run.folder.training.name, result)


def _judge(run: Run, data: Dataset, validation: pd.DataFrame, tokenizer) -> Callable | None:
    """What gives Recall@5 by the paper's rule of titles that a model writes for some validation users."""
    users = validation.sample(min(run["recall_users"], len(validation)), random_state=run["seed"])
    if users.empty:
        return None
    titles = data.titles()
    title_trie = TitleTrie(tokenizer, titles.values())
    bound = run["loss"] == CATALOGUE
    how = Decoding(decoding=CATALOGUE, loss=run["loss"], length_penalty=0.0 if bound else 1.0)
    named = [[titles[item] for item in history] for history in users["history"]]
    inputs = prompts.encode_prompts(tokenizer, named, run["max_length"])
    batches = dict(enumerate(plan_batches(list(map(len, inputs)), how.num_beams * title_trie.trie.depth, BATCH_TOKENS)))

    def recall(model) -> dict[str, float]:
        written: list = [None] * len(inputs)
        for number, rows, _ in write_batches(lambda: Writer(model, tokenizer, how, title_trie), inputs, batches):
            for place, (texts, *_) in zip(batches[number], rows, strict=True):
                written[place] = texts
        found = Ranker(users.assign(texts=written), titles, {}, {}, rule=PAPER, exact_titles=True, seed=run["seed"])
        ranked, targets = as_run(found.paper("dense")), targets_of(users)
        return {RECALL: float(per_user_metrics(ranked, targets)[RECALL].mean())}

    return recall


def facts(result: dict) -> pd.DataFrame:
    """What training took, for looking at."""
    trainable, everything = result["trainable_parameters"], result["all_parameters"]
    values = {
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
    return pd.DataFrame({"value": values})


def loss_curves(run: Run, result: dict):
    """A figure of the training and validation loss by step, and of Recall@5 by minutes where it is known; saved."""
    return run.save_figure(data_plots.loss_curves(result), "02_loss")


def _run_first(files: list[str], overrides: list[tuple[str, str]], own: dict):
    from gloss_utils.runs import notebooks  # loads papermill, which a kernel does not need

    # The main process alone: the stage before, and the base model that all processes load.
    training.per_process_batch(own["batch_size"], own["gradient_accumulation"], PROCESSES)
    if parse_flag_from_env("ACCELERATE_USE_FSDP") and own["optimizer"] != "adamw_torch":
        raise GlossError(
            f"parameter optimizer is {own['optimizer']!r}, which cannot work on FSDP's shards; set it to adamw_torch"
        )
    if PROCESSES > 1:
        os.environ[SWITCH] = "off"  # it trains in a single process alone
    with training.as_single_process():
        notebooks.run(files, overrides, last="01")
        run = open_run(FINE_TUNE, own)
        if run["base_model"] == TINY and run.folder.why_run(FINE_TUNE, run.parameters):
            tiny_base(run, Dataset.load(run.open("data")))


def _run_together(own: dict):
    # What notebook 2 does, in every process.
    together = training.processes()
    together.wait_for_everyone()
    run = open_run(FINE_TUNE, own)
    if not run.folder.why_run(FINE_TUNE, run.parameters):
        together.print(f"{FINE_TUNE}: up to date")
        return
    result = prepare(run)
    if together.is_main_process:
        if result:
            loss_curves(run, result)
        print(run.finish())


def main(arguments: list[str] | None = None) -> int:
    """Fine-tune in all processes that `accelerate launch` started; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="accelerate launch -m gloss_utils.fine_tune",
        description="Run stage 2 in several processes, and stage 1 before it where it is not up to date.",
    )
    given.add_parameters(parser)
    options = parser.parse_args(arguments)
    overrides = [tuple(pair) for pair in options.overrides]
    try:
        own = given.resolve(FINE_TUNE, given.read(options.files, overrides))
        if is_main():
            _run_first(options.files, overrides, own)
        _run_together(own)
    except GlossError as error:
        if not is_main():
            time.sleep(5)  # the launcher ends this process where the main one has failed, and one error line is enough
        print(f"error: {error}", file=sys.stderr)
        return 1
    training.processes().destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
