"""Finished work is never redone, lost or mistaken: what is costly stays, whatever happens around it."""

import hashlib
import os
import re
import shutil
from dataclasses import replace

import pytest
import yaml
from helpers import flip, one_line_error, run_of
from kill import differing
from transformers import LlamaConfig

from gloss_utils import build_index, evaluate, explore_data, fine_tune, retrieve
from gloss_utils.__main__ import main
from gloss_utils.base import files
from gloss_utils.base.files import fingerprint, read_json, write_json
from gloss_utils.base.seals import read_seal, seal_of, sweep
from gloss_utils.language import training
from gloss_utils.rank import cooccurrence, sasrec
from gloss_utils.runs import artefacts, asking, folder, given, notebooks, room
from gloss_utils.runs.artefacts import RECIPES, duration, path_of
from gloss_utils.runs.folder import RunFolder
from gloss_utils.runs.parameters import EVALUATE, EXPLORE, FINE_TUNE, INDEX, RETRIEVE, STAGES, AllParameters
from gloss_utils.runs.run import open_run
from tests import recipes

DOORS = {EXPLORE: explore_data, FINE_TUNE: fine_tune, INDEX: build_index, RETRIEVE: retrieve, EVALUATE: evaluate}
# Parameters that change no costly artefact: where something is, how fast it is made, and what views are made of it.
OF_VIEWS = {
    "run_dir": "place",
    "remake": "what to make anew",
    "data_dir": "place; the files' content counts",
    "data_address": "place",
    "interactions_file": "place",
    "items_file": "place",
    "queries_file": "place",
    "ranking_weights": "place",
    "base_model": "its content counts",
    "encoder": "its content counts",
    "base_revision": "the commit counts that it stands for",
    "encoder_revision": "the commit counts that it stands for",
    "max_rejected": "stops the run, or does nothing",
    "gradient_checkpointing": "memory against time",
    "report_to": "a log",
    "recall_users": "what training notes beside the loss",
    "engine": "where it is made",
    "workers": "where it is made",
    **dict.fromkeys(("retriever", "ranking", "top_k", "exclude_seen", "ranking_depth", "new_item_favour"), "rankings"),
    **dict.fromkeys(("show_user", "cold_start_max", "power_min", "shuffle_test", "added_title"), "notebooks"),
}

MADE = tuple(name for name in RECIPES if name != "asked")  # by the small run, whose model is not asked


def step(stage: str, file, **values):
    """A stage in this process, as its notebook does it, but for its figures."""
    values = yaml.safe_load(file.read_text()) | values
    run = open_run(stage, given.given_to(stage, values))
    DOORS[stage].prepare(run)
    run.finish()
    return run


@pytest.fixture
def nothing_costly(monkeypatch):
    """Let whatever is costly fail."""

    def fail(*_, **__):
        raise AssertionError("something costly was made again")

    monkeypatch.setattr(training, "train", fail)
    monkeypatch.setattr("gloss_utils.language.write_batches", fail)
    monkeypatch.setattr(build_index, "build_dense", fail)
    monkeypatch.setattr(build_index.BM25Index, "build", fail)
    monkeypatch.setattr(sasrec, "train", fail)
    monkeypatch.setattr(cooccurrence, "save", fail)
    monkeypatch.setattr(explore_data, "build", fail)


@pytest.fixture
def executed(monkeypatch):
    """The stages that a run would execute, with what it would pass to them; none is."""
    found = {}
    monkeypatch.setattr(notebooks, "execute", lambda stage, passed, _: found.update({stage: passed}))
    return found


def test_every_parameter_is_of_a_recipe_or_of_views_alone():
    of_recipes = {name for recipe in RECIPES.values() for name in recipe.parameters}
    assert of_recipes | set(OF_VIEWS) == set(AllParameters.model_fields)
    assert not of_recipes & set(OF_VIEWS)


def test_recipes_make_what_was_recorded_of_them(small_run):
    changed = recipes.first_change(read_json(recipes.RECORDED), recipes.current(small_run[0]))
    cures = {
        "raise": "it has changed: raise its recipe's version in runs/artefacts.py, then python -m tests.recipes",
        "record": "its version, the demo or the small run is another: python -m tests.recipes",
    }
    assert changed is None, f"{changed[0]}: {cures[changed[1]]}"


