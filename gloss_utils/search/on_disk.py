"""Catalogues too large for an exact index in memory: texts and vectors on disk, an approximate FAISS index over them.

All files are written in batches and memory-mapped when read. The approximate index proposes candidates; their full
vectors are read from disk and give the exact inner products (`rerank_from_disk`).
"""

import mmap
from collections.abc import Callable, Iterable, Iterator
from copy import copy
from pathlib import Path

import faiss
import numpy as np
import pandas as pd
import psutil
import pyarrow as pa

FLAT, HNSW, IVFPQ = KINDS = ("flat", "hnsw", "ivfpq")
BATCH = 2**18  # texts or vectors in memory at a time
SHARE = 4  # of the machine's memory, an index may take one part of so many
FLAT_ITEMS = 1_000_000  # beyond, an exact search takes more than some ten milliseconds a query
LINKS, EF_CONSTRUCTION, EF_SEARCH = 32, 80, 128  # of HNSW
CODE_BYTES = 64  # of a vector in IVF-PQ
TRAINING_VECTORS = 40  # a list, at most
NPROBE = 64
RERANKED = 400  # candidates whose full vectors are read, a query: 200 are enough for 1 million items, not for 10


def choose(items: int, dimensions: int, memory: int) -> tuple[str, str]:
    """The kind of index that `auto` takes, and why. memory: the machine's, in bytes."""
    room, exact, graph = memory // SHARE, bytes_an_item(FLAT, dimensions), bytes_an_item(HNSW, dimensions)
    about = f"{items:,} items, and a quarter of the memory is {room / 2**30:.1f} GiB"
    if items <= FLAT_ITEMS and items * exact <= room:
        return FLAT, f"{about}: all vectors fit, and the search is exact"
    if items * graph <= room:
        return HNSW, f"{about}: a graph over vectors of one byte a dimension fits"
    return IVFPQ, f"{about}: only codes of {CODE_BYTES} bytes a vector fit"


def bytes_an_item(kind: str, dimensions: int) -> int:
    """What an item takes in memory, in the index alone."""
    if kind == FLAT:
        return 4 * dimensions
    return dimensions + 4 * (2 * LINKS + 3) if kind == HNSW else CODE_BYTES + 8


def memory() -> int:
    """The machine's memory in bytes, or the container's where that is less."""
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.exists() else "max"
    total = psutil.virtual_memory().total
    return total if text == "max" else min(int(text), total)


class Texts:
    """The catalogue's texts in a memory-mapped Arrow file, and their hashes, sorted, by which a text is found."""

    def __init__(self, folder: Path):
        self.added: list[str] = []
        self.column = pa.ipc.open_file(pa.memory_map(str(folder / "texts.arrow"))).read_all()["text"]
        self.hashes = np.load(folder / "hashes.npy", mmap_mode="r")
        self.places = np.load(folder / "places.npy", mmap_mode="r")

    @classmethod
    def write(cls, folder: Path, batches: Iterable[list[str]]) -> "Texts":
        """Write texts, in the catalogue's order."""
        schema, hashes = pa.schema([("text", pa.large_string())]), []
        with pa.OSFile(str(folder / "texts.arrow"), "wb") as file, pa.ipc.new_file(file, schema) as out:
            for texts in batches:
                out.write_table(pa.table({"text": texts}, schema))
                hashes.append(_hashes(texts))
        hashes = np.concatenate(hashes)
        order = np.argsort(hashes, kind="stable")
        np.save(folder / "hashes.npy", hashes[order])
        np.save(folder / "places.npy", order.astype(np.uint32))
        return cls(folder)

    def __len__(self) -> int:
        return len(self.column) + len(self.added)

    def __add__(self, texts: list[str]) -> "Texts":
        """The same with more texts behind them, in memory."""
        longer = copy(self)
        longer.added = self.added + texts
        return longer

    def at(self, places: np.ndarray) -> list[str]:
        """The texts at these places in the file."""
        return self.column.take(pa.array(places)).to_pylist()

    def find(self, texts: list[str]) -> np.ndarray:
        """The first place that has just this text, or -1, [texts]."""
        sought, texts = _hashes(texts), np.asarray(texts, dtype=object)
        at, found = np.searchsorted(self.hashes, sought), np.full(len(texts), -1)
        left = np.arange(len(texts))
        while len(left):
            left = left[at[left] < len(self.column)]
            left = left[self.hashes[at[left]] == sought[left]]
            places = self.places[at[left]].astype(np.int64)
            same = np.array(self.at(places), dtype=object) == texts[left] if len(left) else left.astype(bool)
            found[left[same]] = places[same]
            left = left[~same]  # two texts of one hash
            at[left] += 1
        more = {text: len(self) - back for back, text in enumerate(reversed(self.added), 1)}
        unknown = np.flatnonzero(found < 0)
        found[unknown] = [more.get(text, -1) for text in texts[unknown]]
        return found


