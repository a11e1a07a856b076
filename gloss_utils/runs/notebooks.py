"""Notebooks run headless: which are up to date, which have to be executed, and what to say where one fails."""

import re
import sys
import time
import warnings
from pathlib import Path

import nbformat
import papermill
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError

from gloss_utils.base.errors import GlossError, Interrupted
from gloss_utils.base.files import read_json, sweep, write_whole
from gloss_utils.data import queries
from gloss_utils.data.rejects import Rejects
from gloss_utils.report.html import page
from gloss_utils.runs import results
from gloss_utils.runs.folder import RunFolder, needs
from gloss_utils.runs.given import given_to, read, resolve
from gloss_utils.runs.lock import for_runner
from gloss_utils.runs.parameters import (
    EVALUATE,
    EXPLORE,
    NOTEBOOKS,
    RETRIEVE,
    ROOT,
    STAGES,
    check,
    check_files,
)


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
    values = read(files, overrides)
    resolved = {stage: resolve(stage, values) for stage in STAGES}
    check({name: value for own in resolved.values() for name, value in own.items()})
    for own in resolved.values():
        check_files(own)
    folder = RunFolder(values["run_dir"])
    folder.check_is_run()
    folder.check_dataset(resolved[EXPLORE])
    chosen = STAGES[_number(first, 0) : _number(last, len(STAGES) - 1) + 1]
    if not chosen:
        raise GlossError(f"--from {first} is after --until {last}; nothing to run")
    with for_runner(folder.run_lock, folder.stage_lock):
        sweep(folder.root)
        if values.get("queries_file"):
            own, rejects = resolved[RETRIEVE], Rejects(folder.rejected_queries)
            queries.read(own["queries_file"], own["num_beams"], own["max_rejected"], own["split"] != "next", rejects)
        _run_stages(folder, resolved, values, chosen, force)
    return folder


def _run_stages(folder: RunFolder, resolved: dict[str, dict], values: dict, chosen: tuple[str, ...], force: bool):
    for stage in STAGES:
        own = {name: value for name, value in resolved[stage].items() if name != "run_dir"}
        if stage not in chosen:
            _say_if_kept(folder, stage, own, chosen)
        elif not force and not (why := folder.why_run(stage, own)):
            print(f"{stage}: up to date")
        else:
            if force:
                folder.break_seals(stage)
            elif stage in folder.stages():
                print(f"{stage}: {why}")
            execute(stage, given_to(stage, values), folder)


def draw(runs: list[str], to: str) -> Path:
    """Execute notebook 7 on finished runs or files of results (none: those in `to`/results); returns where figures are.

    Raises `GlossError` where one of them is neither.
    """
    folder = Path(to).absolute()
    tables = [str(Path(run).absolute()) for run in runs]
    results.read_all([Path(table) for table in tables], folder / "results")  # errors come before any work
    execute("07_paper_figures", {"runs": tables, "figures_dir": str(folder)}, RunFolder(ROOT / "runs/figures"))
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
    other = [name for name, value in own.items() if entry["parameters"].get(name) != value]
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
        raise Interrupted(f"interrupted in {stage}; the same command goes on from there") from None
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
        lines = [f"{'method':<18}" + "".join(f"{metric:>10}" for metric in metrics) + f"   {about}"]
        lines += [f"{row['method']:<18}" + "".join(f"{row[metric]:>10.4f}" for metric in metrics) for row in rows]
    if RETRIEVE in current and folder.recommendations.exists():
        lines.append(f"recommendations: {folder.recommendations}")
    pages = [folder.notebooks / f"{stage}.html" for stage in current]
    figures = [folder.root / name for stage in current for name in stages[stage]["outputs"] if name.endswith(".png")]
    lines += ["executed notebooks:", *(f"  {page}" for page in pages if page.exists())]
    lines += ["figures:", *(f"  {figure}" for figure in figures)]
    return "\n".join(lines)
