"""Fine-tuning in several processes: the same steps, the same losses, and a run that goes on from them."""

import json
import os
import random
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import one_line_error, run_of
from test_finetune import TITLES, settings
from transformers import set_seed
from transformers.trainer_pt_utils import BatchRebalanceSampler

from gloss_utils import fine_tune
from gloss_utils.base.files import read_json
from gloss_utils.language import qlora, tiny, trainer, training
from gloss_utils.runs import notebooks

TWO = ["launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0", "-m", "gloss_utils.fine_tune"]
STEPS = ["-p", "batch_size", "2", "-p", "gradient_accumulation", "2", "-p", "epochs", "2"]


@pytest.mark.parametrize(
    ("batch_size", "accumulation", "count", "expected"),
    [(4, 4, 1, (4, 4)), (4, 4, 2, (4, 2)), (4, 4, 8, (2, 1)), (16, 1, 2, (8, 1)), (9, 4, 6, (3, 2)), (3, 1, 3, (1, 1))],
)
def test_processes_share_a_step(batch_size, accumulation, count, expected):
    assert training.per_process_batch(batch_size, accumulation, count) == expected


def test_a_step_that_cannot_be_shared():
    with one_line_error("3 processes cannot equally share the 16 texts", "launch 1 or 2 or 4 or 8 or 16"):
        training.per_process_batch(4, 4, 3)


def batches(lengths: list[int], count: int, accumulation: int, seed: int = 1) -> list[list[list[int]]]:
    """Each process's batches of one epoch, 16 texts a step."""
    return [
        list(BatchRebalanceSampler(lengths, 16, count, accumulation, seed=seed, rank=rank, drop_last=False))
        for rank in range(count)
    ]


def test_steps_are_random_texts_and_only_their_batches_go_by_length():
    lengths = torch.randint(20, 400, (100,), generator=torch.Generator().manual_seed(0)).tolist()
    order = torch.randperm(100, generator=torch.Generator().manual_seed(1)).tolist()
    steps = [set(order[at : at + 16]) for at in range(0, 100, 16)]
    for count, accumulation in ((1, 4), (2, 2), (2, 1), (1, 1)):
        ranks = batches(lengths, count, accumulation)
        found = [
            {text for rank in ranks for batch in rank[at : at + accumulation] for text in batch}
            for at in range(0, len(ranks[0]), accumulation)
        ]
        assert found == steps
    assert batches(lengths, 1, 4) != batches(lengths, 1, 4, seed=2)


def test_batches_by_length_train_the_same_with_less_padding(tmp_path, monkeypatch):
    tokenizer = tiny.train_tokenizer(TITLES, 400)
    rng = random.Random(1)
    texts = [[rng.randrange(3, 300) for _ in range(rng.randrange(5, 100))] for _ in range(32)]
    order = torch.randperm(32, generator=torch.Generator().manual_seed(1)).tolist()
    pad, places, losses = trainer.Padding.__call__, {}, {}
    for sampling, ordered in (("batch_rebalance", texts), ("sequential", [texts[i] for i in order])):
        sizes = []
        monkeypatch.setattr(trainer.Padding, "__call__", lambda *call, s=sizes: _noted(s, pad(*call)))
        set_seed(1)
        chosen = replace(settings(epochs=1, sampling=sampling), gradient_accumulation=4)
        model = tiny.new_model(tokenizer, layers=1, width=64)
        result = training.train(model, tokenizer, ordered, texts[:4], chosen, tmp_path / sampling, {}, "test")
        losses[sampling], places[sampling] = result["history"][-1]["eval_loss"], sum(sizes)
    assert losses["batch_rebalance"] == pytest.approx(losses["sequential"], rel=1e-6)
    assert sum(map(len, texts)) < places["batch_rebalance"] < 0.8 * places["sequential"]


def _noted(sizes: list[int], batch: dict) -> dict:
    sizes.append(batch["input_ids"].numel())
    return batch


FULL = ["-p", "tuning", "full", "-p", "load_in_4bit", "false", "-p", "loss", "catalogue", "-p", "decoding", "catalogue"]


