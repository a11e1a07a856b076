"""Small hand-made data for the tests, and where the real data is."""

import gzip
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.baselines import load
from gloss_utils.base.errors import GlossError
from gloss_utils.data.dataset import Dataset
from gloss_utils.data.interactions import Interactions
from gloss_utils.report import significance
from gloss_utils.runs.contents import contents
from gloss_utils.runs.folder import RunFolder
from gloss_utils.runs.run import Run
from gloss_utils.search import DenseIndex, Encoder

SHARED = Path(__file__).parents[2] / "shared"


@contextmanager
def one_line_error(*words: str):
    """Expect a `GlossError` whose message is one line that has all of `words` in it."""
    with pytest.raises(GlossError) as caught:
        yield
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


def write_lines(path: Path, lines: list[str], zipped: bool = False) -> Path:
    """Write lines to a file, gzipped or not."""
    data = "".join(line + "\n" for line in lines).encode()
    path.write_bytes(gzip.compress(data) if zipped else data)
    return path


def flip(path: Path):
    """Change one bit in the middle of a file, or of a folder's largest file; an empty file gets a byte, or loses it."""
    if path.is_dir():
        path = max((file for file in path.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)
    raw = bytearray(path.read_bytes())
    if raw in (b"", b"?"):
        raw = b"" if raw else b"?"
    else:
        raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


def reviews(*rows: tuple) -> Interactions:
    """What `readers.read_interactions` returns, from (user, item, time[, rating])."""
    frame = pd.DataFrame([(*row, 5.0)[:4] for row in rows], columns=["user", "item", "time", "rating"])
    return Interactions.of(frame)


def frame_of(found: Interactions) -> pd.DataFrame:
    """The interactions as a table: user, item, time, rating; in order of exact time where a time has a fraction."""
    rows = found.records.whole()
    if rows["part"].any():
        rows = rows[np.lexsort((rows["part"], rows["time"]))]
    ids = {name: pd.Series(getattr(found, f"{name}s").take(rows[name])) for name in ("user", "item")}
    return pd.DataFrame(ids | {name: rows[name] for name in ("time", "rating")}).astype({"user": str, "item": str})


def compared(per_user: pd.DataFrame, method: str, metrics: tuple[str, ...], seed: int) -> list[dict]:
    """What `significance.compare` says of a table of user, method, metrics."""
    by_method = {name: rows.set_index("user") for name, rows in per_user.groupby("method", sort=False)}
    users = by_method[method].index.tolist()
    return significance.compare(
        lambda name, metric: by_method[name][metric].reindex(users).to_numpy(),
        users,
        list(by_method),
        method,
        metrics,
        seed,
    )


def metadata(*rows: tuple) -> pd.DataFrame:
    """What `readers.read_items` returns, from (item, title)."""
    return pd.DataFrame(list(rows), columns=["item", "title"])


def dataset(sequences: dict[str, str], validation: str = "", drawn: str | None = None, items: str = "") -> Dataset:
    """A dataset of users and items named by one letter each; `items` is the catalogue's order, by default sorted."""
    items = items or "".join(sorted(set("".join(sequences.values()))))
    rows = [(user, item, time) for user in sorted(sequences) for time, item in enumerate(sequences[user])]
    users = pd.DataFrame(
        [(u, len(s), u in validation, drawn is None or u in drawn) for u, s in sorted(sequences.items())],
        columns=["user", "interactions", "validation", "drawn"],
    )
    catalogue = metadata(*((item, f"title {item}") for item in items))
    return Dataset.of(catalogue.assign(new=False), pd.DataFrame(rows, columns=["user", "item", "time"]), users, {})


def dense(texts: list[str], vectors) -> DenseIndex:
    """A dense index of given vectors; its encoder does not exist, so that only the catalogue's texts can be sought."""
    vectors = np.ascontiguousarray(vectors, dtype=np.float32)
    return DenseIndex.from_vectors(texts, vectors, Encoder("no such encoder"))


@lru_cache
def real(name: str) -> Dataset:
    """Beauty or Toys from the shared raw files; skips the test where they are absent."""
    folder = SHARED / "data/amazon2014"
    if not folder.is_dir():
        pytest.skip(f"the raw Amazon files are not in {folder}")
    return load(name, folder)


def small_llama(vocabulary: int, groups: int = 4, spread: float = 0.3) -> LlamaForCausalLM:
    """An untrained Llama, always the same; `spread` of its weights: with much of it, texts differ clearly in score."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=groups,
        initializer_range=spread,
        bos_token_id=None,
        eos_token_id=None,
    )
    return LlamaForCausalLM(config).eval()


def run_of(small_run: tuple[RunFolder, Path], **values) -> Run:
    """A `Run` with the resolved parameters of a finished run, and `values` over them, in its folder."""
    folder, _ = small_run
    parameters = {}
    for entry in folder.stages().values():
        parameters |= entry["parameters"]
    parameters |= values
    remake = values.pop("remake", [])
    return Run(folder, "test", {}, parameters, remake, known=contents(folder.root, parameters, folder.stages()))
