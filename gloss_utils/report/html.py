"""Executed notebooks as web pages that need no network, and the pages of a run joined into one."""

import logging
import re
import warnings
from html import escape

from nbconvert import HTMLExporter
from nbformat import NotebookNode, v4

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


def joined_page(notebooks: list[NotebookNode], title: str, front: str) -> str:
    """Notebooks as one page: the title, `front` (HTML), a table of contents, and the notebooks with folded code."""
    cells = [cell for notebook in notebooks for cell in notebook.cells]
    front = f"<h1>{escape(title)}</h1>{front}{_contents(cells)}"
    return page(v4.new_notebook(cells=cells), title, PAGE + JOINED, front=front)


def _contents(cells: list[NotebookNode]) -> str:
    lines = []
    for cell in cells:
        for mark, name in HEADING.findall(cell.source) if cell.cell_type == "markdown" else ():
            link = f'<a href="#cell-id={cell.id}">{escape(name.replace("`", ""))}</a>'
            lines.append(f'<div style="margin-left: {1.5 * (len(mark) - 1)}em">{link}</div>')
    return f"<h2>Contents</h2><nav>{''.join(lines)}</nav>"
