"""Web pages that need no network: executed notebooks, and the notebooks of a run joined into one page."""

import logging
import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment, FileSystemLoader

if TYPE_CHECKING:  # nbformat and nbconvert take seconds to import, and a story needs only the templates
    from nbformat import NotebookNode

FOLDER = Path(__file__).parent
TEMPLATES = Environment(loader=FileSystemLoader(FOLDER), autoescape=True)
HEADING = re.compile(r"^(#{1,3}) (.+)$", re.MULTILINE)


def page(notebook: "NotebookNode", title: str, front: str = "") -> str:
    """A notebook as an HTML page that refers to nothing outside itself; with a `front` (HTML), its code is folded."""
    from nbconvert import HTMLExporter

    logging.getLogger("traitlets").setLevel(logging.ERROR)  # nbconvert asks for alternative texts of the pictures
    notebook.metadata["title"] = title
    notebook.metadata.pop("widgets", None)  # dead without a kernel
    exporter = HTMLExporter(raw_template=(FOLDER / "page.html.j2").read_text(encoding="utf-8"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return exporter.from_notebook_node(notebook, {"front": front})[0]


def joined_page(notebooks: "list[NotebookNode]", title: str, **front) -> str:
    """Notebooks as one page with their code folded; before them, what the template `front.html.j2` makes of `front`."""
    from nbformat import v4

    cells = [cell for notebook in notebooks for cell in notebook.cells]
    written = [cell for cell in cells if cell.cell_type == "markdown"]
    found = [(cell.id, mark, name) for cell in written for mark, name in HEADING.findall(cell.source)]
    headings = [(cell, len(mark), name.replace("`", "")) for cell, mark, name in found]
    front = TEMPLATES.get_template("front.html.j2").render(title=title, headings=headings, **front)
    return page(v4.new_notebook(cells=cells), title, front)
