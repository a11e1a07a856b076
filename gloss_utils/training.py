"""The training loop that the tiny base model and fine-tuning share: transformers' Trainer, resumable, with one bar."""

import hashlib
import importlib.util
import json
import os
import resource
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import EarlyStoppingCallback, PrinterCallback, Trainer, TrainerCallback, TrainingArguments, set_seed

from gloss_utils.errors import GlossError
from gloss_utils.run_folder import full_disk_in_one_line, read_json, write_json

seed_everything = set_seed


@dataclass
class Settings:
    """What a training run is told. patience: epochs without a lower validation loss before it stops (null: never)."""

    learning_rate: float
    scheduler: str
    warmup_steps: int
    weight_decay: float
    optimizer: str
    batch_size: int
    gradient_accumulation: int
    epochs: int
    seed: int
    patience: int | None = None
    gradient_checkpointing: bool = False
    report_to: str = "none"
    logs: str = ""


class _Progress(TrainerCallback):
    """One progress bar over all steps with the latest losses, and the seconds spent in steps."""

    def __init__(self, name: str):
        self.name, self.seconds, self.bar, self.shown = name, 0.0, None, {}

    def on_train_begin(self, args, state, control, **kwargs):
        self.first_token = state.num_input_tokens_seen
        self.bar = tqdm(
            total=state.max_steps,
            initial=state.global_step,
            desc=self.name,
            unit="step",
            mininterval=2,
            file=sys.stderr,
        )

    def on_step_begin(self, args, state, control, **kwargs):
        self.begun = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        self.seconds += time.perf_counter() - self.begun
        self.bar.update(1)

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.shown |= {key: f"{logs[key]:.3f}" for key in ("loss", "eval_loss") if key in (logs or {})}
        self.bar.set_postfix(self.shown, refresh=False)

    def on_train_end(self, args, state, control, **kwargs):
        self.tokens = state.num_input_tokens_seen - self.first_token
        self.bar.close()


class _Padding:
    """Pads token ids on the right; the loss is on the whole text (METHOD, 2)."""

    def __init__(self, pad_token_id: int):
        self.pad = pad_token_id

    def __call__(self, texts: list[dict]) -> dict[str, torch.Tensor]:
        ids = [torch.tensor(text["input_ids"]) for text in texts]
        rows = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=self.pad)
        mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in ids], batch_first=True)
        return {"input_ids": rows, "attention_mask": mask, "labels": rows.masked_fill(mask == 0, -100)}


def _arguments(settings: Settings, folder: Path, validated: bool) -> TrainingArguments:
    on_gpu = torch.cuda.is_available()
    in_bf16 = on_gpu and torch.cuda.is_bf16_supported()
    return TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=settings.epochs,
        seed=settings.seed,
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.scheduler,
        warmup_steps=settings.warmup_steps,
        weight_decay=settings.weight_decay,
        optim=settings.optimizer,
        eval_strategy="epoch" if validated else "no",
        save_strategy="epoch",
        save_total_limit=2,
        load_best_model_at_end=validated,
        metric_for_best_model="eval_loss",
        greater_is_better=False,
        bf16=in_bf16,
        fp16=on_gpu and not in_bf16,
        use_cpu=not on_gpu,
        dataloader_pin_memory=on_gpu,
        gradient_checkpointing=settings.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False} if settings.gradient_checkpointing else None,
        include_num_input_tokens_seen="non_padding",
        remove_unused_columns=False,
        restore_callback_states_from_checkpoint=True,  # the patience that was used up before a kill
        prediction_loss_only=True,
        logging_steps=10,
        report_to=settings.report_to,
        disable_tqdm=True,
    )


def train(
    model,
    tokenizer,
    texts: list[list[int]],
    validation: list[list[int]],
    settings: Settings,
    folder: Path,
    made_from: dict,
    name: str,
) -> dict:
    """Train `model` in place on token ids, evaluating on `validation` after each epoch where there is any.

    Checkpoints go to `folder` each epoch; a run with the same `made_from` goes on from the last whole one, another
    starts anew. With a patience, training stops early and the best epoch's weights are kept. Call `forget` once the
    result is saved. Returns history (losses by step), tokens_per_second (padding not counted), peak_memory_gb, device.
    """
    _start_over_if_other(folder, made_from)
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    os.environ["TENSORBOARD_LOGGING_DIR"] = settings.logs
    progress = _Progress(name)
    trainer = Trainer(
        model=model,
        args=_arguments(settings, folder, bool(validation)),
        train_dataset=[{"input_ids": ids} for ids in texts],
        eval_dataset=[{"input_ids": ids} for ids in validation] or None,
        data_collator=_Padding(tokenizer.pad_token_id),
        callbacks=[progress] + ([EarlyStoppingCallback(settings.patience)] if validation and settings.patience else []),
    )
    trainer.remove_callback(PrinterCallback)
    with full_disk_in_one_line(folder):
        trainer.train(resume_from_checkpoint=_last_whole(folder))
    return {
        "history": [log for log in trainer.state.log_history if "loss" in log or "eval_loss" in log],
        "steps": trainer.state.global_step,
        "tokens_per_second": round(progress.tokens / progress.seconds, 1) if progress.seconds else None,
        "peak_memory_gb": round(_peak_memory(on_gpu) / 2**30, 2),
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
    }


def forget(folder: Path):
    """Remove the checkpoints of a training whose result is saved."""
    shutil.rmtree(folder, ignore_errors=True)


def _start_over_if_other(folder: Path, made_from: dict):
    digest = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()
    record = folder / "made_from.json"
    if not record.exists() or read_json(record) != digest:
        shutil.rmtree(folder, ignore_errors=True)
        write_json(record, digest)


def _last_whole(folder: Path) -> str | None:
    # The trainer writes its state last: a checkpoint without it was cut off.
    for checkpoint in sorted(folder.glob("checkpoint-*"), key=lambda path: -int(path.name.split("-")[1])):
        try:
            json.loads((checkpoint / "trainer_state.json").read_text())
            return str(checkpoint)
        except (OSError, ValueError):
            shutil.rmtree(checkpoint)
    return None


def _peak_memory(on_gpu: bool) -> int:
    if on_gpu:
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def check_reporter(name: str):
    """Raise `GlossError` where the tracker to report to is not installed."""
    if name != "none" and importlib.util.find_spec(name) is None:
        raise GlossError(
            f"parameter report_to is {name!r}, but the package {name} is not installed; "
            f"pip install {name}, or set report_to to none"
        )
