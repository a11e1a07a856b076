"""Notebooks run headless: which are up to date, which have to be executed, and what to say where one fails."""

import re
import sys
import time
import warnings
from collections import deque
from pathlib import Path

import nbformat
import papermill
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError

from gloss_utils.base.errors import GlossError, Interrupted
from gloss_utils.base.files import load_hashes, read_json, write_whole
from gloss_utils.base.seals import sweep
from gloss_utils.data import queries
from gloss_utils.data.rejects import Rejects
from gloss_utils.report.html import page
from gloss_utils.runs import artefacts, results, room
from gloss_utils.runs.folder import RunFolder, needs
from gloss_utils.runs.given import given_to, read, resolve, write_cells
from gloss_utils.runs.lock import for_runner
from gloss_utils.runs.parameters import (
    EVALUATE,
    EXPLORE,
    NOTEBOOKS,
    PAPER,
    RETRIEVE,
    ROOT,
    STAGES,
    check,
    check_files,
    texts_per_user,
    that_matter,
)

AT_ONCE = 4096  # users whose texts are held while a file is looked through


def run(
    files: list[str],
    overrides: list[tuple[str, str]],
    first: str | None = None,
    last: str | None = None,
    force: bool = False,
) -> RunFolder:
    """Execute the notebooks from `first` to `last` (two-digit numbers), each only where it is not up to date.

    Raises `GlossError` before any work where a parameter is wrong, and where a notebook fails, with its error.
    """
    folder, values, resolved = _checked(files, overrides)
    chosen = STAGES[_number(first, 0) : _number(last, len(STAGES) - 1) + 1]
    if not chosen:
        raise GlossError(f"--from {first} is after --until {last}; nothing to run")
    with for_runner(folder.run_lock, folder.stage_lock):
        load_hashes(folder.hashes)
        sweep(folder.root)
        if values.get("queries_file"):
            own, rejects = resolved[RETRIEVE], Rejects(folder.refused)
            how = texts_per_user(own), own["max_rejected"], own["split"] != "next", rejects, AT_ONCE
            deque(queries.blocks(own["queries_file"], *how), maxlen=0)  # raises where the file is no good
        _run_stages(folder, resolved, values, chosen, force)
    return folder


def planned(files: list[str], overrides: list[tuple[str, str]]) -> tuple[RunFolder, dict]:
    """The folder of a run of all stages, and the parameters of all of them. Raises `GlossError` as `run` does."""
    folder, _, resolved = _checked(files, overrides)
    return folder, effective(folder, resolved, STAGES)


def write_lab(files: list[str], overrides: list[tuple[str, str]]) -> list[str]:
    """Write notebooks with these parameters into the run's `lab/`, where one steps through them; returns what to say.

    Those that are there are left alone: their reader may have changed them. Raises `GlossError` as `run` does.
    """
    folder, values, _ = _checked(files, overrides)
    written = write_cells(values, folder.lab)
    left = [name for name in (*STAGES, PAPER) if name not in written]
    said = [f"{folder.lab / name}.ipynb was there and is left as it is" for name in left]
    return [*said, f"open them with: jupyter lab {folder.lab}"]


def _checked(files: list[str], overrides: list[tuple[str, str]]) -> tuple[RunFolder, dict, dict[str, dict]]:
    """The folder of a run, the parameters that were given, and those of each stage."""
    values = read(files, overrides)
    resolved = {stage: resolve(stage, values) for stage in STAGES}
    check({name: value for own in resolved.values() for name, value in own.items()})
    for own in resolved.values():
        check_files(own)
    folder = RunFolder(values["run_dir"])
    folder.check_is_run()
    folder.check_dataset(resolved[EXPLORE])
    return folder, values, resolved


def _run_stages(folder: RunFolder, resolved: dict[str, dict], values: dict, chosen: tuple[str, ...], force: bool):
    parameters = effective(folder, resolved, chosen)
    asked = artefacts.of_run(parameters) if force else values.get("remake", [])
    _check_sound(folder, parameters, chosen, asked)
    has_room = False
    for stage in STAGES:
        if stage not in chosen:
            _say_if_kept(folder, stage, resolved[stage], chosen)
            continue
        remake = [name for name in asked if artefacts.RECIPES[name].stage == stage]
        why = f"asked to make {', '.join(remake)} anew" if remake else folder.why_run(stage, parameters)
        if not force and not why:
            print(f"{stage}: up to date")
            continue
        if stage in folder.stages():
            print(f"{stage}: {why or 'asked to run again'}")
        if not has_room and stage != EXPLORE and folder.statistics.exists():  # the data tell how much is needed
            print(*room.check(folder, parameters), sep="\n")
            has_room = True
        execute(stage, given_to(stage, values) | {"remake": remake}, folder)


def effective(folder: RunFolder, resolved: dict[str, dict], chosen: tuple[str, ...]) -> dict:
    """The parameters that a run goes by: of a stage that is not chosen, those that it was finished with."""
    stages, found = folder.stages(), {}
    for stage in STAGES:
        found |= stages[stage]["parameters"] if stage in stages and stage not in chosen else resolved[stage]
    return found


