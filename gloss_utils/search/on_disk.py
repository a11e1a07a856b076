"""Catalogues too large for an exact index in memory: texts and vectors on disk, an approximate FAISS index over them.

Vectors are written in batches and memory-mapped when read. The approximate index proposes candidates; their full
vectors are read from disk and give the exact inner products (`rerank`).
"""

import mmap
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import faiss
import numpy as np
import psutil
from faiss.contrib.exhaustive_search import knn_ground_truth

from gloss_utils.search.encoder import Encode

FLAT, HNSW, IVFPQ = ("flat", "hnsw", "ivfpq")
BATCH = 2**18  # texts or vectors in memory at a time
MEMORY_SHARE = 4  # an index may take a quarter of the machine's memory
FLAT_ITEMS = 1_000_000  # with more items, an exact search takes more than about ten milliseconds per query
LINKS, EF_CONSTRUCTION, EF_SEARCH = 32, 80, 128  # of HNSW
CODE_BYTES = 64  # per vector in IVF-PQ
TRAINING_VECTORS = 40  # per list, at most
NPROBE = 64


def choose(items: int, dimensions: int, memory: int) -> tuple[str, str]:
    """The kind of index that `auto` takes, and why. memory: the machine's, in bytes."""
    room = memory // MEMORY_SHARE
    about = f"{items:,} items, and a quarter of the memory is {room / 2**30:.1f} GiB"
    if items <= FLAT_ITEMS and items * bytes_per_item(FLAT, dimensions) <= room:
        return FLAT, f"{about}: all vectors fit, and the search is exact"
    if items * bytes_per_item(HNSW, dimensions) <= room:
        return HNSW, f"{about}: a graph over vectors of one byte a dimension fits"
    return IVFPQ, f"{about}: only codes of {CODE_BYTES} bytes a vector fit"


def bytes_per_item(kind: str, dimensions: int) -> int:
    """The memory that the index alone takes per item."""
    return {FLAT: 4 * dimensions, HNSW: dimensions + 4 * (2 * LINKS + 3), IVFPQ: CODE_BYTES + 8}[kind]


def memory() -> int:
    """The machine's memory in bytes, or the container's where that is less."""
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.exists() else "max"
    total = psutil.virtual_memory().total
    return total if text == "max" else min(int(text), total)


class Places:
    """Each text's first place in the catalogue, in an SQLite file."""

    def __init__(self, folder: Path):
        self.folder = folder.absolute()
        address = f"{(self.folder / 'texts.sqlite').as_uri()}?mode=ro"
        self.database = sqlite3.connect(address, uri=True, check_same_thread=False)

    @classmethod
    def write(cls, folder: Path, texts: list[str]) -> "Places":
        """Write texts, in the catalogue's order."""
        with closing(sqlite3.connect(folder / "texts.sqlite")) as database, database:
            database.execute("PRAGMA journal_mode = OFF")  # the folder is written whole or not at all
            database.execute("PRAGMA synchronous = OFF")
            database.execute("CREATE TABLE texts (text TEXT PRIMARY KEY, place INTEGER) WITHOUT ROWID")
            rows = ((text, place) for place, text in enumerate(texts))
            database.executemany("INSERT OR IGNORE INTO texts VALUES (?, ?)", rows)  # the first place stays
        return cls(folder)

    def __reduce__(self):
        return Places, (self.folder,)  # other processes open the file

    def get(self, text: str, default: int) -> int:
        """The first place of just this text, or the default."""
        row = self.database.execute("SELECT place FROM texts WHERE text = ?", (text,)).fetchone()
        return row[0] if row else default


def write_vectors(path: Path, texts: list[str], places: Places, encode: Encode) -> np.ndarray:
    """Encode all texts, equal ones once, into an .npy file: float32 [texts, dimensions], memory-mapped."""
    for start in range(0, len(texts), BATCH):
        batch = texts[start : start + BATCH]
        here, first = np.arange(start, start + len(batch)), np.array([places.get(text, -1) for text in batch])
        own = first == here
        if own.any():
            new = encode([text for text, is_own in zip(batch, own, strict=True) if is_own])
            if start == 0:
                shape = (len(texts), new.shape[1])
                vectors = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
            vectors[here[own]] = new
        vectors[here[~own]] = vectors[first[~own]]
    vectors.flush()
    return vectors


