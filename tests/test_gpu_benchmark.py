"""The benchmark of generation on a GPU, on a tiny shape; vLLM is faked by the names that it is called by."""

import json
import sys
from types import ModuleType, SimpleNamespace

import pytest

from benchmarks import generation, gpu_generation, timing
from gloss_utils.language import models


def test_all_ways_are_measured_and_vllm_where_it_is_installed(tmp_path, monkeypatch, capsys):
    merged, load = {}, models.load_finetuned

    def noting(base, adapter, in_4bit):
        model, tokenizer = load(base, adapter, in_4bit)
        merged[in_4bit, "lora" not in str(model)] = "Linear4bit" in str(model)
        return model, tokenizer

    def here(module, *arguments):  # not in a process of its own
        told.extend(printed())
        with monkeypatch.context() as inner:
            inner.setattr(sys, "argv", [module, *arguments])
            gpu_generation.main()
        return printed()[-1]

    def printed() -> list[dict]:
        return [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]

    searched, told = [], []

    class LLM:
        def __init__(self, model, *, max_model_len, max_logprobs, generation_config):
            assert max_logprobs >= 2 * generation.NUM_BEAMS and generation_config == "vllm"

        def beam_search(self, prompts, params):
            searched.append((len(prompts), len(prompts[0]["prompt_token_ids"]), params.beam_width))

    vllm, sampling = ModuleType("vllm"), ModuleType("vllm.sampling_params")
    vllm.__spec__, vllm.LLM, sampling.BeamSearchParams = SimpleNamespace(), LLM, SimpleNamespace
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    monkeypatch.setitem(sys.modules, "vllm.sampling_params", sampling)
    monkeypatch.setattr(models, "load_finetuned", noting)
    monkeypatch.setattr(timing, "in_fresh_process", here)
    monkeypatch.setattr(sys, "argv", ["…", "--shape", "tiny", "--lengths", "8", "--users", "3", "--runs", "1"])
    gpu_generation.main()
    assert [each["way"] for each in told] == list(gpu_generation.WAYS)  # each before the next one began
    *_, vllms, last = printed()
    found = last["ways"]
    assert vllms["way"] == "vllm" and vllms["seconds"] == found["vllm"]["seconds"]
    assert set(found) == {*gpu_generation.WAYS, "vllm"}, found
    assert merged == {(False, True): False, (False, False): False, (True, True): False, (True, False): True}
    for way in gpu_generation.WAYS:
        assert set(found[way]["seconds"]["8"]) == {"ours", "generate", "overlap"} and found[way]["peak"] > 0
        assert found[way]["seconds"]["8"]["overlap"] > 0.5
    assert searched == [(3, 8, generation.NUM_BEAMS)] * 2 and "vllm" in found["vllm"]["seconds"]["8"]


@pytest.mark.parametrize("there", [True, False])
def test_the_merged_model_is_written_only_where_vllm_will_read_it(tmp_path, there):
    gpu_generation.write("tiny", tmp_path, merged=there)
    assert {path.name for path in tmp_path.iterdir()} == {"base", "adapter", *(["merged"] if there else [])}


def test_without_vllm_nothing_is_merged(monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(gpu_generation, "write", lambda shape, folder, merged: asked.append(merged))
    monkeypatch.setattr(timing, "in_fresh_process", lambda *_: {"seconds": {}})
    monkeypatch.setattr(sys, "argv", ["…", "--shape", "tiny"])
    monkeypatch.setattr(gpu_generation, "VLLM", "no_such_package")
    gpu_generation.main()
    assert asked == [False] and len(capsys.readouterr().out.splitlines()) == len(gpu_generation.WAYS) + 1
