"""Result tables that outlive their run: what was measured, on what, by which command, at which commit. Notebook 7 draws
from them, and those in figures/results/ are committed. That of a finished run is written by

    python -m gloss_utils.runs.results RUN_DIR "the command that made the run" [--to figures/results/NAME.json]
"""

import argparse
import sys
from pathlib import Path

import pandas as pd

from gloss_utils.base.errors import GlossError
from gloss_utils.base.files import read_json, write_json
from gloss_utils.runs.folder import RunFolder
from gloss_utils.runs.parameters import EXPLORE, FINE_TUNE, ROOT, STAGES
from gloss_utils.runs.run import commit

FIELDS = ("name", "command", "commit", "inputs", "parameters", "rows")  # all tables; those of a run have more


def write(path: Path, name: str, command: str, inputs: dict[str, str], parameters: dict, rows: list[dict], **more):
    """Write a table, whole or not at all. inputs: sha256 of the files that it was made from, and their names."""
    about = {"name": name, "command": command, "commit": commit(), "inputs": inputs, "parameters": parameters}
    write_json(path, about | {"rows": rows} | more)


def of_run(folder: RunFolder, command: str) -> dict:
    """The table of a finished run: `metrics.json`, and what stage 2 and each stage's seconds say of the cost."""
    stages = folder.stages()
    if not set(STAGES[:5]) <= set(stages):
        raise GlossError(f"{folder.root} holds no finished 05_evaluate; run notebooks 01 to 05 first")
    parameters = {name: value for stage in stages.values() for name, value in stage["parameters"].items()}
    inputs = {digest: Path(name).name for stage in stages.values() for name, digest in stage["inputs"].items()}
    training = read_json(folder.training) if folder.training.exists() else None
    return {
        "name": folder.root.name,
        "command": command,
        "commit": commit(),
        "inputs": inputs,
        "parameters": {name: without_folder(value) for name, value in parameters.items()},
        "dataset": stages[EXPLORE]["parameters"]["dataset"],
        "seconds": {stage: entry["seconds"] for stage, entry in stages.items()},
        "training": training and {name: value for name, value in training.items() if name != "history"},
        "versions": stages[FINE_TUNE]["versions"],
        **read_json(folder.metrics),
    }


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


def provenance(tables: list[dict]) -> pd.DataFrame:
    """Where each table's numbers come from, for looking at."""
    columns = {"table": "name", "command": "command", "commit": "commit"}
    shown = pd.DataFrame([{column: table[key] for column, key in columns.items()} for table in tables])
    return shown.assign(made_from=[", ".join(table["inputs"].values()) for table in tables]).set_index("table")


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


def main(arguments: list[str] | None = None) -> int:
    """Write a finished run's table; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m gloss_utils.runs.results", description="Write a finished run's table of results to a file."
    )
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("command", help="what made the run, for whoever wants to make it again")
    parser.add_argument("--to", type=Path, help="default: figures/results/, named like the run folder")
    options = parser.parse_args(arguments)
    try:
        table = of_run(RunFolder(options.run_dir.resolve()), options.command)
        path = options.to or ROOT / "figures/results" / f"{table['name']}.json"
        write_json(path, table | {"name": path.stem})
    except GlossError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
