"""The index by meaning: a sentence encoder's vectors, compared by inner product (METHOD, 4)."""

import json
from copy import copy
from functools import cached_property
from pathlib import Path

import faiss
import numpy as np

from gloss_utils.base.files import read_json, write_json, write_whole
from gloss_utils.search import on_disk
from gloss_utils.search.encoder import Encode, Encoder
from gloss_utils.search.on_disk import FLAT, OnDisk, Places
from gloss_utils.search.order import Found, distinct, rounded, top_k

ABOUT = "encoder.json"
AUTO = "auto"
MARGIN = 16  # candidates beyond k that are looked at first, to see where a tie at the k-th place ends
RERANKED = 400  # the same on disk: enough for 10 million items, for which 200 are too few


class DenseIndex:
    """Sentence-encoder vectors (float32, L2-normalised) in a FAISS index.

    Kind "flat" holds them in memory and searches exactly. "hnsw" and "ivfpq" are on disk and approximate: they may miss
    a near item. Their similarities are exact all the same, unless they were built without re-ranking: then a vector's
    compressed form is compared, and an item's own text has less than 1.
    """

    def __init__(
        self, texts: list[str] | Places, vectors: faiss.Index | OnDisk, encoder: Encoder, about: dict | None = None
    ):
        """about: kind, why it was chosen, and for kinds on disk `rerank` and `chance` (see `strength`)."""
        self.texts, self.faiss, self.encoder, self.about = texts, vectors, encoder, about or {"kind": FLAT}
        self.on_disk = isinstance(vectors, OnDisk)
        self.places = texts if self.on_disk else {text: place for place, text in reversed(list(enumerate(texts)))}
        self.added: DenseIndex | None = None

    def __len__(self) -> int:
        return self.faiss.ntotal + len(self.added or ())

    @classmethod
    def from_vectors(cls, texts: list[str], vectors: np.ndarray, encoder: Encoder, about: dict | None = None):
        """A flat index of texts whose vectors, float32 [texts, dimensions], are known."""
        flat = faiss.IndexFlatIP(vectors.shape[1])
        flat.add(vectors)
        return cls(texts, flat, encoder, about)

    @classmethod
    def build(cls, texts: list[str], encoder_name: str, revision: str | None = None) -> "DenseIndex":
        """A flat index of the catalogue's texts; equal texts are encoded once. revision: of the encoder."""
        encoder, (some, places) = Encoder(encoder_name, revision), distinct(texts)
        return cls.from_vectors(texts, encoder(some)[places], encoder)

    def save(self, folder: Path):
        """Write a flat index as a folder, whole or not at all."""
        with write_whole(folder) as part:
            part.mkdir()
            faiss.write_index(self.faiss, str(part / "index.faiss"))
            (part / "texts.json").write_text(json.dumps(self.texts, ensure_ascii=False), encoding="utf-8")
            write_json(part / ABOUT, _encoder(self.encoder) | self.about)

    @classmethod
    def load(cls, folder: Path) -> "DenseIndex":
        """Read a saved index of any kind; the encoder is loaded at the first text that is not the catalogue's."""
        about = read_json(folder / ABOUT)
        encoder = Encoder(about.pop("encoder"), about.pop("revision", None))
        if about["kind"] == FLAT:
            return cls(read_json(folder / "texts.json"), faiss.read_index(str(folder / "index.faiss")), encoder, about)
        return cls(Places(folder), OnDisk(folder, about["rerank"]), encoder, about)

    def extended(self, texts: list[str]) -> "DenseIndex":
        """An index with more texts behind its own. Only texts that it does not have yet are encoded."""
        longer, vectors = copy(self), self.encode(texts)
        if self.added:
            texts, vectors = self.added.texts + texts, np.concatenate([self.added.vectors(), vectors])
        longer.added = DenseIndex.from_vectors(texts, vectors, self.encoder)
        return longer

    def vectors(self) -> np.ndarray:
        """The catalogue's vectors, float32 [items, dimensions]; memory-mapped where they are on disk."""
        vectors = self.faiss.reconstruct_n(0, self.faiss.ntotal)
        return np.concatenate([vectors, self.added.vectors()]) if self.added else vectors

    def encode(self, texts: list[str]) -> np.ndarray:
        """Vectors of texts, float32 [texts, dimensions]. An item's exact text gets that item's vector."""
        places = np.array([self.places.get(text, -1) for text in texts], dtype=np.int64)
        known = places >= 0
        vectors = np.empty((len(texts), self.faiss.d), dtype=np.float32)
        if known.any():
            vectors[known] = self.faiss.reconstruct_batch(places[known])
        if not known.all():
            unknown = [text for text, is_known in zip(texts, known, strict=True) if not is_known]
            vectors[~known] = self.added.encode(unknown) if self.added else self.encoder(unknown)
        return vectors

    @cached_property
    def chance(self) -> float:
        """The mean similarity of two items: what texts have in common by chance."""
        return self.about["chance"] if "chance" in self.about else on_disk.mean_similarity(self.vectors())

    def strength(self, scores: np.ndarray) -> np.ndarray:
        """Similarities on a scale where 1 is the same vector and 0 is the mean similarity of two items.

        Encoders differ much in what they give to texts that have nothing in common.
        """
        return (scores - self.chance) / (1 - self.chance)

    def search(self, texts: list[str], k: int) -> Found:
        """The k nearest items of each text: places in the catalogue and similarities, [texts, min(k, items)]."""
        some, places = distinct(texts)
        ids, scores = self.nearest(self.encode(some), k)
        return ids[places], scores[places]

    def nearest(self, vectors: np.ndarray, k: int) -> Found:
        """The same for vectors, float32 [vectors, dimensions]."""
        ids, scores = self._nearest(vectors, min(k, self.faiss.ntotal))
        if self.added:
            more, near = self.added.nearest(vectors, k)
            ids, scores = top_k(np.hstack([ids, self.faiss.ntotal + more]), np.hstack([scores, near]), k)
        return ids, scores

    def _nearest(self, vectors: np.ndarray, k: int) -> Found:
        items = self.faiss.ntotal
        ids, scores = np.empty((len(vectors), k), dtype=np.int64), np.empty((len(vectors), k))
        left, wide = np.arange(len(vectors)), min(k + (RERANKED if self.on_disk else MARGIN), items)
        while len(left):
            found, near = self.faiss.search(vectors[left], wide)
            found = rounded(found)
            ids[left], scores[left] = top_k(near, found, k)
            # Where the last candidate is as near as the k-th, there may be more such items: look further.
            cut = found[:, -1] >= scores[left, -1] if wide < items else np.zeros(len(left), dtype=bool)
            left, wide = left[cut & np.isfinite(found[:, -1])], min(4 * wide, items)
        few = np.flatnonzero(np.isinf(scores).any(axis=1))  # an approximate index did not find k items
        if len(few):
            found, near = on_disk.exact(self.faiss.reconstruct_n(0, items), vectors[few], min(k + MARGIN, items))
            ids[few], scores[few] = top_k(near, rounded(found), k)
        return ids, scores


