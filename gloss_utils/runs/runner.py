"""Running the notebooks headless: which are up to date, which have to be executed, and what to say when one fails."""

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
from gloss_utils.runs import lock, report, results
from gloss_utils.runs import parameters as P
from gloss_utils.runs.folder import RunFolder, needs, only_runs, same_dataset

NOTEBOOKS = P.ROOT / "notebooks"
FIGURES = "07_paper_figures"


def defaults(stage: str) -> dict:
    """The values in a notebook's parameters cell."""
    notebook = nbformat.read(NOTEBOOKS / f"{stage}.ipynb", as_version=4)
    cells = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    return P.assigned(cells[0].source)


def given(files: list[str], overrides: list[tuple[str, str]]) -> dict:
    """The parameters of files, later over earlier, and `-p` over all; by default `run_dir` is named after the files."""
    values = {"run_dir": str(P.ROOT / "runs" / "-".join(Path(file).stem for file in files))}
    for file in files:
        values |= P.read_file(file)
    values |= {name: P.from_command_line(name, text) for name, text in overrides}
    return P.check_all(values)


def resolve(stage: str, values: dict) -> dict:
    """A stage's own parameters: the notebook's values, and over them those given."""
    return P.check_all(defaults(stage) | {name: values[name] for name in P.stage_names(stage) if name in values})


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
    values = given(files, overrides)
    resolved = {stage: resolve(stage, values) for stage in P.STAGES}
    P.check_all({name: value for own in resolved.values() for name, value in own.items()})
    P.check_files(values)
    folder = RunFolder(values["run_dir"])
    only_runs(folder)
    same_dataset(folder, resolved[P.EXPLORE])
    chosen = P.STAGES[_number(first, 0) : _number(last, len(P.STAGES) - 1) + 1]
    if not chosen:
        raise GlossError(f"--from {first} is after --until {last}; nothing to run")
    with lock.for_runner(folder.run_lock, folder.stage_lock):
        sweep(folder.root)
        if values.get("queries_file"):
            own, rejects = resolved[P.RETRIEVE], Rejects(folder.rejected_queries)
            queries.read(own["queries_file"], own["num_beams"], own["max_rejected"], own["split"] != "next", rejects)
        _run_stages(folder, resolved, values, chosen, force)
    return folder


def _run_stages(folder: RunFolder, resolved: dict[str, dict], values: dict, chosen: tuple[str, ...], force: bool):
    for stage in P.STAGES:
        own = {name: value for name, value in resolved[stage].items() if name != "run_dir"}
        if stage not in chosen:
            _say_if_kept(folder, stage, own, chosen)
        elif not force and not (why := folder.why_run(stage, own)):
            print(f"{stage}: up to date")
        else:
            if force:
                folder.forget_texts()
            elif stage in folder.stages():
                print(f"{stage}: {why}")
            passed = {name: values[name] for name in P.stage_names(stage) if name in values}
            _execute(stage, passed, folder)


def draw(runs: list[str], to: str) -> Path:
    """Execute notebook 7 on finished runs or files of results (none: those in `to`/results); returns where figures are.

    Raises `GlossError` where one of them is neither.
    """
    folder = Path(to).absolute()
    tables = [str(Path(run).absolute()) for run in runs]
    results.read_all([Path(table) for table in tables], folder / "results")  # what is wrong is told before any work
    _execute(FIGURES, {"runs": tables, "figures_dir": str(folder)}, RunFolder(P.ROOT / "runs/figures"))
    return folder


def _number(text: str | None, default: int) -> int:
    if text is None:
        return default
    numbers = [stage[:2] for stage in P.STAGES]
    if text.zfill(2) not in numbers:
        raise GlossError(f"there is no notebook {text!r}; --from and --until take one of {', '.join(numbers)}")
    return numbers.index(text.zfill(2))


def _say_if_kept(folder: RunFolder, stage: str, own: dict, chosen: tuple[str, ...]):
    entry = folder.stages().get(stage)
    needed = any(stage in needs(other, {}) for other in chosen)
    if entry is None or not needed:
        return
    other = [name for name, value in own.items() if entry["parameters"].get(name) != value]
    if other:
        print(f"{stage}: kept as it was made, with other values of {', '.join(other)}, because it was not chosen")


def _execute(stage: str, passed: dict, folder: RunFolder):
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
    _write_html(done)
    print(f"{stage}: done in {time.time() - started:.0f} s", flush=True)


def _failure(stage: str, error: PapermillExecutionError, notebook: Path) -> str:
    if error.ename == "GlossError":
        return f"{stage}: {error.evalue}"
    trace = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(error.traceback))
    return (
        f"{stage} failed in cell {error.cell_index}: {error.ename}: {error.evalue}\n{trace}\nIt is kept in {notebook}"
    )


def _write_html(notebook: Path):
    with write_whole(notebook.with_suffix(".html")) as part:
        part.write_text(report.page(nbformat.read(notebook, as_version=4), notebook.stem), encoding="utf-8")


def summary(folder: RunFolder) -> str:
    """A short table of a run's results, and where its notebooks and figures are; of stages that are up to date."""
    stages = folder.stages()
    current = [stage for stage in stages if not folder.outdated(stage)]
    lines = []
    if P.EVALUATE in current:
        rows = [row for row in read_json(folder.metrics)["rows"] if row["segment"] == "all"]
        if rows:
            lines.append(
                f"{'method':<18}{'recall@5':>10}{'ndcg@5':>10}{'mrr':>10}   {rows[0]['split']}, "
                f"{rows[0]['users']:,} users"
            )
            lines += [
                f"{row['method']:<18}{row['recall@5']:>10.4f}{row['ndcg@5']:>10.4f}{row['mrr']:>10.4f}" for row in rows
            ]
    if P.RETRIEVE in current and folder.recommendations.exists():
        lines.append(f"recommendations: {folder.recommendations}")
    pages = [folder.notebooks / f"{stage}.html" for stage in current]
    figures = [folder.root / name for stage in current for name in stages[stage]["outputs"] if name.endswith(".png")]
    lines += ["executed notebooks:", *(f"  {page}" for page in pages if page.exists())]
    lines += ["figures:", *(f"  {figure}" for figure in figures)]
    return "\n".join(lines)
