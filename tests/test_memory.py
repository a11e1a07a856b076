"""What fits in memory, what is chosen by it, and what is told in one line before hours pass."""

import shutil
from types import SimpleNamespace

import pytest
import torch
from helpers import one_line_error, run_of

from benchmarks import fits
from gloss_utils.base import hub
from gloss_utils.data import prompts
from gloss_utils.data.dataset import Dataset
from gloss_utils.language import memory, models, shapes
from gloss_utils.language.generation import Decoding, Writer
from gloss_utils.runs import room
from gloss_utils.runs.parameters import LORA_MODULES

GIB = 2**30
PARAMETERS = {
    "base_model": "someone/writer",
    "base_revision": None,
    "load_in_4bit": True,
    "lora_modules": LORA_MODULES,
    "lora_rank": 16,
    "optimizer": "adamw_torch",
    "batch_size": 4,
    "gradient_accumulation": 4,
    "max_length": 1024,
    "num_beams": 5,
    "gradient_checkpointing": False,
    "tuning": "lora",
}
# Measured on an NVIDIA H100 80GB HBM3: the most that PyTorch had allocated in QLoRA steps in 4 bits, rank 16 on all
# layers, random weights, AdamW in 32 bits; way, shape, gradient checkpointing, tokens, GiB.
MEASURED = [
    (memory.PEFT, "llama-3b", False, 4 * 1024, 29.75),
    (memory.PEFT, "llama-3b", True, 4 * 1024, 11.13),
    (memory.PEFT, "llama-8b", False, 4 * 1024, 50.78),
    (memory.UNSLOTH, "llama-1b", False, 4 * 1024, 5.38),
    (memory.UNSLOTH, "llama-1b", True, 4 * 1024, 1.81),
    (memory.UNSLOTH, "llama-1b", False, 4 * 512, 4.03),
]


def test_the_table_of_the_page_is_what_the_formulas_say():
    text = fits.PAGE.read_text(encoding="utf-8")
    assert fits.page(text) == text, "run python -m benchmarks.fits"
    assert "llama-8b | 24 GB" in text


def test_shapes_have_the_published_numbers_of_parameters():
    published = {"llama-1b": 1_235_814_400, "llama-3b": 3_212_749_824, "llama-8b": 8_030_261_248}
    assert {shape: shapes.sizes(shape).parameters for shape in published} == published


def training(shape: str, way: memory.Way = memory.PEFT) -> memory.Training:
    model = shapes.sizes(shape)
    return memory.Training(model, model.lora(LORA_MODULES, 16), way)


@pytest.mark.parametrize(("way", "shape", "checkpointing", "tokens", "peak"), MEASURED)
def test_training_needs_what_was_measured_and_not_much_more(way, shape, checkpointing, tokens, peak):
    needs = training(shape, way).needs(tokens, checkpointing) / GIB
    assert peak <= needs <= 1.2 * peak + memory.RESERVE / GIB  # CUDA's context, in the reserve, is not in the peaks


def test_weights_that_were_measured():
    """Loaded, before the first step: with the adapters, but without their gradients and moments."""
    for way, shape, held in (
        (memory.PEFT, "llama-3b", 2.98),
        (memory.PEFT, "llama-8b", 7.43),
        (memory.UNSLOTH, "llama-1b", 1.05),
    ):
        found = training(shape, way)
        assert (found.weights() - 12 * found.trained) / GIB == pytest.approx(held, rel=0.04)


@pytest.mark.parametrize("way", [memory.PEFT, memory.UNSLOTH])
def test_more_memory_never_fits_less(way):
    model, found = training("llama-8b", way), []
    for gib in range(3, 60):
        fit = model.fits(gib * GIB)
        assert fit is None or fit.needs <= gib * GIB
        found.append((0, False) if fit is None else (fit.batch_size, not fit.gradient_checkpointing))
    assert found[0] == (0, False) and found[-1] == (4, True)
    assert [plain for _, plain in found] == sorted(plain for _, plain in found)


# ---- generation: unpacked and merged, or in 4 bits


def written(work, merged: bool, monkeypatch, capsys) -> tuple[list, str, Writer]:
    """What the finetuned model writes on a GPU with much or little memory; the device itself is the CPU."""
    monkeypatch.setattr(models, "free_gpu_memory", lambda: 10**12 if merged else 0)
    writer = Writer(*models.load_finetuned(work.folder.base, work.folder.adapter, True), work.settings(Decoding))
    data = Dataset.load(work.folder.data)
    histories = [[title] for title in data.items["title"][:4]]
    inputs = prompts.encode_prompts(writer.tokenizer, histories, 100)
    return writer.write(inputs, list(range(4))), capsys.readouterr().out, writer


def test_where_memory_allows_weights_are_unpacked_and_the_adapter_merged(small_run, monkeypatch, capsys):
    work = run_of(small_run)
    merged, line, writer = written(work, True, monkeypatch, capsys)
    kinds = {type(layer).__name__ for layer in writer.model.modules()}
    assert "Linear4bit" not in kinds and not any("lora" in name for name, _ in writer.model.named_modules())
    assert line.count("\n") == 1 and "unpacked to 16 bits" in line and "adapter merged" in line
    beside, line, writer = written(work, False, monkeypatch, capsys)
    assert "Linear4bit" in {type(layer).__name__ for layer in writer.model.modules()}
    assert any("lora" in name for name, _ in writer.model.named_modules())
    assert line.count("\n") == 1 and "keeps the model in 4 bits" in line and "0.0 are free" in line
    for one, other in zip(merged, beside, strict=True):
        assert one[1][0] / one[2][0] == pytest.approx(other[1][0] / other[2][0], abs=0.02)  # per token


