"""What a stage, or a part of one, takes for a made-up catalogue of any size: seconds, and the peak memory of a process
of its own.

    python -m benchmarks.scale [--users 50000] [--items 100000] [--interactions 600000] [--folder DIR] [--workers 1]
    python -m benchmarks.scale --only bm25 [--items 100000]   (or trie, encoding)

`benchmarks.made_up` makes the raw files. Of `STAGES`, each works on what those before left in the folder, and stages 4
and 5 go on after their last block of users; `PARTS` need nothing but titles. Peak memory counts pages of mapped files,
which the system may drop; it and processor time are of the whole process. --workers: so many of Ray's read blocks of
the files and work on blocks of users; their memory and processor time are not counted, seconds by the clock are.
"""

import argparse
import json
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import ir_measures
import numpy as np
import pandas as pd

from benchmarks import made_up
from benchmarks.made_up import INTERACTIONS, ITEMS, SEED
from gloss_utils.base.files import joined, read_json, remove, write_json
from gloss_utils.data import queries as query_files
from gloss_utils.data import sources, splits
from gloss_utils.data.dataset import Dataset
from gloss_utils.data.prompts import item_text
from gloss_utils.data.rules import build
from gloss_utils.data.sources import OwnTables
from gloss_utils.rank import trec
from gloss_utils.runs.blocks import filled
from gloss_utils.runs.parameters import ROOT
from gloss_utils.runs.resumed import kept_each
from gloss_utils.runs.workers import each_in_order

TOKENS_A_WORD, DATA = 2, "data"
QUERIES, TEXTS, USERS_AT_ONCE = "queries.jsonl", 2, 4096
METHODS, SAMPLED, SAMPLE = ("histories", "paper"), "hybrid", 64  # every 64th block of users is ranked for by hybrid


def stage_one(folder: Path, workers: int | None = None) -> dict:
    """Reading, the data rules, writing, and the figure of notebook 1."""
    clock, unfinished = Clock(), folder / "unfinished"
    source = sources.find(sources.TABLE, own=OwnTables(folder / INTERACTIONS, folder / ITEMS))
    with each_in_order(workers) as each:
        each = kept_each(unfinished, each)
        read = sources.read(source, max_rejected=0, folder=folder, each=each)
        clock.lap("read")
        data = build(*read, seed=SEED, each=each)
        clock.lap("rules")
    data.save(folder / DATA)
    remove(unfinished)
    clock.lap("write")
    counts = {name: data.statistics[name] for name in ("users", "items", "interactions")}
    del read, data
    from gloss_utils.report.data_plots import dataset_overview  # loads matplotlib

    dataset_overview(Dataset.load(folder / DATA)).savefig(folder / "overview.png")
    clock.lap("figure")
    return counts | clock.laps


def stage_three(folder: Path, workers: int | None = None) -> dict:
    """The index by words, in this process; vectors are not made: encoding would take days (see `encoding`)."""
    from gloss_utils.search.bm25 import BM25Index

    clock = Clock()
    titles_of = Dataset.load(folder / DATA).items["title"]
    BM25Index.build([item_text(title) for title in titles_of]).save(folder / "bm25")
    clock.lap("bm25")
    return {"items": len(titles_of)} | clock.laps


