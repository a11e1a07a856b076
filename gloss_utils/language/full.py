"""Training all weights of a base model: for small ones, to which adapters beside frozen weights leave too little room.

The result is an ordinary model folder, and stands where an adapter would.
"""

from pathlib import Path

import torch
from torch.nn.functional import dropout

from gloss_utils.language.models import load_base
from gloss_utils.language.training import seed_everything

LAST = ("o_proj", "down_proj")  # the layers whose outputs are added to the hidden states, by Llama's names


def trainable(base: str | Path, share: float, seed: int, revision: str | None = None):
    """A base model in float32, all of whose weights are trained, and its tokenizer.

    share: of the embeddings, and of what each layer adds to the hidden states, that is left out at random while the
    model trains (dropout, which Llama's configuration lacks). revision: of a hub model. Errors as of `load_base`.
    """
    seed_everything(seed)
    model, tokenizer = load_base(base, load_in_4bit=False, revision=revision)
    model = model.float().requires_grad_(True)

    def leave_out(module: torch.nn.Module, inputs, output: torch.Tensor) -> torch.Tensor:
        return dropout(output, share, module.training)

    if share:
        model.get_input_embeddings().register_forward_hook(leave_out)
        for name, module in model.named_modules():
            if name.rpartition(".")[2] in LAST:
                module.register_forward_hook(leave_out)
    return model, tokenizer


def save(folder: Path, model, tokenizer, weights: dict | None = None):
    """Save a trained model and its tokenizer. weights: what `training.gather_weights` returned."""
    model.save_pretrained(folder, state_dict=weights)
    tokenizer.save_pretrained(folder)
