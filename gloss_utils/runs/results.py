"""What a finished run leaves to others: its result table (see `report.tables`), and its report as one web page.

A result table outlives its run: it says what was measured, on what, by which command and commit. Notebook 7 draws from
run folders and from files of results; those in figures/results/ are committed.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from gloss_utils.base.errors import GlossError
from gloss_utils.base.files import read_json, write_json, write_whole
from gloss_utils.report import html, tables
from gloss_utils.report.metrics import COMPARED
from gloss_utils.runs.contents import input_path
from gloss_utils.runs.folder import RunFolder
from gloss_utils.runs.parameters import EVALUATE, EXPLORE, FINE_TUNE, ROOT, STAGES
from gloss_utils.runs.versions import commit

if TYPE_CHECKING:  # nbformat takes seconds to import, and kernels do without it
    from nbformat import NotebookNode

FIELDS = ("name", "command", "commit", "inputs", "parameters", "rows")  # of all tables; those of a run have more
ROW = ("method", "split", "users", *(f"{metric}{end}" for metric in COMPARED for end in ("", "_low", "_high")))


def write(path: Path, name: str, command: str, inputs: dict[str, str], parameters: dict, rows: list[dict], **more):
    """Write a table, whole or not at all. inputs: the sha256 of each file that it was made from, with its name."""
    about = {"name": name, "command": command, "commit": commit(), "inputs": inputs, "parameters": parameters}
    write_json(path, about | {"rows": rows} | more)


def write_results(folder: RunFolder, command: str, to: Path | None = None) -> Path:
    """Write the table of a finished run to a file (default: figures/results/, named like the run folder); returns it.

    command: what made the run, for whoever wants to make it again. Raises `GlossError` where the run is not evaluated.
    """
    table = of_run(folder, command)
    path = to or ROOT / "figures/results" / f"{table['name']}.json"
    write_json(path, table | {"name": path.stem})
    return path


def of_run(folder: RunFolder, command: str) -> dict:
    """The table of a finished run: `metrics.json`, the parameters, what stage 2 says, and the seconds of each stage."""
    stages = folder.stages()
    if not set(STAGES[:5]) <= set(stages):
        raise GlossError(f"{folder.root} holds no finished 05_evaluate; run notebooks 01 to 05 first")
    given = _given(stages)
    inputs = {
        digest: (input_path(name, given) or Path(name)).name
        for stage in stages.values()
        for name, digest in stage["inputs"].items()
    }
    training = read_json(folder.training) if folder.training.exists() else None
    return {
        "name": folder.root.name,
        "command": command,
        "commit": commit(),
        "inputs": inputs,
        "parameters": parameters_of(stages),
        "dataset": stages[EXPLORE]["parameters"]["dataset"],
        "seconds": {stage: entry["seconds"] for stage, entry in stages.items()},
        "training": training and {name: value for name, value in training.items() if name != "history"},
        "versions": stages[FINE_TUNE]["versions"],
        **read_json(folder.metrics),
    }


def _given(stages: dict) -> dict:
    """The parameters of all these stages of a manifest, as they are."""
    return {name: value for entry in stages.values() for name, value in entry["parameters"].items()}


def parameters_of(stages: dict) -> dict:
    """The parameters of all these stages of a manifest; of a path only what another machine has, too: from the
    repository's root, or the name."""
    values = _given(stages)
    for name, value in values.items():
        if isinstance(value, str) and (path := Path(value)).is_absolute():
            values[name] = str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name
    return values


def read_all(paths: list[Path], folder: Path) -> list[dict]:
    """The tables of these run folders and files, or, where none is named, of all files in `folder`.

    Those without rows, as of split next, are left out, with a line. Raises `GlossError` where none is left.
    """
    paths = paths or sorted(folder.glob("*.json"))
    if not paths:
        raise GlossError(f"{folder} holds no files of results; name run folders, or files of results")
    found = {path: read(path) for path in paths}
    for path in (path for path, table in found.items() if not table["rows"]):
        print(f"{path} is left out: it has no metrics, for split next has no targets.")
    tables = [table for table in found.values() if table["rows"]]
    if not tables:
        raise GlossError(
            "none of these results has metrics: split next has no targets; name runs of test or validation"
        )
    return tables


