"""How much faster is the beam search of `language.beam_search` than transformers' `generate`? Does it write the same?

`python -m benchmarks.generation`: a Llama of 15 M parameters with random weights (speed does not depend on them; no
text ends early), 8 prompts, 5 beams, 30 new tokens. `generate` gets the same batches, in inference mode. On a CPU ours
runs on weights that `models.pack` has reordered; further keys tell what each search gains by that.
`--shape llama-1b` (3b, 8b) takes those shapes, in bf16, for a GPU. `benchmarks.peers` has other rivals.
"""

import argparse
import copy
import json
import random
import statistics
import tempfile
import time
import warnings

import torch
from transformers import LlamaForCausalLM

from benchmarks import agreement, timing
from gloss_utils.language import beam_search, hf_generate, models
from gloss_utils.language.cache_tree import Tree
from gloss_utils.language.shapes import END, SHAPES, new_model

LENGTHS = (100, 400, 900)
USERS, NUM_BEAMS, NEW_TOKENS = 8, 5, 30


def new_prompts(model, length: int, seed: int, users: int = USERS) -> list[list[int]]:
    """Prompts of random tokens."""
    rng = random.Random(f"{length} {seed}")
    return [[rng.randrange(3, model.config.vocab_size) for _ in range(length)] for _ in range(users)]


def ours(model, prompts: list[list[int]]) -> list[beam_search.Decoded]:
    """The search that is measured."""
    return beam_search.beam_search(model, prompts, NUM_BEAMS, NEW_TOKENS, END)


def theirs(model, prompts: list[list[int]]) -> list[list[list[int]]]:
    """The rival, asked for nothing but the texts."""
    options = {"num_beams": NUM_BEAMS, "num_return_sequences": NUM_BEAMS, "max_new_tokens": NEW_TOKENS}
    found = hf_generate.generate(model, prompts, END, **options)[:, len(prompts[0]) :].tolist()
    return [found[at : at + NUM_BEAMS] for at in range(0, len(found), NUM_BEAMS)]


def compare(model, packed, length: int, runs: int) -> dict:
    """All in turn on the same prompts, other ones in each run: ratios of times, and prompts continued differently.

    packed: the same model as `models.load_finetuned` leaves it on a CPU; "ours_unpacked" does without.
    """
    seconds, answers = timing.alternate(
        {
            "ours": lambda run: ours(packed, new_prompts(model, length, run)),
            "theirs": lambda run: theirs(model, new_prompts(model, length, run)),
            "ours_unpacked": lambda run: ours(model, new_prompts(model, length, run)),
            "theirs_packed": lambda run: theirs(packed, new_prompts(model, length, run)),
        },
        runs,
    )
    gaps = []
    for run, answer in enumerate(answers, 1):
        if any(one.tokens != two for one, two in zip(answer["ours"], answer["theirs"], strict=True)):
            found = agreement.gaps(model, new_prompts(model, length, run), NUM_BEAMS, NEW_TOKENS, END, packed)
            gaps += found.values()
    return {
        "speedup": timing.ratio(seconds, "ours", "theirs"),
        "unpacked": timing.ratio(seconds, "ours_unpacked", "theirs"),
        "both_packed": timing.ratio(seconds, "ours", "theirs_packed"),
        "seconds": {name: round(statistics.median(values), 3) for name, values in seconds.items()},
        "prompts": runs * USERS,
        "gaps": gaps,
        "overlap": statistics.mean(overlap(answer["ours"], answer["theirs"]) for answer in answers),
        "distance_to_floor": statistics.median(seconds["ours"]) / floor(model, length),
    }


