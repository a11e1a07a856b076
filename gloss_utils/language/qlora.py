"""QLoRA (METHOD, 2): a base model in 4 bits that stays as it is, and low-rank adapters beside it, which are trained.

transformers, peft and bitsandbytes set the model up, on the CPU too. Where `base.unsloth_first` has imported unsloth,
unsloth does: it patches transformers and peft, so it comes before this module. Either way the tokenizer is the same,
and the adapter is saved in PEFT's format.
"""

import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bitsandbytes.nn import Linear4bit
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import set_seed

from gloss_utils.base.errors import GlossError
from gloss_utils.base.files import read_json, write_json
from gloss_utils.base.hub import in_cache, only_local, only_safetensors
from gloss_utils.base.unsloth_first import SWITCH
from gloss_utils.language.models import (
    base_tokenizer,
    compute_dtype,
    device_map,
    load_base,
    load_config,
    one_line,
    with_padding,
)
from gloss_utils.language.sizes import is_of, linear_layers, without_weights


@dataclass(frozen=True)
class QLoRA:
    """What is trained, and how it is held in memory. lora_modules: the names of the layers that get an adapter."""

    lora_rank: int
    lora_alpha: int
    lora_dropout: float
    lora_modules: list[str]
    load_in_4bit: bool
    max_length: int
    gradient_checkpointing: bool
    seed: int

    def lora(self) -> dict:
        """The adapters, in the words of peft and unsloth."""
        return {
            "r": self.lora_rank,
            "lora_alpha": self.lora_alpha,
            "lora_dropout": self.lora_dropout,
            "target_modules": self.lora_modules,
            "bias": "none",
        }


def uses_unsloth() -> bool:
    """Whether unsloth sets models up here, because it was imported (see `base.unsloth_first`)."""
    return "unsloth" in sys.modules


def with_adapters(base: str | Path, settings: QLoRA, revision: str | None = None):
    """A base model with new low-rank adapters, drawn by the seed, and its tokenizer.

    revision: of a hub model. Raises `GlossError` where the base model cannot be loaded, or does not have all of
    `lora_modules`, which is found out before its weights are loaded.
    """
    check_modules(base, settings.lora_modules, revision)
    set_seed(settings.seed)
    return (_with_unsloth if uses_unsloth() else _with_peft)(base, settings, revision)


def check_modules(base: str | Path, lora_modules: list[str], revision: str | None = None):
    """Raise `GlossError` where the base model lacks a linear layer of one of these names. Only its config is read."""
    config = load_config(base, revision)
    with one_line(base, revision):
        linear = linear_layers(without_weights(config))
    wrong = [module for module in lora_modules if not any(is_of(name, [module]) for name in linear)]
    if wrong:
        known = sorted({name.split(".")[-1] for name in linear})
        raise GlossError(
            f"parameter lora_modules names {', '.join(wrong)}, which base model {base} does not have; "
            f"its linear layers are {', '.join(known)}"
        )


def _with_unsloth(base: str | Path, settings: QLoRA, revision: str | None):
    unsloth, local = sys.modules["unsloth"], only_local(base)
    only_safetensors(base)
    with one_line(base, revision), _cure():
        # unsloth loads some files without `local_files_only`, and would wait for a hub that does not answer; of a
        # folder it asks nothing.
        name, at = (in_cache(base, revision), None) if local else (base, revision)
        # Not unsloth's tokenizer: its repair may choose or add another padding token than generation finds in the base.
        tokenizer = base_tokenizer(name, at, local)
        model, _ = unsloth.FastLanguageModel.from_pretrained(
            str(name),
            revision=at,
            max_seq_length=settings.max_length,
            dtype=compute_dtype(),
            load_in_4bit=settings.load_in_4bit,
            device_map=device_map(),  # its own would spread a model over all GPUs that are visible
            local_files_only=local,
            fix_tokenizer=False,
            use_safetensors=True,
            trust_remote_code=False,
            use_exact_model_name=True,  # else it trains on its own copy of the weights, which generation does not load
        )
        model = unsloth.FastLanguageModel.get_peft_model(
            model,
            random_state=settings.seed,
            use_gradient_checkpointing="unsloth" if settings.gradient_checkpointing else False,
            **settings.lora(),
        )
    return model, with_padding(tokenizer, model.get_input_embeddings().num_embeddings)


@contextmanager
def _cure():
    """Say of an error of unsloth's own that one can do without unsloth."""
    try:
        yield
    except (RuntimeError, ValueError, NotImplementedError, AssertionError) as error:
        reason = " ".join(str(error).split())[:160]
        raise RuntimeError(f"{reason}; or {SWITCH}=off in the environment trains without unsloth") from error


def _with_peft(base: str | Path, settings: QLoRA, revision: str | None):
    model, tokenizer = load_base(base, settings.load_in_4bit, revision)
    if settings.load_in_4bit:
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=settings.gradient_checkpointing)
        # On processors with AVX512-BF16, evaluating would repack the 4-bit weights, in a form that passes no gradient
        # on; saving the model undoes that, but not to the bit, and only in the process that saves.
        for module in model.modules():
            if isinstance(module, Linear4bit):
                module.support_avx512bf16_for_cpu = False
    return get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **settings.lora())), tokenizer


def save_adapter(folder: Path, model, tokenizer, settings: QLoRA, weights: dict | None = None):
    """Save a trained adapter and its tokenizer in PEFT's format. weights: what `training.gather_weights` returned."""
    model.save_pretrained(folder, state_dict=weights, save_embedding_layers=False)
    tokenizer.save_pretrained(folder)
    config = read_json(folder / "adapter_config.json")  # where peft writes the modules as a set, in no order
    write_json(folder / "adapter_config.json", config | {"target_modules": sorted(settings.lora_modules)})
