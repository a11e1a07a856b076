"""Would another engine encode titles faster on a CPU, and do their neighbours stay the same?

`python -m benchmarks.encoding DATA_DIR [--dataset beauty] [--titles 2048]`: all-MiniLM-L6-v2 by sentence-transformers
and PyTorch, as here, and its network by OpenVINO in float32 and with int8 arithmetic (NNCF, calibrated on 400 of the
titles). All have one thread, take turns in one process, and are compared by the processor's seconds. Neither engine
belongs to the requirements:

    pip install openvino nncf

Through sentence-transformers itself both would need `optimum-intel`, which wants an older transformers.
"""

import argparse
import importlib
import statistics
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from benchmarks import timing
from benchmarks.baselines import load
from gloss_utils.data.prompts import item_text
from gloss_utils.search.encoder import DEFAULT_ENCODER, encode_texts, load_encoder

CALIBRATED_ON, NEAREST, RUNS = 400, 10, 3


def forward(compiled: Callable, inputs: dict[str, Tensor], **_) -> dict[str, Tensor]:
    """The inputs, which have token ids and masks [texts, tokens], with a vector for each token by a compiled model."""
    arrays = {name: value.numpy() for name, value in inputs.items() if isinstance(value, Tensor)}
    return inputs | {"token_embeddings": torch.from_numpy(compiled(arrays)[0])}


def engines(texts: list[str]) -> dict[str, Callable[[list[str]], np.ndarray]]:
    """What turns texts into vectors, [texts, dimensions], by the engine's name."""
    openvino, nncf = importlib.import_module("openvino"), importlib.import_module("nncf")
    encoder = load_encoder(DEFAULT_ENCODER)
    found = {"PyTorch": encoder}

    def inputs(some: list[str]) -> dict[str, Tensor]:
        return {name: value for name, value in encoder[0].preprocess(some).items() if isinstance(value, Tensor)}

    network = openvino.convert_model(_TokenVectors(encoder[0].model), example_input=inputs(texts[:2]))
    batches = [inputs(texts[start : start + 8]) for start in range(0, min(len(texts), CALIBRATED_ON), 8)]
    calibrated_on = nncf.Dataset([{name: value.numpy() for name, value in batch.items()} for batch in batches])
    int8 = nncf.quantize(network, calibrated_on, model_type=nncf.ModelType.TRANSFORMER, subset_size=len(batches))
    how = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    for name, model in {"OpenVINO float32": network, "OpenVINO int8": int8}.items():
        found[name] = load_encoder(DEFAULT_ENCODER)
        found[name][0].forward = partial(forward, openvino.compile_model(model, "CPU", how))
    return {name: lambda some, encoder=encoder: encode_texts(encoder, some) for name, encoder in found.items()}


class _TokenVectors(torch.nn.Module):
    def __init__(self, model: torch.nn.Module):
        super().__init__()
        self.model = model.eval()

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        given = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        return self.model(**given).last_hidden_state


def nearest(vectors: np.ndarray, count: int = NEAREST) -> np.ndarray:
    """The places of each vector's nearest others, [vectors, count]."""
    similar = vectors @ vectors.T
    np.fill_diagonal(similar, -np.inf)
    return np.argsort(-similar, axis=1, kind="stable")[:, :count]


def kept(ours: np.ndarray, theirs: np.ndarray, count: int = NEAREST) -> tuple[float, float]:
    """The share of vectors whose nearest other is the same, and of their nearest `count` the share that are."""
    one, other = nearest(ours, count), nearest(theirs, count)
    shared = [len(set(a) & set(b)) / count for a, b in zip(one.tolist(), other.tolist(), strict=True)]
    return float((one[:, 0] == other[:, 0]).mean()), float(np.mean(shared))


def main():
    """Print a Markdown row for each engine."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data_dir")
    parser.add_argument("--dataset", default="beauty")
    parser.add_argument("--titles", type=int, default=2048)
    options = parser.parse_args()
    torch.set_num_threads(1)
    titles = load(options.dataset, options.data_dir).items["title"]
    texts = [item_text(title) for title in titles.sample(options.titles, random_state=1)]
    rivals = {name: lambda run, encode=encode: encode(texts) for name, encode in engines(texts).items()}
    seconds, (*_, vectors) = timing.alternate(rivals, RUNS, time.process_time)
    ours = vectors["PyTorch"]
    for name, found in vectors.items():
        first, ten = kept(ours, found)
        faster, apart = timing.ratio(seconds, name, "PyTorch"), np.abs(found - ours).max()
        cells = f"{statistics.median(seconds[name]):.1f}", f"{faster:.2f}", f"{apart:.1e}", f"{first:.1%}", f"{ten:.1%}"
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
