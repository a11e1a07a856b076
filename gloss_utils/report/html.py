"""Executed notebooks as web pages that need no network, and the notebooks of a run joined into one page."""

import logging
import re
import warnings
from html import escape
from pathlib import Path

from nbconvert import HTMLExporter
from nbformat import NotebookNode, v4

TEMPLATE = Path(__file__).with_name("page.html.j2")
HEADING = re.compile(r"^(#{1,3}) (.+)$", re.MULTILINE)


def page(notebook: NotebookNode, title: str, front: str = "") -> str:
    """A notebook as an HTML page that refers to nothing outside itself; with a `front` (HTML), its code is folded."""
    logging.getLogger("traitlets").setLevel(logging.ERROR)  # nbconvert asks for alternative texts of the pictures
    notebook.metadata["title"] = title
    notebook.metadata.pop("widgets", None)  # dead without a kernel
    exporter = HTMLExporter(raw_template=TEMPLATE.read_text(encoding="utf-8"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return exporter.from_notebook_node(notebook, {"front": front})[0]


def joined_page(notebooks: list[NotebookNode], title: str, front: str) -> str:
    """Notebooks as one page: title, `front` (HTML), table of contents, and the notebooks with their code folded."""
    cells = [cell for notebook in notebooks for cell in notebook.cells]
    front = f"<h1>{escape(title)}</h1>{front}{_contents(cells)}"
    return page(v4.new_notebook(cells=cells), title, front)


def _contents(cells: list[NotebookNode]) -> str:
    lines = []
    for cell in cells:
        for mark, name in HEADING.findall(cell.source) if cell.cell_type == "markdown" else ():
            link = f'<a href="#cell-id={cell.id}">{escape(name.replace("`", ""))}</a>'
            lines.append(f'<div style="margin-left: {1.5 * (len(mark) - 1)}em">{link}</div>')
    return f"<h2>Contents</h2><nav>{''.join(lines)}</nav>"
