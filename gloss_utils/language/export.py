"""A fine-tuned model as one folder in 16 bits, with the adapter merged, as vLLM and others load it."""

from pathlib import Path

import torch
from transformers import GenerationConfig

from gloss_utils.base.files import write_whole
from gloss_utils.language.models import compute_dtype, is_whole, load_base, load_for_adapter, merged


def save_merged(base: str | Path, adapter: Path, to: Path, load_in_4bit: bool, revision: str | None = None):
    """Write a model folder: safetensors, tokenizer, and a generation config that changes no text.

    load_in_4bit: as the adapter was trained; then the weights are the unpacked ones, which it was fitted to. They are
    added up in float32 on a CPU, in 16 bits on a GPU. Raises `GlossError` as `models.load_finetuned` does.
    """
    if is_whole(adapter):
        model, tokenizer = load_base(adapter, load_in_4bit=False)
    else:
        model, tokenizer = load_for_adapter(base, adapter, load_in_4bit, revision)
        model = merged(model, adapter, load_in_4bit)
    model = model.to(torch.bfloat16 if compute_dtype() == torch.float32 else compute_dtype())
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    model.config.update(ends)
    # A server takes its defaults from here, as penalties, which the search here knows nothing of.
    model.generation_config = GenerationConfig(**ends, pad_token_id=tokenizer.pad_token_id)
    with write_whole(to) as part:
        model.save_pretrained(part)
        tokenizer.save_pretrained(part)
