"""A demo of a smaller shop: one run of all six notebooks that many tests look at."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from filelock import FileLock

from gloss_utils.data import demo
from gloss_utils.runs import notebooks
from gloss_utils.runs.folder import RunFolder
from gloss_utils.runs.parameters import SEGMENTS

os.environ["OMP_NUM_THREADS"] = "1"  # in every run alike: the bytes of sums depend on how many threads share them

SMALL = {
    "max_users": 60,
    "new_item_fraction": 0.05,
    "tiny_layers": 1,
    "tiny_width": 64,
    "tiny_vocabulary": 600,
    "tiny_steps": 10,
    "epochs": 1,
    "sasrec_epochs": 1,
    "sasrec_width": 16,
    "warmup_steps": 2,
    "num_beams": 3,
    "max_new_tokens": 24,
}


def write_small_shop(data_dir: Path):
    """Write the raw files of a smaller demo, of which 300 items are bought: to encode 2,000 titles takes long."""
    demo.write(data_dir / "reviews_Demo_5.json.gz", data_dir / "meta_Demo.json.gz", count=304, users=1500)


def write_parameters(path: Path, **values) -> Path:
    """Write the small demo's parameters, and `values` over them, to a YAML file."""
    path.write_text(yaml.safe_dump(SMALL | values))
    return path


@pytest.fixture(scope="session")
def small_run(tmp_path_factory) -> tuple[RunFolder, Path]:
    """A finished run of the small demo, and its parameter file. Tests that change it take `copied_run`."""
    root = tmp_path_factory.getbasetemp()
    root = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / "small"  # all workers share one
    root.mkdir(exist_ok=True)
    file, folder = root / "small.yaml", RunFolder(root / "run")
    with FileLock(root / "lock"):
        if SEGMENTS not in folder.stages():
            write_small_shop(root / "data")
            write_parameters(file, run_dir=str(folder.root), data_dir=str(root / "data"))
            notebooks.run([str(file)], [])
    return folder, file


@pytest.fixture
def copied_run(small_run, tmp_path) -> tuple[RunFolder, Path]:
    """A copy of the finished small run, to change at will, and a parameter file for it."""
    folder, file = small_run
    copy = tmp_path / "run"
    shutil.copytree(folder.root, copy)
    values = yaml.safe_load(file.read_text()) | {"run_dir": str(copy)}
    return RunFolder(copy), write_parameters(tmp_path / "copied.yaml", **values)


@pytest.fixture
def full_disk(tmp_path):
    """A folder on a disk of 200 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", folder]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small disk cannot be mounted here: that takes root")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)