@pytest.mark.parametrize("more", [[], FULL], ids=["paper", "catalogue"])
def test_two_processes_train_as_one_and_the_run_goes_on(copied_run, capfd, more):
    folder, file = copied_run
    steps = STEPS + more
    alone = folder.root.parent / "elsewhere/alone"  # not beside it: runs share what they make
    shutil.copytree(folder.root, alone)
    assert fine_tune.main([str(file), *steps, "-p", "run_dir", str(alone)]) == 0
    launched = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.accelerate_cli", *TWO, str(file), *steps],
        cwd=notebooks.ROOT,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert launched.returncode == 0, launched.stderr
    assert launched.stdout.count("02_fine_tune finished") == 1
    one, two = read_json(alone / "model/adapter/training.json"), read_json(folder.training)
    assert (one["processes"], two["processes"]) == (1, 2)
    assert one["steps"] == two["steps"] and len(one["history"]) == len(two["history"])
    for a, b in zip(one["history"], two["history"], strict=True):
        assert a["num_input_tokens_seen"] == b["num_input_tokens_seen"]
        for name in {"loss", "grad_norm", "eval_loss"} & set(a):
            # The validation loss is a mean over batches, and two processes fill theirs with other texts.
            assert a[name] == pytest.approx(b[name], rel=1e-2 if name == "eval_loss" else 1e-4), name
    assert (folder.figures / "02_loss.png").exists() and not folder.unfinished.exists()
    capfd.readouterr()
    assert fine_tune.main([str(file), *steps]) == 0
    assert capfd.readouterr().out.splitlines() == ["01_explore_data: up to date", "02_fine_tune: up to date"]
    notebooks.run([str(file)], [(steps[at + 1], steps[at + 2]) for at in range(0, len(steps), 3)], last="03")
    lines = capfd.readouterr().out.splitlines()
    assert lines[:2] == ["01_explore_data: up to date", "02_fine_tune: up to date"]


def test_wrong_parameters_are_one_line(copied_run, capfd, monkeypatch):
    _, file = copied_run
    assert fine_tune.main([str(file), "-p", "lora_rank", "0"]) == 1
    monkeypatch.setattr(fine_tune, "PROCESSES", 3)
    assert fine_tune.main([str(file), "-p", "gradient_accumulation", "1"]) == 1
    monkeypatch.setattr(fine_tune, "PROCESSES", 2)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert fine_tune.main([str(file), "-p", "optimizer", "adamw_8bit"]) == 1
    assert capfd.readouterr().err.splitlines() == [
        "error: parameter lora_rank is 0; it has to be greater than or equal to 1",
        "error: 3 processes cannot equally share the 4 texts of a step (batch_size 4 x gradient_accumulation 1); "
        "launch 1 or 2 or 4, or change one of the two",
        "error: parameter optimizer is 'adamw_8bit', which cannot work on FSDP's shards; set it to adamw_torch",
    ]


def test_evaluating_leaves_the_4bit_weights_trainable(small_run):
    run = run_of(small_run)
    model, tokenizer = qlora.with_adapters(run.folder.base, run.settings(qlora.QLoRA))
    ids = torch.tensor([tokenizer("Title: Rose Toner").input_ids])
    losses, gradients = [], []
    for _ in range(2):
        loss = model.train()(input_ids=ids, labels=ids).loss
        loss.backward()
        losses.append(loss.item())
        gradients.append([weight.grad.clone() for weight in model.parameters() if weight.requires_grad])
        model.zero_grad()
        with torch.no_grad():
            model.eval()(input_ids=ids)
    assert losses[0] == losses[1]
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_the_configuration_of_fsdp_is_one_that_accelerate_reads():
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(Path(notebooks.ROOT, "params/accelerate/fsdp_qlora.yaml")))
    assert config.distributed_type == "FSDP" and config.fsdp_config["fsdp_version"] == 2


@pytest.mark.parametrize("loss", ["text", "catalogue"])
def test_fsdp_shards_float32_norms_and_embeddings_beside_4bit_weights_in_bf16(tmp_path, loss):
    """On two CPU processes; FSDP2 asks only the weights that are trained to be of one type."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tests.fsdp", str(tmp_path), str(port), loss]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=notebooks.ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    alone, together = (json.loads(line) for line in done.stdout.splitlines() if line.startswith("{"))
    expected = {"rest": ["torch.float32"], "4 bits": ["torch.bfloat16"], "trained": ["torch.float32"]}
    assert together["types"] == expected
    assert together["sharded"] == pytest.approx(alone["alone"], rel=2e-3)  # its losses are in bf16
    assert together["sharded"][-1] < together["sharded"][0]
