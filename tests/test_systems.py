"""No module needs what Windows lacks. (These tests run on any system; Windows itself has not been tried.)"""

import ast
import mmap
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import psutil
import pytest

from gloss_utils.base import files
from gloss_utils.language import models
from gloss_utils.runs.parameters import ROOT
from gloss_utils.search import on_disk

MODULES = sorted((ROOT / "gloss_utils").rglob("*.py"))
LACKING = {"fcntl", "resource", "termios", "pwd", "grp", "pty", "tty", "syslog", "posix"}
ATTRIBUTES = {
    "os": {"fork", "getuid", "geteuid", "killpg", "setsid", "getpgid", "mkfifo", "statvfs", "sysconf", "getloadavg"}
    | {"sched_getaffinity", "sched_setaffinity", "uname", "wait3", "wait4", "O_DIRECTORY", "O_CLOEXEC", "fdatasync"},
    "signal": {"SIGKILL", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGCHLD", "alarm", "setitimer", "pause"},
}
# Imports all modules while those that Windows lacks cannot be imported from this package.
IMPORTS = f"""
import builtins, importlib, sys
real = builtins.__import__
def guarded(name, globals=None, *more, **named):
    if name in {LACKING!r} and (globals or {{}}).get("__name__", "").startswith("gloss_utils"):
        raise ImportError(f"{{globals['__name__']}} imports {{name}}")
    return real(name, globals, *more, **named)
builtins.__import__ = guarded
for name in sys.argv[1:]:
    importlib.import_module(name)
"""


def test_every_module_is_imported_without_what_windows_lacks():
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in MODULES]
    done = subprocess.run([sys.executable, "-c", IMPORTS, *names], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-1000:]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_no_module_uses_what_windows_lacks(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            assert node.attr not in ATTRIBUTES.get(node.value.id, ()), f"{path}:{node.lineno}"


def test_files_are_written_where_folders_cannot_be_synced(tmp_path, monkeypatch):
    opened, real = [], os.open
    monkeypatch.setattr(files.os, "open", lambda path, flags, *more: opened.append((path, flags)) or real(path, flags))
    (tmp_path / "a").write_text("1")
    with monkeypatch.context() as patch:
        patch.setattr(files.os, "name", "nt")
        files.sync(tmp_path)
    assert opened == [(tmp_path / "a", os.O_RDWR)]


def test_vectors_are_read_where_the_system_takes_no_advice(tmp_path, monkeypatch):
    vectors = np.eye(4, dtype=np.float32)
    on_disk_index = on_disk.faiss.IndexHNSWFlat(4, 4, on_disk.faiss.METRIC_INNER_PRODUCT)
    on_disk_index.add(vectors)
    on_disk.faiss.write_index(on_disk_index, str(tmp_path / "index.faiss"))
    np.save(tmp_path / "vectors.npy", vectors)
    monkeypatch.delattr(mmap, "MADV_RANDOM", raising=False)
    index = on_disk.OnDisk(tmp_path, True)
    assert index.search(vectors, 1)[1].ravel().tolist() == [0, 1, 2, 3]


def test_peak_memory_on_windows(monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(models.torch.cuda, "is_available", lambda: False)
    process = SimpleNamespace(memory_info=lambda: SimpleNamespace(peak_wset=3 * 2**20))
    monkeypatch.setattr(psutil, "Process", lambda: process)
    assert models.peak_memory() == 3


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({}, "PASSIVE 500"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE None"),
        ({"GOMP_SPINCOUNT": "7"}, "PASSIVE 7"),
    ],
)
def test_threads_that_wait_soon_sleep_unless_the_user_says_otherwise(given, found):
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    environment = {name: value for name, value in os.environ.items() if name not in names} | given
    code = f"import os, sys, gloss_utils; print(*map(os.environ.get, {names}), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"{found} False"


@pytest.mark.parametrize(
    ("door", "left_out"),
    [
        ("explore_data", {"nbformat", "nbconvert", "papermill", "sklearn", "torch", "faiss"}),
        ("fine_tune", {"nbformat", "nbconvert", "papermill"}),
        ("build_index", {"nbformat", "nbconvert", "papermill", "sklearn", "torch", "sentence_transformers"}),
        ("retrieve", {"nbformat", "nbconvert", "papermill", "sklearn", "torch", "seaborn", "scipy.stats"}),
        ("evaluate", {"nbformat", "nbconvert", "papermill", "sklearn", "torch"}),
        ("user_segments", {"nbformat", "nbconvert", "papermill", "sklearn", "torch", "transformers"}),
    ],
)
def test_a_door_loads_only_what_its_stage_always_uses(door, left_out):
    code = f"import sys, gloss_utils.{door}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert not left_out & set(done.stdout.split())
