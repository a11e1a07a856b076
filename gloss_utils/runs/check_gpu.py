"""Does the GPU's path work on this machine, how fast is it, and what is to be set? `python -m gloss_utils check-gpu`.

A model of the asked shape with random weights is trained for three steps in 4 bits, with unsloth where it is installed
and without, and continues the prompts of eight users, by the tree search and by `generate`. Each step is a process of
its own, as stages 2 and 4 are, and may fail without the others.
"""

import importlib.metadata
import io
import json
import math
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path

from gloss_utils.base.errors import GlossError
from gloss_utils.base.unsloth_first import SWITCH, import_unsloth, is_wanted
from gloss_utils.runs.parameters import FINE_TUNE, ROOT, defaults, settings_of

PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "unsloth")
STEPS, USERS, NUM_BEAMS, NEW_TOKENS = 3, 8, 5, 30
LIMIT = 600  # seconds for a step
ROUNDING = 0.05  # what scores may be apart by it, per token, in bf16
TITLES = ["Rose Toner", "Day Cream", "Base Coat", "Alum Block"]


def check(shape: str, tokens: int = 512, scratch: Path | None = None) -> Iterator[str]:
    """Run all steps and yield a line on each: what works, how fast it is, and what to set.

    shape: of `language.shapes`. tokens: of each text and prompt. scratch: where the model is written, by default the
    system's folder for such files. Raises `GlossError` at the end where a step failed, and where there is no GPU and
    the shape is too large for a CPU.
    """
    device = _step("device", shape, tokens, Path())
    yield f"device: {device['error'] if 'error' in device else device['line']}"
    yield "packages: " + ", ".join(f"{name} {_version(name)}" for name in PACKAGES)
    if not device.get("gpu") and shape.startswith("llama"):
        raise GlossError(
            f"there is no GPU that PyTorch can use, and {shape} is too large for a CPU; install PyTorch for your CUDA "
            "and its driver (nvidia-smi shows that), or try the steps here with --shape 15m"
        )
    failed, found = [], {}
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        for name, title in (
            ("weights", "weights"),
            *([("unsloth", "training with unsloth")] if device.get("unsloth") else []),
            ("train", "training with transformers"),
            ("generate", "generation"),
        ):
            begun = time.perf_counter()
            found[name] = _step(name, shape, tokens, Path(folder))
            error, took = found[name].get("error"), f"{time.perf_counter() - begun:.0f} s"
            failed += [title] if error else []
            yield f"{'FAILED' if error else 'ok'}  {title}: {error or found[name]['line']}. It took {took}."
            if error and name == "weights":
                break
    yield from _advice(device, found)
    if failed:
        raise GlossError(f"{', '.join(failed)} failed; report these lines, they hold nothing of your data")


def _advice(device: dict, found: dict[str, dict]) -> Iterator[str]:
    """What to set."""
    with_unsloth, without = found.get("unsloth"), found.get("train", {})
    way = "unsloth" if with_unsloth else "train"
    if with_unsloth and "speed" in without and with_unsloth.get("speed", 0) < without["speed"]:
        why, way = "fails" if "error" in with_unsloth else "is slower", "train"
        yield f"set: {SWITCH}=off in the environment, because training with unsloth {why} here"
    if device.get("gpu"):
        yield f"set: {device['fit'][way]}"


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "is not installed"


def _step(name: str, shape: str, tokens: int, folder: Path) -> dict:
    """What a step found, from a process of its own: `line` and more, or the one line of its `error`."""
    environment = os.environ | ({} if name in ("device", "unsloth") else {SWITCH: "off"})
    command = [sys.executable, "-m", __name__, name, shape, str(tokens), str(folder)]
    try:
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=LIMIT)
    except subprocess.TimeoutExpired:
        return {"error": f"it was not done in {LIMIT} seconds"}
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode == 0 and lines:
        return json.loads(lines[-1])
    said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    return {"error": (said[-1][:300] if said else f"it ended with status {done.returncode} and said nothing")}


# ---- the steps, each in its process


