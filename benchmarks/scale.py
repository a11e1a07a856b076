"""What a stage takes for a made-up catalogue of any size: seconds, and the peak memory of a process of its own.

    python -m benchmarks.scale [--users 50000] [--items 100000] [--interactions 600000] [--folder DIR]

The raw files are two of the user's own tables, as CSV: interactions in no order of time, popularity falling as
1 / rank, some users with many interactions; ids as texts; titles of nine words, one in a hundred missing. `STAGES`
names what is measured; each works on what the one before left in the folder. Peak memory counts pages of mapped files,
which the system may drop.
"""

import argparse
import json
import re
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from gloss_utils.data import sources, splits
from gloss_utils.data.dataset import Dataset
from gloss_utils.data.rules import build
from gloss_utils.data.sources import OwnTables
from gloss_utils.runs.parameters import ROOT

SEED, AT_ONCE, WORDS, VOCABULARY = 3407, 2**20, 9, 200_000
BEGIN, END = 1_300_000_000, 1_700_000_000  # seconds
INTERACTIONS, ITEMS, DATA = "interactions.csv", "items.csv", "data"
USERS_AT_ONCE = 4096


def ids(letter: str, numbers: np.ndarray) -> pa.Array:
    """Texts as A000349128374, whose order is not that of the numbers."""
    scrambled = pa.array(numbers.astype(np.int64) * 2_654_435_761 % 2**40)
    return pc.binary_join_element_wise(letter, pc.utf8_lpad(scrambled.cast(pa.string()), 13, "0"), "")


def titles(rng: np.random.Generator, count: int) -> pa.Array:
    """Titles of nine words, which are as rare as in real ones (Zipf); one in a hundred is empty."""
    words = pa.array([f"w{number}" for number in range(VOCABULARY)]).take(rng.zipf(1.2, count * WORDS) % VOCABULARY)
    joined = pc.binary_join(pa.ListArray.from_arrays(np.arange(count + 1, dtype=np.int32) * WORDS, words), " ")
    return pc.if_else(pa.array(rng.random(count) < 0.01), "", joined)


def write_files(folder: Path, users: int, items: int, interactions: int):
    """Write both raw files."""
    rng = np.random.default_rng(SEED)
    plain = pa.csv.WriteOptions(quoting_style="none")
    with pa.csv.CSVWriter(
        folder / INTERACTIONS, pa.schema({"user": "string", "item": "string", "time": "int64"}), write_options=plain
    ) as out:
        for start in range(0, interactions, AT_ONCE):
            size = min(AT_ONCE, interactions - start)
            who, what = users * rng.random(size) ** 1.5, float(items + 1) ** rng.random(size) - 1
            when = rng.integers(BEGIN, END, size)
            out.write_table(pa.table({"user": ids("A", who), "item": ids("B", what), "time": when}))
    order = rng.permutation(items)
    with pa.csv.CSVWriter(folder / ITEMS, pa.schema({"item": "string", "title": "string"}), write_options=plain) as out:
        for start in range(0, items, AT_ONCE):
            some = order[start : start + AT_ONCE]
            out.write_table(pa.table({"item": ids("B", some), "title": titles(rng, len(some))}))


def stage_one(folder: Path) -> dict:
    """Reading, the data rules, writing, and the figure of notebook 1."""
    clock = Clock()
    source = sources.find(sources.TABLE, own=OwnTables(folder / INTERACTIONS, folder / ITEMS))
    read = sources.read(source, max_rejected=0, folder=folder)
    clock.lap("read")
    data = build(*read, seed=SEED)
    clock.lap("rules")
    data.save(folder / DATA)
    clock.lap("write")
    counts = {name: data.statistics[name] for name in ("users", "items", "interactions")}
    del read, data
    from gloss_utils.report.data_plots import dataset_overview  # loads matplotlib

    dataset_overview(Dataset.load(folder / DATA)).savefig(folder / "overview.png")
    clock.lap("figure")
    return counts | clock.laps


def stage_four(folder: Path) -> dict:
    """What may be learnt, co-occurrence, and the rankings of all users by histories alone (hybrid without texts)."""
    from gloss_utils import retrieve
    from gloss_utils.rank import Evidence, HybridSettings
    from gloss_utils.rank.trec import writing_trec
    from gloss_utils.runs.folder import RunFolder
    from gloss_utils.runs.parameters import RETRIEVE
    from gloss_utils.runs.run import Run

    clock, data = Clock(), Dataset.load(folder / DATA)
    known = splits.training_sequences(data, splits.example_blocks(data, "test", USERS_AT_ONCE))
    clock.lap("training sequences")
    settings = HybridSettings.read(ROOT / "params/ranking/weights.yaml")
    known_of_run = {"data": "made up", "counting": "by default"}
    run = Run(RunFolder(folder), RETRIEVE, {}, {"engine": "local"}, remake=["cooccurrence"], known=known_of_run)
    evidence = Evidence({}, known, data.items["item"], settings, retrieve.following(run, data, known, settings))
    clock.lap("co-occurrence")
    path, users = folder / "histories.trec", 0
    with writing_trec({path: "histories"}) as write:
        for some in splits.example_blocks(data, "test", USERS_AT_ONCE):
            found = evidence.of(dict(zip(some["user"], some["history"], strict=True)))
            write(path, found.rankings({}, {"": settings.weights})[""])
            users += len(some)
    clock.lap("rankings")
    return {"users": users, "neighbours": evidence.following.nnz} | clock.laps


STAGES = {"1": stage_one, "4": stage_four}


class Clock:
    """Seconds from lap to lap, by the clock and of the processor, and the peak memory up to each, in MiB."""

    def __init__(self):
        self.laps, self.begun, self.worked = {}, time.perf_counter(), time.process_time()

    def lap(self, name: str):
        """Note and tell what was done since the last lap."""
        peak = int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) // 2**10  # Linux only
        seconds, cpu = time.perf_counter() - self.begun, time.process_time() - self.worked
        self.laps[name] = {"seconds": round(seconds, 1), "cpu_seconds": round(cpu, 1), "peak_mib": peak}
        print(name, self.laps[name], file=sys.stderr, flush=True)
        self.begun, self.worked = time.perf_counter(), time.process_time()


def main(arguments: list[str] | None = None):
    """Print what each stage took, as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=50_000)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--interactions", type=int, default=600_000)
    parser.add_argument("--folder", type=Path, help="where the files are (default: a temporary folder); kept")
    parser.add_argument("--stage", choices=list(STAGES), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.stage:
        print(json.dumps(STAGES[options.stage](options.folder)))
        return
    from benchmarks.timing import in_fresh_process  # loads PyTorch

    with tempfile.TemporaryDirectory() as made:
        folder = options.folder or Path(made)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / ITEMS).exists():
            write_files(folder, options.users, options.items, options.interactions)
        for stage in STAGES:
            print(stage, json.dumps(in_fresh_process("benchmarks.scale", "--stage", stage, "--folder", str(folder))))


if __name__ == "__main__":
    main()
