"""The three kinds of dense index on catalogues from 12 thousand to 10 million items.

    python -m benchmarks.index (--data-dir DIR | --index DIR) [--full] [--sizes N...] [--kinds KIND...] [--work DIR]

DIR holds the raw files of Beauty and Toys, whose titles are encoded (minutes), or is `index/dense` of a finished run.
A catalogue is made by drawing these vectors again and again and adding noise of the shape of their covariance; so are
the queries. The noise's size is the one at which product quantisation loses as much on 12,000 made-up items as on as
many real ones, against held-out real titles: recall of the exact 10 nearest with codes of 16 and of 64 bytes.

For each size and kind: seconds to build (vectors on disk, without encoding); resident bytes per item (what a fresh
process holds of the index after all queries, with its memory-mapped pages; pages of the vectors file are counted
separately, since the system may drop them); milliseconds per query in a batch of 1,000 (median of 3; a first batch,
which finds nothing in memory, is reported separately); recall of the exact 10 nearest. --full adds 10 million items,
with the kinds that fit the memory.
"""

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import faiss
import numpy as np
import pandas as pd

from benchmarks import timing
from benchmarks.baselines import load
from gloss_utils.data.prompts import item_text
from gloss_utils.search import DEFAULT_ENCODER, DenseIndex, Encoder, on_disk
from gloss_utils.search.on_disk import FLAT, HNSW, IVFPQ, OnDisk

SIZES, FULL = (12_000, 1_000_000), 10_000_000
QUERIES, K, SEED, RUNS = 1_000, 10, 3407, 3
NOISE = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5)
CODES = (16, 64)
RERANKED = f"{IVFPQ}+rerank"
KINDS = (FLAT, HNSW, IVFPQ, RERANKED)


class Source:
    """Real vectors that new ones are drawn from, with noise shaped like their covariance."""

    def __init__(self, real: np.ndarray):
        self.real = np.unique(real, axis=0)
        covariance = np.cov(self.real.T)
        self.shape = np.linalg.cholesky(covariance + 1e-9 * np.eye(len(covariance))) / np.trace(covariance) ** 0.5
        self.shape = self.shape.T.astype(np.float32)

    def draw(self, count: int, noise: float, rng: np.random.Generator) -> np.ndarray:
        """Unit vectors, float32 [count, dimensions]; noise: its mean length (root of the mean square)."""
        vectors = self.real[rng.integers(len(self.real), size=count)]
        vectors += noise * (rng.standard_normal(vectors.shape, dtype=np.float32) @ self.shape)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def real_vectors(options: argparse.Namespace) -> np.ndarray:
    """The vectors of a finished run's catalogue, or of the titles of Beauty and Toys."""
    if options.index:
        return np.array(DenseIndex.load(Path(options.index)).vectors())
    titles = [load(name, options.data_dir).items["title"] for name in ("beauty", "toys")]
    return Encoder(DEFAULT_ENCODER)(sorted({item_text(title) for title in pd.concat(titles)}))


def recall(expected: np.ndarray, found: np.ndarray) -> float:
    """The share of the expected places, [queries, K], that were found."""
    return float(np.mean([np.isin(row, other).mean() for row, other in zip(expected, found, strict=True)]))


def quantised(items: np.ndarray, queries: np.ndarray) -> list[float]:
    """Recall of the exact 10 nearest by codes alone, for each of `CODES`."""
    _, expected = on_disk.exact(items, queries, K)
    values = []
    for size in [size for size in CODES if items.shape[1] % size == 0]:
        index = faiss.IndexPQ(items.shape[1], size, 8, faiss.METRIC_INNER_PRODUCT)
        index.pq.cp.niter = 10
        index.train(items)
        index.add(items)
        values.append(recall(expected, index.search(queries, K)[1]))
    return values


