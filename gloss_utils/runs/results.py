"""Result tables (see `report.tables`) that outlive their run: what was measured, on what, by which command and commit.

Notebook 7 draws from run folders and from files of results; those in figures/results/ are committed.
"""

from pathlib import Path

from gloss_utils.base.errors import GlossError
from gloss_utils.base.files import read_json, write_json
from gloss_utils.runs.folder import RunFolder, commit
from gloss_utils.runs.parameters import EXPLORE, FINE_TUNE, ROOT, STAGES

FIELDS = ("name", "command", "commit", "inputs", "parameters", "rows")  # of all tables; those of a run have more


def write(path: Path, name: str, command: str, inputs: dict[str, str], parameters: dict, rows: list[dict], **more):
    """Write a table, whole or not at all. inputs: the sha256 of each file that it was made from, with its name."""
    about = {"name": name, "command": command, "commit": commit(), "inputs": inputs, "parameters": parameters}
    write_json(path, about | {"rows": rows} | more)


def write_results(root: str | Path, command: str, to: str | Path | None = None) -> Path:
    """Write the table of a finished run to a file (default: figures/results/, named like the run folder); returns it.

    command: what made the run, for whoever wants to make it again. Raises `GlossError` where the run is not evaluated.
    """
    table = of_run(RunFolder(Path(root).resolve()), command)
    path = Path(to) if to else ROOT / "figures/results" / f"{table['name']}.json"
    write_json(path, table | {"name": path.stem})
    return path


def of_run(folder: RunFolder, command: str) -> dict:
    """The table of a finished run: `metrics.json`, the parameters, what stage 2 says, and the seconds of each stage."""
    stages = folder.stages()
    if not set(STAGES[:5]) <= set(stages):
        raise GlossError(f"{folder.root} holds no finished 05_evaluate; run notebooks 01 to 05 first")
    inputs = {digest: Path(name).name for stage in stages.values() for name, digest in stage["inputs"].items()}
    training = read_json(folder.training) if folder.training.exists() else None
    return {
        "name": folder.root.name,
        "command": command,
        "commit": commit(),
        "inputs": inputs,
        "parameters": {name: without_folder(value) for name, value in parameters_of(stages).items()},
        "dataset": stages[EXPLORE]["parameters"]["dataset"],
        "seconds": {stage: entry["seconds"] for stage, entry in stages.items()},
        "training": training and {name: value for name, value in training.items() if name != "history"},
        "versions": stages[FINE_TUNE]["versions"],
        **read_json(folder.metrics),
    }


def parameters_of(stages: dict) -> dict:
    """The parameters of all finished stages of a manifest."""
    return {name: value for entry in stages.values() for name, value in entry["parameters"].items()}


def without_folder(value):
    """A parameter's value; of a path only what another machine has, too: from the repository's root, or the name."""
    if not isinstance(value, str) or not Path(value).is_absolute():
        return value
    path = Path(value)
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name


def read_all(paths: list[Path], folder: Path) -> list[dict]:
    """The tables of these run folders and files, or, where none is named, of all files in `folder`. Raises `GlossError`
    where there are none."""
    tables = [read(path) for path in paths or sorted(folder.glob("*.json"))]
    if not tables:
        raise GlossError(f"{folder} holds no files of results; name run folders, or files of results")
    return tables


def read(path: str | Path) -> dict:
    """A table from its file, or from a run folder. Raises `GlossError` where it is neither."""
    path = Path(path)
    if path.is_dir():
        return of_run(RunFolder(path.resolve()), "")
    if not path.is_file():
        raise GlossError(f"{path} is neither a run folder nor a file of results")
    table = read_json(path)
    missing = [name for name in FIELDS if not isinstance(table, dict) or name not in table]
    if missing:
        raise GlossError(f"{path} is not a file of results: it has no {', '.join(missing)}")
    return table
