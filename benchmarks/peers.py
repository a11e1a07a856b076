"""How fast are texts written beside other engines for CPUs, each in its fastest way, and are they as good?

`python -m benchmarks.peers`: ctranslate2 and openvino-genai, in float32 and with int8 weights, on the model, prompts,
beams and new tokens of `benchmarks.generation`; `--shape 135m` is that of SmolLM-135M. All take turns in one process. A
peer that is not installed is named and left out. None belongs to the requirements; to have them:

    pip install ctranslate2 openvino-genai
    python -m venv FOLDER
    FOLDER/bin/pip install "optimum-intel[openvino]"  # it converts, and wants an older transformers

and then `--converter FOLDER/bin/optimum-cli`. Random weights end no text early, so that the rules for stopping, which
differ, do not matter; `ended` counts the texts that did. On a machine that does other work, compare the processor's
seconds, with `OMP_NUM_THREADS=1`, so that none goes into waiting.
"""

import argparse
import functools
import importlib
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks import generation, timing
from benchmarks.generation import NEW_TOKENS, NUM_BEAMS, new_prompts
from gloss_utils.base.files import read_json, write_json
from gloss_utils.language import models, scoring, tiny
from gloss_utils.language.shapes import END, new_model

Texts = list[list[list[int]]]  # of each prompt, best first
Search = Callable[[list[list[int]]], Texts]
COMPUTE = ("float32", "int8")


def ctranslate2(folder: Path, compute: str) -> Search:
    """Prompts run at once (`include_prompt_in_result`), weights packed; ranked by mean log-probability as here."""
    module = importlib.import_module("ctranslate2")
    loader = importlib.import_module("ctranslate2.converters.transformers").LlamaLoader()
    weights = generation.LlamaForCausalLM.from_pretrained(folder)
    tokens = [str(token) for token in range(weights.config.vocab_size)]
    spec = loader.get_model_spec(weights)
    spec.register_vocabulary(tokens)
    spec.config.bos_token, spec.config.eos_token, spec.config.unk_token = tokens[1], tokens[END], tokens[0]
    spec.config.layer_norm_epsilon = weights.config.rms_norm_eps
    spec.validate()
    spec.optimize(quantization=compute)
    to = folder / f"ctranslate2 {compute}"
    to.mkdir()
    spec.save(str(to))
    engine = module.Generator(str(to), intra_threads=torch.get_num_threads(), compute_type=compute)
    options = {"beam_size": NUM_BEAMS, "num_hypotheses": NUM_BEAMS, "max_length": NEW_TOKENS}
    options |= {"include_prompt_in_result": False, "return_end_token": True}

    def search(prompts):
        given = [[tokens[token] for token in prompt] for prompt in prompts]
        # Its attention holds all pairs of tokens of a batch: eight prompts of 900 at once took three times as long.
        at_once = 1 if max(map(len, prompts)) > 500 else len(prompts)
        found = engine.generate_batch(given, max_batch_size=at_once, **options)
        return [[list(text) for text in one.sequences_ids] for one in found]

    return search


def openvino(folder: Path, compute: str, converter: str) -> Search:
    """Its pipeline of paged attention, in which beams share the blocks of their prompt; early stopping as here."""
    ov, genai = importlib.import_module("openvino"), importlib.import_module("openvino_genai")
    to = folder / f"openvino {compute}"
    given = ["--task", "text-generation-with-past", "--weight-format", {"float32": "fp32"}.get(compute, compute)]
    done = subprocess.run(
        [converter, "export", "openvino", "--model", str(folder), *given, str(to)], capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"the conversion for openvino failed:\n{done.stderr[-2000:]}")
    threads = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": "f32"}
    if compute == "float32":
        threads["KV_CACHE_PRECISION"] = "f32"
    pipe = genai.LLMPipeline(str(to), "CPU", **threads)
    options = {"num_beams": NUM_BEAMS, "num_return_sequences": NUM_BEAMS, "max_new_tokens": NEW_TOKENS}
    how = genai.GenerationConfig(**options, length_penalty=1.0, eos_token_id=END)
    how.stop_criteria = genai.StopCriteria.HEURISTIC

    def search(prompts):
        ids = torch.tensor(prompts)
        given = genai.TokenizedInputs(*(ov.Tensor(part.numpy()) for part in (ids, torch.ones_like(ids))))
        found = [list(text) for text in pipe.generate(given, how).tokens]
        return [found[at : at + NUM_BEAMS] for at in range(0, len(found), NUM_BEAMS)]

    return search


