"""What a stage, or a part of one, takes for a made-up catalogue of any size: seconds, and the peak memory of a process
of its own.

    python -m benchmarks.scale [--users 50000] [--items 100000] [--interactions 600000] [--folder DIR]
    python -m benchmarks.scale --only bm25 [--items 100000]   (or trie, encoding)

The raw files are two of the user's own tables, as CSV: interactions in no order of time, popularity falling as
1 / rank, some users with many interactions; ids as texts; titles of four to thirteen words, one in a hundred missing.
Of `STAGES`, each works on what the one before left in the folder; `PARTS` need nothing but titles. Peak memory counts
pages of mapped files, which the system may drop; it and processor time are of the whole process.
"""

import argparse
import json
import re
import statistics
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
from gloss_utils.data.prompts import item_text
from gloss_utils.data.rules import build
from gloss_utils.data.sources import OwnTables
from gloss_utils.runs.parameters import ROOT

SEED, AT_ONCE, WORDS, VOCABULARY, TOKENS_A_WORD = 3407, 2**20, (4, 13), 200_000, 2
BEGIN, END = 1_300_000_000, 1_700_000_000  # seconds
INTERACTIONS, ITEMS, DATA = "interactions.csv", "items.csv", "data"
USERS_AT_ONCE = 4096


def ids(letter: str, numbers: np.ndarray) -> pa.Array:
    """Texts as A000349128374, whose order is not that of the numbers."""
    scrambled = pa.array(numbers.astype(np.int64) * 2_654_435_761 % 2**40)
    return pc.binary_join_element_wise(letter, pc.utf8_lpad(scrambled.cast(pa.string()), 13, "0"), "")


def titles(rng: np.random.Generator, items: int, first: int = 0) -> pa.Array:
    """Titles of words that are as rare as in real ones (Zipf), and of one that no other title has."""
    lengths = rng.integers(WORDS[0], WORDS[1] + 1, items)
    ends = np.concatenate([[0], lengths.cumsum()]).astype(np.int32)
    words = pa.array([f"w{number}" for number in range(VOCABULARY)]).take(rng.zipf(1.2, ends[-1]) % VOCABULARY)
    own = pa.array(np.arange(first, first + items)).cast(pa.string())
    return pc.binary_join_element_wise(pc.binary_join(pa.ListArray.from_arrays(ends, words), " "), own, " n")


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
            named = pc.if_else(pa.array(rng.random(len(some)) < 0.01), "", titles(rng, len(some), start))
            out.write_table(pa.table({"item": ids("B", some), "title": named}))


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
    from gloss_utils.rank import Evidence, HybridSettings
    from gloss_utils.rank.trec import writing_trec

    clock, data = Clock(), Dataset.load(folder / DATA)
    known = splits.training_sequences(data, splits.example_blocks(data, "test", USERS_AT_ONCE))
    clock.lap("training sequences")
    settings = HybridSettings.read(ROOT / "params/ranking/weights.yaml")
    evidence = Evidence({}, known, data.items["item"], settings)
    clock.lap("co-occurrence")
    path, users = folder / "histories.trec", 0
    with writing_trec({path: "histories"}) as write:
        for some in splits.example_blocks(data, "test", USERS_AT_ONCE):
            found = evidence.of(dict(zip(some["user"], some["history"], strict=True)))
            write(path, found.rankings({}, {"": settings.weights})[""])
            users += len(some)
    clock.lap("rankings")
    return {"users": users, "neighbours": evidence.following.nnz} | clock.laps


def bm25(items: int) -> dict:
    """The index by words, built, saved, memory-mapped and asked for 20 items, in milliseconds of the processor. Asked
    are titles of the catalogue, one text in ten with words that it has not, and texts of the commonest words only."""
    from benchmarks.retrieval import made_up_queries
    from gloss_utils.search.bm25 import BM25Index

    named, clock = titles(np.random.default_rng(SEED), items).to_pylist(), Clock()
    built = BM25Index.build([item_text(title) for title in named])
    clock.lap("build")
    drawn = np.random.default_rng(SEED).choice(items, min(items, 100), replace=False)
    asked = made_up_queries([named[place] for place in drawn], 40)["texts"].explode().unique().tolist()
    common = ["Title: w1", "Title: w2 w1", "Title: w3 w1 w1", "Title: w1 w2 w3 w4", "Title: w2 w5"]
    with tempfile.TemporaryDirectory() as folder:
        built.save(Path(folder) / "bm25")
        del built, named
        size = sum(file.stat().st_size for file in Path(folder).rglob("*.npy"))
        index = BM25Index.load(Path(folder) / "bm25")
        index.search([*asked, *common], 20)  # the files are in memory from here on
        times, longer = _milliseconds(index, asked), _milliseconds(index.extended(["Title: one more"]), asked)
        return clock.laps | {
            "bytes_per_item": round(size / items, 1),
            "texts": len(asked),
            "ms_per_text": round(statistics.median(times), 2),
            "ms_worst": round(max(times), 2),
            "ms_with_an_item_added": round(statistics.median(longer), 2),
            "ms_common_words": [round(value, 1) for value in _milliseconds(index, common)],
        }


def _milliseconds(index, texts: list[str]) -> list[float]:
    times = []
    for text in texts:
        begun = time.process_time()
        index.search([text], 20)
        times.append(1000 * (time.process_time() - begun))
    return times


def trie(items: int) -> dict:
    """The trie of titles, built from lists of made-up tokens."""
    from gloss_utils.language.trie import Trie

    codes = {}
    named = titles(np.random.default_rng(SEED), items).to_pylist()
    words = ([(word, part) for word in title.split() for part in range(TOKENS_A_WORD)] for title in named)
    tokens = [[codes.setdefault(word, len(codes) + 1) for word in some] + [0] for some in words]
    clock = Clock()
    built = Trie(iter(tokens))
    clock.lap("build")
    held = sum(value.nbytes for value in vars(built).values() if isinstance(value, np.ndarray))
    return clock.laps | {"bytes_per_item": round(held / items, 1), "tokens_per_item": round(len(built.flat) / items, 1)}


def encoding(items: int) -> dict:
    """Vectors of so many titles, 512 at most."""
    from gloss_utils.search import DEFAULT_ENCODER, encode_texts, load_encoder

    texts = [item_text(title) for title in titles(np.random.default_rng(SEED), min(items, 512)).to_pylist()]
    encoder, clock = load_encoder(DEFAULT_ENCODER), Clock()
    encode_texts(encoder, texts)
    clock.lap("encoding")
    return clock.laps | {"texts_per_second": round(len(texts) / max(clock.laps["encoding"]["seconds"], 0.1), 1)}


STAGES = {"1": stage_one, "4": stage_four}
PARTS = {"bm25": bm25, "trie": trie, "encoding": encoding}


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
    parser.add_argument("--only", choices=[*STAGES, *PARTS], help="one stage, of a folder, or one part, of --items")
    options = parser.parse_args(arguments)
    if options.only:
        one = options.only
        print(json.dumps(PARTS[one](options.items) if one in PARTS else STAGES[one](options.folder)))
        return
    from benchmarks.timing import in_fresh_process  # loads PyTorch

    with tempfile.TemporaryDirectory() as made:
        folder = options.folder or Path(made)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / ITEMS).exists():
            write_files(folder, options.users, options.items, options.interactions)
        for stage in STAGES:
            print(stage, json.dumps(in_fresh_process("benchmarks.scale", "--only", stage, "--folder", str(folder))))


if __name__ == "__main__":
    main()
