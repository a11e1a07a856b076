"""Loading base models, adapters and tokenizers, in 4 bits or not, with a one-line error where that fails."""

import re
import sys
import warnings
from contextlib import contextmanager
from pathlib import Path

import psutil
import torch
import transformers
from accelerate.utils import parse_flag_from_env
from huggingface_hub.errors import GatedRepoError
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from gloss_utils.base.errors import GlossError
from gloss_utils.base.hub import only_local, only_safetensors
from gloss_utils.language import memory
from gloss_utils.language.sizes import Sizes

transformers.utils.logging.disable_progress_bar()  # of reading and writing weights

TINY = "tiny"  # stands for the base model of `tiny.py`, where a name or a folder is asked for


def has_bf16() -> bool:
    """Whether the GPU itself multiplies in bf16. On an older one, as a T4, PyTorch emulates it, slowly: that is no."""
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)


def compute_dtype() -> torch.dtype:
    """bf16 where the GPU has it, else fp16; float32 on the CPU, where 4-bit layers run about ten times faster in it."""
    if not torch.cuda.is_available():
        return torch.float32
    return torch.bfloat16 if has_bf16() else torch.float16


def device_map() -> dict[str, int | str]:
    """All of a model on one device: this process's GPU, though several may be visible, or else the CPU."""
    return {"": torch.cuda.current_device() if torch.cuda.is_available() else "cpu"}


def peak_memory() -> float:
    """The peak memory of this process in MiB: on the GPU where there is one."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    if sys.platform == "linux":  # where getrusage would count the parent's memory at the fork, too
        return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 2**10
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset / 2**20
    import resource  # which Windows lacks

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2 ** (20 if sys.platform == "darwin" else 10)


def quantization() -> BitsAndBytesConfig:
    """QLoRA's 4-bit weights (METHOD, 2)."""
    dtype = compute_dtype()
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_quant_storage=dtype if parse_flag_from_env("ACCELERATE_USE_FSDP") else None,  # FSDP shards floats
    )


def load_config(name: str | Path, revision: str | None = None):
    """The config of a model from a folder or the Hugging Face hub. Raises `GlossError` where there is none."""
    with one_line(name, revision):
        local = only_local(name)
        return AutoConfig.from_pretrained(name, revision=revision, local_files_only=local, trust_remote_code=False)


def load_base(name: str | Path, load_in_4bit: bool, revision: str | None = None):
    """Load a causal language model and its tokenizer from a folder or the Hugging Face hub.

    revision: of a hub model, by default `main` (see `hub.resolve`).
    Raises `GlossError` where it is gated, not reachable, or not a causal language model.
    """
    local = only_local(name)
    only_safetensors(name)
    source = {"revision": revision, "local_files_only": local}
    tokenizer = base_tokenizer(name, revision, local)  # it is small: an error comes before the weights do
    with one_line(name, revision), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # bitsandbytes warns of features that the CPU does not have
        model = AutoModelForCausalLM.from_pretrained(
            name,
            quantization_config=quantization() if load_in_4bit else None,
            dtype=compute_dtype(),
            use_safetensors=True,
            trust_remote_code=False,
            adapter_kwargs=source,  # else it looks for an adapter in the latest revision, online
            device_map=device_map(),
            **source,
        )
    return model, with_padding(tokenizer, model.get_input_embeddings().num_embeddings)


def load_finetuned(base: str | Path, adapter: Path, load_in_4bit: bool, revision: str | None = None):
    """A base model with its adapter (a folder in PEFT's format), for inference, and the tokenizer.

    adapter: or the folder of a model that was trained as a whole. revision: of the base model.
    Raises `GlossError` where base and adapter do not have the same vocabulary, and as `load_base` does.
    """
    if is_whole(adapter):
        model, tokenizer = load_base(adapter, load_in_4bit=False)
        return pack(model.eval()), tokenizer
    model, tokenizer = load_for_adapter(base, adapter, load_in_4bit, revision)
    if not merges(model, load_in_4bit):
        return PeftModel.from_pretrained(model, adapter).eval(), tokenizer
    return pack(merged(model, adapter, load_in_4bit)), tokenizer


def is_whole(folder: Path) -> bool:
    """Whether a folder holds a model that was trained as a whole, and no adapter."""
    return (folder / "config.json").exists()


def load_for_adapter(base: str | Path, adapter: Path, load_in_4bit: bool, revision: str | None = None):
    """A base model that an adapter fits, and the tokenizer. Errors as of `load_finetuned`."""
    model, tokenizer = load_base(base, load_in_4bit, revision)
    check_vocabulary(base, adapter, model, tokenizer)
    only_safetensors(adapter)
    return model, tokenizer


def merged(model, adapter: Path, load_in_4bit: bool):
    """A base model with an adapter's weights added to its own."""
    if load_in_4bit:
        # The same weights, unpacked once. Unpacking them at every step would take most of the time on a CPU.
        model = model.dequantize()
    return PeftModel.from_pretrained(model, adapter).eval().merge_and_unload()


def check_vocabulary(base: str | Path, adapter: Path, model, tokenizer):
    """Raise `GlossError` where a base model and an adapter do not have the same vocabulary (see `same_texts`)."""
    trained, size = load_tokenizer(adapter), model.get_input_embeddings().num_embeddings
    known = trained.get_vocab()
    if not same_texts(tokenizer, trained) or max(_written(trained).values()) >= size:
        raise GlossError(
            f"base model {base} has another vocabulary ({len(tokenizer):,} tokens, {size:,} embeddings) than the "
            f"adapter in {adapter} was trained with ({len(known):,} tokens); run stage 02 again"
        )


