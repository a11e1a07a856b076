"""Fine-tuning and generation on models small enough to make here: the 4-bit path, resuming, beams and their scores."""

import sys
from dataclasses import replace
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from conftest import write_parameters
from helpers import flip, one_line_error, run_of
from transformers import GPT2Config, set_seed

from gloss_utils import fine_tune
from gloss_utils.base.errors import GlossError
from gloss_utils.base.files import read_json
from gloss_utils.base.seals import seal
from gloss_utils.data import prompts, queries, splits
from gloss_utils.data.dataset import Dataset
from gloss_utils.language import checkpoints, generation, models, qlora, tiny, trainer, training
from gloss_utils.runs import notebooks
from gloss_utils.runs.folder import RunFolder

TITLES = ["Brightwater Rose Toner", "Elmroot Day Cream", "Cassia Lane Base Coat", "Dove Hollow Alum Block"]


def test_base_is_trained_on_titles_alone_and_saved_as_a_model_folder(small_run):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run = run_of(small_run)
    model = AutoModelForCausalLM.from_pretrained(run.folder.base)
    tokenizer = AutoTokenizer.from_pretrained(run.folder.base)
    assert model.config.model_type == "llama" and len(tokenizer) == model.config.vocab_size
    text = prompts.item_text("Alder &amp; Vale Café — 3.4 oz")
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text
    before = (run.folder.base / "model.safetensors").stat().st_mtime_ns
    fine_tune.tiny_base(run, Dataset.load(run.folder.data))
    assert (run.folder.base / "model.safetensors").stat().st_mtime_ns == before  # once


def test_lists_are_seeded_and_hold_each_title_once():
    lists, ends = tiny.related_lists(TITLES, 50, seed=1)
    assert (lists, ends) == tiny.related_lists(TITLES, 50, seed=1) != tiny.related_lists(TITLES, 50, seed=2)
    assert {title for titles in lists for title in titles} | set(ends) == set(TITLES)
    assert all(len({*titles, end}) == len(titles) + 1 for titles, end in zip(lists, ends, strict=True))


def test_titles_of_a_list_share_words():
    brands = ("Brightwater", "Elmroot", "Cassia", "Dovehollow")
    titles = [f"{brand} {word}" for brand in brands for word in ("toner", "cream", "lotion", "powder")]
    lists, ends = tiny.related_lists([*titles, *titles], 200, seed=1)
    pairs = [(before[-1].split(), end.split()) for before, end in zip(lists, ends, strict=True)]
    share = sum(bool(set(one) & set(other)) for one, other in pairs) / len(pairs)
    assert share > 0.75  # 0.4 by chance


def test_demo_base_has_about_two_million_parameters():
    tokenizer = tiny.train_tokenizer(TITLES, 2000)
    model = tiny.new_model(tokenizer, layers=4, width=192)
    layers = model.num_parameters() - model.get_input_embeddings().weight.numel()
    assert 1.5e6 < layers + 2000 * 192 < 2.5e6


def test_qlora_trains_adapters_only(small_run):
    run = run_of(small_run)
    model, _ = qlora.with_adapters(run.folder.base, run.settings(qlora.QLoRA))
    names = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert names and all("lora_" in name for name in names)
    for module in run["lora_modules"]:
        assert any(module in name for name in names)
    assert type(model.base_model.model.model.layers[0].self_attn.q_proj.base_layer).__name__ == "Linear4bit"
    assert model.peft_config["default"].r == 16 and model.peft_config["default"].bias == "none"


def test_training_texts_hold_no_held_out_target(small_run):
    run = run_of(small_run)
    data = Dataset.load(run.folder.data)
    tokenizer = tiny.train_tokenizer(data.items["title"].tolist(), 2000)
    examples = splits.training_examples(data)
    texts = [tokenizer.decode(ids) for ids in fine_tune.encode(data, examples, tokenizer, 1024)]
    titles, sequences = data.titles(), data.sequences()
    for user, text in zip(examples["user"], texts, strict=True):
        held_out = titles[sequences[user][-1]]
        expected = sum(titles[item] == held_out for item in sequences[user][:-1])
        assert text.count(f"Title: {held_out}\n") + text.endswith(f"Title: {held_out}<|end|>") <= expected