def overlaps(model, length: int = 100) -> dict[str, float]:
    """In the other precisions, where both round differently: the share of texts that both write."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # bitsandbytes warns of features of the CPU that it does without
        model.save_pretrained(folder)
        in_4bit = LlamaForCausalLM.from_pretrained(folder, quantization_config=models.quantization()).eval()
    rivals = {"bfloat16": copy.deepcopy(model).to(torch.bfloat16), "4bit": in_4bit}
    prompts = new_prompts(model, length, 1)
    return {name: round(overlap(ours(rival, prompts), theirs(rival, prompts)), 4) for name, rival in rivals.items()}


def overlap(one: list[beam_search.Decoded], two: list[list[list[int]]]) -> float:
    """The share of texts that stand in both answers for the same prompt."""
    common = [len(set(map(tuple, a.tokens)) & set(map(tuple, b))) for a, b in zip(one, two, strict=True)]
    return sum(common) / sum(len(texts) for texts in two)


def floor(model, length: int) -> float:
    """Seconds that no search on these passes can beat: each takes its FLOPs at the measured matrix-product rate, or its
    bytes of weights and cache at the measured bandwidth, whichever is longer."""
    passes, run = [], Tree._run

    def noting(tree, tokens, *rest, **options):
        passes.append((*tokens.shape, tree.layers[0].used, "logits_to_keep" in options))
        return run(tree, tokens, *rest, **options)

    Tree._run = noting
    try:
        ours(model, new_prompts(model, length, 0))
    finally:
        Tree._run = run
    config, (rate, bandwidth) = model.config, rates(model.dtype, model.device)
    head = config.vocab_size * config.hidden_size
    body = sum(weight.numel() for name, weight in model.named_parameters() if weight.ndim == 2 and "layers" in name)
    groups = config.num_key_value_heads / config.num_attention_heads
    seconds = 0.0
    for rows, tokens, before, prompt in passes:
        # A prompt's tokens look at those before them: half the columns on average.
        looked_at = before + tokens / 2 if prompt else before + tokens
        attention = 4 * rows * tokens * looked_at * config.hidden_size * config.num_hidden_layers
        flops = 2 * rows * (tokens * body + (1 if prompt else tokens) * head) + attention
        cache = rows * (before + tokens) * 2 * config.hidden_size * groups * config.num_hidden_layers
        seconds += max(flops / rate, (body + head + cache) * model.dtype.itemsize / bandwidth)
    return seconds


def rates(dtype: torch.dtype, device) -> tuple[float, float]:
    """Measured: FLOPs a second of large matrix products, and bytes a second that can be read; the best of some."""
    size = 8192 if device.type == "cuda" else 1536
    square = torch.randn(size, size, device=device).to(dtype)
    long = torch.ones(2**28, device=device, dtype=torch.float32)
    return 2 * size**3 / _best(lambda: square @ square), long.numel() * 4 / _best(lambda: long.sum())


def _best(call, times: int = 10) -> float:
    seconds = []
    for _ in range(times):
        begun = time.perf_counter()
        call()
        timing._wait()
        seconds.append(time.perf_counter() - begun)
    return min(seconds)


def memory(shape: str, dtype: torch.dtype, rival: str, length: int) -> dict:
    """The peak of a process that has done nothing but one search, in MiB."""
    model = new_model(shape, dtype)
    if rival == "ours":
        model = models.pack(model)
    {"ours": ours, "theirs": theirs}[rival](model, new_prompts(model, length, 1))
    return {"peak": models.peak_memory()}


def main():
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="15m")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), help="by default float32; bfloat16 for llama shapes"
    )
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--memory", nargs=2, metavar=("RIVAL", "LENGTH"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    name = options.dtype or ("bfloat16" if options.shape.startswith("llama") else "float32")
    dtype = getattr(torch, name)
    if options.memory:
        print(json.dumps(memory(options.shape, dtype, options.memory[0], int(options.memory[1]))))
        return
    model = new_model(options.shape, dtype)
    packed = models.pack(copy.deepcopy(model))
    by_length = {length: compare(model, packed, length, options.runs) for length in LENGTHS}
    in_precision = {name: round(statistics.mean(found["overlap"] for found in by_length.values()), 4)}
    if name == "float32":
        in_precision |= overlaps(model)
    del model, packed
    given = ("--shape", options.shape, "--dtype", name)
    peaks = {
        rival: timing.in_fresh_process("benchmarks.generation", *given, "--memory", rival, "400")
        for rival in ("ours", "theirs")
    }
    prompts = sum(found["prompts"] for found in by_length.values())
    gaps = [gap for found in by_length.values() for gap in found["gaps"]]
    result = {
        "speedup": round(by_length[400]["speedup"], 2),
        "speedup_by_length": {length: round(found["speedup"], 2) for length, found in by_length.items()},
        "speedup_unpacked_by_length": {length: round(found["unpacked"], 2) for length, found in by_length.items()},
        "speedup_both_packed_by_length": {n: round(found["both_packed"], 2) for n, found in by_length.items()},
        "identical_fraction": 1 - len(gaps) / prompts,
        "differences": len(gaps),
        "differences_excused": sum(gap <= agreement.GAP for gap in gaps),
        "largest_gap": max(gaps, default=0.0),
        "overlap_by_precision": in_precision,
        "peak_memory_ratio": round(peaks["ours"]["peak"] / peaks["theirs"]["peak"], 3),
        "peak_memory_mib": {rival: round(peak["peak"]) for rival, peak in peaks.items()},
        "distance_to_floor": round(by_length[400]["distance_to_floor"], 2),
        "distance_to_floor_by_length": {n: round(found["distance_to_floor"], 2) for n, found in by_length.items()},
        "seconds_by_length": {length: found["seconds"] for length, found in by_length.items()},
        "users_per_second": {n: round(USERS / found["seconds"]["ours"], 2) for n, found in by_length.items()},
        "prompts": prompts,
        "runs": options.runs,
        "shape": options.shape,
        "dtype": name,
        "device": timing.device(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