def merges(model, load_in_4bit: bool) -> bool:
    """Whether generation unpacks the weights of a loaded model and merges the adapter, or keeps 4 bits and the adapter
    beside them, which is slower and for a GPU with too little memory. On a GPU, prints a line on it.
    """
    free = free_gpu_memory()
    if free is None:
        return True
    numbers = Sizes.of(model.config)
    # What is loaded already takes its part of the memory, and does not count among what is free.
    more = memory.unpacked(numbers) - memory.base(numbers, load_in_4bit) if load_in_4bit else 0
    amounts = f"about {more / 2**30:.1f} GiB more of GPU memory, and {free / 2**30:.1f} are free"
    if more <= free:
        how = f"unpacked to 16 bits (it takes {amounts})" if load_in_4bit else "in 16 bits"
        print(f"Generation holds the model {how}, with the adapter merged.")
        return True
    print(f"Generation keeps the model in 4 bits and the adapter beside it, which is slower: unpacked takes {amounts}.")
    return False


def free_gpu_memory() -> int | None:
    """The bytes that are free on this process's GPU, with what PyTorch holds and does not use; None without a GPU."""
    if not torch.cuda.is_available():
        return None
    return torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()


def load_tokenizer(adapter: Path):
    """The tokenizer that was saved beside an adapter."""
    return with_padding(AutoTokenizer.from_pretrained(adapter, local_files_only=True, trust_remote_code=False))


def base_tokenizer(name: str | Path, revision: str | None, local: bool):
    """The tokenizer of a base model as it was published, whatever package loads the model. Errors as of `load_base`."""
    with one_line(name, revision):
        source = {"revision": revision, "local_files_only": local}
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False, **source)


def same_texts(one, other) -> bool:
    """Whether two tokenizers stand for the same texts: their vocabularies, padding aside, and their end tokens.

    A padding token is in no text, and packages that repair tokenizers choose or add different ones.
    """
    differing = {token for token, _ in set(one.get_vocab().items()) ^ set(other.get_vocab().items())}
    paddings = {one.pad_token, other.pad_token} - {one.eos_token, other.eos_token}
    return one.eos_token_id == other.eos_token_id and differing <= paddings


def _written(tokenizer) -> dict[str, int]:
    """The vocabulary without a token that only pads."""
    padding = {tokenizer.pad_token} - {tokenizer.eos_token}
    return {token: place for token, place in tokenizer.get_vocab().items() if token not in padding}


def with_padding(tokenizer, embeddings: int | None = None):
    """Give the tokenizer a padding token where it has none: Llama-3's own spare one, or else the end token.

    So, too, where the model has no embedding for its padding token. (Padding is masked everywhere, so that no result
    depends on which token it is.) Raises `GlossError` where the tokenizer has no end-of-sequence token.
    """
    if tokenizer.eos_token_id is None:
        raise GlossError(
            f"the tokenizer of {tokenizer.name_or_path} has no end-of-sequence token, so no text could "
            "end; choose another base_model"
        )
    if tokenizer.pad_token_id is None or (embeddings is not None and tokenizer.pad_token_id >= embeddings):
        spare = "<|finetune_right_pad_id|>"
        tokenizer.pad_token = spare if spare in tokenizer.get_vocab() else tokenizer.eos_token
    return tokenizer


class _PackedLinear(torch.nn.Module):
    """A linear layer for inference, with its weights in oneDNN's own order."""

    def __init__(self, linear: torch.nn.Linear):
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), None)
        self.bias = linear.bias

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """[..., inputs] -> [..., outputs]."""
        return torch.ops.mkldnn._linear_pointwise(inputs, self.weight, self.bias, "none", [], "")


def pack(model: torch.nn.Module) -> torch.nn.Module:
    """Reorder a float32 model's linear weights in place, for inference only; returns the model.

    Otherwise every matrix product on the CPU would reorder them, which is a quarter of generation's time. Nothing is
    changed on a GPU, or where PyTorch is built without oneDNN.
    """
    if model.device.type != "cpu" or model.dtype != torch.float32 or not torch.backends.mkldnn.is_available():
        return model
    linear = [(name, layer) for name, layer in model.named_modules() if type(layer) is torch.nn.Linear]
    for name, layer in linear:
        model.set_submodule(name, _PackedLinear(layer))
    return model


@contextmanager
def one_line(name: str | Path, revision: str | None = None):
    """Turn the libraries' errors about a model that cannot be loaded into one line that says what to do."""
    model = f"base model {str(name)!r}" + (f" at revision {revision}" if revision else "")
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:  # unsloth raises RuntimeError where transformers has OSError
        if "No space left" in str(error):
            raise
        reason = " ".join(str(error).split())[:200]
        if isinstance(error, TimeoutError):
            raise GlossError(
                f"{model} cannot be loaded now: the Hugging Face hub did not answer in time ({reason}); run again "
                "later, or set HF_HUB_OFFLINE=1 to take what is in the cache of this machine"
            ) from error
        if "out of memory" in reason:
            raise GlossError(
                f"{model} does not fit in the GPU's memory ({reason}); end what else runs on it, set load_in_4bit, or "
                "take a smaller model (docs/gpu.md says what fits)"
            ) from error
        if any(isinstance(cause, GatedRepoError) for cause in _causes(error)):
            raise GlossError(
                f"{model} is gated: accept its licence on its Hugging Face page, run `hf auth login`, and run again"
            ) from error
        if Path(name).is_dir():
            raise GlossError(
                f"base model folder {name} cannot be loaded ({reason}); "
                "give a folder that a causal language model was saved to"
            ) from error
        if isinstance(error, OSError):
            raise GlossError(
                f"{model} is neither a local folder nor reachable on the Hugging Face hub; "
                "give the folder of a model, go online, or take base_model: tiny"
            ) from error
        raise GlossError(f"{model} cannot be loaded ({reason}); choose another") from error


def _causes(error):
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
