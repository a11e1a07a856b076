"""docs/demo/: the executed notebooks of the demo as pages; they belong to the notebooks as they are now."""

import base64
import json
import re

import pytest
import yaml
from nbformat import v4

from benchmarks import demo_pages
from gloss_utils.runs.parameters import ROOT

PAGES, PICTURES = ROOT / demo_pages.PAGES, ROOT / demo_pages.PICTURES
REFRESH = "the notebooks have changed since the pages were written: run `make pages`"


def text(stage: str) -> str:
    return (PAGES / f"{stage}.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("stage", demo_pages.SHOWN)
def test_a_page_holds_all_cells_of_the_present_notebook_in_their_order(stage):
    shown, place = text(stage), 0
    for cell in json.loads((ROOT / f"notebooks/{stage}.ipynb").read_text(encoding="utf-8"))["cells"]:
        found = shown.find("".join(cell["source"]).strip(), place)
        assert found >= 0, f"{REFRESH}; {stage} lacks:\n{''.join(cell['source'])}"
        place = found


def test_pages_are_of_the_demo_as_its_parameters_are_now():
    pages = "\n".join(map(text, demo_pages.SHOWN))
    for name, value in yaml.safe_load((ROOT / "params/demo.yaml").read_text(encoding="utf-8")).items():
        assert name == "run_dir" or f"\n{name} = {json.dumps(value)}\n" in pages, f"{REFRESH}; {name}"


def test_pages_show_all_pictures_that_are_there_and_no_others():
    shown = {name for stage in demo_pages.SHOWN for name in re.findall(r"/figures/demo/([^)]+)\)", text(stage))}
    assert shown and shown == {path.name for path in PICTURES.iterdir()}
    assert {path.stem for path in PAGES.iterdir()} == {"README", *demo_pages.SHOWN}


def test_a_page_is_plain_markdown_without_the_machines_folders(tmp_path):
    row = f'<tr><td class="data" id="T_1f_0">{tmp_path}/runs/demo</td></tr>'
    table = f'<style>td {{}}</style>\n<table id="T_1f">\n\n  {row}\n</table>'
    outputs = [
        v4.new_output("stream", name="stderr", text="bar: 100%"),
        v4.new_output("display_data", {"text/html": table, "text/plain": "a table"}),
        v4.new_output("display_data", {"image/png": base64.b64encode(b"a picture").decode(), "text/plain": "Figure"}),
    ]
    given = v4.new_code_cell(f'run_dir = "{tmp_path}/runs/demo"', metadata={"tags": ["injected-parameters"]})
    notebook = v4.new_notebook(
        cells=[v4.new_markdown_cell("# 1 · A"), given, v4.new_code_cell("go()", outputs=outputs)]
    )
    shown, pictures = demo_pages.page(notebook, "01_explore_data", tmp_path)
    assert pictures == {"01_explore_data-1.png": b"a picture"}
    assert "![Figure 1](../../figures/demo/01_explore_data-1.png)" in shown
    assert "<table>\n<tr><td>runs/demo</td></tr>\n</table>" in shown
    assert '<details><summary>Parameters of the demo</summary>\n\n```python\nrun_dir = "runs/demo"\n```' in shown
    assert not any(left in shown for left in ("bar:", "style", "a table", "T_1f", "class", str(tmp_path)))
