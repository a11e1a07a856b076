"""transformers' Trainer as all models here are trained by it: what it does in a step, what it shows, what it saves."""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback

from gloss_utils.base.errors import GlossError
from gloss_utils.base.files import read_json, write_json
from gloss_utils.base.seals import is_sealed, seal
from gloss_utils.language import catalogue_loss, checkpoints
from gloss_utils.language.catalogue_loss import IGNORED, NOWHERE
from gloss_utils.language.trie import Trie

# Seconds between checkpoints within an epoch, in one process; several processes write one at the end of each epoch.
SAVE_EVERY = 600


class ResumableTrainer(Trainer):
    """Goes on from a checkpoint with the same bytes.

    made_from: what checkpoints are sealed with. trie: of the catalogue, where the loss is on what it leaves open.
    """

    made_from: dict
    trie: Trie | None = None

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if self.trie is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        trie = self.trie.to(inputs["input_ids"].device)
        found = catalogue_loss.loss(model, inputs, trie, num_items_in_batch)
        if num_items_in_batch is not None:  # of all processes, whose gradients are averaged
            found *= self.accelerator.num_processes
        return (found, {}) if return_outputs else found

    def _get_train_sampler(self, train_dataset=None):
        sampler = super()._get_train_sampler(train_dataset)
        sampler.seed = self.args.seed  # the Trainer does not pass it on
        return sampler

    def _save_checkpoint(self, model, trial):
        folder = Path(self.args.output_dir)
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            seal(folder / f"checkpoint-{self.state.global_step}", self.made_from)
            checkpoints.prune(folder, checkpoints.best(folder, self.state.best_global_step))

    # The Trainer does not save the losses since its last log, but the next log is to be the mean over them, too.
    def _save_rng_state(self, output_dir):
        super()._save_rng_state(output_dir)
        running = {"loss": self._tr_loss.item(), "last_logged": self._globalstep_last_logged}
        write_json(self._running(output_dir), running)

    def _load_rng_state(self, checkpoint):
        super()._load_rng_state(checkpoint)
        if checkpoint and self._running(checkpoint).exists():  # there is none for a process that was not there before
            running = read_json(self._running(checkpoint))
            self._tr_loss.fill_(running["loss"])
            self._globalstep_last_logged = running["last_logged"]

    def _running(self, checkpoint) -> Path:
        return Path(checkpoint) / f"running_loss_{self.args.process_index}.json"

    def _run_epoch(self, *args, **kwargs):
        stoppers = (found for found in self.callback_handler.callbacks if isinstance(found, EarlyStoppingCallback))
        if any(stopper.early_stopping_patience_counter >= stopper.early_stopping_patience for stopper in stoppers):
            self.control.should_training_stop = True  # training had stopped early when it was killed
            return
        super()._run_epoch(*args, **kwargs)

    def _load_best_model(self):
        best = Path(self.state.best_model_checkpoint)
        if not is_sealed(best, self.made_from):
            raise GlossError(f"{best} is not as it was written; run again, and training goes on from an earlier one")
        super()._load_best_model()

    def save_model(self, output_dir=None, _internal_call=False):
        super().save_model(output_dir, _internal_call)
        # FSDP writes shards later, but now each process looks whether the folder of the best checkpoint is there, and
        # all have to find the same.
        os.makedirs(output_dir, exist_ok=True)


class Progress(TrainerCallback):
    """One progress bar over all steps, with the latest losses; counts the seconds spent in steps; asks the judge."""

    def __init__(self, name: str, judge: Callable | None):
        self.name, self.judge, self.seconds, self.before, self.bar, self.shown = name, judge, 0.0, 0.0, None, {}

    def on_train_begin(self, args, state, control, **kwargs):
        self.before = next((log["seconds"] for log in reversed(state.log_history) if "seconds" in log), 0.0)
        self.first_token, self.saved = state.num_input_tokens_seen, time.monotonic()
        best = checkpoints.best(Path(args.output_dir), state.best_global_step)
        state.best_model_checkpoint = best and str(best)  # the folder may have moved since
        self.bar = tqdm(
            total=state.max_steps,
            initial=state.global_step,
            desc=self.name,
            unit="step",
            mininterval=2,
            file=sys.stderr,
            disable=not state.is_world_process_zero,
        )

    def on_step_begin(self, args, state, control, **kwargs):
        self.begun = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        self.seconds += time.perf_counter() - self.begun
        self.bar.update(1)
        ends_epoch = state.epoch == int(state.epoch)  # a checkpoint follows after the evaluation
        if args.world_size == 1 and not ends_epoch and time.monotonic() - self.saved >= SAVE_EVERY:
            control.should_save = True

    def on_save(self, args, state, control, **kwargs):
        self.saved = time.monotonic()

    def on_evaluate(self, args, state, control, metrics=None, model=None, **kwargs):
        if self.judge:
            found = self.judge(model.eval())  # each step of training sets it back
            state.log_history[-1] |= found
            metrics |= {f"eval_{name}": value for name, value in found.items()}  # what the best epoch is chosen by

    def on_log(self, args, state, control, logs=None, **kwargs):
        state.log_history[-1]["seconds"] = round(self.before + self.seconds, 1)
        self.shown |= {key: f"{logs[key]:.3f}" for key in ("loss", "eval_loss") if key in (logs or {})}
        self.bar.set_postfix(self.shown, refresh=False)

    def on_train_end(self, args, state, control, **kwargs):
        self.tokens = state.num_input_tokens_seen - self.first_token
        self.bar.close()


class Padding:
    """Pads token ids on the right; the loss is on the whole text (METHOD, 2), or where there is a choice (`nodes`)."""

    def __init__(self, pad_token_id: int):
        self.pad = pad_token_id

    def __call__(self, texts: list[dict]) -> dict[str, torch.Tensor]:
        ids = [text["input_ids"] for text in texts]
        rows, mask = _padded(ids, self.pad), _padded([[1] * len(row) for row in ids], 0)
        batch = {"input_ids": rows, "attention_mask": mask, "labels": rows.masked_fill(mask == 0, IGNORED)}
        if "nodes" in texts[0]:
            batch["nodes"] = _padded([text["nodes"] for text in texts], NOWHERE)
            batch["labels"] = rows.masked_fill(batch["nodes"] == NOWHERE, IGNORED)
        return batch


def _padded(rows: list[list[int]], value: int) -> torch.Tensor:
    return pad_sequence(list(map(torch.tensor, rows)), batch_first=True, padding_value=value)