def stage_four(folder: Path, workers: int | None = None) -> dict:
    """What may be learnt, co-occurrence, and rankings: of all users by histories alone (hybrid without texts) and by
    the paper's rule from given texts; of a sample also by hybrid with the votes of an index by words."""
    from gloss_utils.rank import HybridSettings, Ranker, write_trec
    from gloss_utils.runs.counting import following
    from gloss_utils.runs.folder import RunFolder
    from gloss_utils.runs.parameters import RETRIEVE
    from gloss_utils.runs.run import Run
    from gloss_utils.search.bm25 import BM25Index

    clock, data = Clock(), Dataset.load(folder / DATA)
    if not (folder / QUERIES).exists():
        query_files.write(folder / QUERIES, made_up.queries(data, TEXTS, USERS_AT_ONCE))
    clock.lap("write queries")
    blocks = partial(query_files.blocks, folder / QUERIES, TEXTS, 0, users_at_once=USERS_AT_ONCE)
    known = splits.training_sequences(data, blocks())
    clock.lap("training sequences")
    settings = HybridSettings.read(ROOT / "params/ranking/weights.yaml")
    known_of_run = {"data": "made up", "counting": "by default"}
    run = Run(RunFolder(folder), RETRIEVE, {}, {"engine": "local"}, known=known_of_run)
    follows = following(run, data, known, settings)
    clock.lap("co-occurrence")
    nobody, index = pd.DataFrame(columns=query_files.COLUMNS), {"bm25": BM25Index.load(folder / "bm25")}
    world = Ranker(nobody, data.titles(), index, known, settings, exact_titles=True, following=follows)
    clock.lap("titles")
    took = {method: [0.0, 0] for method in (*METHODS, SAMPLED)}  # seconds of the processor, users

    def rank(world: Ranker, block: tuple[int, pd.DataFrame], part: Path):
        number, some = block
        found = world.of(some)
        for method in took if number % SAMPLE == 0 else METHODS:
            begun = time.process_time()
            if method == "paper":
                ranking = found.paper("bm25")
            else:
                votes = {name: found.candidates(name) for name in ("texts_bm25", "last_bm25") if method == SAMPLED}
                ranking = found.evidence.rankings(votes, {"": settings.weights})[""]
            write_trec(part / f"{method}.trec", ranking, method)
            took[method] = [took[method][0] + time.process_time() - begun, took[method][1] + len(some)]

    with ExitStack() as stack:
        add = {method: stack.enter_context(joined(folder / f"{method}.trec")) for method in METHODS}
        for _, part in filled(folder / "ranked", enumerate(blocks()), lambda: world, rank, workers):
            for method in METHODS:
                add[method](part / f"{method}.trec")
    clock.lap("rankings")
    remove(folder / "ranked")
    # Of what this process ranked; what workers did is not known here.
    each = {method: {"users": n, "ms_a_user": round(1000 * s / n, 3)} for method, (s, n) in took.items() if n}
    return each | {"neighbours": follows.nnz} | clock.laps


def read_trec_blocks(path: Path, blocks: Iterable[Collection[str]]) -> Iterator[pd.DataFrame]:
    """What `rank.read_trec` returns, of the users of each block; the file has them in the same order. Raises
    `ValueError` where it has others, or another order."""
    rows = iter(ir_measures.read_trec_run(str(path)))
    row = next(rows, None)
    for users in blocks:
        known, found = set(users), []
        while row is not None and row.query_id in known:
            found.append(row)
            row = next(rows, None)
        yield pd.DataFrame(found, columns=trec.COLUMNS)
    if row is not None:
        raise ValueError(f"{path} ranks for {row.query_id}, who is out of order")


