"""`check-gpu`, as far as a CPU can tell: a tiny shape goes through all steps, and a failing step stops no other."""

import re
import shutil
from types import SimpleNamespace

import pytest
import torch
from helpers import small_llama

from gloss_utils.__main__ import main
from gloss_utils.base.errors import GlossError
from gloss_utils.language.beam_search import Decoded
from gloss_utils.runs import check_gpu

NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="about a machine without a GPU")


@NO_GPU
def test_all_steps_on_a_cpu(capsys, tmp_path):
    assert main(["check-gpu", "--shape", "tiny", "--tokens", "40", "--scratch", str(tmp_path)]) == 0
    device, packages, weights, trained, generated = capsys.readouterr().out.splitlines()
    assert device.startswith("device: no GPU: PyTorch") and "transformers" in packages
    assert weights.startswith("ok  weights: tiny with random weights") and str(tmp_path) in weights
    assert trained.startswith("ok  training with transformers: 3 steps of 2 texts of 40 tokens")
    assert generated.startswith("ok  generation: 8 users, 5 beams of 30 tokens after 40: tree search")
    assert "8 of 8 best texts are the same" in generated
    assert not list(tmp_path.iterdir())


@NO_GPU
def test_a_large_shape_without_a_gpu_is_one_line(capsys):
    assert main(["check-gpu"]) == 1
    out, error = capsys.readouterr()
    assert "no GPU" in out.splitlines()[0] and error.count("\n") == 1 and "--shape 15m" in error


def lines(monkeypatch, answers: dict) -> tuple[list[str], str]:
    """What is printed where the steps answer so; and the error at the end."""
    monkeypatch.setattr(check_gpu, "_step", lambda name, *_: answers.get(name, {"line": name}))
    found = []
    try:
        for line in check_gpu.check("llama-1b"):
            found.append(re.sub(r"\. It took \d+ s\.$", "", line))
    except GlossError as error:
        return found[2:], str(error)
    return found[2:], ""


FIT = {"unsloth": "-p batch_size 4", "train": "-p batch_size 1"}
GPU = {"gpu": True, "unsloth": True, "line": "a card", "fit": FIT}


def test_a_step_that_fails_stops_no_other(monkeypatch):
    answers = {"device": GPU, "unsloth": {"error": "ImportError: no triton"}, "train": {"line": "", "speed": 9.0}}
    found, error = lines(monkeypatch, answers)
    assert found == [
        "ok  weights: weights",
        "FAILED  training with unsloth: ImportError: no triton",
        "ok  training with transformers: ",
        "ok  generation: generate",
        "set: GLOSS_UNSLOTH=off in the environment, because training with unsloth fails here",
        "set: -p batch_size 1",
    ]
    assert error.startswith("training with unsloth failed")
    found, error = lines(monkeypatch, {"device": GPU, "weights": {"error": "no room"}})
    assert found == ["FAILED  weights: no room", "set: -p batch_size 1"] and error  # nothing can go on from there


def test_what_is_slower_is_told(monkeypatch):
    speeds = {"unsloth": {"line": "", "speed": 5.0}, "train": {"line": "", "speed": 9.0}}
    assert any("unsloth is slower here" in line for line in lines(monkeypatch, {"device": GPU} | speeds)[0])
    speeds["unsloth"]["speed"] = 20.0
    assert lines(monkeypatch, {"device": GPU} | speeds) == (
        [
            "ok  weights: weights",
            "ok  training with unsloth: ",
            "ok  training with transformers: ",
            "ok  generation: generate",
            "set: -p batch_size 4",
        ],
        "",
    )


def test_the_error_of_a_process_is_one_line(tmp_path, monkeypatch):
    error = check_gpu._step("train", "tiny", 40, tmp_path)["error"]
    assert "\n" not in error and error.startswith("GlossError: ") and "base" in error
    monkeypatch.setattr(check_gpu, "LIMIT", 0.01)
    assert check_gpu._step("device", "tiny", 40, tmp_path) == {"error": "it was not done in 0.01 seconds"}


def test_only_the_steps_about_unsloth_may_import_it(tmp_path, monkeypatch):
    given = {}
    monkeypatch.setenv(check_gpu.SWITCH, "on")

    def run(command, env, **_):
        given[command[3]] = env[check_gpu.SWITCH]
        return SimpleNamespace(returncode=0, stdout="{}", stderr="")

    monkeypatch.setattr(check_gpu.subprocess, "run", run)
    for name in ("device", "weights", "unsloth", "train", "generate"):
        check_gpu._step(name, "tiny", 40, tmp_path)
    assert given == {"device": "on", "weights": "off", "unsloth": "on", "train": "off", "generate": "off"}