def read(path: str | Path) -> dict:
    """A table from its file, or from a run folder. Raises `GlossError` where it is neither."""
    path = Path(path)
    if path.is_dir():
        return of_run(RunFolder(path.resolve()), "")
    if not path.is_file():
        raise GlossError(f"{path} is neither a run folder nor a file of results")
    table = read_json(path)
    if missing := _missing(table):
        raise GlossError(f"{path} is not a file of results: it has no {', '.join(missing)}")
    return table


def _missing(table) -> list[str]:
    """What a table from a file lacks, of what figures and tables show."""
    if not isinstance(table, dict):
        return list(FIELDS)
    if missing := [name for name in FIELDS if name not in table]:
        return missing
    missing = [name for name in ROW if any(name not in row for row in table["rows"])]
    of_segments = any("segment" in row for row in table["rows"])
    return [f"{name} in its rows" for name in missing] + ["dataset"] * (of_segments and "dataset" not in table)


# ---- the report


def write_report(folder: RunFolder) -> dict[str, str]:
    """Write `report.html`: the results and the executed notebooks of a run. Returns the stages left out, and why.

    Raises `GlossError` where there is nothing to report. No manifest lists the executed notebooks, for they are written
    after their stage is finished: what they show, scripts included, is trusted as it stands in the run folder.
    """
    stages = folder.stages()
    if not stages:
        raise GlossError(f"{folder.root} is not the folder of a run: it has no manifest.json; give one like runs/demo")
    left_out = {stage: reason for stage in STAGES if (reason := _why_not(folder, stage))}
    notebooks = [_read(folder, stage) for stage in STAGES if stage not in left_out]
    if not notebooks:
        reasons = "; ".join(f"{stage} {reason}" for stage, reason in left_out.items())
        raise GlossError(f"{folder.root} has nothing to report: {reasons}")
    rows, missing = _rows(folder, stages)
    front = {
        "dataset": stages[EXPLORE]["parameters"].get("dataset"),
        "split": rows and rows[0]["split"],
        "metrics": rows and tables.methods(rows).to_html(border=0),
        "missing": missing,
        "left_out": left_out,
        "stages": {stage: entry | {"parameters": parameters_of({stage: entry})} for stage, entry in stages.items()},
        "versions": next(reversed(stages.values()))["versions"],
    }
    with write_whole(folder.report) as part:
        part.write_text(html.joined_page(notebooks, f"GLoSS · {folder.root.name}", **front), encoding="utf-8")
    return left_out


def _why_not(folder: RunFolder, stage: str) -> str | None:
    entry = folder.stages().get(stage)
    if entry is None:
        return "is not finished"
    if newer := folder.outdated(stage):
        return f"is older than {newer}, on which it builds"
    if damaged := folder.damaged(entry):
        return f"left {damaged} otherwise than it is now"
    if not (folder.notebooks / f"{stage}.ipynb").exists():
        return "was stepped through by hand, so that its executed notebook is not in the run folder"
    return None


def _read(folder: RunFolder, stage: str) -> "NotebookNode":
    import nbformat

    path = folder.notebooks / f"{stage}.ipynb"
    try:
        return nbformat.read(path, as_version=4)
    except ValueError:
        raise GlossError(f"{path} is damaged; delete it and run {stage} again (--from {stage[:2]} --force)") from None


def _rows(folder: RunFolder, stages: dict) -> tuple[list[dict], str]:
    """The rows of the run's result table, and where there are none, why."""
    if EVALUATE not in stages or folder.outdated(EVALUATE) or folder.damaged(stages[EVALUATE]):
        return [], "There are no metrics: 05_evaluate is not finished."
    return read_json(folder.metrics)["rows"], "Split next has no targets, so there are no metrics."