def _check_sound(folder: RunFolder, parameters: dict, chosen: tuple[str, ...], asked: list[str]):
    """Raise `GlossError`, before any work, where something costly is damaged, is nowhere else, and is not to be made
    anew."""
    for name, state in folder.states(parameters).items():
        is_asked = name in asked or artefacts.RECIPES[name].stage not in chosen
        if state.is_broken and not is_asked and not artefacts.elsewhere(folder.root, name, state.wanted):
            raise GlossError(state.broken(artefacts.path_of(folder.root, name), name))


def draw(runs: list[str], to: str) -> Path:
    """Execute notebook 7 on finished runs or files of results (none: those in `to`/results); returns where figures are.

    Raises `GlossError` where one of them is neither.
    """
    folder = Path(to).absolute()
    tables = [str(Path(run).absolute()) for run in runs]
    results.read_all([Path(table) for table in tables], folder / "results")  # errors come before any work
    execute(PAPER, {"runs": tables, "figures_dir": str(folder)}, RunFolder(ROOT / "runs/figures"))
    return folder


def _number(text: str | None, default: int) -> int:
    if text is None:
        return default
    numbers = [stage[:2] for stage in STAGES]
    if text.zfill(2) not in numbers:
        raise GlossError(f"there is no notebook {text!r}; --from and --until take one of {', '.join(numbers)}")
    return numbers.index(text.zfill(2))


def _say_if_kept(folder: RunFolder, stage: str, own: dict, chosen: tuple[str, ...]):
    entry = folder.stages().get(stage)
    if entry is None or not any(stage in needs(other, {}) for other in chosen):
        return
    other = artefacts.differing(that_matter(entry["parameters"]), that_matter(own))
    if other:
        print(f"{stage}: kept as it was made, with other values of {', '.join(other)}, because it was not chosen")


def execute(stage: str, passed: dict, folder: RunFolder):
    """Execute one notebook with these parameters; it and its page are kept in the run folder.

    Raises `GlossError` where it fails; what was executed of it is then kept as NAME.failed.ipynb.
    """
    print(f"{stage}: running", flush=True)
    done = folder.notebooks / f"{stage}.ipynb"
    failed = folder.notebooks / f"{stage}.failed.ipynb"
    started = time.time()
    try:
        with write_whole(done) as part, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # papermill's own notices about file names
            try:
                papermill.execute_notebook(
                    NOTEBOOKS / f"{stage}.ipynb",
                    part,
                    parameters=passed,
                    cwd=NOTEBOOKS,
                    kernel_name="python3",
                    stderr_file=sys.stderr,
                    coalesce_streams=True,
                    extra_arguments=["--IPKernelApp.log_level=40"],
                    shutdown_kernel="immediate",  # what it has finished is on the disk; asked to end, it takes seconds
                )
            except BaseException:
                if part.exists():
                    part.rename(failed)
                raise
    except PapermillExecutionError as error:
        raise GlossError(_failure(stage, error, failed)) from error
    except DeadKernelError as error:
        raise GlossError(
            f"{stage} failed: its kernel died (often for lack of memory; smaller batches need less)"
        ) from error
    except KeyboardInterrupt:
        sweep(folder.root)
        again = "the same command" if not passed.get("remake") else "the same command without --force or remake"
        raise Interrupted(f"interrupted in {stage}; {again} goes on from there") from None
    failed.unlink(missing_ok=True)
    with write_whole(done.with_suffix(".html")) as part:
        part.write_text(page(nbformat.read(done, as_version=4), stage), encoding="utf-8")
    print(f"{stage}: done in {time.time() - started:.0f} s", flush=True)


def _failure(stage: str, error: PapermillExecutionError, notebook: Path) -> str:
    if error.ename == "GlossError":
        return f"{stage}: {error.evalue}"
    trace = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(error.traceback))
    return (
        f"{stage} failed in cell {error.cell_index}: {error.ename}: {error.evalue}\n{trace}\nIt is kept in {notebook}"
    )


def summary(folder: RunFolder) -> str:
    """A short table of a run's results, and where its notebooks and figures are; of stages that are up to date."""
    stages = folder.stages()
    current = [stage for stage in stages if not folder.outdated(stage)]
    rows = read_json(folder.metrics)["rows"] if EVALUATE in current else []
    rows, lines = [row for row in rows if row["segment"] == "all"], []
    if rows:
        metrics, about = ("recall@5", "ndcg@5", "mrr@10"), f"{rows[0]['split']}, {rows[0]['users']:,} users"
        lines = [f"{'method':<14}{'seen items':<12}" + "".join(f"{metric:>10}" for metric in metrics) + f"   {about}"]
        for row in rows:
            values = "".join(f"{row[metric]:>10.4f}" for metric in metrics)
            lines.append(f"{row['method']:<14}{row['seen']:<12}{values}")
    if RETRIEVE in current and folder.recommendations.exists():
        lines.append(f"recommendations: {folder.recommendations}")
    pages = [folder.notebooks / f"{stage}.html" for stage in current]
    figures = [folder.root / name for stage in current for name in stages[stage]["outputs"] if name.endswith(".png")]
    lines += ["executed notebooks:", *(f"  {page}" for page in pages if page.exists())]
    lines += ["figures:", *(f"  {figure}" for figure in figures)]
    return "\n".join(lines)
