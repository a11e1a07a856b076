"""What a run has and what it would make again (`status`), and whether all bytes are as they were written (`verify`)."""

from collections.abc import Iterator

from gloss_utils.base.errors import GlossError
from gloss_utils.base.files import fingerprint, forget_hashes, load_hashes, save_hashes
from gloss_utils.base.seals import read_seal
from gloss_utils.runs import artefacts
from gloss_utils.runs.artefacts import KEPT, RECIPES, duration
from gloss_utils.runs.folder import RunFolder, needs
from gloss_utils.runs.parameters import STAGES


def status(folder: RunFolder, parameters: dict) -> list[str]:
    """Lines that say of each stage whether it would run and why, and of each costly artefact whether it is kept, and
    what making it took. parameters: those of all stages. Changes nothing.
    """
    load_hashes(folder.hashes)
    states, lines, again = folder.states(parameters), [f"{folder.root}"], []
    for stage in STAGES:
        why = folder.why_run(stage, parameters)
        before = [other for other in again if other in needs(stage, parameters)]
        if before and stage in folder.stages():
            why = f"{before[0]} would run before it"
        if why:
            again.append(stage)
        lines.append(f"{stage:<18}{f'would run: {why}' if why else 'up to date'}")
        for name, state in states.items():
            if RECIPES[name].stage == stage:
                lines.append(f"  {name:<16}{_in_words(folder, name, state)}")
    if left := artefacts.size(folder.kept):
        lines.append(f"{folder.kept} holds {megabytes(left)} in whose place others came; it may be deleted")
    return lines


def _in_words(folder: RunFolder, name: str, state: artefacts.State) -> str:
    cost = [] if state.seconds is None else [f"took {duration(state.seconds)}"]
    cost += [] if state.size is None else [megabytes(state.size)]
    said = state.kind
    if state.kind != KEPT:
        found = state.wanted and artefacts.elsewhere(folder.root, name, state.wanted)
        said = f"taken from {found}" if found else f"{state.kind}: {state.why}"
        if state.is_broken and not found:
            said += f"; -p remake {name} makes it again"
    return said + (f" ({', '.join(cost)})" if cost else "")


def megabytes(size: int) -> str:
    """A number of bytes in words."""
    return f"{size / 1e6:,.1f} MB"


def verify(folder: RunFolder) -> Iterator[str]:
    """Read all bytes of a run again: yields a line for each artefact, table, ranking and figure that is not as it was
    written. Raises `GlossError` at the end where there was one, and where the folder holds no run."""
    stages = folder.stages()
    if not stages:
        raise GlossError(f"{folder.root} is not the folder of a run: it has no manifest.json; give one like runs/demo")
    forget_hashes()
    wrong = count = 0
    for name, value, whose in _written(folder, stages):
        path, count = folder.root / name, count + 1
        if not path.exists() or fingerprint(path) != value:
            wrong += 1
            yield f"{name}, of {whose}, is {'damaged' if path.exists() else 'missing'}"
    save_hashes(folder.hashes)
    if wrong:
        raise GlossError(
            f"{wrong} of {count} are not as they were written; python -m gloss_utils run makes views again at once, "
            "and what is costly where -p remake NAME asks for it"
        )
    yield f"all {count} are as they were written"


def _written(folder: RunFolder, stages: dict) -> Iterator[tuple[str, str, str]]:
    """The path, the sha256 and the owner of all that a run wrote."""
    for stage, entry in stages.items():
        kept = {RECIPES[name].path: seal["sha256"] for name, seal in entry["artefacts"].items()}
        for name, value in (kept | entry["outputs"]).items():
            yield name, value, stage
    for path in sorted(folder.kept.glob("*")):
        if seal := read_seal(path):
            yield f"kept/{path.name}", seal["sha256"], "other parameters"
