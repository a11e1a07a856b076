"""Harm a run in many ways, run it again, and compare it with one that was never harmed.

    python -m tests.kill --times 60 [--seed 0] [--stage 02]

The stages take turns, and so do four kinds of harm: the run is killed with SIGKILL at a seeded random moment of the
stage; the same, and the run and its data are moved before it goes on; a file of the stage is deleted; one bit of it is
flipped. Prints a table, and exits with 1 where bytes of `metrics.json` or `rankings/` differ, or where something costly
that was whole was made again.
"""

import argparse
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import yaml

from gloss_utils.base.files import fingerprint, remove, write_json
from gloss_utils.base.seals import is_sealed, seal_of
from gloss_utils.runs.artefacts import RECIPES, path_of
from gloss_utils.runs.folder import RunFolder
from gloss_utils.runs.parameters import ROOT, STAGES
from tests.conftest import write_parameters, write_small_shop
from tests.helpers import flip

KINDS = ("killed", "killed and moved", "deleted", "a bit flipped")

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
        entry = stages.pop(stage)
        made = [path_of(copy.root, name) for name in entry["artefacts"]]
        for path in (*made, *map(seal_of, made), *(copy.root / name for name in entry["outputs"])):
            remove(path)
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


def files_of(folder: RunFolder, stage: str) -> list[Path]:
    """The files that a stage left: artefacts, their seals, views; and the manifest's own."""
    entry = folder.stages()[stage]
    made = [path_of(folder.root, name) for name in entry["artefacts"]]
    paths = [*made, *map(seal_of, made), *(folder.root / name for name in entry["outputs"])]
    inside = [file for path in paths for file in (sorted(path.rglob("*")) if path.is_dir() else [path])]
    return [file for file in inside if file.is_file()]


def moved(folder: RunFolder, file: Path, root: Path) -> tuple[RunFolder, Path]:
    """The run, its data and its parameter file, moved to another place."""
    values, to = yaml.safe_load(file.read_text()), root / "moved"
    shutil.rmtree(to, ignore_errors=True)
    to.mkdir(parents=True)
    folder.root.rename(to / "renamed")
    shutil.copytree(values["data_dir"], to / "data")
    return RunFolder(to / "renamed"), write_parameters(
        to / "p.yaml", **values | {"run_dir": str(to / "renamed"), "data_dir": str(to / "data")}
    )


def seals(folder: RunFolder) -> dict[str, bytes]:
    """The seals of the costly artefacts that are whole: a new one is written where an artefact is made."""
    found = {name: path_of(folder.root, name) for name in RECIPES}
    return {name: seal_of(path).read_bytes() for name, path in found.items() if is_sealed(path)}


def go_on(file: Path) -> str:
    """Run to the end; where something costly is damaged, a first run has to name it. Returns what was made again."""
    done = subprocess.run(command(file), cwd=ROOT, capture_output=True, text=True, env=environment())
    if done.returncode == 0:
        return ""
    asked = re.search(r"-p remake (\w+)", done.stderr)
    assert asked, done.stdout[-1000:] + done.stderr[-2000:]
    finished(file, "-p", "remake", asked[1])
    return asked[1]


def harmed(kind: str, stage: str, rng: random.Random, whole: RunFolder, file: Path, root: Path):
    """A copy of the whole run after harm of a kind in a stage: the folder, its parameter file, and what was done."""
    if kind in ("killed", "killed and moved"):
        without = STAGES[STAGES.index(stage) :]
        folder, own, moment = kill_in(stage, rng.random(), whole, file, root, without)
        said = f"{moment:.1f} s of {seconds_of(whole, stage):.1f}"
        return (*(moved(folder, own, root) if kind == "killed and moved" else (folder, own)), said)
    folder, own = copied(whole, file, root, ())
    path = rng.choice(files_of(folder, stage))
    path.unlink() if kind == "deleted" else flip(path)
    return folder, own, str(path.relative_to(folder.root))


def main(arguments: list[str] | None = None) -> int:
    """Run the campaign; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.kill", description=__doc__.split("\n")[0])
    parser.add_argument("--times", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stage", metavar="NN", help="harm this stage only")
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
        print("| case | stage | harm | where | made again on request | as before |", flush=True)
        print("| --- | --- | --- | --- | --- | --- |", flush=True)
        for number in range(options.times):
            stage, kind = chosen[number % len(chosen)], KINDS[number // len(chosen) % len(KINDS)]
            folder, own, where = harmed(kind, stage, rng, whole, file, root / "harmed")
            before = seals(folder)
            asked = go_on(own)
            names = ["metrics.json", *(f"rankings/{path.name}" for path in sorted(whole.rankings.iterdir()))]
            wrong = differing(whole, folder, names)
            after = seals(folder)
            wrong += [f"{name} was made twice" for name in before if after.get(name) != before[name]]
            failures += bool(wrong)
            print(f"| {number + 1} | {stage} | {kind} | {where} | {asked} | {', '.join(wrong) or 'yes'} |", flush=True)
    print(f"{options.times - failures} of {options.times} runs came out as before, and made nothing costly twice")
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