def stage_five(folder: Path, workers: int | None = None) -> dict:
    """What notebook 5 makes of rankings, from stage 4's TREC files: metrics of each user, with coverage, novelty and
    diversity, means by segment with intervals, and paired tests. Vectors are made up: each of 65,536 stands for many
    items."""
    from gloss_utils import evaluate
    from gloss_utils.report import metrics, significance
    from gloss_utils.report.beyond import BEYOND, Catalogue
    from gloss_utils.report.in_blocks import Values, measured

    clock, data = Clock(), Dataset.load(folder / DATA)
    blocks = partial(query_files.blocks, folder / QUERIES, TEXTS, 0, users_at_once=USERS_AT_ONCE)
    known = splits.training_sequences(data, blocks())
    catalogue = Catalogue(data.items["item"], known, _Vectors(len(data.items)))
    del known
    clock.lap("catalogue")
    about, _ = evaluate.about_users(data, blocks(), catalogue, "test", 5)
    clock.lap("about users")

    def measure(catalogue: Catalogue, block: tuple, part: Path):
        some, *runs = block
        targets = metrics.targets_of(some)
        np.save(part / "measured.npy", np.stack([measured(run, targets, catalogue) for run in runs]))

    users = [about["user"].iloc[start : start + USERS_AT_ONCE] for start in range(0, len(about), USERS_AT_ONCE)]
    read = [read_trec_blocks(folder / f"{method}.trec", users) for method in METHODS]
    with tempfile.TemporaryDirectory(dir=folder) as made:
        values, every = Values(Path(made)), zip(blocks(), *read, strict=True)
        for _, part in filled(folder / "measured", every, lambda: catalogue, measure, workers):
            for method, found in zip(METHODS, np.load(part / "measured.npy"), strict=True):
                values.add((method, metrics.LEFT_OUT), found)
        clock.lap("metrics")
        compared = [(method, metrics.LEFT_OUT) for method in METHODS]
        evaluate.write_per_user(folder / "per_user.parquet", about, compared, len(data.items), values)
        clock.lap("per_user.parquet, coverage")
        columns = [*metrics.METRICS, *BEYOND]
        rows = metrics.summarise_all(partial(values.read, columns=columns), compared, columns, about, "test", SEED)
        clock.lap("means, intervals")
        significance.compare(
            lambda method, metric: values.read((method, metrics.LEFT_OUT), [metric])[:, 0],
            about["user"], list(METHODS), METHODS[0], metrics.COMPARED, SEED,
        )  # fmt: skip
        clock.lap("paired tests")
    remove(folder / "measured")
    return {
        "users": len(about),
        "recall@5": {row["method"]: row["recall@5"] for row in rows[:: len(rows) // 2]},
    } | clock.laps


class _Vectors:
    """Vectors of so many items."""

    def __init__(self, items: int):
        self.drawn = np.random.default_rng(SEED).standard_normal((min(items, 2**16), 384), dtype=np.float32)

    def __getitem__(self, places: np.ndarray) -> np.ndarray:
        return self.drawn[places % len(self.drawn)]


def bm25(items: int) -> dict:
    """The index by words, built, saved, memory-mapped and asked for 20 items, in milliseconds of the processor. Asked
    are titles of the catalogue, one text in ten with words that it has not, and texts of the commonest words only."""
    from benchmarks.retrieval import made_up_queries
    from gloss_utils.search.bm25 import BM25Index

    named, clock = made_up.titles(np.random.default_rng(SEED), items).to_pylist(), Clock()
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
    named = made_up.titles(np.random.default_rng(SEED), items).to_pylist()
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

    texts = [item_text(title) for title in made_up.titles(np.random.default_rng(SEED), min(items, 512)).to_pylist()]
    encoder, clock = load_encoder(DEFAULT_ENCODER), Clock()
    encode_texts(encoder, texts)
    clock.lap("encoding")
    return clock.laps | {"texts_per_second": round(len(texts) / max(clock.laps["encoding"]["seconds"], 0.1), 1)}


STAGES = {"1": stage_one, "3": stage_three, "4": stage_four, "5": stage_five}
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
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--only", choices=[*STAGES, *PARTS], help="one stage, of a folder, or one part, of --items")
    options = parser.parse_args(arguments)
    workers = options.workers if options.workers > 1 else None
    if options.only:
        one = options.only
        print(json.dumps(PARTS[one](options.items) if one in PARTS else STAGES[one](options.folder, workers)))
        return
    from benchmarks.timing import in_fresh_process  # loads PyTorch

    with tempfile.TemporaryDirectory() as made:
        folder = options.folder or Path(made)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / ITEMS).exists():
            made_up.write_files(folder, options.users, options.items, options.interactions)
        for stage in STAGES:
            done = folder / f"stage-{stage}.json"
            if not done.exists():
                how = "--only", stage, "--folder", str(folder), "--workers", str(options.workers)
                write_json(done, in_fresh_process("benchmarks.scale", *how))
            print(stage, json.dumps(read_json(done)))


if __name__ == "__main__":
    main()