def test_unpacked_model_computes_what_the_4bit_model_does(small_run):
    run = run_of(small_run)
    base, tokenizer = models.load_base(run.folder.base, load_in_4bit=True)
    ids = torch.tensor([prompts.encode_prompts(tokenizer, [TITLES], 1024)[0]])
    with torch.inference_mode():
        without = base.eval()(ids).logits
        packed = models.PeftModel.from_pretrained(base, run.folder.adapter).eval()(ids).logits
        unpacked = models.load_finetuned(run.folder.base, run.folder.adapter, True)[0](ids).logits
    # On some processors the 4-bit layers compute in bf16, with 8 bits of mantissa.
    difference = (packed - unpacked).abs().max()
    assert difference < packed.abs().max() * 2**-8
    assert (without - unpacked).abs().max() > 4 * difference  # the adapter is in both


def test_packed_weights_compute_the_same(small_run):
    base, tokenizer = models.load_base(run_of(small_run).folder.base, load_in_4bit=False)
    ids = torch.tensor([prompts.encode_prompts(tokenizer, [TITLES], 1024)[0]])
    with torch.inference_mode():
        expected = base(ids).logits
        packed = models.pack(base)
        assert not any(type(layer) is torch.nn.Linear for layer in packed.modules())
        assert torch.allclose(packed(ids).logits, expected, atol=1e-4)
        assert packed(ids[:, :1]).logits.shape == (1, 1, len(tokenizer))
    half = models.load_base(run_of(small_run).folder.base, load_in_4bit=False)[0].to(torch.bfloat16)
    assert any(type(layer) is torch.nn.Linear for layer in models.pack(half).modules())  # only float32 is packed


def settings(**values) -> training.Settings:
    return training.Settings(
        learning_rate=1e-3,
        lr_scheduler="linear",
        warmup_steps=0,
        weight_decay=0.0,
        optimizer="adamw_torch",
        batch_size=4,
        gradient_accumulation=1,
        seed=1,
        **values,
    )


def train_small(folder, epochs=3, patience=3, judge=None, bound=False, **more):
    set_seed(1)
    tokenizer = tiny.train_tokenizer(TITLES, 400)
    model = tiny.new_model(tokenizer, layers=1, width=64)
    texts = prompts.encode_training(tokenizer, *tiny.related_lists(TITLES, 16, seed=1), 256)
    result = training.train(
        model,
        tokenizer,
        texts,
        texts[:4],
        settings(epochs=epochs, patience=patience, **more),
        folder,
        {"epochs": epochs},
        "test",
        generation.TitleTrie(tokenizer, TITLES).trie if bound else None,
        judge,
    )
    return model, result


def test_a_run_of_wandb_is_finished_with_the_training(tmp_path, monkeypatch):
    """Not with the process, which is killed where notebooks run without a reader."""
    finished, arguments = [], training._arguments
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(finish=lambda: finished.append(True)))
    monkeypatch.setattr(training, "_arguments", lambda given, *rest: arguments(replace(given, report_to="none"), *rest))
    train_small(tmp_path / "none", epochs=1)
    assert not finished
    train_small(tmp_path / "wandb", epochs=1, report_to="wandb")
    assert finished == [True]


@pytest.mark.skipif(torch.cuda.is_available(), reason="about training on a CPU")
def test_bf16_on_a_cpu_learns_as_float32_does_where_the_cpu_has_it(tmp_path, monkeypatch):
    def losses(result):
        return [log["eval_loss"] for log in result["history"] if "eval_loss" in log]

    plain, found = losses(train_small(tmp_path / "plain")[1]), {}
    for has in (True, False):  # in bf16 every processor can multiply, if slowly
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda has=has: {"avx512_bf16": has, "avx2": True})
        assert training.cpu_has_bf16() is has
        model, result = train_small(tmp_path / str(has), bf16_on_cpu=True)
        assert next(model.parameters()).dtype == torch.float32  # the weights themselves stay whole
        found[has] = losses(result)
    assert found[False] == plain != found[True] == pytest.approx(plain, rel=0.01)


