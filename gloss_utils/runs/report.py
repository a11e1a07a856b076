"""The report of a run: its results and executed notebooks as one page, `report.html`."""

from html import escape
from pathlib import Path

import nbformat
import pandas as pd
from nbformat import NotebookNode

from gloss_utils.base.errors import GlossError
from gloss_utils.base.files import read_json, write_whole
from gloss_utils.report import html, tables
from gloss_utils.runs.folder import RunFolder
from gloss_utils.runs.parameters import EVALUATE, EXPLORE, STAGES
from gloss_utils.runs.results import without_folder


def write_report(root: str | Path) -> tuple[Path, dict[str, str]]:
    """Write `report.html` into a run folder; returns its path, and the stages that are left out, each with the reason.

    Raises `GlossError` where there is nothing to report. No manifest lists the executed notebooks, for they are written
    after their stage is finished: what they show, scripts included, is trusted as it stands in the run folder.
    """
    folder = RunFolder(Path(root).resolve())
    stages = folder.stages()
    if not stages:
        raise GlossError(f"{folder.root} is not the folder of a run: it has no manifest.json; give one like runs/demo")
    left_out = {stage: reason for stage in STAGES if (reason := _why_not(folder, stage))}
    notebooks = [_read(folder, stage) for stage in STAGES if stage not in left_out]
    if not notebooks:
        reasons = "; ".join(f"{stage} {reason}" for stage, reason in left_out.items())
        raise GlossError(f"{folder.root} has nothing to report: {reasons}")
    lines = [f"<p>Left out: {stage}, which {escape(reason)}.</p>" for stage, reason in left_out.items()]
    front = _results(folder, stages) + "".join(lines) + _parameters(stages)
    with write_whole(folder.report) as part:
        part.write_text(html.joined_page(notebooks, f"GLoSS · {folder.root.name}", front), encoding="utf-8")
    return folder.report, left_out


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


def _read(folder: RunFolder, stage: str) -> NotebookNode:
    path = folder.notebooks / f"{stage}.ipynb"
    try:
        return nbformat.read(path, as_version=4)
    except ValueError:
        raise GlossError(f"{path} is damaged; delete it and run {stage} again (--from {stage[:2]} --force)") from None


def _results(folder: RunFolder, stages: dict) -> str:
    if EVALUATE not in stages or folder.outdated(EVALUATE) or folder.damaged(stages[EVALUATE]):
        return "<p>There are no metrics: 05_evaluate is not finished.</p>"
    rows = read_json(folder.metrics)["rows"]
    if not rows:
        return "<p>Split next has no targets, so there are no metrics.</p>"
    dataset = stages[EXPLORE]["parameters"]["dataset"]
    about = f"Dataset {dataset}, split {rows[0]['split']}, all users, with 95 % intervals (bootstrap over users)."
    return f"<p>{escape(about)}</p>{tables.methods(rows).to_html(border=0)}"


def _parameters(stages: dict) -> str:
    rows = {
        stage: {
            "seconds": f"{entry['seconds']:,.0f}",
            "parameters": ", ".join(f"{name} {without_folder(value)}" for name, value in entry["parameters"].items()),
        }
        for stage, entry in stages.items()
    }
    versions = ", ".join(f"{name} {version}" for name, version in next(reversed(stages.values()))["versions"].items())
    with pd.option_context("display.max_colwidth", None):
        table = pd.DataFrame.from_dict(rows, orient="index").to_html(border=0)
    return f"<details><summary>parameters, times and versions</summary>{table}<p>{escape(versions)}</p></details>"
