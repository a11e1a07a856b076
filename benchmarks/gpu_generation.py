"""How fast are texts written in the ways in which a GPU can hold a fine-tuned model, and beside vLLM's beam search?

`python -m benchmarks.gpu_generation --shape llama-1b` (3b, 8b): random weights with an adapter on all layers; in 16 and
in 4 bits, the adapter merged or beside the weights, each by the tree search and by `generate`, 8 prompts at a time
(`--users`), 5 beams, 30 new tokens; and vLLM's beam search on the merged folder, where vLLM is installed. Each way has
a process of its own, and a line of JSON as soon as it is done; the last line has all. docs/gpu.md says what was
measured; on a CPU, `--shape tiny` tries it.
"""

import argparse
import importlib
import importlib.util
import json
import statistics
import tempfile
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig

from benchmarks import generation, timing
from gloss_utils.language import export, models, qlora, shapes, tiny
from gloss_utils.runs.parameters import LORA_MODULES

WAYS = {  # in 4 bits, adapter merged
    "16 bits, merged": (False, True),
    "16 bits, beside": (False, False),
    "4 bits, merged": (True, True),
    "4 bits, beside": (True, False),
}
VLLM = "vllm"
QLORA = qlora.QLoRA(16, 16, 0.0, LORA_MODULES, False, 1024, False, seed=1)


def write(shape: str, folder: Path, merged: bool):
    """A base model of that shape with random weights, an adapter for it, and, if asked for, both merged."""
    tiny.train_tokenizer(["Rose Toner", "Day Cream"], 300).save_pretrained(folder / "base")
    shapes.write_model(shape, folder / "base")
    model, tokenizer = models.load_base(folder / "base", load_in_4bit=False)
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **QLORA.lora()))
    torch.manual_seed(1)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:  # else zero, and the adapter would do nothing
            torch.nn.init.normal_(weight, std=0.01)
    qlora.save_adapter(folder / "adapter", adapted, tokenizer, QLORA)
    del model, adapted
    if merged:
        export.save_merged(folder / "base", folder / "adapter", folder / "merged", load_in_4bit=False)


def measure(way: str, folder: Path, lengths: list[int], users: int, runs: int) -> dict:
    """Median seconds by length of prompt, for so many users at a time, and the peak memory in MiB, of one way."""
    if way == VLLM:
        return {"seconds": _vllm(folder / "merged", lengths, users, runs)}
    in_4bit, merged = WAYS[way]
    with mock.patch.object(models, "merges", lambda *_: merged):
        model, _ = models.load_finetuned(folder / "base", folder / "adapter", in_4bit)
    seconds = {}
    for length in lengths:
        prompts = partial(generation.new_prompts, model, length, users=users)
        rivals = {
            "ours": lambda run, prompts=prompts: generation.ours(model, prompts(run)),
            "generate": lambda run, prompts=prompts: generation.theirs(model, prompts(run)),
        }
        found, answers = timing.alternate(rivals, runs)
        seconds[length] = {name: round(statistics.median(values), 4) for name, values in found.items()}
        last = answers[-1]
        seconds[length]["overlap"] = round(generation.overlap(last["ours"], last["generate"]), 3)
    return {"seconds": seconds, "peak": round(models.peak_memory())}


def _vllm(folder: Path, lengths: list[int], users: int, runs: int) -> dict:
    # By name, because it is not among the packages declared: it brings its own PyTorch and transformers.
    LLM = importlib.import_module(VLLM).LLM
    BeamSearchParams = importlib.import_module(f"{VLLM}.sampling_params").BeamSearchParams

    longest = max(lengths) + generation.NEW_TOKENS
    engine = LLM(str(folder), max_model_len=longest, max_logprobs=2 * generation.NUM_BEAMS, generation_config="vllm")
    how = BeamSearchParams(beam_width=generation.NUM_BEAMS, max_tokens=generation.NEW_TOKENS, temperature=0.0)
    shape = SimpleNamespace(config=AutoConfig.from_pretrained(folder))  # all that prompts are drawn by
    seconds = {}
    for length in lengths:

        def search(run, length=length):
            prompts = generation.new_prompts(shape, length, run, users)
            return engine.beam_search([{"prompt_token_ids": prompt} for prompt in prompts], how)

        found, _ = timing.alternate({"vllm": search}, runs)
        seconds[length] = {"vllm": round(statistics.median(found["vllm"]), 4)}
    return seconds


def main():
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=shapes.SHAPES, default="llama-1b")
    parser.add_argument("--lengths", type=int, nargs="+", default=list(generation.LENGTHS))
    parser.add_argument("--users", type=int, default=generation.USERS)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--way", nargs=2, metavar=("WAY", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        way, folder = options.way
        print(json.dumps(measure(way, Path(folder), options.lengths, options.users, options.runs)))
        return
    ways = [*WAYS, *([VLLM] if importlib.util.find_spec(VLLM) else [])]
    given = ["--lengths", *map(str, options.lengths), "--users", str(options.users), "--runs", str(options.runs)]
    about = {"shape": options.shape, "device": timing.device(), "users": options.users, "runs": options.runs}
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        write(options.shape, Path(scratch), merged=VLLM in ways)
        for way in ways:
            try:
                found[way] = timing.in_fresh_process("benchmarks.gpu_generation", *given, "--way", way, scratch)
            except RuntimeError as error:  # as where it does not fit
                found[way] = {"failed": str(error).strip().splitlines()[-1][:200]}
            print(json.dumps(about | {"way": way, **found[way]}), flush=True)
    print(json.dumps(about | {"ways": found}))


if __name__ == "__main__":
    main()
