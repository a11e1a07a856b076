"""The notebooks as files, and under plain papermill."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import papermill
import pytest
from papermill.exceptions import PapermillExecutionError

from gloss_utils import explore_data
from gloss_utils.__main__ import main
from gloss_utils.base.errors import GlossError
from gloss_utils.base.files import read_json
from gloss_utils.data.dataset import Dataset
from gloss_utils.runs import notebooks
from gloss_utils.runs.folder import RunFolder
from gloss_utils.runs.given import assigned, read, read_file, resolve
from gloss_utils.runs.given import cell as cell_of
from gloss_utils.runs.parameters import (
    EVALUATE,
    EXPLORE,
    FINE_TUNE,
    MODELS,
    RETRIEVE,
    ROOT,
    STAGES,
    AllParameters,
    check,
    defaults,
)


def notebook(stage: str):
    return nbformat.read(ROOT / f"notebooks/{stage}.ipynb", as_version=4)


@pytest.mark.parametrize("stage", STAGES)
def test_notebook_is_clean_and_thin(stage):
    cells = notebook(stage).cells
    assert cells[0].cell_type == "markdown" and cells[0].source.startswith(f"# {int(stage[:2])} · ")
    assert sum("parameters" in cell.metadata.get("tags", []) for cell in cells) == 1
    for cell in cells:
        if cell.cell_type == "code":
            assert not cell.outputs and cell.execution_count is None
            most = 31 if "parameters" in cell.metadata.get("tags", []) else 30  # a line for each parameter
            assert "def " not in cell.source and len(cell.source.splitlines()) <= most


@pytest.mark.parametrize("stage", STAGES)
def test_parameters_cell_is_written_from_the_models(stage):
    cell = next(cell for cell in notebook(stage).cells if "parameters" in cell.metadata.get("tags", []))
    assert cell.source == cell_of(stage), "run `python -m gloss_utils cells`"
    assert check(assigned(cell.source)) == defaults(stage)


def test_notebooks_for_jupyterlab_have_the_parameters_of_the_files(tmp_path, capsys):
    run = tmp_path / "run"
    command = ["lab", str(ROOT / "params/demo.yaml"), "-p", "run_dir", str(run), "-p", "seed", "7"]
    assert main(command) == 0
    expected = read([str(ROOT / "params/demo.yaml")], [("seed", "7")]) | {"run_dir": str(run)}
    for stage in STAGES:
        book = nbformat.read(run / f"lab/{stage}.ipynb", as_version=4)
        first = next(cell for cell in book.cells if "parameters" in cell.metadata.get("tags", []))
        assert check(assigned(first.source)) == resolve(stage, expected)
        assert [cell.source for cell in book.cells if cell is not first] == [
            cell.source for cell in notebook(stage).cells if "parameters" not in cell.metadata.get("tags", [])
        ]
    paper = nbformat.read(run / "lab/07_paper_figures.ipynb", as_version=4).cells[1].source
    assert assigned(paper) == {"runs": [str(run)], "figures_dir": f"{run}/paper"}
    changed = run / f"lab/{EXPLORE}.ipynb"
    changed.write_text("mine")
    capsys.readouterr()
    assert main(command) == 0
    assert changed.read_text() == "mine" and f"{changed} was there" in capsys.readouterr().out
    RunFolder(run).check_is_run()  # a run may begin in it


def test_a_parameter_of_two_stages_is_the_same_in_both():
    fields = [(name, repr(field)) for model in MODELS.values() for name, field in model.model_fields.items()]
    assert len({name for name, _ in fields}) == len(set(fields)) == len(AllParameters.model_fields)


def test_every_parameter_file_is_valid():
    for file in (ROOT / "params").glob("*.yaml"):
        assert check(read_file(file))
        for stage in STAGES:
            resolve(stage, read([str(file)], []))


def test_llama_files_hold_the_published_settings():
    bases = {"1b": "meta-llama/Llama-3.2-1B", "3b": "meta-llama/Llama-3.2-3B", "8b": "meta-llama/Llama-3.1-8B"}
    for size, base in bases.items():
        values = read_file(ROOT / f"params/llama-{size}.yaml")
        expected = {
            "base_model": base,
            "lora_rank": 16,
            "lora_alpha": 16,
            "lora_dropout": 0.0,
            "max_length": 1024,
            "optimizer": "adamw_8bit",
            "learning_rate": 1e-4,
            "lr_scheduler": "linear",
            "warmup_steps": 300,
            "weight_decay": 0.01,
            "batch_size": 4,
            "gradient_accumulation": 4,
            "epochs": 10,
            "patience": 3,
            "seed": 3407,
            "num_beams": 5,
            "max_new_tokens": 50,
            "load_in_4bit": True,
            "lora_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        }
        assert {name: values[name] for name in expected} == expected


def test_plain_papermill_with_several_files(copied_run, tmp_path):
    folder, file = copied_run
    released = [json.loads(line) for line in folder.queries.read_text().splitlines()]
    queries = tmp_path / "released.json"
    queries.write_text(
        json.dumps([{k: r[k] for k in ("reviewer_id", "asin", "seen_asins", "generated_sequences")} for r in released])
    )
    second = tmp_path / "second.yaml"
    second.write_text(f"queries_file: {queries}\nnum_beams: 2\n")
    command = [
        Path(sys.executable).with_name("papermill"),
        ROOT / "notebooks/04_retrieve.ipynb",
        tmp_path / "out.ipynb",
        "-f",
        file,
        "-f",
        second,
        "-p",
        "retriever",
        "bm25",
        "-p",
        "run_dir",
        folder.root,
    ]
    done = subprocess.run(list(map(str, command)), cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    entry = folder.stages()[RETRIEVE]
    assert (entry["parameters"]["retriever"], entry["parameters"]["num_beams"]) == ("bm25", 2)
    assert "queries_file" in entry["inputs"] and FINE_TUNE not in entry["builds_on"]
    replayed = [json.loads(line) for line in folder.queries.read_text().splitlines()]
    assert [r["generated_sequences"] for r in replayed] == [r["generated_sequences"][:2] for r in released]
    assert replayed[0]["logprobs"] == [None, None]


def execute(stage: str, tmp_path, **parameters):
    papermill.execute_notebook(
        ROOT / f"notebooks/{stage}.ipynb", tmp_path / "out.ipynb", parameters=parameters, progress_bar=False
    )
    return nbformat.read(tmp_path / "out.ipynb", as_version=4)


def failure(stage: str, tmp_path, **parameters) -> str:
    with pytest.raises(PapermillExecutionError) as raised:
        execute(stage, tmp_path, **parameters)
    assert raised.value.ename == "GlossError"
    assert "\n" not in raised.value.evalue
    return raised.value.evalue


def test_a_notebook_alone_says_which_to_run_first(tmp_path):
    assert failure(RETRIEVE, tmp_path, run_dir=str(tmp_path / "none")).endswith(
        "holds no finished 01_explore_data; run notebooks/01_explore_data.ipynb first"
    )
    assert not (tmp_path / "none").exists()


def test_an_unknown_parameter_under_papermill(tmp_path):
    assert failure(EXPLORE, tmp_path, nonsense=3).startswith("unknown parameter 'nonsense' (value 3)")


def test_a_name_misspelt_in_the_first_cell_by_hand(tmp_path):
    """Also where the kernel still has the right name, from before."""
    cells = ["", f'run_dir = "{tmp_path}"\nmax_users = 9', f'run_dir = "{tmp_path}"\nmax_user = 8  # of many']
    given = {"run_dir": str(tmp_path), "max_users": 9, "max_user": 8, "In": cells}
    with pytest.raises(GlossError, match=r"unknown parameter 'max_user' \(value 8\); did you mean max_users"):
        explore_data.start(given)
    given["In"].append(cells[1])
    assert explore_data.start(given)["max_users"] == 9


def test_a_run_folder_of_another_dataset(small_run, tmp_path):
    folder, _ = small_run
    assert "was made from dataset 'demo', not 'toys'" in failure(
        EVALUATE, tmp_path, run_dir=str(folder.root), dataset="toys"
    )


def test_split_next_recommends_without_targets(copied_run):
    folder, file = copied_run
    import pandas as pd

    notebooks.run([str(file)], [("split", "next")])
    found = pd.read_parquet(folder.recommendations)
    assert list(found.columns) == ["user", "rank", "item", "title", "score"]
    assert found["user"].nunique() == 60 and found["title"].notna().all() and (found["rank"] >= 1).all()
    records = [json.loads(line) for line in folder.queries.read_text().splitlines()]
    whole = Dataset.load(folder.data).sequences()
    assert all(record["asin"] is None and record["seen_asins"] == whole[record["reviewer_id"]] for record in records)
    assert not any(read_json(folder.metrics).values())
    assert not folder.qrels.exists()


def test_replaying_a_file_trains_nothing_and_gives_the_same(copied_run, small_run, tmp_path):
    folder, file = copied_run
    queries = shutil.copy(folder.queries, tmp_path)
    trained = folder.stages()[FINE_TUNE]
    notebooks.run([str(file)], [("queries_file", str(queries))], last="05")
    assert folder.stages()[FINE_TUNE] == trained  # kept for the next run that generates
    assert read_json(folder.metrics) == read_json(small_run[0].metrics)
    for path in small_run[0].rankings.iterdir():  # the same seed, the same bytes
        assert (folder.rankings / path.name).read_bytes() == path.read_bytes()


def test_replaying_a_file_in_a_new_folder_has_nothing_to_train(small_run, tmp_path):
    folder, file = small_run
    run = notebooks.run(
        [str(file)],
        [("queries_file", str(folder.queries)), ("run_dir", str(tmp_path / "replay"))],
        last="02",
    )
    assert run.stages()[FINE_TUNE]["outputs"] == {} and not run.adapter.exists()
    assert "Nothing to do: the queries are read from" in (run.notebooks / "02_fine_tune.html").read_text()
