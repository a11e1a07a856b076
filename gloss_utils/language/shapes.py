"""Models with random weights in known shapes: speed and memory do not depend on the weights, so they can be measured
without a download. `llama-…` are those of Meta's published configurations."""

from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from gloss_utils.base.files import write_json
from gloss_utils.language.sizes import Sizes, without_weights

END = 2
SPREAD = 0.02  # of random weights
WRITTEN = torch.bfloat16  # as models are published
FILE = 2**31  # bytes of a file of weights, at most about
ROPE = {"rope_type": "llama3", "rope_theta": 500000.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA = {"vocab_size": 128256, "num_key_value_heads": 8, "rms_norm_eps": 1e-5, "max_position_embeddings": 131072}
SHAPES = {
    "tiny": {
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "tie_word_embeddings": False,
    },
    "15m": {
        "vocab_size": 8000,
        "hidden_size": 384,
        "intermediate_size": 1024,
        "num_hidden_layers": 7,
        "num_attention_heads": 6,
        "num_key_value_heads": 6,
        "tie_word_embeddings": True,
    },
    "135m": {  # of SmolLM-135M
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
    },
    "llama-1b": LLAMA
    | {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "tie_word_embeddings": True,
        "rope_parameters": ROPE | {"factor": 32.0, "original_max_position_embeddings": 8192},
    },
    "llama-3b": LLAMA
    | {
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_hidden_layers": 28,
        "num_attention_heads": 24,
        "tie_word_embeddings": True,
        "rope_parameters": ROPE | {"factor": 32.0, "original_max_position_embeddings": 8192},
    },
    "llama-8b": LLAMA
    | {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "tie_word_embeddings": False,
        "rope_parameters": ROPE | {"factor": 8.0, "original_max_position_embeddings": 8192},
    },
}


def config(shape: str, dtype: torch.dtype = WRITTEN) -> LlamaConfig:
    """The config of a shape."""
    return LlamaConfig(**SHAPES[shape], bos_token_id=1, eos_token_id=END, dtype=dtype)


def sizes(shape: str) -> Sizes:
    """A shape in numbers."""
    return Sizes.of(config(shape))


def new_model(shape: str, dtype: torch.dtype = torch.float32) -> LlamaForCausalLM:
    """A Llama of that shape with random weights, on the GPU where there is one."""
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        return LlamaForCausalLM._from_config(config(shape, dtype)).eval()


def write_model(shape: str, folder: Path):
    """Write a model folder of that shape with random weights, one file's weights in memory at a time."""
    config(shape).save_pretrained(folder)
    torch.manual_seed(0)
    files, places = list(_files(shape)), {}
    for number, shapes in enumerate(files, 1):
        name = f"model-{number:05}-of-{len(files):05}.safetensors"
        save_file({key: _random(key, *size) for key, size in shapes.items()}, folder / name, {"format": "pt"})
        places |= dict.fromkeys(shapes, name)
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": places})


def _files(shape: str) -> Iterator[dict]:
    """The names and shapes of the weights, file by file; those that are tied to others once."""
    found, held = {}, 0
    for name, weight in without_weights(config(shape)).named_parameters():
        found[name] = (weight.shape,)
        held += weight.numel() * WRITTEN.itemsize
        if held >= FILE:
            yield found
            found, held = {}, 0
    if found:
        yield found


def _random(name: str, size: torch.Size) -> torch.Tensor:
    if len(size) == 1:  # of a norm
        return torch.ones(size, dtype=WRITTEN)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return (torch.randn(size, device=device, dtype=WRITTEN) * SPREAD).cpu()