def test_a_parameter_that_came_later_leaves_what_was_made_before_good(small_run):
    later = {name for recipe in RECIPES.values() for name in recipe.parameters} & artefacts.LATER.keys()
    assert later == artefacts.LATER.keys()
    for made in ("adapter", "texts"):
        now = read_seal(path_of(small_run[0].root, made))["made_from"]
        assert not now.keys() & later
        assert artefacts.made_from(made, now | artefacts.LATER, now) == now
        for name in later & set(RECIPES[made].parameters):
            other = {name: "another value"}
            assert artefacts.made_from(made, now | artefacts.LATER | other, now) == now | other


def test_the_guard_tells_a_changed_artefact_from_a_changed_version():
    recorded = {"texts": {"version": 1, "given": "x", "probe": ["a"] * 20 + [-1.0] * 20}}
    assert recipes.first_change(recorded, recorded) is None
    near = {"texts": recorded["texts"] | {"probe": ["a"] * 19 + ["b"] + [-1.001] * 20}}
    assert recipes.first_change(recorded, near) is None
    other = {"texts": recorded["texts"] | {"probe": ["b"] * 20 + [-1.0] * 20}}
    assert recipes.first_change(recorded, other) == ("texts", "raise")
    worse = {"texts": recorded["texts"] | {"probe": ["a"] * 20 + [-1.5] * 20}}
    assert recipes.first_change(recorded, worse) == ("texts", "raise")
    assert recipes.first_change(recorded, {"texts": other["texts"] | {"version": 2}}) == ("texts", "record")


@pytest.mark.parametrize("stage", [FINE_TUNE, INDEX, RETRIEVE, EVALUATE])
def test_lost_views_are_made_again_without_what_is_costly(copied_run, nothing_costly, executed, stage):
    """A missing figure used to train the language model again; a killed re-ranking, to generate all texts again."""
    run, file = copied_run
    before = {name: fingerprint(path_of(run.root, name)) for name in MADE}
    for view in run.stages()[stage]["outputs"]:
        (run.root / view).unlink()
    notebooks.run([str(file)], [])
    assert stage in executed
    step(stage, file)
    assert {name: fingerprint(path_of(run.root, name)) for name in MADE} == before


def test_a_stage_that_was_cut_off_after_its_costly_work_goes_on_with_that(copied_run, nothing_costly):
    run, file = copied_run
    stages = run.stages()
    rankings = {path: path.read_bytes() for path in run.rankings.iterdir()}
    write_json(run.manifest, {stage: stages[stage] for stage in STAGES[:3]})  # as when it is killed before its end
    shutil.rmtree(run.rankings)
    step(RETRIEVE, file)
    step(EVALUATE, file)
    assert {path: path.read_bytes() for path in run.rankings.iterdir()} == rankings


def test_force_asks_each_stage_for_its_own_artefacts_alone(copied_run, executed):
    """It used to forget the texts once more at stages 05 and 06, so that the next look at stage 4 generated them."""
    _, file = copied_run
    notebooks.run([str(file)], [], force=True)
    assert list(executed) == list(STAGES)
    assert {name for passed in executed.values() for name in passed["remake"]} == set(MADE)
    for stage, passed in executed.items():
        assert all(RECIPES[name].stage == stage for name in passed["remake"])


def test_after_remake_the_next_look_makes_nothing(copied_run, monkeypatch):
    run, file = copied_run
    written = []
    real = asking.written
    monkeypatch.setattr(asking, "written", lambda *args: written.append(1) or real(*args))
    before = run.queries.read_bytes()
    step(RETRIEVE, file, remake=["texts"])
    step(RETRIEVE, file)
    assert written == [1] and run.queries.read_bytes() == before


def test_a_run_its_data_and_its_models_can_be_moved(copied_run, tmp_path, executed, nothing_costly):
    run, file = copied_run
    moved = tmp_path / "elsewhere/renamed"
    moved.parent.mkdir()
    run.root.rename(moved)
    values = yaml.safe_load(file.read_text())
    shutil.copytree(values["data_dir"], tmp_path / "other data")
    file.write_text(yaml.safe_dump(values | {"run_dir": str(moved), "data_dir": str(tmp_path / "other data")}))
    notebooks.run([str(file)], [])
    assert not executed
    shutil.rmtree(tmp_path / "other data")  # raw data is read once, and may be gone
    notebooks.run([str(file)], [])
    assert not executed
    step(EXPLORE, file)


