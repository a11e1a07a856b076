"""The notebook for a hosted GPU: its cells, on the CPU, with the tiny base model and Beauty's raw files."""

import nbformat
import papermill
import pytest
from helpers import SHARED

from gloss_utils.runs.parameters import ROOT

NOTEBOOK = ROOT / "notebooks/hosted_t4.ipynb"


def test_hosted_notebook_is_stripped():
    for cell in nbformat.read(NOTEBOOK, as_version=4).cells:
        assert cell.cell_type == "markdown" or (not cell.outputs and cell.execution_count is None)


def test_hosted_notebook_runs(small_run, tmp_path):
    data_dir = SHARED / "data/amazon2014"
    if not data_dir.is_dir():
        pytest.skip(f"the raw Amazon files are not in {data_dir}")
    changes = {
        "base_model": str(small_run[0].base),
        "epochs": 1,
        "optimizer": "adamw_torch",
        "gradient_checkpointing": False,
        "max_length": 256,
        "num_beams": 2,
        "max_new_tokens": 12,
    }
    parameters = {"users": 60, "examples": 2, "changes": changes}
    parameters |= {"run_dir": str(tmp_path / "run"), "data_dir": str(data_dir)}
    done = papermill.execute_notebook(NOTEBOOK, tmp_path / "done.ipynb", parameters, cwd=tmp_path, progress_bar=False)
    *_, shown = [cell for cell in done.cells if cell.cell_type == "code"]
    html = shown.outputs[0]["data"]["text/html"]
    assert html.count('class="row_heading') == 4 and "nearest item" in html
    assert {"adapter_model.safetensors", "tokenizer.json"} <= {
        path.name for path in (tmp_path / "run/adapter").iterdir()
    }
    assert any("image/png" in output.get("data", {}) for cell in done.cells for output in cell.get("outputs", []))
