"""unsloth without unsloth or a GPU: what it is called with, and what it may do to a tokenizer, as its source says."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import one_line_error
from peft import LoraConfig, get_peft_model
from test_finetune import TITLES
from transformers import AutoModelForCausalLM, AutoTokenizer

from gloss_utils.base import hub
from gloss_utils.base.files import read_json
from gloss_utils.language import models, qlora, tiny, training
from gloss_utils.runs.parameters import ROOT
from tests import unsloth_facts

FACTS = read_json(unsloth_facts.RECORDED)
SETTINGS = qlora.QLoRA(4, 4, 0.0, ["q_proj", "v_proj"], False, 128, False, seed=1)
HANDED_ON = {"local_files_only", "use_safetensors"}  # which unsloth gives to transformers in its **kwargs


@pytest.fixture
def base(tmp_path) -> Path:
    """A base model whose tokenizer has no padding token, as Llama-3's; its matrix has rows to spare."""
    tokenizer = tiny.train_tokenizer(TITLES, 400)
    model = tiny.new_model(tokenizer, layers=1, width=64)
    model.resize_token_embeddings(len(tokenizer) + 8)
    model.save_pretrained(tmp_path / "base")
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


class Unsloth:
    """`FastLanguageModel` as unsloth has it: unknown names are an error here, and the tokenizer comes back repaired."""

    def __init__(self):
        self.asked = {}

    def from_pretrained(self, name, **options):
        assert options.keys() - HANDED_ON <= set(FACTS["from_pretrained"]["names"])
        assert not FACTS["asks_for_a_config_without_local_files_only"] or Path(name).is_dir() or not self.offline
        self.asked |= options | {"name": name}
        model = AutoModelForCausalLM.from_pretrained(name, dtype=options["dtype"], revision=options["revision"])
        tokenizer = AutoTokenizer.from_pretrained(name, revision=options["revision"])
        if tokenizer.pad_token in (None, tokenizer.eos_token):
            tokenizer.add_special_tokens({"pad_token": "<｜PAD▁TOKEN｜>"})
        self.repaired = tokenizer
        return model, tokenizer

    def get_peft_model(self, model, **options):
        assert options.keys() <= set(FACTS["get_peft_model"]["names"])
        self.asked |= options
        return get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", target_modules=options["target_modules"]))

    offline = False


@pytest.fixture
def unsloth(monkeypatch) -> Unsloth:
    fake = Unsloth()
    monkeypatch.setitem(sys.modules, "unsloth", SimpleNamespace(FastLanguageModel=fake))
    return fake


def test_the_facts_are_those_of_the_package():
    spec = importlib.util.find_spec("unsloth")
    if spec is None:
        pytest.skip("unsloth is not installed; its facts were recorded from the wheel that requirements/gpu.txt pins")
    assert unsloth_facts.facts(Path(spec.origin).parents[1]) == FACTS


def test_the_facts_are_read_from_a_source_tree(tmp_path):
    (tmp_path / "unsloth/models").mkdir(parents=True)
    call = "class {}:\n    @staticmethod\n    def {}(model_name, *, more=1, **kwargs):\n        {}\n"
    config = "AutoConfig.from_pretrained(model_name); patch_tokenizer(model, tokenizer)"
    llama = call.format("FastLlamaModel", "from_pretrained", config)
    llama += "    def get_peft_model(model, r=1):\n        pass\n"
    (tmp_path / unsloth_facts.LOADER).write_text(call.format("FastLanguageModel", "from_pretrained", "pass"))
    (tmp_path / unsloth_facts.LLAMA).write_text(llama)
    tools = "def get_statistics(quiet):\n    return 'HF_HUB_OFFLINE'\nif major_version >= 9:\n    pass\n"
    (tmp_path / unsloth_facts.TOOLS).write_text(tools)
    assert unsloth_facts.facts(tmp_path) == {
        "from_pretrained": {"names": ["model_name", "more"], "takes_more": True},
        "get_peft_model": {"names": ["model", "r"], "takes_more": False},
        "statistics_are_off_by": ["HF_HUB_OFFLINE"],
        "statistics_are_off_by_argument": ["quiet"],
        "asks_for_a_config_without_local_files_only": True,
        "always_patches_the_tokenizer": True,
        "bf16_from_compute_capability": 9,
    }


# ---- one tokenizer rule


