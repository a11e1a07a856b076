"""Kill a run with SIGKILL at a seeded random moment, resume it, and compare its bytes with a run that was never killed.

    python -m tests.kill --times 20 [--seed 0] [--stage 02]

The stages take turns, each killed somewhere between its start and its end; all that it and later stages made is removed
before. Prints a table, and exits with 1 where bytes of `metrics.json` or `rankings/` differ.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import yaml

from gloss_utils.base.files import fingerprint, write_json
from gloss_utils.runs.folder import RunFolder
from gloss_utils.runs.parameters import EVALUATE, ROOT, STAGES
from tests.conftest import write_parameters, write_small_shop

LONGER = {"epochs": 3, "sasrec_epochs": 3, "tiny_steps": 30}  # so that a kill may find checkpoints


def command(file: Path, *more: str) -> list[str]:
    """The command line of a run."""
    return [sys.executable, "-m", "gloss_utils", "run", str(file), *more]


def start(file: Path, *more: str) -> subprocess.Popen:
    """A run in a process of its own, its output one pipe."""
    return subprocess.Popen(
        command(file, *more), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment()
    )


def environment() -> dict[str, str]:
    """What a run's process finds in its environment (`tests.conftest` sets the number of threads)."""
    return os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}


def until_line(process: subprocess.Popen, text: str):
    """Read a run's output until a line has `text` in it."""
    seen = []
    for line in process.stdout:
        seen.append(line)
        if text in line:
            return
    raise AssertionError(f"the run ended without {text!r}:\n{''.join(seen[-20:])}")


def family(process: subprocess.Popen) -> list[psutil.Process]:
    """A process and all that it started, kernels in sessions of their own included."""
    parent = psutil.Process(process.pid)
    return [parent, *parent.children(recursive=True)]


def kill(process: subprocess.Popen):
    """SIGKILL a run and its kernels."""
    processes = family(process)
    for each in processes:
        each.kill()
    psutil.wait_procs(processes, timeout=30)
    process.wait()


def finished(file: Path, *more: str):
    """Run to the end, which must be good."""
    done = subprocess.run(command(file, *more), cwd=ROOT, capture_output=True, text=True, env=environment())
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-2000:]


def copied(folder: RunFolder, file: Path, root: Path, without: tuple[str, ...]) -> tuple[RunFolder, Path]:
    """A copy of a finished run as if some stages had never run, and its parameter file."""
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(folder.root, root / "run")
    copy = RunFolder(root / "run")
    stages = copy.stages()
    for stage in without:
        for name in stages.pop(stage)["outputs"]:
            path = copy.root / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    if EVALUATE in without:
        shutil.rmtree(copy.sasrec)
    write_json(copy.manifest, stages)
    return copy, write_parameters(root / "p.yaml", **yaml.safe_load(file.read_text()) | {"run_dir": str(copy.root)})


def seconds_of(folder: RunFolder, stage: str) -> float:
    """How long a stage's notebook took, its kernel's start included."""
    return json.loads((folder.notebooks / f"{stage}.ipynb").read_text())["metadata"]["papermill"]["duration"]


def kill_in(stage: str, share: float, folder: RunFolder, file: Path, root: Path, without: tuple[str, ...]):
    """Kill a run in `stage`, after this share of the stage's time: the folder and its parameter file, and the seconds.

    Where the stage is through before that, half the share is tried.
    """
    while True:
        copy, parameters = copied(folder, file, root, without)
        process = start(parameters)
        until_line(process, f"{stage}: running")
        moment = share * seconds_of(folder, stage)
        time.sleep(moment)
        kill(process)
        if stage not in copy.stages():
            return copy, parameters, moment
        share /= 2


def differing(one: RunFolder, other: RunFolder, names: list[str]) -> list[str]:
    """Those of the files and folders in a run folder whose bytes are not the same in another."""
    return [
        name
        for name in names
        if not (other.root / name).exists() or fingerprint(one.root / name) != fingerprint(other.root / name)
    ]


def main(arguments: list[str] | None = None) -> int:
    """Run the campaign; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.kill", description=__doc__.split("\n")[0])
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stage", metavar="NN", help="kill in this stage only")
    options = parser.parse_args(arguments)
    chosen = [stage for stage in STAGES if not options.stage or stage.startswith(options.stage)]
    rng, failures = random.Random(options.seed), 0
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        values = LONGER | {"run_dir": str(root / "whole"), "data_dir": str(root / "data")}
        write_small_shop(root / "data")
        file = write_parameters(root / "whole.yaml", **values)
        finished(file)
        whole = RunFolder(root / "whole")
        print("| kill | stage | seconds into it | of | same bytes |\n| --- | --- | --- | --- | --- |", flush=True)
        for time_number in range(options.times):
            stage = chosen[time_number % len(chosen)]
            without = STAGES[STAGES.index(stage) :]
            folder, own, moment = kill_in(stage, rng.random(), whole, file, root / "killed", without)
            finished(own)
            names = ["metrics.json", *(f"rankings/{path.name}" for path in sorted(whole.rankings.iterdir()))]
            other = differing(whole, folder, names)
            failures += bool(other)
            took = seconds_of(whole, stage)
            print(
                f"| {time_number + 1} | {stage} | {moment:.1f} | {took:.1f} | {'no: ' * bool(other)}"
                f"{', '.join(other) or 'yes'} |",
                flush=True,
            )
    print(f"{options.times - failures} of {options.times} kills left the same bytes")
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
