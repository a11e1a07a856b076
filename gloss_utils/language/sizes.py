"""A language model in numbers, from its config: what an estimate of disk and memory needs."""

from dataclasses import dataclass

import torch
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D


@dataclass(frozen=True)
class Sizes:
    """parameters: all. embeddings: those of the input's and the output's matrix. linear: inputs + outputs of each
    linear layer, by name. width: of the hidden states; keys: of the keys, as of the values, of one layer."""

    parameters: int
    embeddings: int
    linear: dict[str, int]
    layers: int
    width: int
    keys: int
    vocabulary: int

    @classmethod
    def of(cls, config) -> "Sizes":
        """From a transformers config of a causal language model; no weights are made."""
        model, heads = without_weights(config), config.num_attention_heads
        ends = {layer.weight for layer in (model.get_input_embeddings(), model.get_output_embeddings())}
        groups = getattr(config, "num_key_value_heads", None) or heads
        head = getattr(config, "head_dim", None) or config.hidden_size // heads
        return cls(
            parameters=sum(weights.numel() for weights in model.parameters()),
            embeddings=sum(weights.numel() for weights in ends),
            linear={name: sum(layer.weight.shape) for name, layer in linear_layers(model).items()},
            layers=config.num_hidden_layers,
            width=config.hidden_size,
            keys=groups * head,
            vocabulary=config.vocab_size,
        )

    def lora(self, modules: list[str], rank: int) -> int:
        """The parameters of low-rank adapters on the linear layers of these names."""
        return rank * sum(size for name, size in self.linear.items() if is_of(name, modules))

    def inner(self) -> int:
        """Inputs + outputs of the linear layers of all layers together; the output's matrix is in none of these."""
        return sum(size for name, size in self.linear.items() if any(part.isdigit() for part in name.split(".")))


def is_of(name: str, modules: list[str]) -> bool:
    """Whether peft takes a layer of this full name for one of these modules."""
    return any(f".{name}".endswith(f".{module}") for module in modules)


def without_weights(config) -> torch.nn.Module:
    """The language model of a transformers config, whose parameters have a shape, but no values."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=False)


def linear_layers(model: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """The linear layers of a model, by name: those that can have an adapter."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, torch.nn.Linear | Conv1D)}
