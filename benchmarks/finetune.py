"""How much faster is fine-tuning in batches cut by length than in the paper's, four texts padded to the longest?

`python -m benchmarks.finetune`: a Llama of the demo's size with random weights, the demo's texts, sixteen texts a step.
Both rivals train from the same start on the same texts in each step, in turns. `--data-dir FOLDER --dataset beauty`
takes real texts; `--base-model llama-1b` (3b, 8b) takes those shapes with random weights, and a folder or hub name that
model, all trained as params/llama-1b.yaml says, for a GPU.
"""

# ruff: noqa: E402
import argparse
import gc
import json
import statistics
import tempfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from gloss_utils.base.unsloth_first import import_unsloth

import_unsloth()  # before transformers and peft, which it patches

import torch
from transformers import set_seed

from benchmarks import generation, timing
from benchmarks.baselines import load
from gloss_utils import fine_tune
from gloss_utils.base.files import remove
from gloss_utils.data import splits
from gloss_utils.language import models, qlora, tiny, training
from gloss_utils.runs import given
from gloss_utils.runs.folder import RunFolder
from gloss_utils.runs.parameters import FINE_TUNE, ROOT
from gloss_utils.runs.run import Run

RIVALS = {"ours": "batch_rebalance", "padded": "sequential"}
SEED = 3407
HELD_OUT = 64  # texts that the loss is measured on


class Contest:
    """One model with new adapters, and texts to train them on by each rival's batches."""

    def __init__(self, options: argparse.Namespace, folder: Path):
        self.run = _run(options.base_model, folder)
        data = load(options.dataset if options.data_dir else "demo", options.data_dir or folder)
        base = _base(self.run, options.base_model, data.items["title"].tolist())
        self.model, self.tokenizer = qlora.with_adapters(base, self.run.settings(qlora.QLoRA))
        examples = splits.training_examples(data).sample(options.texts + HELD_OUT, random_state=SEED)
        texts = fine_tune.encode(data, examples, self.tokenizer, self.run["max_length"])
        self.texts, self.held_out = texts[HELD_OUT:], texts[:HELD_OUT]
        self.start = [weight.detach().clone() for weight in self._trained()]
        self.places = {rival: [0, 0] for rival in RIVALS}  # in batches: those that hold a token, and all

    def _trained(self) -> list[torch.Tensor]:
        return [weight for weight in self.model.parameters() if weight.requires_grad]

    def train(self, rival: str):
        """One epoch from the start."""
        for weight, start in zip(self._trained(), self.start, strict=True):
            weight.data.copy_(start)
        texts, settings = self.texts, replace(fine_tune.training_settings(self.run), sampling=RIVALS[rival])
        if rival == "padded":  # in the order in which the other sampler draws the texts of each step
            order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(settings.seed))
            texts = [texts[i] for i in order]
        folder = self.run.folder.unfinished
        remove(folder)
        hook = self.model.register_forward_pre_hook(lambda *call: self._count(rival, call[2]), with_kwargs=True)
        training.train(self.model, self.tokenizer, texts, [], settings, folder, {}, name=rival)
        hook.remove()

    def _count(self, rival: str, batch: dict):
        self.places[rival][0] += int(batch["attention_mask"].sum())
        self.places[rival][1] += batch["input_ids"].numel()

    @torch.no_grad()
    def loss(self) -> float:
        """Nats per token of the held-out texts."""
        self.model.eval()
        rows = [torch.tensor([ids], device=self.model.device) for ids in self.held_out]
        losses = [float(self.model(input_ids=row, labels=row).loss) for row in rows]
        tokens = [row.shape[1] - 1 for row in rows]
        return sum(loss * count for loss, count in zip(losses, tokens, strict=True)) / sum(tokens)


def _run(base_model: str, folder: Path) -> Run:
    files = ["demo.yaml"] if base_model == models.TINY else ["demo.yaml", "llama-1b.yaml"]
    values = given.read([str(ROOT / "params" / file) for file in files], [])
    # The paper's batches; no warm-up, so that a short training changes the weights.
    values |= {"batch_size": 4, "gradient_accumulation": 4, "warmup_steps": 0, "epochs": 1}
    return Run(RunFolder(folder), "benchmark", {}, given.resolve(FINE_TUNE, values) | {"seed": SEED})


def _base(run: Run, base_model: str, titles: list[str]) -> str | Path:
    if base_model != models.TINY and base_model not in generation.SHAPES:
        return base_model
    set_seed(SEED)
    tokenizer = tiny.train_tokenizer(titles, run["tiny_vocabulary"])
    if base_model == models.TINY:
        model = tiny.new_model(tokenizer, run["tiny_layers"], run["tiny_width"])
    else:
        model = generation.new_model(base_model, models.compute_dtype())
    model.save_pretrained(run.folder.base)
    tokenizer.save_pretrained(run.folder.base)
    return run.folder.base


def compare(contest: Contest, runs: int) -> dict:
    """Speed, padding, and the loss after the same steps."""
    turns = {rival: lambda run, rival=rival: contest.train(rival) for rival in RIVALS}
    seconds, _ = timing.alternate(turns, runs)
    losses = {}
    for rival in RIVALS:
        contest.train(rival)
        losses[rival] = contest.loss()
    tokens = sum(map(len, contest.texts))
    return {
        "speedup": round(timing.ratio(seconds, "ours", "padded"), 3),
        "tokens_per_second": {rival: round(tokens / statistics.median(seconds[rival])) for rival in RIVALS},
        "padding_share": {rival: round(1 - held / total, 4) for rival, (held, total) in contest.places.items()},
        "loss_after_same_samples": {rival: round(loss, 6) for rival, loss in losses.items()},
        "loss_difference": abs(losses["ours"] - losses["padded"]),
    }


def _forget_peak():
    # Reading the data took more than a tiny model's training; Linux can start counting anew, on a GPU training does.
    gc.collect()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def main():
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base-model", default=models.TINY)
    parser.add_argument("--data-dir", help="folder of raw files; by default the demo's are made")
    parser.add_argument("--dataset", choices=("beauty", "toys", "sports"), default="beauty", help="of --data-dir")
    parser.add_argument("--texts", type=int, default=192, help="to train on in each run, a multiple of 16")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--memory", choices=RIVALS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        contest = Contest(options, Path(folder))
        if options.memory:
            _forget_peak()
            before = models.peak_memory()
            contest.train(options.memory)
            print(json.dumps({"before": before, "peak": models.peak_memory()}))
            return
        result = compare(contest, options.runs)
        parameters = contest.model.get_nb_trainable_parameters()[1]
    given = ["--base-model", options.base_model, "--dataset", options.dataset, "--texts", str(options.texts)]
    given += ["--data-dir", options.data_dir] if options.data_dir else []
    peaks = {rival: timing.in_fresh_process("benchmarks.finetune", *given, "--memory", rival) for rival in RIVALS}
    result |= {
        "peak_memory_ratio": round(peaks["ours"]["peak"] / peaks["padded"]["peak"], 3),
        "peak_memory_mib": {rival: round(peak["peak"]) for rival, peak in peaks.items()},
        "memory_before_training_mib": {rival: round(peak["before"]) for rival, peak in peaks.items()},
        "runs": options.runs,
        "texts": options.texts,
        "dataset": options.dataset if options.data_dir else "demo",
        "device": timing.device(),
        "model": f"{options.base_model}, {parameters:,} parameters",
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
