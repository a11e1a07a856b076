"""Stage 1: from raw files to the tables that every later stage reads."""

from dataclasses import fields
from pathlib import Path

import pandas as pd

from gloss_utils.base.errors import GlossError
from gloss_utils.data import sources
from gloss_utils.data.dataset import Dataset, Rules, build
from gloss_utils.data.rejects import Rejects
from gloss_utils.runs.run import Run


def prepare(run: Run) -> Dataset:
    """Stage 1's work: find or get the raw files, read them, write `data/`."""
    folder, paths, source = run.folder, *find(run.parameters)
    for path in paths:
        run.read_from_outside(path)
    _same_raw_files(run)
    rejects = Rejects(folder.rejected_data)
    reviews, metadata = sources.read(paths, source, run["item_text"], rejects, run["max_rejected"])
    rejects.write()
    rules = Rules(**{rule.name: run[rule.name] for rule in fields(Rules)})
    data = build(reviews, metadata, run["max_users"], run["seed"], rules)
    data.statistics["rejected"] = {
        kind: dict(rejects.reasons(path, kind)) for kind, path in zip(("interactions", "items"), paths, strict=True)
    }
    run.outputs += [*data.save(folder.data), folder.rejected_data]
    return data


def left_out(data: Dataset) -> pd.DataFrame:
    """What is not in the tables, and why: columns count, and what was counted as index."""
    counts = {name.replace("_", " "): count for name, count in data.statistics["dropped"].items()}
    for kind, reasons in data.statistics["rejected"].items():
        counts |= {f"rejected {kind}: {reason}": count for reason, count in reasons.items()}
    return pd.DataFrame({"count": counts})


def find(values: dict) -> tuple[tuple[Path, Path], sources.Source]:
    """The files of interactions and of items that these parameters mean, and their layout."""
    if values["dataset"] == sources.TABLE:
        return sources.tables(values)
    return sources.locate(values["dataset"], values["data_dir"], values["data_address"]), sources.describe(
        values["dataset"]
    )


def _same_raw_files(run: Run):
    entry = run.folder.stages().get(run.stage)
    if entry is not None and sorted(entry["inputs"].values()) != sorted(run.inputs.values()):
        names = ", ".join(Path(path).name for path in run.inputs)
        raise GlossError(
            f"{run.folder.root} was made from other raw files than {names} in {run['data_dir']}; "
            "choose another run_dir, or delete that folder"
        )
