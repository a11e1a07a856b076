"""Notebook 1: from raw files to the tables that every later notebook works on."""

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from gloss_utils.base.errors import GlossError
from gloss_utils.base.files import digest, full_disk_in_one_line
from gloss_utils.data import prompts, sources
from gloss_utils.data.dataset import Dataset
from gloss_utils.data.rejects import Rejects
from gloss_utils.data.rules import Rules, build
from gloss_utils.data.sources import OwnTables, Source
from gloss_utils.report import data_plots, published, tables
from gloss_utils.runs.contents import content_of
from gloss_utils.runs.folder import code_of
from gloss_utils.runs.parameters import EXPLORE
from gloss_utils.runs.resumed import kept_each
from gloss_utils.runs.run import Run, open_run
from gloss_utils.runs.workers import each_in_order


def start(notebook: dict) -> Run:
    """Start this stage from the notebook's `globals()`."""
    return open_run(EXPLORE, notebook)


def prepare(run: Run) -> Dataset:
    """Find or download the raw files, read them, apply the data rules, and write `data/`.

    Where `data/` was made from the same, it is taken as it is, and the raw files may be gone. What was cut off goes on
    after its last part.
    """
    source = None if run.has_read_its_files() else _find(run)
    if run.keeps("data"):
        return Dataset.load(run.folder.data)
    source, rejects = source or _find(run), Rejects(run.folder.refused)
    with full_disk_in_one_line(run.folder.root), each_in_order(run.ray_workers) as each:
        each = kept_each(run.unfinished("data", digest([run.made_from("data"), code_of(EXPLORE)])), each)
        found = sources.read(source, rejects, run["max_rejected"], run.folder.root, each)
        data = build(*found, run["max_users"], run["seed"], run.settings(Rules), each)
    kinds = zip(("interactions", "items"), source.paths, strict=True)
    data.statistics["rejected"] = {kind: dict(rejects.reasons(path, kind)) for kind, path in kinds}
    with run.writing("data") as part:
        data.save(part)
        rejects.write(part / run.folder.rejected_data.name)
    return data


def _find(run: Run) -> Source:
    """The raw files, found or downloaded, and noted. Raises `GlossError` where the run was made from others."""
    source = sources.find(
        run["dataset"], run["data_dir"], run["data_address"], run["item_text"], run.settings(OwnTables)
    )
    if run["dataset"] == sources.TABLE:
        run.read_from_outside("interactions_file")
        run.read_from_outside("items_file")
    else:
        for path in source.paths:
            run.read_from_outside("data_dir", path)
    run.known["raw"] = content_of(run.inputs)
    before = run.folder.stages().get(run.stage)
    if before is not None and content_of(before["inputs"]) != run.known["raw"]:
        names = ", ".join(Path(path).name for path in source.paths)
        raise GlossError(
            f"{run.folder.root} was made from other raw files than {names} in {run['data_dir']}; "
            "choose another run_dir, or delete that folder"
        )
    return source


def show_counts(run: Run, data: Dataset) -> pd.DataFrame:
    """The counts of the data set, beside the published ones where there are any."""
    return published.statistics_beside(run["dataset"], data.statistics)


def show_left_out(data: Dataset) -> pd.DataFrame:
    """What is not in the tables, and why: column count; the index says what was counted."""
    counts = {name.replace("_", " "): count for name, count in data.statistics["dropped"].items()}
    for kind, reasons in data.statistics["rejected"].items():
        counts |= {f"rejected {kind}: {reason}": count for reason, count in reasons.items()}
    return pd.DataFrame({"count": counts})


def show_overview(run: Run, data: Dataset) -> plt.Figure:
    """How long histories are, how popular items are, and how long titles are."""
    return run.save_figure(data_plots.dataset_overview(data), "01_dataset")


def show_prompts(data: Dataset):
    """Print the prompts of two users' histories without their last item."""
    lists = data.sequences().lists
    for places in (lists[user : user + 1].places for user in (0, len(lists) // 2)):
        print(tables.wrapped(prompts.prompt(data.items["title"].iloc[places[:-1]])))
        print("Title: …\n" + "=" * 100)