def test_other_code_makes_views_again_and_nothing_costly(copied_run, executed, monkeypatch, capsys):
    run, file = copied_run
    monkeypatch.setattr(folder, "code_of", lambda stage: "another")
    notebooks.run([str(file)], [])
    assert list(executed) == list(STAGES)
    assert "its code has changed since" in capsys.readouterr().out
    assert {state.kind for state in run.states(yaml.safe_load(run.parameters.read_text())).values()} == {"kept"}


def test_the_code_of_a_view_is_its_notebook_and_what_it_calls():
    assert len({folder.code_of(stage) for stage in STAGES}) == len(STAGES)
    assert folder.code_of(RETRIEVE) == folder.code_of(RETRIEVE)


@pytest.mark.parametrize("name", MADE)
def test_a_raised_version_makes_an_artefact_anew_and_says_so(copied_run, executed, monkeypatch, capsys, name):
    _, file = copied_run
    monkeypatch.setitem(artefacts.RECIPES, name, replace(RECIPES[name], version=99))
    notebooks.run([str(file)], [])
    assert RECIPES[name].stage in executed
    assert f"{RECIPES[name].path}: it was made from other values of recipe" in capsys.readouterr().out


@pytest.mark.parametrize("harm", ["damaged", "missing"])
@pytest.mark.parametrize("name", MADE)
def test_a_damaged_artefact_is_named_with_its_cost_and_made_again_only_on_request(copied_run, executed, name, harm):
    run, file = copied_run
    path = path_of(run.root, name)
    flip(path) if harm == "damaged" else files.remove(path)
    with one_line_error(f"{path} is {harm}", " to make", f"-p remake {name}"):
        notebooks.run([str(file)], [])
    assert not executed
    with one_line_error(f"{path} is {harm}", f"-p remake {name}"):
        step(RECIPES[name].stage, file)
    notebooks.run([str(file)], [("remake", name)])
    assert executed[RECIPES[name].stage]["remake"] == [name]
    step(RECIPES[name].stage, file, remake=[name])
    assert read_seal(path)["sha256"] == fingerprint(path)


@pytest.mark.parametrize("harm", ["lost", "damaged"])
def test_a_seal_that_is_lost_or_damaged_is_written_again(copied_run, nothing_costly, harm):
    run, file = copied_run
    for name in MADE:
        seal = seal_of(path_of(run.root, name))
        before = seal.read_bytes()
        seal.unlink() if harm == "lost" else flip(seal)
        step(RECIPES[name].stage, file)
        assert seal.read_bytes() == before


def test_without_its_manifest_a_run_has_all_that_is_costly(copied_run, nothing_costly):
    run, file = copied_run
    run.manifest.unlink()
    for stage in DOORS:
        step(stage, file)


def test_runs_side_by_side_share_what_is_made_from_the_same(copied_run, tmp_path, nothing_costly):
    run, file = copied_run
    other = RunFolder(tmp_path / "by the paper")
    for stage in DOORS:
        step(stage, file, run_dir=str(other.root), ranking="paper")
    assert not differing(run, other, [RECIPES[name].path for name in MADE])
    assert os.stat(other.queries).st_ino == os.stat(run.queries).st_ino
    shutil.rmtree(run.root)
    for stage in DOORS:
        step(stage, file, run_dir=str(other.root), ranking="paper")


def test_a_damaged_artefact_is_taken_from_a_run_beside_it(copied_run, tmp_path, nothing_costly):
    run, file = copied_run
    shutil.copytree(run.root, tmp_path / "whole")
    flip(run.queries)
    notebooks._check_sound(run, yaml.safe_load(run.parameters.read_text()), STAGES, [])
    step(RETRIEVE, file)
    assert run.queries.read_bytes() == (tmp_path / "whole/queries.jsonl").read_bytes()


def test_what_was_made_with_other_parameters_is_kept(copied_run, capsys, monkeypatch):
    run, file = copied_run
    before = run.queries.read_bytes()
    step(RETRIEVE, file, num_beams=2)
    assert "queries.jsonl: it was made from other values of num_beams (it took" in capsys.readouterr().out
    other = run.queries.read_bytes()
    assert other != before
    monkeypatch.setattr(asking, "written", None)
    step(RETRIEVE, file)
    assert run.queries.read_bytes() == before
    step(RETRIEVE, file, num_beams=2)
    assert run.queries.read_bytes() == other