def test_an_adapter_of_unsloth_has_the_tokenizer_that_generation_expects(base, unsloth, tmp_path):
    model, tokenizer = qlora.with_adapters(base, SETTINGS)
    _, plain = models.load_base(base, load_in_4bit=False)
    assert len(unsloth.repaired) == len(plain) + 1  # it did what it does
    assert tokenizer.get_vocab() == plain.get_vocab() and tokenizer.pad_token == plain.pad_token == plain.eos_token
    qlora.save_adapter(tmp_path / "adapter", model, tokenizer, SETTINGS)
    models.load_finetuned(base, tmp_path / "adapter", load_in_4bit=False)


def test_an_adapter_that_was_saved_with_a_repaired_tokenizer_can_be_used(base, unsloth, tmp_path):
    model, _ = qlora.with_adapters(base, SETTINGS)
    qlora.save_adapter(tmp_path / "adapter", model, unsloth.repaired, SETTINGS)
    _, tokenizer = models.load_finetuned(base, tmp_path / "adapter", load_in_4bit=False)
    assert tokenizer.pad_token == tokenizer.eos_token


def test_tokenizers_that_differ_in_more_than_padding_are_not_the_same():
    one, other, repaired = (tiny.train_tokenizer(TITLES, 400) for _ in range(3))
    assert models.same_texts(one, other)
    repaired.add_special_tokens({"pad_token": "<another>"})
    assert models.same_texts(one, repaired) and models.same_texts(repaired, one)
    other.add_tokens(["rosewater"])
    assert not models.same_texts(one, other)
    ended = tiny.train_tokenizer(TITLES, 400)
    ended.eos_token = "<|begin|>"
    assert not models.same_texts(one, ended)


def test_a_padding_token_without_an_embedding_is_not_used(base):
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens([f"<more {number}>" for number in range(8)])
    tokenizer.add_special_tokens({"pad_token": "<beyond>"})
    tokenizer.save_pretrained(base)
    model, tokenizer = models.load_base(base, load_in_4bit=False)
    assert tokenizer.get_vocab()["<beyond>"] == model.get_input_embeddings().num_embeddings
    assert tokenizer.pad_token == tokenizer.eos_token


# ---- offline, and how errors are told


@pytest.mark.parametrize("answers", [True, False])
def test_offline_a_hub_model_is_a_folder_of_the_cache(base, unsloth, tmp_path, monkeypatch, answers):
    commit = "a" * 40
    snapshot = tmp_path / "hub/models--someone--writer/snapshots" / commit
    snapshot.parent.mkdir(parents=True)
    base.rename(snapshot)
    (tmp_path / "hub/models--someone--writer/refs").mkdir()
    (tmp_path / "hub/models--someone--writer/refs/main").write_text(commit)
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    for room in (hub, models, qlora):
        monkeypatch.setattr(room, "only_local", lambda name: not answers)
    monkeypatch.setattr(qlora, "check_modules", lambda *_: None)
    unsloth.offline = not answers
    if answers:
        monkeypatch.setattr(qlora, "base_tokenizer", lambda *_: None)  # which would ask the real hub
        monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *_, **__: (_ for _ in ()).throw(KeyError))
        with pytest.raises(KeyError):
            qlora.with_adapters("someone/writer", SETTINGS)
        assert (unsloth.asked["name"], unsloth.asked["local_files_only"]) == ("someone/writer", False)
        return
    qlora.with_adapters("someone/writer", SETTINGS, commit)
    assert unsloth.asked["name"] == str(snapshot) and unsloth.asked["revision"] is None
    assert unsloth.asked["local_files_only"] is True


def test_a_hub_that_is_too_slow_is_not_told_as_a_wrong_model(base, unsloth, monkeypatch):
    def slow(*_, **__):
        raise TimeoutError("Unsloth: HuggingFace seems to be down after trying for 120 seconds :(\nCheck …")

    monkeypatch.setattr(unsloth, "from_pretrained", slow)
    with one_line_error("did not answer in time", "after trying for 120 seconds", "HF_HUB_OFFLINE=1"):
        qlora.with_adapters(base, SETTINGS)


def test_an_error_of_unsloth_names_the_way_without_it(base, unsloth, monkeypatch):
    def refuses(*_, **__):
        raise RuntimeError("Unsloth: Could not find a valid pad token for base")

    monkeypatch.setattr(unsloth, "from_pretrained", refuses)
    with one_line_error("Could not find a valid pad token", "GLOSS_UNSLOTH=off in the environment"):
        qlora.with_adapters(base, SETTINGS)


def test_unsloth_is_told_one_device(base, unsloth):
    qlora.with_adapters(base, SETTINGS)
    assert unsloth.asked["device_map"] == {"": "cpu"}  # never its own "sequential", which may take several GPUs


