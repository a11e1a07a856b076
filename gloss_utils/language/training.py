"""The training loop of every model here: transformers' Trainer, resumable, with one progress bar.

It trains in all processes that `accelerate launch` started; an optimiser step holds the same texts, however many these
are. Training that was cut off and resumed ends with the same bytes, on the same processor with as many threads.
"""

import ctypes
import importlib.util
import math
import os
import sys
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import PartialState
from torch.distributed.tensor import DTensor
from transformers import EarlyStoppingCallback, PrinterCallback, TrainingArguments

from gloss_utils.base.errors import GlossError
from gloss_utils.base.files import digest, full_disk_in_one_line
from gloss_utils.language import catalogue_loss, checkpoints
from gloss_utils.language.models import has_bf16, peak_memory
from gloss_utils.language.trainer import Padding, Progress, ResumableTrainer
from gloss_utils.language.trie import Trie

LOSS = "loss"
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


@dataclass(frozen=True)
class Settings:
    """How to train.

    An optimiser step takes batch_size x gradient_accumulation texts, of all processes together. patience: epochs
    without a better one before training stops (null: it does not stop early). criterion: what makes an epoch better, a
    lower validation "loss" or a higher value of a metric of the judge (see `train`). sampling: how steps are cut
    into batches, "batch_rebalance" (by length) or "sequential" (as the texts come, the same number per batch).
    bf16_on_cpu: multiply in bfloat16 where the processor can; a GPU that can always does. logs: the tracker's folder.
    """

    learning_rate: float
    lr_scheduler: str
    warmup_steps: int
    weight_decay: float
    optimizer: str
    batch_size: int
    gradient_accumulation: int
    epochs: int
    seed: int
    patience: int | None = None
    criterion: str = LOSS
    gradient_checkpointing: bool = False
    report_to: str = "none"
    logs: str = ""
    sampling: str = "batch_rebalance"
    bf16_on_cpu: bool = False


def processes() -> PartialState:
    """The processes that train together: this one alone, unless `accelerate launch` started more."""
    on_gpu = torch.cuda.is_available()
    if not on_gpu:
        os.environ.setdefault("ACCELERATE_TORCH_DEVICE", "cpu")  # else "cpu:0", which no checkpoint can be loaded to
    # The other processes wait while the main one downloads data, or trains a base model.
    return PartialState(cpu=not on_gpu, timeout=timedelta(hours=3))


@contextmanager
def as_single_process():
    """Let one of several launched processes work as if it were the only one, before it joins the others."""
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "ACCELERATE_USE_FSDP")
    hidden = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ |= hidden
        PartialState._reset_state()  # else it would say for the life of this process that there is only one


def per_process_batch(batch_size: int, gradient_accumulation: int, count: int) -> tuple[int, int]:
    """The batch size and gradient accumulation of each of `count` processes, so that a step has as many texts as one
    process would take.

    Raises `GlossError` where the texts cannot be shared equally.
    """
    texts = batch_size * gradient_accumulation
    if texts % count:
        fitting = [str(number) for number in range(1, texts + 1) if texts % number == 0]
        raise GlossError(
            f"{count} processes cannot equally share the {texts} texts of a step (batch_size {batch_size} x "
            f"gradient_accumulation {gradient_accumulation}); launch {' or '.join(fitting)}, or change one of the two"
        )
    fewer = math.gcd(gradient_accumulation, count)
    return batch_size // (count // fewer), gradient_accumulation // fewer


def cpu_has_bf16() -> bool:
    """Whether this processor multiplies in bfloat16 faster than in float32."""
    known = torch.cpu.get_capabilities()
    return any(known.get(name) for name in ("avx512_bf16", "amx_bf16"))


def _arguments(settings: Settings, folder: Path, validated: bool) -> TrainingArguments:
    on_gpu = torch.cuda.is_available()
    in_bf16 = has_bf16() if on_gpu else settings.bf16_on_cpu and cpu_has_bf16()
    count = processes().num_processes
    batch_size, accumulation = per_process_batch(settings.batch_size, settings.gradient_accumulation, count)
    arguments = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=settings.epochs,
        seed=settings.seed,
        per_device_train_batch_size=batch_size,
        per_device_eval_batch_size=batch_size,
        gradient_accumulation_steps=accumulation,
        # Lengths vary so much that 41 % of a batch of four Beauty texts would be padding. This sampler draws a step's
        # texts at random, and then cuts them into batches of similar length: 12 % is padding, and the gradient is the
        # same, because the loss is the mean over the step's tokens. Drawing whole steps by length ("group_by_length")
        # would leave 1 %, but change which texts are in a step.
        train_sampling_strategy=settings.sampling,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.lr_scheduler,
        warmup_steps=settings.warmup_steps,
        weight_decay=settings.weight_decay,
        optim=settings.optimizer,
        eval_strategy="epoch" if validated else "no",
        save_strategy="epoch",
        load_best_model_at_end=validated,
        metric_for_best_model=f"eval_{settings.criterion}",
        greater_is_better=settings.criterion != LOSS,
        bf16=in_bf16,
        fp16=on_gpu and not in_bf16,
        use_cpu=not on_gpu,
        dataloader_pin_memory=on_gpu,
        gradient_checkpointing=settings.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False} if settings.gradient_checkpointing else None,
        include_num_input_tokens_seen="non_padding",
        remove_unused_columns=False,
        restore_callback_states_from_checkpoint=True,  # how much patience is left after a kill
        prediction_loss_only=True,
        logging_steps=10,
        report_to=settings.report_to,
        disable_tqdm=True,
        ddp_find_unused_parameters=False,
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # else one process would take all GPUs, with a batch for each
    return arguments