def test_a_card_is_described(monkeypatch, tmp_path):
    cuda, gib = torch.cuda, 2**30
    monkeypatch.setattr(cuda, "is_available", lambda: True)
    monkeypatch.setattr(cuda, "current_device", lambda: 0)
    monkeypatch.setattr(cuda, "device_count", lambda: 2)
    monkeypatch.setattr(cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    card = SimpleNamespace(name="a T4", major=7, minor=5)
    monkeypatch.setattr(cuda, "get_device_properties", lambda device: card)
    monkeypatch.setattr(cuda, "mem_get_info", lambda: (14 * gib, 15 * gib))
    found = check_gpu._device("llama-1b", 512, tmp_path)
    expected = "a T4, 15.0 GiB, 14.0 free, compute capability 7.5, computes in float16; 2 visible, one is used"
    assert found["line"] == expected
    assert "-p batch_size 4 -p gradient_accumulation 4 -p gradient_checkpointing false" in found["fit"]["unsloth"]
    assert "-p batch_size 2 -p gradient_accumulation 8 -p gradient_checkpointing false" in found["fit"]["train"]
    assert found["unsloth"] is False
    monkeypatch.setattr("gloss_utils.base.unsloth_first.importlib.util.find_spec", lambda name: SimpleNamespace())
    for switch, there in (("on", True), ("off", False)):
        monkeypatch.setenv(check_gpu.SWITCH, switch)
        assert check_gpu._device("llama-1b", 512, tmp_path)["unsloth"] is there
    monkeypatch.setattr(cuda, "mem_get_info", lambda: (gib, gib))
    assert "too large to be trained here" in check_gpu._device("llama-8b", 512, tmp_path)["fit"]["train"]


@NO_GPU
def test_each_training_starts_anew_and_leaves_its_own_adapter(tmp_path, monkeypatch):
    from gloss_utils.language import models, training

    trained, train = [], training.train
    monkeypatch.setattr(training, "train", lambda *given, **name: trained.append(train(*given, **name)) or trained[-1])
    check_gpu._weights("tiny", 40, tmp_path)
    for used in (True, False):
        monkeypatch.setattr(check_gpu, "import_unsloth", lambda used=used: used)
        found = check_gpu._train("tiny", 40, tmp_path)
        assert found["line"].startswith("3 steps of 2 texts")
        assert [each["steps"] for each in trained[-2:]] == [1, 3] and all(each["tokens_per_second"] for each in trained)
        assert found["speed"] == trained[-1]["tokens_per_second"]  # compiling, in the first, says nothing of speed
    adapters, load = [], models.load_finetuned
    monkeypatch.setattr(models, "load_finetuned", lambda base, it, **how: adapters.append(it) or load(base, it, **how))
    for name in ("unsloth", "train"):  # generation takes the one that stage 2 would leave
        check_gpu._generate("tiny", 40, tmp_path)
        assert adapters[-1].name == f"adapter-{name}"
        shutil.rmtree(adapters[-1])
    assert "There is no adapter, because training failed" in check_gpu._generate("tiny", 40, tmp_path)["line"]


def test_a_card_on_which_training_needs_checkpointing_is_tried_with_it(tmp_path, monkeypatch):
    from gloss_utils.language import memory, models, qlora

    asked = []
    monkeypatch.setattr(models, "free_gpu_memory", lambda: 2**30)
    monkeypatch.setattr(memory.Training, "fits", lambda *_: memory.Fit(1, True, 2**20))
    monkeypatch.setattr(qlora, "with_adapters", lambda base, settings: asked.append(settings) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        check_gpu._train("tiny", 40, tmp_path)
    assert asked[0].gradient_checkpointing


@pytest.fixture
def searched():
    """A model, prompts, and what the two searches find."""
    from gloss_utils.language import beam_search, hf_generate

    model, prompts = small_llama(60), check_gpu._texts(8, 20)
    prompts = [[token % 60 for token in prompt] for prompt in prompts]
    return model, prompts, [search.beam_search(model, prompts, 5, 8, 2) for search in (beam_search, hf_generate)]


def compared(searched, ours=None, theirs=None) -> str:
    model, prompts, found = searched
    return check_gpu._compared(model, prompts, {"the tree search": ours or found[0], "generate": theirs or found[1]})


def test_equal_searches_are_worth_the_same(searched):
    assert re.match(r"8 of 8 best texts are the same, ours better by \S+e[+-]\d+ per token", compared(searched))


def test_wrong_scores_are_told_of_either_search(searched):
    for number, name in enumerate(("the tree search", "generate")):
        both = [*searched[2]]
        both[number] = [
            Decoded(one.tokens, [score + 0.06 * len(one.tokens[0]) for score in one.logprobs]) for one in both[number]
        ]
        with pytest.raises(GlossError, match=f"{name} gives its texts wrong scores: 6.0e-02 per token"):
            compared(searched, *both)


def test_other_texts_are_no_fault_where_they_are_as_good(searched):
    fifth = [Decoded(one.tokens[4:], one.logprobs[4:]) for one in searched[2][1]]
    assert compared(searched, theirs=fifth).startswith("0 of 8 best texts are the same, ours better by")
    with pytest.raises(GlossError, match="the tree search finds worse texts than generate: 0 of 8"):
        compared(searched, ours=fifth)