def test_a_merged_bf16_model_computes_nearly_what_the_4bit_model_does(small_run, monkeypatch):
    """Merging rounds to bf16, with 8 bits of mantissa, which is what a GPU computes in anyway."""
    work, found = run_of(small_run), {}
    monkeypatch.setattr(models, "compute_dtype", lambda: torch.bfloat16)
    ids = torch.tensor([list(range(3, 40))])
    for free in (10**12, 0):
        monkeypatch.setattr(models, "free_gpu_memory", lambda free=free: free)
        model, _ = models.load_finetuned(work.folder.base, work.folder.adapter, True)
        with torch.inference_mode():
            found[free] = model(ids).logits.float()
        assert model.dtype == torch.bfloat16
    assert (found[0] - found[10**12]).abs().max() < 0.1 * found[0].std()


def test_without_a_gpu_nothing_is_said(small_run, capsys):
    work = run_of(small_run)
    models.load_finetuned(work.folder.base, work.folder.adapter, True)
    assert capsys.readouterr().out == ""


# ---- one line each, before hours pass


@pytest.fixture
def hub_model(small_run, monkeypatch):
    """A model of the hub, of the shape of Llama-3.1-8B, whose weights are not here."""
    monkeypatch.setattr(models, "load_config", lambda name, revision=None: shapes.config("llama-8b"))
    monkeypatch.setattr("gloss_utils.language.qlora.load_config", models.load_config)
    return small_run[0]


def gpu(monkeypatch, free: float, total: float):
    """A GPU with so many GiB."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (int(free * GIB), int(total * GIB)))


def test_no_disk_for_the_weights(hub_model, monkeypatch, tmp_path):
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=3 * GIB))
    with one_line_error("someone/writer are about 15.0 GiB to download", "3.0 are free", "set HF_HOME"):
        room._sizes(hub_model, PARAMETERS)
    commit = "a" * 40
    snapshot = tmp_path / "hub/models--someone--writer/snapshots" / commit
    snapshot.mkdir(parents=True)
    (snapshot / "model-00001-of-00004.safetensors").touch()
    (tmp_path / "hub/models--someone--writer/refs").mkdir()
    (tmp_path / "hub/models--someone--writer/refs/main").write_text(commit)
    assert room._sizes(hub_model, PARAMETERS).layers == 32  # it is there already


def test_wrong_modules_are_told_in_the_first_stage(hub_model):
    with one_line_error("parameter lora_modules names c_attn", "gate_proj"):
        room._sizes(hub_model, PARAMETERS | {"lora_modules": ["c_attn"]})


def memory_of(shape: str = "llama-8b", **values) -> list[str]:
    model = shapes.sizes(shape)
    trained = model.parameters if values.get("tuning") == "full" else model.lora(LORA_MODULES, 16)
    return room._memory(model, trained, PARAMETERS | values)


def test_a_gpu_that_is_too_small(monkeypatch):
    gpu(monkeypatch, free=5.8, total=6)
    with one_line_error("someone/writer is too large for this GPU", "and it has 6.0", "docs/gpu.md"):
        memory_of()
    assert "load_in_4bit" in _error(lambda: memory_of(load_in_4bit=False))


def _error(call) -> str:
    with pytest.raises(Exception) as caught:
        call()
    return str(caught.value)


def test_a_gpu_on_which_smaller_batches_fit(monkeypatch):
    gpu(monkeypatch, free=22, total=24)
    first, second = memory_of()
    assert "in GPU memory" in first and "22.0 GiB are free" in first
    assert "That may not fit. -p batch_size 1 -p gradient_accumulation 16 -p gradient_checkpointing false" in second
    assert len(memory_of("llama-1b")) == 1
    monkeypatch.setattr(room, "is_wanted", lambda: True)  # unsloth, which holds less
    assert (
        "That may not fit. -p batch_size 2 -p gradient_accumulation 8 -p gradient_checkpointing false" in memory_of()[1]
    )
    assert len(memory_of("llama-3b")) == 1
    gpu(monkeypatch, free=1, total=24)
    assert "while something else holds memory" in memory_of()[1]


def test_a_gpu_is_too_small_by_the_way_that_is_used(monkeypatch):
    gpu(monkeypatch, free=9, total=10)
    with one_line_error("too large for this GPU: training takes about", "and it has 10.0"):
        memory_of()
    monkeypatch.setattr(room, "is_wanted", lambda: True)
    assert "-p gradient_checkpointing true" in memory_of()[1]


def test_all_weights_are_counted_where_all_are_trained(monkeypatch):
    gpu(monkeypatch, free=22, total=24)
    monkeypatch.setattr(room, "is_wanted", lambda: True)  # which is for adapters alone
    full = {"tuning": "full", "load_in_4bit": False}
    with one_line_error("someone/writer is too large for this GPU", "tuning: lora"):
        memory_of("llama-3b", **full)  # 18 bytes a parameter: weights, gradients, two moments, a copy in 16 bits
    [line] = memory_of("135m", **full, batch_size=1)
    model = shapes.sizes("135m")
    needs = memory.Training(model, model.parameters, memory.PEFT, False).needs(1024, False)
    assert f"at most about {needs / GIB:.1f} GiB in GPU memory" in line
    states = memory.Training(model, model.parameters, memory.PEFT, False).weights()
    assert states == 18 * model.parameters


def test_a_model_that_does_not_fit_while_it_is_loaded():
    words = ("base model 'a/b' does not fit in the GPU's memory", "CUDA out of memory", "load_in_4bit")
    with one_line_error(*words), models.one_line("a/b"):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
