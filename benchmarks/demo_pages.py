"""docs/demo/: the executed notebooks of the demo as Markdown pages, which GitHub shows with their pictures.

`make pages` runs the demo, as far as it is not done, and writes the pages again; the pictures go to figures/demo/. No
page names a folder of the machine that wrote it.
"""

import re
import sys
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter

from gloss_utils.base.files import write_whole
from gloss_utils.runs.parameters import ROOT, STAGES

PAGES, PICTURES = Path("docs/demo"), Path("figures/demo")  # in the repository
SHOWN = STAGES[:6]
FOLDED = "<details><summary>{title}</summary>\n\n```python\n{code}\n```\n\n</details>"
NOTE = """*Written by `make pages` from the demo's executed notebooks, and not by hand: [all pages](README.md),
[the notebook](../../notebooks/{stage}.ipynb). The demo is a made-up shop; its numbers say nothing about real ones.*

"""
INDEX = """# The demo, as its notebooks show it

What `make run` makes, for looking at without running anything. The shop is made up
([what it is like](../measurements.md)), and its numbers say nothing about recommendation in real shops. The run was
made beside other work: on 2 idle cores it takes about 3 minutes.

{lines}

`make pages` writes these pages again. The figures and tables of a paper, which notebook 7 draws, are in
[figures/](../../figures).
"""


def page(notebook: nbformat.NotebookNode, stage: str, root: Path = ROOT) -> tuple[str, dict[str, bytes]]:
    """A stage's executed notebook as Markdown with `root` left out of paths, and its pictures by file name."""
    shown = nbformat.from_dict(notebook)
    for cell in shown.cells:
        if cell.cell_type == "code":
            cell.outputs = [_plain(output) for output in cell.outputs if output.get("name") != "stderr"]
        for tag, title in (("parameters", "Parameters"), ("injected-parameters", "Parameters of the demo")):
            if tag in cell.metadata.get("tags", []):
                folded = FOLDED.format(title=title, code=cell.source.strip())
                cell.update(nbformat.v4.new_markdown_cell(folded, id=cell.id))
    exporter = MarkdownExporter()
    text, resources = exporter.from_notebook_node(shown)
    pictures = {}
    for number, (name, content) in enumerate(resources["outputs"].items(), 1):
        pictures[f"{stage}-{number}.png"] = content
        text = re.sub(
            rf"!\[[^]]*\]\({re.escape(name)}\)", f"![Figure {number}](../../figures/demo/{stage}-{number}.png)", text
        )
    return NOTE.format(stage=stage) + text.replace(f"{root}/", ""), pictures


def _plain(output: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """An output whose HTML, if it has any, is one Markdown block: no styles and their names (some of which are drawn
    anew each time), no empty lines."""
    if html := output.get("data", {}).get("text/html"):
        html = re.sub(r'<style.*?</style>|(?: (?:id|class)="[^"]*")+(?: (?=>))?(?=[^<>]*>)', "", html, flags=re.DOTALL)
        output.data["text/html"] = "\n".join(line.strip() for line in html.splitlines() if line.strip())
    return output


def write(run: Path, root: Path = ROOT):
    """Write all pages and pictures of a finished run of the demo, in place of those in `root` (where it was made)."""
    made = {stage: page(nbformat.read(run / f"notebooks/{stage}.ipynb", 4), stage, root) for stage in SHOWN}
    lines = "\n".join(
        f"- [{re.search(r'^# (.+)$', text, re.MULTILINE)[1]}]({stage}.md)" for stage, (text, _) in made.items()
    )
    with write_whole(root / PAGES) as pages, write_whole(root / PICTURES) as pictures:
        pages.mkdir()
        pictures.mkdir()
        (pages / "README.md").write_text(INDEX.format(lines=lines), encoding="utf-8")
        for stage, (text, drawn) in made.items():
            (pages / f"{stage}.md").write_text(text, encoding="utf-8")
            for name, content in drawn.items():
                (pictures / name).write_bytes(content)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
    print(ROOT / PAGES)