def _hashes(texts: list[str]) -> np.ndarray:
    return pd.util.hash_array(np.asarray(texts, dtype=object), categorize=False)


def write_vectors(path: Path, texts: Texts, encode: Callable[[list[str]], np.ndarray]) -> np.ndarray:
    """Encode all texts, equal ones once, into an .npy file: float32 [texts, dimensions], memory-mapped."""
    vectors = None
    for start in range(0, len(texts), BATCH):
        places = np.arange(start, min(start + BATCH, len(texts)))
        some = texts.at(places)
        first = texts.find(some)
        own = first == places
        new = encode([text for text, is_own in zip(some, own, strict=True) if is_own]) if own.any() else None
        if vectors is None:
            shape = (len(texts), new.shape[1])
            vectors = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
        if new is not None:
            vectors[places[own]] = new
        vectors[places[~own]] = vectors[first[~own]]
    vectors.flush()
    return vectors


def blocks(vectors: np.ndarray) -> Iterator[np.ndarray]:
    """The vectors, some at a time, in memory."""
    for start in range(0, len(vectors), BATCH):
        yield np.ascontiguousarray(vectors[start : start + BATCH])


def build(kind: str, vectors: np.ndarray, seed: int = 0) -> faiss.Index:
    """An approximate index of vectors on disk, trained on a sample, built in batches."""
    items, dimensions = vectors.shape
    lists = number_of_lists(items)
    if kind == HNSW:
        index = faiss.IndexHNSWSQ(dimensions, faiss.ScalarQuantizer.QT_8bit, LINKS, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = EF_CONSTRUCTION
        sample = 2**16
    else:
        coarse = faiss.IndexFlatIP(dimensions)
        index = faiss.IndexIVFPQ(coarse, dimensions, lists, _divisor(dimensions), 8, faiss.METRIC_INNER_PRODUCT)
        coarse.this.disown()
        index.own_fields = True
        index.cp.spherical = True
        index.cp.max_points_per_centroid = TRAINING_VECTORS
        index.cp.seed = seed
        index.cp.niter = 10  # 25, FAISS's own, take longer and find no more
        index.pq.cp.niter = 10
        sample = max(TRAINING_VECTORS * lists, 2**16)
    chosen = np.sort(np.random.default_rng(seed).choice(items, min(sample, items), replace=False))
    index.train(np.ascontiguousarray(vectors[np.resize(chosen, max(len(chosen), 256))]))  # as many as codewords
    for block in blocks(vectors):
        index.add(block)
    return index


def _divisor(dimensions: int) -> int:
    return next(parts for parts in range(CODE_BYTES, 0, -1) if dimensions % parts == 0)


def number_of_lists(items: int) -> int:
    """How many lists IVF cuts a catalogue into: a power of two, 16,384 at most."""
    return min(2**14, max(1, 2 ** int(np.log2(max(items, 1) ** 0.5 * 4) if items >= 1024 else 0)))


def chance(vectors: np.ndarray) -> float:
    """The mean inner product of two different items' vectors (which have length 1), at most 0.99."""
    items = len(vectors)
    total = sum(block.astype(np.float64).sum(axis=0) for block in blocks(vectors))
    return float(min(((total**2).sum() - items) / max(items * (items - 1), 1), 0.99))


class OnDisk:
    """An approximate index with its vectors, read from a folder, under the names that FAISS gives to these things.

    Vectors that were added later are in memory, and searched exactly.
    """

    def __init__(self, folder: Path, rerank: bool):
        self.rerank = rerank
        self.approximate = read(folder / "index.faiss")
        self.file = np.load(folder / "vectors.npy", mmap_mode="r")
        self.file._mmap.madvise(mmap.MADV_RANDOM)  # a page is read for one vector
        self.added = np.empty((0, self.file.shape[1]), dtype=np.float32)

    @property
    def ntotal(self) -> int:
        """How many vectors there are."""
        return len(self.file) + len(self.added)

    @property
    def d(self) -> int:
        """Their dimensions."""
        return self.file.shape[1]

    def extended(self, vectors: np.ndarray) -> "OnDisk":
        """The same with more vectors behind its own."""
        longer = copy(self)
        longer.added = np.concatenate([self.added, vectors])
        return longer

    def vectors(self) -> np.ndarray:
        """All vectors, memory-mapped as long as none were added."""
        return np.concatenate([self.file, self.added]) if len(self.added) else self.file

    def reconstruct_batch(self, places: np.ndarray) -> np.ndarray:
        """The vectors at these places, float32 [places, dimensions]."""
        found, behind = self.file[np.minimum(places, len(self.file) - 1)], places >= len(self.file)
        found[behind] = self.added[places[behind] - len(self.file)]
        return found

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Inner products and places of candidates, [queries, at least k]: what was added, then k nearest ones in the
        order of the approximate index.

        The products are exact with `rerank`, else those with what the index keeps of a vector. Where the index finds
        fewer than k, the last products are -inf.
        """
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        scores, places = self.approximate.search(queries, min(k, len(self.file)), params=self._effort(k))
        if self.rerank:
            scores = inner_products(queries, self.file, places)
        scores[places < 0] = -np.inf
        return self._with_added(queries, scores, places)

    def exhaustive(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The same by one pass over all vectors: exact."""
        return self._with_added(queries, *exact(self.file, queries, k))

    def _with_added(self, queries: np.ndarray, scores: np.ndarray, places: np.ndarray):
        behind = np.broadcast_to(np.arange(len(self.file), self.ntotal), (len(queries), len(self.added)))
        return np.hstack([queries @ self.added.T, scores]), np.hstack([behind, places])

    def _effort(self, k: int) -> faiss.SearchParameters:
        if isinstance(self.approximate, faiss.IndexHNSW):
            return faiss.SearchParametersHNSW(efSearch=max(EF_SEARCH, k))
        return faiss.SearchParametersIVF(nprobe=min(NPROBE, self.approximate.nlist))


def read(path: Path) -> faiss.Index:
    """Memory-map an index."""
    index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP)
    if isinstance(index, faiss.IndexIVF):
        return index
    return faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)


def inner_products(queries: np.ndarray, vectors: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Each query's inner products with the vectors at its places, float32 [queries, places a query]."""
    found = np.full(places.shape, -np.inf, dtype=np.float32)
    pointer = faiss.swig_ptr
    faiss.fvec_inner_products_by_idx(
        pointer(found), pointer(queries), pointer(vectors), pointer(places), vectors.shape[1], *places.shape
    )
    return found


def exact(vectors: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k largest inner products of each query, and their places, by one pass over all vectors."""
    scores, places, start = [], [], 0
    for block in blocks(vectors):
        found, near = faiss.knn(queries, block, min(k, len(block)), metric=faiss.METRIC_INNER_PRODUCT)
        scores, places = [*scores, found], [*places, near + start]
        start += len(block)
        both, here = np.concatenate(scores, axis=1), np.concatenate(places, axis=1)
        order = np.argsort(-both, axis=1, kind="stable")[:, :k]
        scores, places = [np.take_along_axis(both, order, 1)], [np.take_along_axis(here, order, 1)]
    return scores[0], places[0]
