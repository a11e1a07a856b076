"""Executed notebooks as web pages that need no network, and those of a run joined into one page: `make report`, or

python -m gloss_utils.runs.report RUN_DIR
"""

import argparse
import logging
import re
import sys
import warnings
from html import escape
from pathlib import Path

import nbformat
import pandas as pd
from nbconvert import HTMLExporter
from nbformat import NotebookNode, v4

from gloss_utils.base.errors import GlossError
from gloss_utils.base.files import read_json, write_whole
from gloss_utils.runs import parameters as P
from gloss_utils.runs.folder import RunFolder
from gloss_utils.runs.results import without_folder

# nbconvert's page without what it would fetch (require.js, MathJax, mermaid, widgets). Tables scroll where they are
# wider than the window.
PAGE = """
{%- extends 'index.html.j2' -%}
{% block html_head_js %}{% endblock %}
{% block html_head_js_mathjax %}{% endblock %}
{% block html_head_js_mermaidjs %}{% endblock %}
{% block jupyter_widgets %}{% endblock %}
{% block html_head_css %}
<style>
main { max-width: 1100px; margin: auto; }
.jp-RenderedHTML, .front, .jp-InputArea-editor { overflow-x: auto; }
.jp-OutputArea-output[data-mime-type="application/vnd.jupyter.stderr"] { background: none; } /* progress bars */
.front { padding: 0 1em; }
details > summary { cursor: pointer; color: #616161; font-family: sans-serif; font-size: small; }
</style>
{% endblock %}
"""
HEADING = re.compile(r"^(#{1,3}) (.+)$", re.MULTILINE)
JOINED = """
{% block body_header %}{{ super() }}<div class="front jp-RenderedHTMLCommon">{{ resources.front }}</div>{% endblock %}
{% block input_group %}<details><summary>code</summary>{{ super() }}</details>{% endblock %}
{% block in_prompt %}{% endblock %}
{% block empty_in_prompt %}{% endblock %}
{% block output_area_prompt %}{% endblock %}
"""


def page(notebook: NotebookNode, title: str, template: str = PAGE, **resources: str) -> str:
    """A notebook as an HTML page that refers to nothing outside itself. resources: texts that the template asks for."""
    logging.getLogger("traitlets").setLevel(logging.ERROR)  # nbconvert asks for alternative texts of the pictures
    notebook.metadata["title"] = title
    notebook.metadata.pop("widgets", None)  # dead without a kernel
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return HTMLExporter(raw_template=template).from_notebook_node(notebook, resources)[0]


def write(folder: RunFolder) -> dict[str, str]:
    """Write `report.html`: results, parameters, contents, and the executed notebooks with their code folded.

    Returns the stages that are left out, and why. Raises `GlossError` where nothing is left to report. The notebooks,
    which are written after their stage is finished, are in no manifest: what they show, scripts in it included, is
    trusted as it stands in the run folder.
    """
    stages = folder.stages()
    if not stages:
        raise GlossError(f"{folder.root} is not the folder of a run: it has no manifest.json; give one like runs/demo")
    left_out = {stage: reason for stage in P.STAGES if (reason := _why_not(folder, stage))}
    cells = [cell for stage in P.STAGES if stage not in left_out for cell in _read(folder, stage).cells]
    if not cells:
        told = "; ".join(f"{stage} {reason}" for stage, reason in left_out.items())
        raise GlossError(f"{folder.root} has nothing to report: {told}")
    title = f"GLoSS · {folder.root.name}"
    front = [
        f"<h1>{escape(title)}</h1>",
        _results(folder),
        *(f"<p>Left out: {stage}, which {escape(reason)}.</p>" for stage, reason in left_out.items()),
        _parameters(stages),
        _contents(cells),
    ]
    with write_whole(folder.report) as part:
        part.write_text(page(v4.new_notebook(cells=cells), title, PAGE + JOINED, front="".join(front)), "utf-8")
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


def _read(folder: RunFolder, stage: str) -> NotebookNode:
    path = folder.notebooks / f"{stage}.ipynb"
    try:
        return nbformat.read(path, as_version=4)
    except ValueError:
        raise GlossError(f"{path} is damaged; delete it and run {stage} again (--from {stage[:2]} --force)") from None


def _results(folder: RunFolder) -> str:
    stages = folder.stages()
    if P.EVALUATE not in stages or folder.outdated(P.EVALUATE) or folder.damaged(stages[P.EVALUATE]):
        return "<p>There are no metrics: 05_evaluate is not finished.</p>"
    rows = read_json(folder.metrics)["rows"]
    if not rows:
        return "<p>Split next has no targets, so there are no metrics.</p>"
    from gloss_utils import evaluate  # loads torch

    dataset = stages[P.EXPLORE]["parameters"]["dataset"]
    told = f"Dataset {dataset}, split {rows[0]['split']}, all users, with 95 % intervals (bootstrap over users)."
    return f"<p>{escape(told)}</p>{evaluate.table(rows).to_html(border=0)}"


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


def _contents(cells: list[NotebookNode]) -> str:
    lines = []
    for cell in cells:
        for mark, name in HEADING.findall(cell.source) if cell.cell_type == "markdown" else ():
            link = f'<a href="#cell-id={cell.id}">{escape(name.replace("`", ""))}</a>'
            lines.append(f'<div style="margin-left: {1.5 * (len(mark) - 1)}em">{link}</div>')
    return f"<h2>Contents</h2><nav>{''.join(lines)}</nav>"


def main(arguments: list[str] | None = None) -> int:
    """Write a run's report; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m gloss_utils.runs.report",
        description="Join a run's executed notebooks into RUN_DIR/report.html.",
    )
    parser.add_argument("run_dir", type=Path)
    folder = RunFolder(parser.parse_args(arguments).run_dir.resolve())
    try:
        for stage, reason in write(folder).items():
            print(f"left out: {stage}, which {reason}")
    except GlossError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(folder.report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