def _device(shape: str, tokens: int, folder: Path) -> dict:
    import torch

    from gloss_utils.language import memory, models, shapes

    if not torch.cuda.is_available():
        why = "is built for the CPU" if torch.version.cuda is None else "finds no GPU or no driver for its CUDA"
        return {"gpu": False, "line": f"no GPU: PyTorch {torch.__version__} {why}"}
    gpu = torch.cuda.get_device_properties(torch.cuda.current_device())
    free, total = torch.cuda.mem_get_info()
    model = shapes.sizes(shape)
    lora = model.lora(defaults(FINE_TUNE)["lora_modules"], defaults(FINE_TUNE)["lora_rank"])
    ways, how = {"unsloth": memory.UNSLOTH, "train": memory.PEFT}, memory.writing(model, free)
    fits = {name: memory.Training(model, lora, way).fits(free) for name, way in ways.items()}
    dtype = str(models.compute_dtype()).removeprefix("torch.")
    return {
        "gpu": True,
        "unsloth": is_wanted(),
        "fit": {name: _fit(shape, fit, how) for name, fit in fits.items()},
        "line": f"{gpu.name}, {total / 2**30:.1f} GiB, {free / 2**30:.1f} free, compute capability {gpu.major}."
        f"{gpu.minor}, computes in {dtype}; {torch.cuda.device_count()} visible, one is used",
    }


def _fit(shape: str, fit, how: str | None) -> str:
    """What to set where training fits so. how: in which way stage 4 will hold the model."""
    if fit is None:
        return f"{shape} is too large to be trained here; take a smaller model"
    checkpointing = str(fit.gradient_checkpointing).lower()
    return (
        f"for {shape} with texts of 1,024 tokens: -p batch_size {fit.batch_size} -p gradient_accumulation "
        f"{16 // fit.batch_size} -p gradient_checkpointing {checkpointing} (about {fit.needs / 2**30:.1f} GiB, by "
        f"formulas); stage 4 {f'will hold it in {how}' if how else 'cannot hold it'}"
    )


def _weights(shape: str, tokens: int, folder: Path) -> dict:
    from gloss_utils.language import shapes, tiny
    from gloss_utils.runs.estimates import check_disk

    begun, size = time.perf_counter(), 2 * shapes.sizes(shape).parameters
    check_disk(folder, {"model": size})
    tiny.train_tokenizer(TITLES, 400).save_pretrained(folder / "base")
    shapes.write_model(shape, folder / "base")
    seconds = time.perf_counter() - begun
    return {"line": f"{shape} with random weights, {size / 2**30:.1f} GiB, written to {folder} in {seconds:.0f} s"}


def _train(shape: str, tokens: int, folder: Path) -> dict:
    used = import_unsloth()  # before transformers and peft, which it patches
    import torch

    from gloss_utils.language import memory, models, qlora, shapes, training

    model, given, way = shapes.sizes(shape), defaults(FINE_TUNE), "unsloth" if used else "train"
    lora, free = model.lora(given["lora_modules"], given["lora_rank"]), models.free_gpu_memory()
    trained = memory.Training(model, lora, memory.UNSLOTH if used else memory.PEFT)
    fit = memory.Fit(2, False, 0) if free is None else trained.fits(free, tokens)
    if fit is None:
        raise GlossError(f"{shape} is too large for the {free / 2**30:.1f} GiB that are free; take a smaller one")
    in_4bit = {"max_length": max(tokens, 16), "gradient_checkpointing": fit.gradient_checkpointing}
    settings = settings_of(qlora.QLoRA, given, **in_4bit, load_in_4bit=True, seed=1)
    small = {"gradient_accumulation": 1, "epochs": 1, "warmup_steps": 0, "batch_size": fit.batch_size}
    small |= {"gradient_checkpointing": fit.gradient_checkpointing and not used}  # which has its own
    how = settings_of(training.Settings, given, **small, seed=1)
    texts, begun = _texts(STEPS * fit.batch_size, tokens), time.perf_counter()
    tuned, tokenizer = qlora.with_adapters(folder / "base", settings)
    loading = time.perf_counter() - begun

    def train(some: list, validation: list, name: str) -> dict:
        checkpoints = folder / f"{way}-{name}"  # of its own: else it would go on from another's end
        return training.train(tuned, tokenizer, some, validation, how, checkpoints, {}, name=name)

    # In this one unsloth compiles, which may take ten times as long as a step.
    train(texts[: fit.batch_size], [], "warm-up")
    result = train(texts, texts[:2], "check")
    loss = next(log["eval_loss"] for log in result["history"] if "eval_loss" in log)
    changed = sum(float(w.detach().abs().sum()) for name, w in tuned.named_parameters() if "lora_B" in name)
    if not math.isfinite(loss) or not math.isfinite(changed) or not changed:
        raise GlossError(f"it trains nothing: the loss is {loss}, the adapters' change {changed}")
    qlora.save_adapter(folder / f"adapter-{way}", tuned, tokenizer, settings)
    peak, place = result["peak_memory_gb"], "GPU memory" if torch.cuda.is_available() else "memory"
    speed, estimated = result["tokens_per_second"], f" (estimated {fit.needs / 2**30:.1f})" if fit.needs else ""
    return {
        "speed": speed,
        "line": f"{result['steps']} steps of {fit.batch_size} texts of {tokens} tokens, {speed:,} "
        f"tokens a second, at most {peak} GiB of {place}{estimated}; loaded in {loading:.0f} s; "
        f"loss {loss:.2f}",
    }