class Killed(BaseException):
    """Ends a training where it stands, as a kill would: nothing is tidied up."""


def cut(monkeypatch, folder, where: str, when, **more):
    """Train until `when(state)` holds at the trainer's event `where`."""

    event = getattr(trainer.Progress, where)

    def kill(self, args, state, control, **kwargs):
        if when(state):
            raise Killed
        event(self, args, state, control, **kwargs)

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(trainer.Progress, where, kill)
        train_small(folder, **more)


def first_step(monkeypatch, folder, **more):
    """Train; returns the first step that was done, the model and the result."""
    steps, begun = [], trainer.Progress.on_step_begin

    def begin(self, args, state, control, **kwargs):
        steps.append(state.global_step)
        begun(self, args, state, control, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(trainer.Progress, "on_step_begin", begin)
        model, result = train_small(folder, **more)
    return steps[0] if steps else None, model, result


def assert_same_training(one, other):
    (model, result), (other_model, other_result) = one, other
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, other_model.state_dict()[name]), name
    losses = [[log.get("loss", log.get("eval_loss")) for log in r["history"]] for r in (result, other_result)]
    assert losses[0] == losses[1] and result["steps"] == other_result["steps"]


@pytest.mark.parametrize(("save_every", "goes_on_from"), [(600, 4), (0, 7)])
def test_training_that_was_killed_ends_with_the_same_bytes(tmp_path, monkeypatch, save_every, goes_on_from):
    whole = train_small(tmp_path / "whole")
    monkeypatch.setattr(trainer, "SAVE_EVERY", save_every)  # at each epoch of four steps, or after each step
    cut(monkeypatch, tmp_path / "cut", "on_step_begin", lambda state: state.global_step == 7)
    broken = tmp_path / "cut/checkpoint-8"  # a later one that was being written is not taken for a whole one
    broken.mkdir()
    (broken / "model.safetensors").write_bytes(b"half")
    first, model, result = first_step(monkeypatch, tmp_path / "cut")
    assert first == goes_on_from
    assert_same_training(whole, (model, result))


def test_what_is_asked_after_each_epoch_changes_no_training(tmp_path):
    asked = []
    judge = lambda model: asked.append(model.training) or {"recall@5": len(asked) / 10}  # noqa: E731
    judged = train_small(tmp_path / "judged", judge=judge)
    assert asked == [False] * 3
    noted = [log["recall@5"] for log in judged[1]["history"] if "eval_loss" in log]
    assert noted == [0.1, 0.2, 0.3]
    assert_same_training(train_small(tmp_path / "plain"), judged)


def test_training_on_what_the_catalogue_leaves_open(tmp_path, monkeypatch):
    whole = train_small(tmp_path / "whole", bound=True)
    losses = [log["eval_loss"] for log in whole[1]["history"] if "eval_loss" in log]
    assert (
        losses[-1] < losses[0] < 1.5
    )  # by chance log(4): four titles, which part at one token; spelling costs nothing
    cut(monkeypatch, tmp_path / "cut", "on_step_begin", lambda state: state.global_step == 7, bound=True)
    assert_same_training(whole, train_small(tmp_path / "cut", bound=True))


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "rng_state.pth", "trainer_state.json"])
def test_a_damaged_checkpoint_is_set_aside_for_an_earlier_one(tmp_path, monkeypatch, capsys, name):
    monkeypatch.setattr(trainer, "SAVE_EVERY", 0)
    cut(monkeypatch, tmp_path / "cut", "on_step_begin", lambda state: state.global_step == 7)
    flip(tmp_path / "cut/checkpoint-7" / name)
    first, model, result = first_step(monkeypatch, tmp_path / "cut")
    assert first == 6 and "checkpoint-7 is not as it was written; it is set aside" in capsys.readouterr().out
    assert (tmp_path / "cut/damaged-checkpoint-7").is_dir()
    assert_same_training(train_small(tmp_path / "whole"), (model, result))