def calibrate(source: Source) -> dict:
    """The noise at which codes lose as much on made-up items as on real ones, and what they lose on both."""
    rng = np.random.default_rng(SEED)
    shuffled = rng.permutation(source.real)
    count = min(SIZES[0], len(shuffled) * 9 // 10)
    real = quantised(shuffled[:count], shuffled[count:][:QUERIES])
    made = {noise: quantised(source.draw(count, noise, rng), source.draw(QUERIES, noise, rng)) for noise in NOISE}
    best = min(made, key=lambda noise: np.abs(np.subtract(made[noise], real)).sum())
    return {
        "noise": best,
        "items": count,
        "code_bytes": list(CODES),
        "recall_real": np.round(real, 3).tolist(),
        "recall_made": np.round(made[best], 3).tolist(),
        "recall_by_noise": {str(noise): np.round(values, 3).tolist() for noise, values in made.items()},
    }


def make(folder: Path, source: Source, size: int, noise: float):
    """Write a catalogue of `size` vectors, queries, and the places of the exact nearest of each query."""
    rng = np.random.default_rng([SEED, size])
    shape = (size, source.real.shape[1])
    vectors = np.lib.format.open_memmap(folder / "vectors.npy", mode="w+", dtype=np.float32, shape=shape)
    for start in range(0, size, on_disk.BATCH):
        end = min(start + on_disk.BATCH, size)
        vectors[start:end] = source.draw(end - start, noise, rng)
    vectors.flush()
    queries = source.draw(QUERIES, noise, rng)
    np.save(folder / "queries.npy", queries)
    np.save(folder / "expected.npy", on_disk.exact(vectors, queries, K)[1])


def build(folder: Path, kind: str) -> float:
    """Build an index of the folder's vectors; returns the seconds."""
    begun = time.perf_counter()
    vectors = np.load(folder / "vectors.npy", mmap_mode="r")
    if kind == FLAT:
        index = faiss.IndexFlatIP(vectors.shape[1])
        for block in on_disk.blocks(vectors):
            index.add(block)
    else:
        index = on_disk.build(kind, vectors)
    faiss.write_index(index, str(folder / "index.faiss"))
    return time.perf_counter() - begun


def resident(folder: Path) -> dict[str, int]:
    """Bytes of this process in memory: nobody's file (anonymous), the index file's, the vectors file's."""
    held, name = {"": 0, "index.faiss": 0, "vectors.npy": 0}, ""
    for line in Path("/proc/self/smaps").read_text().splitlines():
        parts = line.split(maxsplit=5)
        if "-" in parts[0] and not parts[0].endswith(":"):
            path = parts[5] if len(parts) > 5 else ""
            name = Path(path).name if path.startswith(str(folder)) else ""
        elif parts[0] == "Anonymous:":
            held[""] += int(parts[1]) * 1024
        elif parts[0] == "Rss:" and name:
            held[name] += int(parts[1]) * 1024
    return held


def measure(folder: Path, kind: str) -> dict:
    """Search with a built index; run in a fresh process."""
    queries, expected = np.load(folder / "queries.npy"), np.load(folder / "expected.npy")
    faiss.knn(queries, queries, K, metric=faiss.METRIC_INNER_PRODUCT)  # what the libraries take is not the index's
    before = resident(folder)
    flat = kind == FLAT
    vectors = faiss.read_index(str(folder / "index.faiss")) if flat else OnDisk(folder, rerank=kind != IVFPQ)
    index = DenseIndex([], vectors, Encoder("none"))
    seconds = []
    for _ in range(RUNS + 1):
        begun = time.perf_counter()
        ids, _ = index.nearest(queries, K)
        seconds.append(time.perf_counter() - begun)
    after, items = resident(folder), len(index)
    grown = {name: (after[name] - before[name]) / items for name in after}
    return {
        "resident_bytes_per_item": round(grown[""] + grown["index.faiss"], 1),
        "index_file_bytes_per_item": round((folder / "index.faiss").stat().st_size / items, 1),
        "vectors_pages_bytes_per_item": round(grown["vectors.npy"], 1),
        "ms_per_query": round(1000 * statistics.median(seconds[1:]) / len(queries), 3),
        "ms_per_query_first": round(1000 * seconds[0] / len(queries), 3),
        "recall_at_10": round(recall(expected, ids), 4),
        "threads": faiss.omp_get_max_threads(),
    }


def drop_pages(folder: Path):
    """Ask the system to forget the folder's files, so that the first search reads them from disk."""
    for path in folder.iterdir():
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def one_size(source: Source, size: int, noise: float, kinds: list[str], work: Path) -> list[dict]:
    """Rows of all kinds at one size."""
    folder, rows, built = Path(tempfile.mkdtemp(dir=work, prefix=f"{size}-")), [], {}
    try:
        make(folder, source, size, noise)
        for kind in kinds:
            family = kind.split("+")[0]
            if family not in built:
                built = {family: timing.in_fresh_process("benchmarks.index", "--build", family, str(folder))["seconds"]}
            drop_pages(folder)
            found = timing.in_fresh_process("benchmarks.index", "--measure", kind, str(folder))
            rows.append({"items": size, "kind": kind, "build_seconds": round(built[family], 1)} | found)
            print(json.dumps(rows[-1]), flush=True)
    finally:
        shutil.rmtree(folder)
    return rows


def main(arguments: list[str] | None = None) -> dict | None:
    """Print and return what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", help="a folder with the raw files of Beauty and Toys")
    parser.add_argument("--index", help="index/dense of a finished run, whose vectors are taken instead")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="items")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--full", action="store_true", help="10 million items, too: 20 GB of disk")
    parser.add_argument("--work", default=None, help="where vectors are written, by default the temporary folder")
    parser.add_argument("--results", help="a JSON file for what was measured")
    parser.add_argument("--build", nargs=2, metavar=("KIND", "FOLDER"), help=argparse.SUPPRESS)
    parser.add_argument("--measure", nargs=2, metavar=("KIND", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.build:
        return print(json.dumps({"seconds": build(Path(options.build[1]), options.build[0])}))
    if options.measure:
        return print(json.dumps(measure(Path(options.measure[1]), options.measure[0])))
    if not (options.index or options.data_dir):
        parser.error("give --data-dir or --index")
    source = Source(real_vectors(options))
    calibration, rows = calibrate(source), []
    print(json.dumps(calibration), flush=True)
    for size in [*options.sizes, *([FULL] if options.full else [])]:
        fitting = [kind for kind in options.kinds if kind in (IVFPQ, RERANKED) or _fits(kind, size, source)]
        rows += one_size(source, size, calibration["noise"], fitting, options.work)
    result = {"calibration": calibration, "rows": rows}
    print(pd.DataFrame(rows).to_string(index=False))
    print(json.dumps(result))
    if options.results:
        Path(options.results).write_text(json.dumps(result, indent=1) + "\n")
    return result


def _fits(kind: str, size: int, source: Source) -> bool:
    taken = size * on_disk.bytes_per_item(kind, source.real.shape[1])
    return taken <= on_disk.memory() // on_disk.MEMORY_SHARE


if __name__ == "__main__":
    main()
