"""How the benchmarks measure: rivals take turns in one process; memory is that of a fresh process for each."""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch

from gloss_utils.language.models import peak_memory


def alternate(
    rivals: dict[str, Callable[[int], object]], runs: int, clock: Callable[[], float] = time.perf_counter
) -> tuple[dict[str, list[float]], list[dict]]:
    """Let rivals take turns, `runs` times after a warm-up; each is called with the number of the run, 0 the warm-up's.

    Returns each rival's seconds and, run by run, what they answered.
    """
    seconds, answers = {name: [] for name in rivals}, []
    for run in range(runs + 1):
        answers.append({})
        for name, call in rivals.items():
            begun = clock()
            answers[run][name] = call(run)
            _wait()
            if run:
                seconds[name].append(clock() - begun)
    return seconds, answers[1:]


def ratio(seconds: dict[str, list[float]], ours: str, theirs: str) -> float:
    """How many times as fast the first is, by medians."""
    return statistics.median(seconds[theirs]) / statistics.median(seconds[ours])


def in_fresh_process(module: str, *arguments: str) -> dict:
    """Run `python -m module arguments` and return the JSON object of its last line."""
    done = subprocess.run([sys.executable, "-m", module, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{module} {' '.join(arguments)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def device() -> str:
    """What the measurement ran on."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"


def _wait():
    if torch.cuda.is_available():
        torch.cuda.synchronize()


if __name__ == "__main__":
    print(json.dumps({"peak": peak_memory()}))
