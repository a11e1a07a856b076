"""What estimates say of disk and memory, beside what the small demo run really writes and holds."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import one_line_error, run_of
from transformers import AutoConfig

from gloss_utils import fine_tune
from gloss_utils.base.files import read_json
from gloss_utils.data import prompts
from gloss_utils.data import queries as query_files
from gloss_utils.data.dataset import Dataset
from gloss_utils.language import memory, models, qlora
from gloss_utils.language.sizes import Sizes
from gloss_utils.rank import HybridSettings, sasrec
from gloss_utils.runs import estimates, room
from gloss_utils.runs import run as run_module
from gloss_utils.runs.artefacts import path_of
from gloss_utils.runs.journal import Journal
from gloss_utils.search import Encoder, build_dense


def written(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def assert_on_the_safe_side(estimate: int, truth: int):
    assert truth <= estimate <= 2 * truth, f"{estimate:,} against {truth:,}"


@pytest.fixture
def sizes(small_run) -> Sizes:
    return Sizes.of(AutoConfig.from_pretrained(small_run[0].base))


def test_the_numbers_of_a_model(small_run, sizes):
    run = run_of(small_run)
    model, _ = models.load_base(run.folder.base, load_in_4bit=False)
    trained = read_json(run.folder.training)
    assert sizes.parameters == model.num_parameters()
    assert sizes.embeddings == model.get_input_embeddings().weight.numel()  # which the output shares
    assert sizes.lora(run["lora_modules"], run["lora_rank"]) == trained["trainable_parameters"]
    assert sizes.lora(["q_proj"], 2) == 2 * (64 + 64)
    untied = AutoConfig.from_pretrained(run.folder.base, tie_word_embeddings=False)
    assert Sizes.of(untied).embeddings == 2 * sizes.embeddings


def test_models_on_disk(small_run, sizes):
    run = run_of(small_run)
    lora = sizes.lora(run["lora_modules"], run["lora_rank"])
    assert_on_the_safe_side(estimates.weights(lora, sizes.vocabulary), written(run.folder.adapter))
    assert_on_the_safe_side(estimates.weights(sizes.parameters, sizes.vocabulary), written(run.folder.base))
    items = len(Dataset.load(run.folder.data).items)
    baseline = estimates.sasrec_parameters(items, run["sasrec_width"])
    assert baseline == sasrec.new_model(items, sasrec.Settings(1, run["sasrec_width"])).num_parameters()
    assert_on_the_safe_side(estimates.weights(baseline), written(run.folder.sasrec))


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_checkpoints(copied_run, monkeypatch, sizes, tuning):
    run = run_of(copied_run, remake=["adapter"], tuning=tuning, load_in_4bit=False)
    monkeypatch.setattr(run_module, "remove", lambda path: None)  # of what is unfinished no more
    fine_tune.prepare(run)
    [checkpoint] = run.unfinished("adapter").glob("checkpoint-*[0-9]")
    truth, adapter = estimates.CHECKPOINTS * written(checkpoint), written(run.folder.adapter)
    trained = sizes.parameters if tuning == "full" else sizes.lora(run["lora_modules"], run["lora_rank"])
    assert_on_the_safe_side(estimates.checkpoints(trained), truth)
    assert_on_the_safe_side(estimates.weights(trained, sizes.vocabulary), adapter)
    needed = {}
    monkeypatch.setattr(estimates, "check_disk", lambda path, amounts: needed.update(amounts))
    room.check(run.folder, run.parameters | {"seed": run["seed"] + 1})  # another run, which has all of it before it
    assert_on_the_safe_side(needed["adapter"], truth + adapter)


def test_indexes_on_disk(small_run, tmp_path):
    folder, _ = small_run
    items = Dataset.load(folder.data).items
    assert_on_the_safe_side(estimates.dense_index(len(items), 384, "flat"), written(folder.dense_index))
    assert_on_the_safe_side(estimates.bm25_index(len(items)), written(folder.bm25_index))
    run = run_of(small_run)
    settings, held = HybridSettings.read(run["ranking_weights"]), read_json(folder.statistics)["interactions"]
    estimate = estimates.cooccurrence(len(items), held, settings.neighbours, settings.window)
    assert_on_the_safe_side(estimate, 2 * written(path_of(folder.root, "cooccurrence")))
    names = [f"{prompts.item_text(title)}, number {number}" for number in range(20) for title in items["title"]]

    def encode(texts: list[str]) -> np.ndarray:
        vectors = np.random.default_rng(3).normal(size=(len(texts), 384)).astype(np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    for kind in ("hnsw", "ivfpq"):
        build_dense(tmp_path / kind, names, Encoder("none"), kind, encode=encode)
        assert_on_the_safe_side(estimates.dense_index(len(names), 384, kind), written(tmp_path / kind))


def test_texts_and_rankings_on_disk(small_run, tmp_path):
    run = run_of(small_run)
    queries = query_files.read(run.folder.queries, run["num_beams"], 0)
    tokenizer = models.load_tokenizer(run.folder.adapter)
    titles = Dataset.load(run.folder.data).titles()
    long = prompts.prompt(list(titles.values())[:20])  # the small run's own texts are nearly empty
    text = tokenizer.decode(tokenizer.encode(long)[: run["max_new_tokens"]])
    full = queries.assign(texts=[[text] * run["num_beams"]] * len(queries))
    query_files.write(tmp_path / "queries.jsonl", full)
    journal = Journal(tmp_path / "journal", "plan", [len(full)])
    journal.add(0, full[["texts", "logprobs", "lengths"]].values.tolist())
    estimate = estimates.texts(len(full), run["num_beams"], run["max_new_tokens"], full["history"].map(len).mean())
    assert_on_the_safe_side(estimate, written(tmp_path / "queries.jsonl") + written(tmp_path / "journal"))
    methods = len(list(run.folder.rankings.iterdir()))
    # The blocks' files are there, too, until they are joined.
    assert_on_the_safe_side(estimates.rankings(len(queries), 10, methods), 2 * written(run.folder.rankings))


def test_memory_of_a_base_model_and_of_generation(small_run, sizes):
    model, _ = models.load_base(run_of(small_run).folder.base, load_in_4bit=False)
    truth = sum(weights.nbytes for weights in model.parameters())
    assert memory.base(sizes, load_in_4bit=False, weight=4) == truth
    inner = sizes.parameters - sizes.embeddings
    assert memory.base(sizes, load_in_4bit=True) == int(0.55 * inner) + 2 * sizes.embeddings
    cache = model(torch.ones(6, 40, dtype=torch.long), use_cache=True).past_key_values
    truth = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert memory.generation(sizes, 6, 40, weight=4) == truth


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_memory_of_training(small_run, sizes, tuning):
    run, held = run_of(small_run, load_in_4bit=False), {}
    if tuning == "full":
        model, _ = models.load_base(run.folder.base, load_in_4bit=False)
    else:
        model, _ = qlora.with_adapters(run.folder.base, run.settings(qlora.QLoRA))

    def hold(tensor: torch.Tensor) -> torch.Tensor:
        held[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    tokens = torch.ones(4, 100, dtype=torch.long)
    with torch.autograd.graph.saved_tensors_hooks(hold, lambda tensor: tensor):
        loss = model(tokens, labels=tokens).loss
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    activations = sum(tensor.untyped_storage().nbytes() for place, tensor in held.items() if place not in own)
    loss.backward()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained)
    optimizer.step()
    states = sum(state[name].nbytes for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq"))
    truth = activations + states + sum(weights.nbytes for weights in model.parameters())
    truth += sum(parameter.grad.nbytes for parameter in trained)
    count = sum(parameter.numel() for parameter in trained)
    found = memory.Training(sizes, count, memory.CPU, load_in_4bit=False)
    assert_on_the_safe_side(found.weights() + found.activations(tokens.numel(), False), truth)


def test_a_disk_with_and_without_room(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=3 * 2**30))
    needed = {"adapter": 2**30, "texts": 512 * 2**20}
    line = estimates.check_disk(tmp_path / "not/yet", needed)
    assert line == (
        f"This run will write about 1.5 GiB (adapter 1.0 GiB, texts 512.0 MiB) in {tmp_path / 'not/yet'}, "
        "where 3.0 GiB are free."
    )
    with one_line_error("about 3.5 GiB (adapter 1.0 GiB, index 2.5 GiB)", "3.0 GiB are free; make room"):
        estimates.check_disk(tmp_path, {"adapter": 2**30, "index": 5 * 2**29})