def test_training_whose_best_checkpoint_is_damaged_starts_anew(tmp_path, monkeypatch):
    losses = [1.0, 2.0, 3.0]
    patch_losses(monkeypatch, losses)
    whole = train_small(tmp_path / "whole")
    patch_losses(monkeypatch, losses)
    cut(monkeypatch, tmp_path / "cut", "on_step_begin", lambda state: state.global_step == 9)
    flip(tmp_path / "cut/checkpoint-4/model.safetensors")
    patch_losses(monkeypatch, losses)
    first, model, result = first_step(monkeypatch, tmp_path / "cut")
    assert first == 0
    assert_same_training(whole, (model, result))


def test_training_that_was_killed_once_it_had_stopped_early_stays_so(tmp_path, monkeypatch):
    losses, more = [3.0, 1.0, 2.0, 2.5, 0.5, 0.4], {"epochs": 6, "patience": 2}
    patch_losses(monkeypatch, losses)
    whole = train_small(tmp_path / "whole", **more)
    patch_losses(monkeypatch, losses)
    cut(monkeypatch, tmp_path / "cut", "on_train_end", lambda state: True, **more)
    (tmp_path / "cut").rename(tmp_path / "moved")  # the best checkpoint was noted with its place
    patch_losses(monkeypatch, losses[4:])
    first, model, result = first_step(monkeypatch, tmp_path / "moved", **more)
    assert first is None
    assert_same_training(whole, (model, result))


def test_training_of_another_kind_starts_anew(tmp_path):
    checkpoint = tmp_path / "checkpoint-4"
    checkpoint.mkdir()
    (checkpoint / "trainer_state.json").write_text('{"best_global_step": null}')
    seal(checkpoint, {"a": 1})
    assert checkpoints.last_sound(tmp_path, {"a": 1}) == checkpoint
    assert checkpoints.last_sound(tmp_path, {"a": 2}) is None
    assert list(tmp_path.iterdir()) == []


def patch_losses(monkeypatch, losses: list[float]) -> list[dict]:
    """Let evaluations find these losses, one after another; returns the list that the weights evaluated are put in."""
    losses, weights = iter(losses), []

    def evaluate(self, *args, **kwargs):
        weights.append({name: weight.clone() for name, weight in self.model.state_dict().items()})
        metrics = {"eval_loss": next(losses)}
        self.log(metrics)
        self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    monkeypatch.setattr(trainer.ResumableTrainer, "evaluate", evaluate)
    return weights


def test_early_stopping_keeps_the_best_epoch(tmp_path, monkeypatch):
    weights = patch_losses(monkeypatch, [3.0, 1.0, 2.0, 2.5, 2.7, 0.5])
    model, result = train_small(tmp_path / "early", epochs=6, patience=2)
    assert [log["eval_loss"] for log in result["history"] if "eval_loss" in log] == [3.0, 1.0, 2.0, 2.5]
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, weights[1][name])


def test_an_adapter_is_trained_again_for_what_matters_alone(copied_run, monkeypatch):
    monkeypatch.setattr(training, "train", lambda *_, **__: pytest.fail("trained again"))
    assert fine_tune.prepare(run_of(copied_run, report_to="tensorboard", gradient_checkpointing=True))["history"]
    for changed in ({"lora_alpha": 8}, {"learning_rate": 1e-3}, {"max_length": 512}):
        with pytest.raises(pytest.fail.Exception, match="trained again"):
            fine_tune.prepare(run_of(copied_run, **changed))