def blocks(vectors: np.ndarray) -> Iterator[np.ndarray]:
    """The vectors, a batch at a time, in memory."""
    for start in range(0, len(vectors), BATCH):
        yield np.ascontiguousarray(vectors[start : start + BATCH])


def build(kind: str, vectors: np.ndarray, seed: int = 0) -> faiss.Index:
    """An approximate index of vectors on disk, trained on a sample, built in batches."""
    items, dimensions = vectors.shape
    sample = 2**16
    if kind == HNSW:
        index = faiss.index_factory(dimensions, f"HNSW{LINKS}_SQ8", faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = EF_CONSTRUCTION
    else:
        lists = min(2**14, 2 ** int(np.log2(4 * items**0.5))) if items >= 1024 else 1
        code = next(size for size in range(CODE_BYTES, 0, -1) if dimensions % size == 0)
        index = faiss.index_factory(dimensions, f"IVF{lists},PQ{code}", faiss.METRIC_INNER_PRODUCT)
        index.do_polysemous_training = False
        index.cp.max_points_per_centroid = TRAINING_VECTORS
        index.cp.seed = seed
        index.cp.niter = index.pq.cp.niter = 10  # FAISS's own 25 take longer and find no more
        sample = max(TRAINING_VECTORS * lists, sample)
    chosen = np.sort(np.random.default_rng(seed).choice(items, min(sample, items), replace=False))
    index.train(np.ascontiguousarray(vectors[np.resize(chosen, max(len(chosen), 256))]))  # at least one per codeword
    for block in blocks(vectors):
        index.add(block)
    return index


def mean_similarity(vectors: np.ndarray) -> float:
    """The mean inner product of two different items' vectors (which have length 1), at most 0.99."""
    items, total = len(vectors), vectors.sum(axis=0, dtype=np.float64)
    return float(min(((total**2).sum() - items) / max(items * (items - 1), 1), 0.99))


class OnDisk:
    """Vectors on disk and an approximate index over them, with the methods that a FAISS index has.

    With `rerank`, inner products are exact; without it, they are those of the compressed vectors in the index.
    """

    def __init__(self, folder: Path, rerank: bool):
        self.folder, self.rerank, file = folder.absolute(), rerank, str(folder / "index.faiss")
        self.approximate = faiss.read_index(file, faiss.IO_FLAG_MMAP)
        if isinstance(self.approximate, faiss.IndexIVF):
            self.approximate.nprobe = min(NPROBE, self.approximate.nlist)
        else:  # a graph, which another flag memory-maps
            self.approximate = faiss.read_index(file, faiss.IO_FLAG_MMAP_IFC)
            self.approximate.hnsw.efSearch = EF_SEARCH
        self.file = np.load(folder / "vectors.npy", mmap_mode="r")
        if hasattr(mmap, "MADV_RANDOM"):  # not on Windows
            self.file._mmap.madvise(mmap.MADV_RANDOM)  # a page is read for one vector
        self.ntotal, self.d = self.file.shape

    def __reduce__(self):
        return OnDisk, (self.folder, self.rerank)

    def reconstruct_n(self, start: int, count: int) -> np.ndarray:
        """So many vectors from a place on, memory-mapped."""
        return self.file[start : start + count]

    def reconstruct_batch(self, places: np.ndarray) -> np.ndarray:
        """The vectors at these places, float32 [places, dimensions]."""
        return self.file[places]

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Inner products and places of k candidates, in the order of the approximate index. Where it finds fewer than
        k, the last products are -inf."""
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        scores, places = self.approximate.search(queries, k)
        if self.rerank:
            arrays = map(faiss.swig_ptr, (scores, queries, self.file, places))
            faiss.fvec_inner_products_by_idx(*arrays, self.d, *places.shape)
        scores[places < 0] = -np.inf
        return scores, places


def exact(vectors: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k largest inner products of each query, and their places, by one pass over all vectors."""
    queries = np.ascontiguousarray(queries, dtype=np.float32)
    return knn_ground_truth(queries, blocks(vectors), k, metric_type=faiss.METRIC_INNER_PRODUCT)
