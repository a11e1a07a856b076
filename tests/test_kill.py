"""Runs that end in the middle: killed in each stage, interrupted, orphaned, two at a time."""

import os
import random
import signal
import subprocess
import sys
import time

import psutil
import pytest
from kill import copied, differing, environment, family, finished, kill_in, start, until_line

from gloss_utils.__main__ import main
from gloss_utils.runs.folder import RunFolder
from gloss_utils.runs.lock import take
from gloss_utils.runs.parameters import FINE_TUNE, INDEX, RETRIEVE, STAGES
from gloss_utils.runs.run import open_run

NOT_THE_SAME = {"model/training.json", "model/adapter"}  # hold tokens per second, the base model's place


# The two stages that take hours; the others are as slow here and lose less.
QUICK = (FINE_TUNE, RETRIEVE)
STAGES = [stage if stage in QUICK else pytest.param(stage, marks=pytest.mark.slow) for stage in STAGES]


@pytest.mark.parametrize("stage", STAGES)
def test_a_run_that_was_killed_leaves_the_same_bytes(small_run, tmp_path, stage):
    """What the later stages make is decided by what this one leaves, so they need not run."""
    folder, file = small_run
    share = random.Random(stage).random()
    copy, own, _ = kill_in(stage, share, folder, file, tmp_path, (stage,))
    finished(own, "--until", stage[:2])
    outputs = [name for name in folder.stages()[stage]["outputs"] if name not in NOT_THE_SAME]
    outputs += ["model/adapter/adapter_model.safetensors"] if stage == FINE_TUNE else []
    assert set(copy.stages()[stage]["outputs"]) == set(folder.stages()[stage]["outputs"])
    assert differing(folder, copy, outputs) == []
    assert not [path for path in copy.root.rglob(".*") if path.name.endswith((".partial", ".old"))]


@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM])
def test_a_signal_ends_a_run_in_one_line_and_it_goes_on(small_run, tmp_path, number):
    _, own = copied(*small_run, tmp_path, (FINE_TUNE,))
    process = start(own)
    until_line(process, "Executing:  10%")  # a kernel is at work
    processes, begun = family(process), time.monotonic()
    assert len(processes) > 1
    process.send_signal(number)
    said = process.communicate(timeout=60)[0].strip().splitlines()
    assert process.returncode == 130
    assert said[-1] == "error: interrupted in 02_fine_tune; the same command goes on from there"
    assert "Traceback" not in "\n".join(said)
    assert not psutil.wait_procs(processes, timeout=max(0, 10 - (time.monotonic() - begun)))[1]
    finished(own, "--until", "02")


def test_kernels_end_when_their_runner_is_killed(small_run, tmp_path):
    _, own = copied(*small_run, tmp_path, (FINE_TUNE,))
    process = start(own)
    until_line(process, "Executing:  10%")
    _, *kernels = family(process)
    process.kill()
    process.wait()
    assert kernels and not psutil.wait_procs(kernels, timeout=10)[1]


TAKE = "from pathlib import Path; from gloss_utils.runs.lock import take;"


def held_elsewhere(path) -> subprocess.Popen:
    """Another process that holds a lock."""
    code = f"{TAKE} held = take(Path({str(path)!r})); print(); input()"
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment()
    )
    process.stdout.readline()
    return process


def open_alone(stage: str, folder: RunFolder):
    return open_run(stage, {"run_dir": str(folder.root)})


@pytest.mark.parametrize("name", [".run.lock", ".stage.lock"])
def test_the_second_run_in_a_folder_is_told_who_holds_it(copied_run, capfd, monkeypatch, name):
    folder, file = copied_run
    monkeypatch.setattr("gloss_utils.runs.lock.DYING", 0.5)
    before = folder.manifest.read_bytes()
    other = held_elsewhere(folder.root / name)
    assert main(["run", str(file), "--force"]) == 1
    said = capfd.readouterr().err.strip().splitlines()[-1]
    assert f"error: {folder.root} is in use by process {other.pid} on " in said and " since 20" in said
    with pytest.raises(Exception, match=f"is in use by process {other.pid} on"):
        open_alone(INDEX, folder)
    assert folder.manifest.read_bytes() == before
    other.kill()  # its lock dies with it
    other.wait()
    open_alone(INDEX, folder)


def test_a_kernel_that_runs_its_first_cell_again_does_not_lock_itself_out(copied_run):
    folder, _ = copied_run
    first = open_alone(INDEX, folder)
    second = open_alone(INDEX, folder)
    assert first.lock is second.lock
    del first
    check = [
        sys.executable,
        "-c",
        f"{TAKE} take(Path({str(folder.stage_lock)!r}))",
    ]
    assert subprocess.run(check, env=environment(), capture_output=True).returncode == 1
    second.lock.release()
    assert subprocess.run(check, env=environment(), capture_output=True).returncode == 0


def test_leftovers_of_killed_processes_are_removed_and_a_folder_that_was_being_replaced_comes_back(copied_run):
    folder, _ = copied_run
    (folder.root / "model/.training.json.99999.partial").write_text("half")
    (folder.root / "index/.dense.99999.partial").mkdir()
    (folder.root / f"notebooks/.x.{os.getppid()}.partial").write_text("the runner is writing it")
    folder.dense_index.rename(folder.root / "index/.dense.99999.old")
    (folder.root / "index/.bm25.99999.old").mkdir()
    open_alone(RETRIEVE, folder).lock.release()
    left = {path.name for path in folder.root.rglob(".*")}
    locks = {".stage.lock", ".stage.lock.holder", ".run.lock", ".run.lock.holder", ".hashes.json"}
    assert left == locks | {f".x.{os.getppid()}.partial"}
    assert folder.damaged(folder.stages()[INDEX]) is None


def test_a_lock_waits_for_one_that_is_let_go(tmp_path):
    other = held_elsewhere(tmp_path / "lock")
    other.stdin.close()
    assert take(tmp_path / "lock", patience=30)
    other.wait()