def test_reports(small_run):
    log = read_json(small_run[0].training)
    assert log["device"] == "cpu" and log["trained_with"] == "transformers" and log["tokens_per_second"] > 0
    assert 0 < log["trainable_parameters"] < log["all_parameters"] and log["peak_memory_gb"] > 0
    with pytest.raises(GlossError, match="package wandb is not installed; pip install wandb"):
        training.check_reporter("wandb")


def test_tokenizers_without_padding_or_end():
    tokenizer = tiny.train_tokenizer(TITLES, 400)
    tokenizer.pad_token = None
    assert models.with_padding(tokenizer).pad_token == tokenizer.eos_token
    tokenizer.eos_token = None
    with pytest.raises(GlossError, match="has no end-of-sequence token"):
        models.with_padding(tokenizer)


def test_lora_modules_that_the_model_lacks(small_run, monkeypatch):
    run = run_of(small_run, lora_modules=["q_proj", "proj", "c_attn", "self_attn"])
    unsloth = SimpleNamespace(
        FastLanguageModel=SimpleNamespace(from_pretrained=lambda *_, **__: pytest.fail("the model is loaded"))
    )
    for setting_up in (None, unsloth):
        monkeypatch.setitem(sys.modules, "unsloth", setting_up)
        monkeypatch.setattr(qlora, "uses_unsloth", lambda setting_up=setting_up: setting_up is not None)
        monkeypatch.setattr(qlora, "load_base", unsloth.FastLanguageModel.from_pretrained)
        with one_line_error(
            "parameter lora_modules names proj, c_attn, self_attn, which base model",
            "its linear layers are down_proj, gate_proj, k_proj, lm_head, o_proj, q_proj, up_proj, v_proj",
        ):
            qlora.with_adapters(run.folder.base, run.settings(qlora.QLoRA))


def test_lora_modules_of_models_of_other_kinds(tmp_path):
    GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=10).save_pretrained(tmp_path)
    qlora.check_modules(tmp_path, ["c_attn", "attn.c_proj"])  # its layers are transformers' own Conv1D
    with one_line_error("names q_proj, which", "layers are c_attn, c_fc, c_proj, lm_head"):
        qlora.check_modules(tmp_path, ["c_fc", "q_proj"])


def test_unsloth_gets_what_is_asked_for(small_run, monkeypatch):
    run, asked = run_of(small_run), {}

    class FastLanguageModel:
        def from_pretrained(name, **options):
            asked.update(options, name=name)
            return models.load_base(name, load_in_4bit=False)

        def get_peft_model(model, **options):
            asked.update(options)
            return model

    monkeypatch.setitem(sys.modules, "unsloth", SimpleNamespace(FastLanguageModel=FastLanguageModel))
    qlora.with_adapters(run.folder.base, run.settings(qlora.QLoRA), "a revision")
    assert asked["name"] == str(run.folder.base) and asked["revision"] is None  # which a folder has not
    assert asked["target_modules"] == run["lora_modules"] and asked["use_exact_model_name"]


@pytest.mark.slow
def test_demo_is_learnt(tmp_path):
    """On the demo as `make run` has it, the loss on validation users falls, texts are often titles of the catalogue,
    and hybrid finds more targets than popularity and every last-item search."""
    file = write_parameters(tmp_path / "demo.yaml")
    file.write_text((notebooks.ROOT / "params/demo.yaml").read_text())
    folder: RunFolder = notebooks.run([str(file)], [("run_dir", str(tmp_path / "run"))])
    recall = {row["method"]: row["recall@5"] for row in read_json(folder.metrics)["rows"] if row["segment"] == "all"}
    simple = max(recall[method] for method in ("popularity", "lis-bm25", "lis-dense"))
    assert recall["gloss"] >= 1.5 * simple and recall["gloss-paper"] > 0
    losses = [one["eval_loss"] for one in read_json(folder.training)["history"] if "eval_loss" in one]
    assert losses[-1] < losses[0]
    texts, titles = queries.read(folder.queries, 5, 0)["texts"].explode(), set(pd.read_parquet(folder.items)["title"])
    assert texts.str.removeprefix("Title: ").isin(titles).mean() > 0.15