def test_a_replay_loses_no_generated_texts(copied_run, tmp_path, monkeypatch):
    run, file = copied_run
    before = run.queries.read_bytes()
    replayed = tmp_path / "others.jsonl"
    replayed.write_bytes(b"".join(before.splitlines(keepends=True)[:20]))
    step(RETRIEVE, file, queries_file=str(replayed))
    assert len(run.queries.read_bytes().splitlines()) == 20
    monkeypatch.setattr(asking, "written", None)
    step(RETRIEVE, file)
    assert run.queries.read_bytes() == before


def test_a_large_file_is_read_once_until_it_changes(tmp_path, monkeypatch):
    read, real = [], hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda *args: read.append(1) or real(*args))
    path = tmp_path / "vectors"
    path.write_bytes(b"x" * files.LARGE)
    fingerprint(path)
    fingerprint(path)
    assert len(read) == 2  # it has just been written: another write may have the same time
    os.utime(path, (1, 1))
    first = fingerprint(path)
    files.save_hashes(tmp_path / "hashes")
    files.forget_hashes()
    files.load_hashes(tmp_path / "hashes")
    os.link(path, tmp_path / "link")
    path.rename(tmp_path / "renamed")
    assert fingerprint(tmp_path / "link") == fingerprint(tmp_path / "renamed") == first and len(read) == 3
    (tmp_path / "link").write_bytes(b"y" * files.LARGE)
    assert fingerprint(tmp_path / "link") != first and len(read) == 4
    (tmp_path / "hashes").write_text("[damaged")
    files.load_hashes(tmp_path / "hashes")


def test_verify_reads_all_bytes_and_names_what_is_damaged(copied_run, capsys):
    run, _ = copied_run
    assert main(["verify", str(run.root)]) == 0
    assert "are as they were written" in capsys.readouterr().out
    path = run.dense_index / "index.faiss"
    about = path.stat()
    path.write_bytes(path.read_bytes() + b"\0" * files.LARGE)
    os.utime(path, (1, 1))
    files.load_hashes(run.hashes)
    fingerprint(path)
    raw = bytearray(path.read_bytes())
    raw[-1] = 1
    path.write_bytes(raw)
    os.utime(path, (1, 1))  # as the disk does it, whose faults change no times
    assert about.st_ino == path.stat().st_ino
    (run.rankings / "gloss.trec").unlink()
    assert main(["verify", str(run.root)]) == 1
    said = capsys.readouterr()
    assert f"index/dense, of {INDEX}, is damaged" in said.out
    assert f"rankings/gloss.trec, of {RETRIEVE}, is missing" in said.out and "error: 2 of " in said.err


def test_status_says_what_is_kept_what_would_run_and_why(copied_run, capsys):
    run, file = copied_run
    before = {path: path.stat().st_mtime_ns for path in run.root.rglob("*")}

    def said(*more: str) -> dict[str, str]:
        assert main(["status", str(file), *more]) == 0
        return dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()[1:])

    lines = said()
    assert all(lines[stage] == "up to date" for stage in STAGES)
    assert all(lines[name].startswith("kept (took ") for name in MADE)
    lines = said("-p", "learning_rate", "0.01")
    assert lines[FINE_TUNE] == "would run: it was finished with other values of learning_rate"
    assert lines["adapter"].startswith("to make: it was made from other values of learning_rate (took ")
    assert lines["texts"].startswith("to make: what it is made from is not known yet")
    assert lines["base"].startswith("kept") and lines["dense"].startswith("kept")
    assert lines[RETRIEVE] == f"would run: {FINE_TUNE} would run before it"
    assert lines[EVALUATE] == f"would run: {RETRIEVE} would run before it"
    assert {path: path.stat().st_mtime_ns for path in run.root.rglob("*")} == before
    flip(run.queries)
    assert said()["texts"].startswith("damaged: its bytes are not those that were written; -p remake texts makes it")


def test_unfinished_work_of_other_plans_goes_once_the_artefact_is_finished(copied_run):
    """Journals of abandoned plans used to stay for ever."""
    run, file = copied_run
    run.unfinished.mkdir(exist_ok=True)
    (run.unfinished / "texts-abandoned").write_text("{}")
    (run.unfinished / "adapter-abandoned").mkdir()
    step(RETRIEVE, file, num_beams=2)
    assert [path.name for path in run.unfinished.iterdir()] == ["adapter-abandoned"]