# ---- one import door

PACKAGE = """
import os, sys
print("first" if not {"transformers", "peft", "trl"} & set(sys.modules) else "late")
print("quiet" if os.environ.get(%r) else "asks the hub")
""" % next(name for name in FACTS["statistics_are_off_by"] if "DISABLE" in name)  # noqa: UP031


def imported(tmp_path: Path, code: str, package: str = PACKAGE, **environment) -> subprocess.CompletedProcess:
    """Run code in a new process that has a GPU and a package `unsloth`, both made up."""
    (tmp_path / "unsloth.py").write_text(package)
    asks = "sys._getframe(1).f_globals['__name__'].endswith('unsloth_first')"  # for all else there is no GPU
    gpu = f"import sys, torch; torch.cuda.is_available = lambda: {asks}\n"
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    environment = os.environ | {"PYTHONPATH": path} | environment
    return subprocess.run(
        [sys.executable, "-c", gpu + code], check=False, capture_output=True, text=True, env=environment
    )


CHECK = "gloss_utils.runs.check_gpu as it; it.import_unsloth()"  # as its step does at first


@pytest.mark.parametrize("module", ["gloss_utils.fine_tune", "benchmarks.finetune", CHECK])
def test_unsloth_comes_before_what_it_patches_and_is_quiet(tmp_path, module):
    found = imported(tmp_path, f"import {module}")
    assert found.stdout.splitlines() == ["first", "quiet"] and found.returncode == 0, found.stderr


@pytest.mark.parametrize("environment", [{"GLOSS_UNSLOTH": "off"}, {"WORLD_SIZE": "2"}])
def test_unsloth_stays_out(tmp_path, environment):
    assert imported(tmp_path, "import gloss_utils.fine_tune", **environment).stdout == ""


def test_stage_1_knows_that_several_processes_train_without_unsloth(monkeypatch):
    from gloss_utils import fine_tune
    from gloss_utils.runs import notebooks

    monkeypatch.setenv("GLOSS_UNSLOTH", "on")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(fine_tune, "PROCESSES", 2)
    monkeypatch.setattr(notebooks, "run", lambda *_, **how: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fine_tune._run_first([], [], {"batch_size": 4, "gradient_accumulation": 4, "optimizer": "adamw_torch"})
    assert os.environ["GLOSS_UNSLOTH"] == "off"


def test_unsloth_is_left_out_where_transformers_came_first(tmp_path):
    code = "import transformers, sys, gloss_utils.fine_tune; print('unsloth' in sys.modules)"
    line, there = imported(tmp_path, code).stdout.splitlines()
    assert line.startswith("unsloth is left out: transformers") and there == "False"


def test_an_unsloth_that_cannot_be_imported_is_one_line(tmp_path):
    found = imported(tmp_path, "import gloss_utils.fine_tune", "raise ImportError('no\\ntriton')")
    assert (
        "unsloth is installed, but cannot be imported (no triton); repair it, or set GLOSS_UNSLOTH=off" in found.stderr
    )


def test_nobody_else_imports_unsloth_or_asks_for_bf16():
    files = [path for folder in ("gloss_utils", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    texts = {path.name: path.read_text(encoding="utf-8") for path in files}
    assert [
        name for name, text in texts.items() if 'import_module("unsloth")' in text or "import unsloth\n" in text
    ] == ["unsloth_first.py"]
    assert [name for name, text in texts.items() if "is_bf16_supported" in text] == ["models.py"]


# ---- bf16 of the GPU itself


@pytest.mark.parametrize(("capability", "own"), [((7, 5), False), ((8, 0), True)])  # a T4, an A100
def test_emulated_bf16_is_not_taken_for_bf16(monkeypatch, tmp_path, capability, own):
    def supported(including_emulation: bool = True) -> bool:  # as torch.cuda has it
        return including_emulation or capability[0] >= FACTS["bf16_from_compute_capability"]

    asked = {}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    monkeypatch.setattr(training, "processes", lambda: SimpleNamespace(num_processes=1))
    monkeypatch.setattr(training, "TrainingArguments", lambda **given: asked.update(given) or SimpleNamespace(n_gpu=1))
    settings = training.Settings(1e-3, "linear", 0, 0.0, "adamw_torch", 4, 1, 1, seed=1)
    training._arguments(settings, tmp_path, validated=False)
    assert (asked["bf16"], asked["fp16"]) == (own, not own)
    assert models.compute_dtype() == (torch.bfloat16 if own else torch.float16)
    assert models.quantization().bnb_4bit_compute_dtype == models.compute_dtype()