def train(
    model,
    tokenizer,
    texts: list[list[int]],
    validation: list[list[int]],
    settings: Settings,
    folder: Path,
    made_from: dict,
    name: str,
    trie: Trie | None = None,
    judge: Callable[[torch.nn.Module], dict[str, float]] | None = None,
) -> dict:
    """Train `model` in place on token ids, evaluating on `validation` after each epoch where there is any.

    tokenizer: anything with a `pad_token_id`. trie: of the catalogue's titles, where the loss is to be on what it
    leaves open (see `catalogue_loss`); null: on whole texts. made_from: JSON values that say what the result depends
    on. Checkpoints go to `folder`; training with the same `made_from` goes on from the last sound one, any other starts
    anew. Where there is validation, the weights of the best epoch are kept, and with a patience training stops early.
    judge: gives metrics of the model, by name, after each epoch (null: none is asked for; several processes do not
    ask). Delete `folder` once the result is saved. Returns history (by step: losses, metrics, and the seconds that
    steps have taken), steps, processes, tokens_per_second (of all processes, without padding), peak_memory_gb (of this
    process) and device. Raises `GlossError` where the processes cannot share a step equally.
    """
    together = processes()
    keep_freed_memory()
    made_from = {"training": digest(made_from)}
    with together.main_process_first():  # the main process tidies the folder before the others look
        checkpoint = checkpoints.last_sound(folder, made_from)
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    os.environ["TENSORBOARD_LOGGING_DIR"] = settings.logs
    progress = Progress(name, judge if together.num_processes == 1 else None)
    trainer = ResumableTrainer(
        model=model,
        args=_arguments(settings, folder, bool(validation)),
        train_dataset=_rows(texts, trie, tokenizer),
        eval_dataset=_rows(validation, trie, tokenizer) or None,
        data_collator=Padding(tokenizer.pad_token_id),
        callbacks=[progress] + ([EarlyStoppingCallback(settings.patience)] if validation and settings.patience else []),
    )
    trainer.made_from, trainer.trie = made_from, trie
    trainer.remove_callback(PrinterCallback)
    with full_disk_in_one_line(folder):
        trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
    if settings.report_to == "wandb":
        importlib.import_module("wandb").finish()  # else it ends with the process, which may be killed
    return {
        "history": [log for log in trainer.state.log_history if "loss" in log or "eval_loss" in log],
        "steps": trainer.state.global_step,
        "processes": together.num_processes,
        "tokens_per_second": round(progress.tokens / progress.seconds, 1) if progress.seconds else None,
        "peak_memory_gb": round(peak_memory() / 2**10, 2),
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
    }


def _rows(texts: list[list[int]], trie: Trie | None, tokenizer) -> list[dict]:
    if trie is None:
        return [{"input_ids": ids} for ids in texts]
    choices = catalogue_loss.Choices(trie, tokenizer.eos_token_id)
    return [{"input_ids": ids, "nodes": choices.nodes(ids)} for ids in texts]


def keep_freed_memory():
    """Let glibc keep the memory that a training step frees for the next step, in place of giving it back to Linux and
    asking for it again, cleared: that took a third of the time of training on a CPU."""
    if sys.platform != "linux" or torch.cuda.is_available():
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # which other C libraries lack
    if mallopt:
        for option, size in ((M_MMAP_THRESHOLD, 2**30), (M_TRIM_THRESHOLD, 2**31 - 1)):
            mallopt(option, size)


def gather_weights(model) -> dict[str, torch.Tensor] | None:
    """The trained weights, gathered from the shards that each process holds under FSDP; None where there are no shards.

    All processes have to call it.
    """
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    if not any(isinstance(weight, DTensor) for weight in trained.values()):
        return None
    return {name: weight.full_tensor() for name, weight in trained.items()}


def check_reporter(name: str):
    """Raise `GlossError` where the tracker to report to is not installed."""
    if name != "none" and importlib.util.find_spec(name) is None:
        raise GlossError(
            f"parameter report_to is {name!r}, but the package {name} is not installed; "
            f"pip install {name}, or set report_to to none"
        )