def _encoder(encoder: Encoder) -> dict:
    return {"encoder": encoder.name, "revision": encoder.revision}


def build_dense(
    folder: Path,
    texts: list[str],
    encoder: Encoder,
    kind: str = AUTO,
    rerank: bool = True,
    encode: Encode | None = None,
) -> DenseIndex:
    """Build a dense index of the catalogue's texts and write it as a folder, whole or not at all.

    kind: flat, hnsw, ivfpq, or auto: by the number of items and the machine's memory. rerank: with hnsw and ivfpq, get
    exact similarities from the vectors on disk. encode: what encodes the texts, by default the encoder in this process.
    """
    why = "the parameter index asks for it"
    if kind == AUTO:
        kind, why = on_disk.choose(len(texts), encoder.model.get_embedding_dimension(), on_disk.memory())
    about, encode = {"kind": kind, "why": why}, encode or encoder
    if kind == FLAT:
        some, places = distinct(texts)
        index = DenseIndex.from_vectors(texts, encode(some)[places], encoder, about)
        index.save(folder)
        return index
    with write_whole(folder) as part:
        part.mkdir()
        vectors = on_disk.write_vectors(part / "vectors.npy", texts, Places.write(part, texts), encode)
        faiss.write_index(on_disk.build(kind, vectors), str(part / "index.faiss"))
        about |= _encoder(encoder) | {"chance": on_disk.mean_similarity(vectors), "rerank": rerank}
        write_json(part / ABOUT, about)
    return DenseIndex.load(folder)