def rivals(folder: Path, converter: str | None) -> tuple[dict[str, Search], dict[str, str]]:
    """The peers that can run here, by name, and why others cannot."""
    found, missing = {}, {}
    for name, open_peer, package in (
        ("ctranslate2", ctranslate2, "ctranslate2"),
        ("openvino", lambda *given: openvino(*given, converter), "openvino_genai"),
    ):
        if importlib.util.find_spec(package) is None:
            missing[name] = "not installed"
        elif name == "openvino" and not converter:
            missing[name] = "no optimum-cli; give --converter"
        else:
            found |= {f"{name} {compute}": open_peer(folder, compute) for compute in COMPUTE}
    return found, missing


def write(model, folder: Path):
    """A model folder that older versions of transformers read, too, with a tokenizer, which some converters want."""
    model.save_pretrained(folder)
    tiny.train_tokenizer(["Rose Toner", "Day Cream"], 300).save_pretrained(folder)
    settings = read_json(folder / "tokenizer_config.json")
    write_json(folder / "tokenizer_config.json", settings | {"tokenizer_class": "PreTrainedTokenizerFast"})


def compare(packed, peers: dict[str, Search], length: int, runs: int) -> dict:
    """All in turn on the same prompts, other ones in each run; then all texts scored by the model in float32."""
    busy: dict[str, list[float]] = {"ours": [], **{name: [] for name in peers}}

    def call(name, search, run):
        begun = time.process_time()
        found = search(new_prompts(packed, length, run))
        busy[name].append(time.process_time() - begun)
        return found

    calls = {
        name: functools.partial(call, name, search)
        for name, search in {"ours": functools.partial(ours, packed), **peers}.items()
    }
    seconds, answers = timing.alternate(calls, runs)
    busy = {name: values[1:] for name, values in busy.items()}
    rows = {}
    for name in calls:
        texts = [answer[name] for answer in answers]
        rows[name] = {
            "seconds": round(statistics.median(seconds[name]), 3),
            "times_as_long_as_ours": round(timing.ratio(seconds, "ours", name), 2),
            "processor": round(statistics.median(busy[name]), 3),
            "processor_times_ours": round(timing.ratio(busy, "ours", name), 2),
            "same_texts": round(statistics.mean(map(share, texts, [answer["ours"] for answer in answers])), 4),
            "logprob_per_token": round(score(packed, length, texts), 5),
            "ended": sum(END in text for run in texts for some in run for text in some),
        }
    return rows


def ours(model, prompts: list[list[int]]) -> Texts:
    """The texts of the search here."""
    return [one.tokens for one in generation.ours(model, prompts)]


def share(one: Texts, two: Texts) -> float:
    """The share of texts that stand in both answers for the same prompt."""
    common = [len(set(map(tuple, a)) & set(map(tuple, b))) for a, b in zip(one, two, strict=True)]
    return sum(common) / sum(map(len, two))


def score(model, length: int, runs: list[Texts]) -> float:
    """The mean of all texts' log-probabilities per token, in float32: the higher, the better the search."""
    means = []
    for run, texts in enumerate(runs, 1):
        found = scoring.score(model, new_prompts(model, length, run), texts)
        for totals, some in zip(found, texts, strict=True):
            means += [total / len(text) for total, text in zip(totals, some, strict=True)]
    return statistics.mean(means)


def main():
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=("tiny", "15m", "135m"), default="15m")
    parser.add_argument("--lengths", type=int, nargs="+", default=list(generation.LENGTHS))
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--converter", default=shutil.which("optimum-cli"), help="the optimum-cli to convert with")
    options = parser.parse_args()
    model = new_model(options.shape)
    with tempfile.TemporaryDirectory() as folder:
        write(model, Path(folder))
        peers, missing = rivals(Path(folder), options.converter)
        packed = models.pack(model)
        rows = {}
        for length in options.lengths:
            rows[length] = compare(packed, peers, length, options.runs)
            print(json.dumps({length: rows[length]}), file=sys.stderr)
    load = round(os.getloadavg()[0], 1)
    result = {"shape": options.shape, "by_length": rows, "not_measured": missing, "runs": options.runs}
    print(json.dumps(result | {"prompts": generation.USERS, "device": timing.device(), "load": load}))


if __name__ == "__main__":
    main()
