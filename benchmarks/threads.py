"""What threads cost that wait: a small training loop as this package sets OpenMP, as OpenMP is by default, and with one
thread, alone and beside a busy job.

`python -m benchmarks.threads`: the settings take turns, each time in a fresh process, with and without another process
that keeps one processor busy; medians. Prints one JSON object; a ratio above 1 says that ours took less time.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from contextlib import contextmanager

SETTINGS = {
    "ours": {},  # the package sets what is not set; the next one does not load it
    "openmp's default": {},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
BUSY = "while True: pass"


def work(steps: int, plain: bool) -> dict[str, float]:
    """Wall and processor seconds of a small Llama's training steps. plain: without this package's settings."""
    if not plain:
        import gloss_utils  # noqa: F401  before torch
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 128, "intermediate_size": 320, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=2000, **sizes))
    optimizer = torch.optim.AdamW(model.parameters())
    texts = torch.randint(2000, (4, 120))
    for step in range(steps + 3):
        if step == 3:  # after a warm-up
            begun = time.perf_counter(), time.process_time()
        model(input_ids=texts, labels=texts).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return {"wall": time.perf_counter() - begun[0], "processor": time.process_time() - begun[1]}


@contextmanager
def beside(jobs: int):
    """So many other processes, each of which keeps one processor busy."""
    running = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(jobs)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def measure(name: str, steps: int) -> dict[str, float]:
    """`work` in a fresh process under one of the settings."""
    unset = {"OMP_WAIT_POLICY", "OMP_NUM_THREADS", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"}
    environment = {key: value for key, value in os.environ.items() if key not in unset} | SETTINGS[name]
    plain = ["--plain"] if name == "openmp's default" else []
    command = [sys.executable, "-m", "benchmarks.threads", "--work", "--steps", str(steps), *plain]
    return json.loads(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)


def compare(steps: int, runs: int) -> dict:
    """Medians of seconds of each setting, alone and beside one busy job, and how much longer others take than ours."""
    found = {}
    for place, jobs in (("alone", 0), ("beside a busy job", 1)):
        taken = {name: [] for name in SETTINGS}
        for _ in range(runs):
            for name in SETTINGS:
                with beside(jobs):
                    taken[name].append(measure(name, steps))
        seconds = {
            name: {kind: round(statistics.median(one[kind] for one in rows), 2) for kind in rows[0]}
            for name, rows in taken.items()
        }
        ours = seconds["ours"]["wall"]
        ratios = {name: round(rows["wall"] / ours, 2) for name, rows in seconds.items() if name != "ours"}
        found[place] = {"seconds": seconds, "times as long as ours": ratios}
    slower = found["beside a busy job"]["seconds"]["ours"]["wall"] / found["alone"]["seconds"]["ours"]["wall"]
    return found | {"ours beside a busy job / alone": round(slower, 2)}


def main():
    """Print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--plain", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        print(json.dumps(work(options.steps, options.plain)))
        return
    about = {"processors": os.cpu_count(), "steps": options.steps, "runs": options.runs}
    if hasattr(os, "getloadavg"):
        about["load before"] = round(os.getloadavg()[0], 1)
    print(json.dumps(about | compare(options.steps, options.runs)))


if __name__ == "__main__":
    main()
