"""A stage at work in a run folder: its parameters, what it reads and writes, and the note that it is finished."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from filelock import FileLock

from gloss_utils.base import hub
from gloss_utils.base.errors import GlossError
from gloss_utils.base.files import (
    digest,
    fingerprint,
    forget_hashes,
    load_hashes,
    remove,
    save_hashes,
    write_json,
    write_whole,
)
from gloss_utils.base.seals import read_seal, seal_of, sweep
from gloss_utils.runs import artefacts
from gloss_utils.runs.artefacts import KEPT
from gloss_utils.runs.contents import REVISIONS, contents, known_by
from gloss_utils.runs.folder import RunFolder, changed_input, code_of, identity, needs
from gloss_utils.runs.given import assigned, names_assigned
from gloss_utils.runs.lock import take_stage
from gloss_utils.runs.parameters import FINE_TUNE, STAGES, check, check_files, defaults, settings_of
from gloss_utils.runs.versions import versions


@dataclass
class Run:
    """A stage at work. own: the stage's parameters; parameters: these, and those of the stages that it builds on.

    remake: costly artefacts to make anew. inputs: sha256 of the files from outside. outputs: the views that it wrote.
    known: what its artefacts are made from (see `contents`). artefacts: the seals of those that it has; made: those
    that were made now; begun: when. revisions: the commits of models from the hub. lock: held until it is finished.
    """

    folder: RunFolder
    stage: str
    own: dict
    parameters: dict
    remake: list[str] = field(default_factory=list)
    started: float = field(default_factory=time.time)
    inputs: dict = field(default_factory=dict)
    outputs: list[Path] = field(default_factory=list)
    known: dict = field(default_factory=dict)
    artefacts: dict = field(default_factory=dict)
    begun: dict = field(default_factory=dict)
    made: list[str] = field(default_factory=list)
    revisions: dict = field(default_factory=dict)
    lock: FileLock | None = None

    def __getitem__(self, name: str):
        return self.parameters[name]

    @property
    def base_model(self) -> str | Path:
        """The folder of the base model, or its name on the hub. Errors as of `open`."""
        return self.open("base") if self["base_model"] == "tiny" else self["base_model"]

    @property
    def ray_workers(self) -> int | None:
        """How many of Ray's workers do the work; null: this process does."""
        return self["workers"] if self["engine"] == "ray" else None

    def settings(self, kind: type, **values):
        """A dataclass of settings from this run's parameters, and `values` (see `settings_of`)."""
        return settings_of(kind, self.parameters, **values)

    def read_from_outside(self, parameter: str, path: str | Path | None = None):
        """Note what a parameter names, or a file in that folder, as something that this stage's results depend on."""
        name = f"{parameter}/{Path(path).relative_to(self[parameter]).as_posix()}" if path else parameter
        self.inputs[name] = fingerprint(path or self[parameter])

    def has_read_its_files(self) -> bool:
        """Whether the stage read its files from outside before, and none of them is another now; some may be gone."""
        before = self.folder.stages().get(self.stage)
        if before is None or changed_input(before, self.parameters):
            return False
        self.inputs |= before["inputs"]
        return True

    def revision(self, name: str) -> str | None:
        """The commit of the model from the hub that the parameter `name` names; None where it is not from the hub.

        The hub is asked once in a run; later stages and runs in this folder take the same commit.
        """
        if Path(self[name]).is_dir():
            self.read_from_outside(name)
        elif self.known[name] is None:
            self.known[name] = f"{self[name]}@{hub.resolve(self[name], self[REVISIONS[name]])}"
        model, _, commit = self.known[name].rpartition("@")
        if model != self[name]:
            if revision := self[REVISIONS[name]]:
                raise GlossError(
                    f"parameter {REVISIONS[name]} is {revision!r}, but {name} {self[name]} is not of the Hugging Face "
                    "hub; leave it out"
                )
            return None
        self.revisions[name] = commit
        return commit

    # ---- costly artefacts

    def keeps(self, name: str) -> bool:
        """Whether this run has a costly artefact already, made from just what it would be made from now.

        If not, another run folder beside this one may have it, and it is linked from there. Says what it found. Raises
        `GlossError` where the artefact is damaged or gone, unless the parameter `remake` names it.
        """
        root, wanted, say = self.folder.root, self.made_from(name), print if is_main() else lambda line: None
        path, state = artefacts.path_of(root, name), artefacts.state(root, name, wanted, self.folder.record(name))
        self.begun[name] = time.time()
        if name in self.remake:
            say(f"{path.name}: made anew, because remake asks for it ({state.cost()})")
            return False
        if state.kind != KEPT and (found := artefacts.borrow(root, name, wanted)):
            say(f"{path.name}: taken from {found}, which was made from the same")
        elif state.is_broken:
            raise GlossError(state.broken(path, name))
        elif state.kind != KEPT:
            if state.size is not None:
                say(f"{path.name}: {state.why} ({state.cost()}); that one goes to {self.folder.kept}")
            return False
        else:
            say(f"{path.name}: it is there, and nothing that it is made from has changed")
        self._note(name, state.seal or read_seal(path))
        return True

    def made_from(self, name: str) -> dict:
        """What a costly artefact is made from now: the version of its recipe, parameters, contents of its sources."""
        return artefacts.made_from(name, self.parameters, self.known)

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """Yield a path to write a costly artefact to, whole or not at all; `keeps` was asked before."""
        with artefacts.writing(self.folder.root, name, self.made_from(name), self.begun[name]) as part:
            yield part
        self._note(name, read_seal(artefacts.path_of(self.folder.root, name)))
        self.made.append(name)
        self.clear(name)

    def unfinished(self, name: str, plan: str | None = None) -> Path:
        """Where the work on a costly artefact is kept until it is finished. plan: what that depends on, as a text, of
        which 12 characters count."""
        return self.folder.unfinished / f"{name}-{(plan or digest(self.made_from(name)))[:12]}"

    def clear(self, name: str):
        """Remove what is kept of unfinished work, that of other parameters, too."""
        for left in self.folder.unfinished.glob(f"{name}-*"):
            remove(left)
        with suppress(OSError):  # other work is in it, or nothing was unfinished
            self.folder.unfinished.rmdir()

    def put_aside(self, name: str):
        """Move a costly artefact to `kept/`, because something else takes its place."""
        artefacts.set_aside(self.folder.root, name)
        seal_of(artefacts.path_of(self.folder.root, name)).unlink(missing_ok=True)

    def open(self, name: str) -> Path:
        """The path of a costly artefact. Raises `GlossError` where it is not as it was written; what this stage made
        or found kept was looked at then."""
        path = artefacts.path_of(self.folder.root, name)
        if name in self.artefacts:
            return path
        noted = self.folder.record(name) or read_seal(path)
        state = artefacts.state(self.folder.root, name, noted and noted["made_from"], noted)
        if state.kind != KEPT:
            raise GlossError(state.broken(path, name))
        return path

    def _note(self, name: str, seal: dict):
        path = artefacts.path_of(self.folder.root, name)
        if read_seal(path) != seal and is_main():  # it was lost or damaged, and the manifest has it
            write_json(seal_of(path), seal)
        self.artefacts[name] = seal
        self.known |= known_by(name, seal, self.folder.root, self.parameters)

    # ---- views

    def save_figure(self, figure, name: str):
        """Write a figure to the run's `figures/` as PNG and PDF; returns it for looking at."""
        from gloss_utils.report.plots import write  # loads matplotlib, which not every stage needs

        self.outputs += write(figure, self.folder.figures, name, dpi=200, bbox_inches="tight")
        return figure

    def finish(self) -> str:
        """Record the stage as finished, with what it noted; returns a line that says so.

        Views that its last run left and this one did not are removed.
        """
        try:
            return self._finish()
        finally:
            if self.lock:
                self.lock.release(force=True)

    def _finish(self) -> str:
        stages = self.folder.stages()
        if self.stage == FINE_TUNE and self["queries_file"] and self.stage in stages:
            return f"{self.stage} left what was trained before as it is"
        self._remove_leftovers(stages.get(self.stage))
        took, before = time.time() - self.started, set(self.artefacts) - set(self.made)
        stages[self.stage] = {
            "parameters": self.own,
            "inputs": self.inputs,
            "artefacts": self.artefacts,
            "outputs": {path.relative_to(self.folder.root).as_posix(): fingerprint(path) for path in self.outputs},
            "builds_on": {other: identity(stages[other]) for other in needs(self.stage, self.own)},
            "histories": self.known.get("histories"),
            "proposed": self.known.get("proposed"),
            "learnable": self.known.get("learnable"),
            "revisions": self.revisions,
            "code": code_of(self.stage),
            # As if all had been made now.
            "seconds": round(took + sum(self.artefacts[name].get("seconds") or 0 for name in before), 1),
            "versions": versions(),
        }
        stages = {stage: stages[stage] for stage in STAGES if stage in stages}
        resolved = {"run_dir": str(self.folder.root)}
        for entry in stages.values():
            resolved |= entry["parameters"]
        with write_whole(self.folder.parameters) as part:
            part.write_text(yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True), encoding="utf-8")
        write_json(self.folder.manifest, stages)
        save_hashes(self.folder.hashes)
        return f"{self.stage} finished in {took:.0f} s; results are in {self.folder.root}"

    def _remove_leftovers(self, before: dict | None):
        kept = {path.relative_to(self.folder.root).as_posix() for path in self.outputs}
        kept |= {artefacts.RECIPES[name].path for name in self.artefacts}  # texts, after those from a file
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
    check(_typed(notebook))
    values = check({name: notebook.get(name, default) for name, default in defaults(stage).items()})
    check_files(values)
    folder, remake = RunFolder(values.pop("run_dir")), values.pop("remake")
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
    parameters = earlier | values
    known = contents(folder.root, parameters, folder.stages())
    return Run(folder, stage, values, parameters, remake, known=known, lock=lock)


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


def _typed(notebook: dict) -> dict:
    """What a notebook's first cell assigns, as it was last run, misspelt names included."""
    cells = [source for source in notebook.get("In", []) if source.startswith("run_dir = ")]
    return {name: notebook[name] for name in names_assigned("".join(cells[-1:])) if name in notebook}


def is_main() -> bool:
    """Whether this is the one process at work, or the main one of those that train together."""
    return os.environ.get("RANK", "0") == "0"


def _locked(folder: RunFolder) -> FileLock | None:
    if not is_main():  # the main process holds the lock
        return None
    lock = take_stage(folder.stage_lock, folder.run_lock)
    load_hashes(folder.hashes)
    if sweep(folder.root, os.getpid(), os.getppid()):  # the runner is writing the notebook
        forget_hashes()  # something was killed here
    return lock