def _generate(shape: str, tokens: int, folder: Path) -> dict:
    from gloss_utils.language import generation, hf_generate, models

    base, adapters = folder / "base", [folder / f"adapter-{name}" for name in ("unsloth", "train")]
    with redirect_stdout(io.StringIO()) as said:
        if there := [adapter for adapter in adapters if adapter.exists()]:
            model, tokenizer = models.load_finetuned(base, there[0], load_in_4bit=True)  # unsloth's, as in stage 2
        else:
            model, tokenizer = models.load_base(base, load_in_4bit=True)
            print("There is no adapter, because training failed: this is the base model alone.")
    prompts, end = _texts(USERS, tokens), tokenizer.eos_token_id
    writer = generation.Writer(model, tokenizer, generation.Decoding(num_beams=NUM_BEAMS, max_new_tokens=NEW_TOKENS))
    seconds, texts = {}, {}
    for name, engine in (("the tree search", writer.engine), ("generate", hf_generate)):
        engine.beam_search(model, prompts[:1], NUM_BEAMS, 2, end)  # to warm up
        begun = time.perf_counter()
        texts[name] = engine.beam_search(model, prompts, NUM_BEAMS, NEW_TOKENS, end)
        seconds[name] = time.perf_counter() - begun
    compared = _compared(model, prompts, texts)
    ours, theirs = seconds.values()
    chosen = " ".join([*said.getvalue().splitlines(), *([writer.notice] if writer.notice else [])])
    return {
        "line": f"{USERS} users, {NUM_BEAMS} beams of {NEW_TOKENS} tokens after {tokens}: tree search {ours:.2f} s, "
        f"generate {theirs:.2f} s ({theirs / ours:.1f} times as long); {compared}; at most "
        f"{models.peak_memory() / 2**10:.1f} GiB. {chosen}".strip().removesuffix(".")
    }


def _compared(model, prompts: list[list[int]], texts: dict[str, list]) -> str:
    """What the best texts of two searches are worth, ours first, by plain passes of the same model. Raises `GlossError`
    where a search gives its texts other scores than these, or ours finds worse ones.

    Texts may differ in bf16: those of a model with random weights are nearly ties, which rounding decides.
    """
    from gloss_utils.language import scoring

    worth = {}
    for name, found in texts.items():
        plain = scoring.plain(model, prompts, [[one.tokens[0]] for one in found])
        worth[name] = [score / len(one.tokens[0]) for [score], one in zip(plain, found, strict=True)]
        own = [one.logprobs[0] / len(one.tokens[0]) for one in found]
        apart = max(abs(one - other) for one, other in zip(own, worth[name], strict=True))
        if not apart <= ROUNDING:
            raise GlossError(f"{name} gives its texts wrong scores: {apart:.1e} per token from those of plain passes")
    ours, theirs = texts.values()
    same = sum(one.tokens[0] == other.tokens[0] for one, other in zip(ours, theirs, strict=True))
    better = sum(one - other for one, other in zip(*worth.values(), strict=True)) / len(prompts)
    compared = f"{same} of {len(prompts)} best texts are the same, ours better by {better:.1e} per token on average"
    if not better >= -ROUNDING:
        raise GlossError(f"the tree search finds worse texts than generate: {compared}")
    return compared


def _texts(count: int, tokens: int) -> list[list[int]]:
    rng = random.Random(1)
    return [[rng.randrange(3, 300) for _ in range(tokens)] for _ in range(count)]


def main() -> int:
    """Do one step, and print what it found as JSON; returns the exit status."""
    step, shape, tokens, folder = sys.argv[1:]  # see `_step`
    steps = {"device": _device, "weights": _weights, "unsloth": _train, "train": _train, "generate": _generate}
    try:
        print(json.dumps(steps[step](shape, int(tokens), Path(folder))))
    except Exception as error:  # whatever it is, it is what the user of the card wants to know
        print(f"{type(error).__name__}: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