def test_an_artefact_that_was_sealed_when_a_kill_came_takes_its_place(tmp_path):
    path, part = tmp_path / "adapter", tmp_path / ".adapter.99999.partial"
    part.mkdir()
    (part / "weights").write_text("trained for hours")
    write_json(seal_of(path), {"made_from": {}, "sha256": fingerprint(part)})
    assert sweep(tmp_path)
    assert (path / "weights").read_text() == "trained for hours" and not part.exists()
    assert not sweep(tmp_path)


def test_costs_in_words():
    assert [duration(value) for value in (3.2, 119, 600, 3600 * 3 + 720)] == ["3 s", "119 s", "10 min", "3 h 12 min"]


def test_the_commit_of_a_hub_model_is_resolved_once_and_reused(copied_run, monkeypatch):
    asked = []

    def resolve(name, revision=None):
        asked.append((name, revision))
        return str(len(asked)) * 40

    monkeypatch.setattr("gloss_utils.runs.run.hub.resolve", resolve)
    folder, _ = copied_run
    run = run_of(copied_run, base_model="meta/llama")
    assert run.revision("base_model") == "1" * 40 == run.revisions["base_model"]
    assert run.made_from("adapter")["base_model"] == f"meta/llama@{'1' * 40}"
    stages = folder.stages()
    stages[FINE_TUNE]["parameters"]["base_model"] = "meta/llama"
    stages[FINE_TUNE]["revisions"] = run.revisions
    write_json(folder.manifest, stages)
    assert run_of(copied_run).revision("base_model") == "1" * 40  # stage 4 loads what stage 2 trained on
    seal = seal_of(folder.adapter)
    write_json(seal, read_json(seal) | {"made_from": run.made_from("adapter")})
    del stages[FINE_TUNE]
    write_json(folder.manifest, stages)
    assert run_of(copied_run, base_model="meta/llama", base_revision=None).revision("base_model") == "1" * 40
    assert asked == [("meta/llama", None)]
    other = run_of(copied_run, base_model="meta/llama", base_revision="v2")
    assert other.revision("base_model") == "2" * 40 and asked[-1] == ("meta/llama", "v2")
    with one_line_error("parameter encoder_revision is 'v2'", "not of the Hugging Face hub"):
        run_of(copied_run, encoder_revision="v2").revision("encoder")


def test_a_full_disk_is_told_before_anything_is_trained(copied_run, executed, monkeypatch, capsys):
    _, file = copied_run
    notebooks.run([str(file)], [("epochs", "2"), ("num_beams", "2")])
    said = capsys.readouterr().out
    assert "This run will write about" in said and "adapter" in said and "texts" in said and "dense" not in said
    executed.clear()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 10_000))
    with one_line_error("this run will write about", "where 0.0 MiB are free", "make room"):
        notebooks.run([str(file)], [("epochs", "2")])
    assert not executed


def test_what_a_real_base_model_will_hold_in_memory_is_said(copied_run, tmp_path):
    run, _ = copied_run
    base = tmp_path / "llama"
    LlamaConfig(hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, vocab_size=128_256).save_pretrained(
        base
    )
    values = yaml.safe_load(run.parameters.read_text()) | {"base_model": str(base), "base_revision": None}
    disk, memory = room.check(run, values)
    assert " adapter " in disk and " base " not in disk
    held = [float(number) for number in re.findall(r"about ([\d.]+)", memory)]
    assert "Training will hold at most about" in memory and held[0] > 1


def test_records_that_stop_stage_one_leave_its_last_result_as_it_was(copied_run):
    folder, _ = copied_run
    run = run_of(copied_run, item_text="{categories}")
    run.stage = EXPLORE
    with one_line_error("records cannot be used", "categories", f"are in {folder.refused}"):
        explore_data.prepare(run)
    assert run_of(copied_run).keeps("data") and folder.refused.exists()


def test_a_run_of_another_version_names_the_stage_to_run_again(copied_run, executed):
    folder, file = copied_run
    stages = folder.stages()
    del stages[RETRIEVE]["parameters"]["num_return_sequences"]
    write_json(folder.manifest, stages)
    with one_line_error("another version finished 04_retrieve", "run notebooks/04_retrieve.ipynb again"):
        folder.earlier(EVALUATE, {})
    notebooks.run([str(file)], [])
    assert RETRIEVE in executed
