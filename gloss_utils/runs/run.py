"""A stage at work in a run folder: its parameters, what it reads and writes, and the note that it is finished."""

import importlib.metadata
import os
import platform
import subprocess
import time
from dataclasses import dataclass, field, fields
from pathlib import Path

import yaml
from filelock import FileLock

from gloss_utils.base.files import fingerprint, sweep, write_json, write_whole
from gloss_utils.runs.folder import RunFolder, identity, needs
from gloss_utils.runs.given import assigned
from gloss_utils.runs.lock import take_stage
from gloss_utils.runs.parameters import FINE_TUNE, ROOT, STAGES, check, check_files, defaults

VERSIONS_OF = (
    "torch",
    "transformers",
    "peft",
    "bitsandbytes",
    "sentence-transformers",
    "faiss-cpu",
    "bm25s",
    "ir-measures",
    "pandas",
    "numpy",
)


@dataclass
class Run:
    """A stage at work. own: the stage's parameters; parameters: these, and those of the stages that it builds on.

    inputs: sha256 of the files from outside; outputs: what the stage wrote; lock: held until it is finished.
    """

    folder: RunFolder
    stage: str
    own: dict
    parameters: dict
    started: float = field(default_factory=time.time)
    inputs: dict = field(default_factory=dict)
    outputs: list[Path] = field(default_factory=list)
    lock: FileLock | None = None

    def __getitem__(self, name: str):
        return self.parameters[name]

    @property
    def base_model(self) -> str | Path:
        """The folder of the base model, or its name on the hub."""
        return self.folder.base if self["base_model"] == "tiny" else self["base_model"]

    def settings(self, kind: type, **values):
        """A dataclass of settings: of the fields that are named as a parameter this run's values, and `values`."""
        names = {field.name for field in fields(kind)} & set(self.parameters)
        return kind(**{name: self[name] for name in names} | values)

    def read_from_outside(self, path: str | Path):
        """Note a file or folder from outside the run folder that this stage's results depend on."""
        self.inputs[str(path)] = fingerprint(path)

    def save_figure(self, figure, name: str):
        """Write a figure to the run's `figures/` as PNG and PDF; returns it for looking at."""
        from gloss_utils.report.plots import write  # loads matplotlib, which not every stage needs

        self.outputs += write(figure, self.folder.figures, name, dpi=200, bbox_inches="tight")
        return figure

    def finish(self) -> str:
        """Record the stage as finished, with what it noted in `outputs`; returns a line that says so.

        Files that its last run left and this one did not are removed.
        """
        try:
            return self._record()
        finally:
            if self.lock:
                self.lock.release(force=True)

    def _record(self) -> str:
        stages = self.folder.stages()
        if self.stage == FINE_TUNE and self["queries_file"] and self.stage in stages:
            return f"{self.stage} left what was trained before as it is"
        self._remove_leftovers(stages.get(self.stage))
        stages[self.stage] = {
            "parameters": self.own,
            "inputs": self.inputs,
            "outputs": {str(path.relative_to(self.folder.root)): fingerprint(path) for path in self.outputs},
            "builds_on": {other: identity(stages[other]) for other in needs(self.stage, self.own)},
            "seconds": round(time.time() - self.started, 1),
            "versions": versions(),
        }
        stages = {stage: stages[stage] for stage in STAGES if stage in stages}
        resolved = {"run_dir": str(self.folder.root)}
        for entry in stages.values():
            resolved |= entry["parameters"]
        with write_whole(self.folder.parameters) as part:
            part.write_text(yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True), encoding="utf-8")
        write_json(self.folder.manifest, stages)
        return f"{self.stage} finished in {stages[self.stage]['seconds']:.0f} s; results are in {self.folder.root}"

    def _remove_leftovers(self, before: dict | None):
        kept = {str(path.relative_to(self.folder.root)) for path in self.outputs}
        for name in (before or {"outputs": {}})["outputs"]:
            path = self.folder.root / name
            if name not in kept and path.is_file():
                path.unlink()
        for kind in ("ipynb", "html"):  # a notebook of the last run would show other results than the folder holds
            (self.folder.notebooks / f"{self.stage}.{kind}").unlink(missing_ok=True)


def open_run(stage: str, notebook: dict) -> Run:
    """Start a stage from its notebook's `globals()`; parameters that it does not set have their defaults.

    Checks the parameters, that nobody else is at work in the run folder, and that the stages it builds on are finished
    and undamaged; changes no result. Raises a one-line `GlossError` otherwise.
    """
    injected = check(_injected(notebook))
    values = check({name: notebook.get(name, default) for name, default in defaults(stage).items()})
    check_files(values)
    folder = RunFolder(values.pop("run_dir"))
    folder.check_is_run()
    if not folder.root.exists():
        folder.earlier(stage, values)  # an error here leaves no folder with a lock behind
    lock = _locked(folder)
    try:
        earlier = folder.earlier(stage, values)
        check(earlier | values)
        folder.check_dataset(injected | values)
    except BaseException:
        if lock:
            lock.release(force=True)
        raise
    return Run(folder, stage, values, earlier | values, lock=lock)


def is_headless(notebook: dict) -> bool:
    """Whether papermill runs a notebook (it has put in a cell of parameters), from its `globals()`."""
    return bool(_injected(notebook))


def _injected(notebook: dict) -> dict:
    """The parameters that papermill has put in, in a cell that starts with this comment."""
    found = {}
    for source in notebook.get("In", []):
        if source.split("\n", 1)[0] == "# Parameters":
            found |= assigned(source)
    return found


def _locked(folder: RunFolder) -> FileLock | None:
    if os.environ.get("RANK", "0") != "0":  # of the processes that train together, the main one holds the lock
        return None
    lock = take_stage(folder.stage_lock, folder.run_lock)
    sweep(folder.root, os.getpid(), os.getppid())  # the runner is writing the notebook
    return lock


def versions() -> dict[str, str]:
    """The versions of this package, of Python and of the libraries that decide results."""
    ours = {"gloss-utils": importlib.metadata.version("gloss-utils"), "commit": commit()}
    return (
        ours | {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in VERSIONS_OF}
    )


def commit() -> str:
    """The repository's commit, with a + where files differ from it; "unknown" where git cannot say."""
    head, changes = _git("rev-parse", "HEAD"), _git("status", "--porcelain", "--untracked-files=no", "--", ":!figures")
    return "unknown" if head is None or changes is None else head[:12] + "+" * bool(changes)


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True)
    except OSError:
        return None
    return None if done.returncode else done.stdout.strip()
