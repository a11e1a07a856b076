"""The runner: what a finished run holds, what is skipped, where a run goes on, what failing says."""

import json

import pandas as pd
import pytest
import yaml
from helpers import one_line_error

from gloss_utils import evaluate, retrieve
from gloss_utils.__main__ import main
from gloss_utils.base.errors import GlossError
from gloss_utils.base.files import read_json, write_json
from gloss_utils.data import queries
from gloss_utils.data.dataset import Dataset
from gloss_utils.rank import read_trec
from gloss_utils.rank.signals import PARTS
from gloss_utils.report import segments, stories, tables
from gloss_utils.report.metrics import GLOSS_HISTORIES, KEPT_IN, LEFT_OUT, METRICS, SEEN
from gloss_utils.runs import asking, given, notebooks
from gloss_utils.runs.folder import RunFolder
from gloss_utils.runs.parameters import EXPLORE, FINE_TUNE, RETRIEVE, ROOT, SEGMENTS, STAGES, AllParameters
from gloss_utils.runs.run import Run, open_run


@pytest.fixture
def executed(monkeypatch) -> list[str]:
    """Stages that the runner would execute; executing one marks it as finished anew with other outputs."""
    stages = []

    def execute(stage, passed, folder: RunFolder):
        stages.append(stage)
        manifest = folder.stages()
        manifest[stage] |= {"parameters": {}, "outputs": {}}
        write_json(folder.manifest, manifest)

    monkeypatch.setattr(notebooks, "execute", execute)
    return stages


def finish_again(folder: RunFolder, stage: str, **parameters):
    """Mark a stage as finished again, with other parameters."""
    manifest = folder.stages()
    manifest[stage]["parameters"] |= parameters
    write_json(folder.manifest, manifest)


def open_alone(stage: str, folder: RunFolder, **values) -> Run:
    return open_run(stage, values | {"run_dir": str(folder.root)})


def test_a_stage_does_not_build_on_one_that_is_outdated(copied_run):
    folder, _ = copied_run
    assert open_alone(RETRIEVE, folder)["seed"] == 3407
    finish_again(folder, EXPLORE, seed=1)
    with pytest.raises(GlossError, match="01_explore_data was run again after 02_fine_tune; run notebooks/02_fine"):
        open_alone(RETRIEVE, folder)


def test_generating_needs_a_model_that_was_trained(copied_run):
    folder, _ = copied_run
    finish_again(folder, FINE_TUNE, queries_file="queries.jsonl")
    with pytest.raises(GlossError, match="02_fine_tune trained nothing, because queries_file was given"):
        open_alone(RETRIEVE, folder)


def test_the_box_of_users_starts_with_the_one_asked_for(small_run):
    folder, _ = small_run
    found = queries.read(folder.queries, 3, 0)
    ranked = read_trec(folder.ranking("gloss")).set_axis(["user", "item", "score"], axis=1)
    results = retrieve.Retrieved(Dataset.load(folder.data), found, ranked)
    for user in found["user"].iloc[[0, 5]]:
        assert retrieve.browse(results, user).children[0].value == user
    assert retrieve.browse(results).children[0].value == stories.telling_user(found, ranked)


def test_another_ranking_takes_the_old_pages_and_metrics_away(copied_run, monkeypatch):
    folder, _ = copied_run
    texts = folder.queries.read_bytes()
    monkeypatch.setattr(asking, "written", lambda *args: pytest.fail("generated again"))
    parameters = folder.stages()[RETRIEVE]["parameters"]
    run = open_alone(RETRIEVE, folder, **parameters | {"retriever": "bm25", "top_k": 2})
    retrieve.prepare(run)
    run.finish()
    assert folder.queries.read_bytes() == texts
    assert not (folder.notebooks / "04_retrieve.html").exists()  # it would show other results
    assert "recall@5" not in notebooks.summary(folder)  # the metrics are of the ranking before


METHODS = set(tables.METHODS) - {GLOSS_HISTORIES}  # which ranks beside a model that is asked


def test_run_folder_holds_what_it_should(small_run):
    folder, _ = small_run
    for path in (
        folder.parameters,
        folder.items,
        folder.users,
        folder.statistics,
        folder.adapter,
        folder.base,
        folder.training,
        folder.dense_index,
        folder.bm25_index,
        folder.queries,
        folder.qrels,
        folder.trees,
        folder.per_user,
        folder.metrics,
        *map(folder.ranking, ("gloss", "gloss-paper")),
        *(folder.ranking(method, seen) for method in METHODS for seen in SEEN),
    ):
        assert path.exists(), path
    assert {"users", "items", "interactions"} <= read_json(folder.statistics).keys()
    assert (folder.adapter / "adapter_model.safetensors").exists()
    names = {path.name for path in folder.figures.iterdir()}
    assert {
        f"{name}.{kind}"
        for name in (
            "01_dataset",
            "02_loss",
            "03_catalogue_map",
            "05_methods",
            "05_number_of_queries",
            "05_coverage",
            "05_parts",
            "05_ties",
            "06_segments",
            "06_new_items",
            "06_history_length",
        )
        for kind in ("png", "pdf")
    } == names
    for stage in STAGES:
        assert (folder.notebooks / f"{stage}.ipynb").exists() and (folder.notebooks / f"{stage}.html").exists()
    assert not list(folder.root.rglob("*partial*"))


def test_manifest_and_resolved_parameters(small_run):
    folder, file = small_run
    manifest = folder.stages()
    assert list(manifest) == list(STAGES)
    for entry in manifest.values():
        assert entry["outputs"] and entry["seconds"] > 0 and entry["versions"]["torch"]
    assert len(manifest[EXPLORE]["inputs"]) == 2
    resolved = yaml.safe_load(folder.parameters.read_text())
    given = yaml.safe_load(file.read_text())
    assert {name: resolved[name] for name in given} == given
    assert set(resolved) == set(AllParameters.model_fields) - {"remake"}


def test_metrics_file(small_run):
    folder, _ = small_run
    metrics = read_json(folder.metrics)
    keys = [(row["method"], row["seen"], row["segment"]) for row in metrics["rows"]]
    found = [*segments.SEGMENTS, segments.NEW_ITEMS]
    assert sorted(keys) == sorted((m, seen, s) for m in METHODS for seen in SEEN for s in found)
    per_user = pd.read_parquet(folder.per_user)
    assert list(per_user.columns) == evaluate.COLUMNS
    for row in metrics["rows"]:
        some = per_user[(per_user["method"] == row["method"]) & (per_user["seen"] == row["seen"])]
        some = some[segments.members(some)[row["segment"]]]
        assert row["users"] == row["targets"] == len(some) and row["split"] == "test"
        assert row["recall@5"] == pytest.approx(some["recall@5"].mean(), abs=1e-6)
    assert {(row["ranking"], row["retriever"], row["queries"]) for row in metrics["ablation"]} == {
        (*rule, count) for rule in (("paper", "dense"), ("paper", "bm25")) for count in (1, 2, 3)
    }
    offered = {"gloss": LEFT_OUT, "gloss-paper": KEPT_IN}  # by default
    rows = [row for row in metrics["rows"] if row["segment"] == "all"]
    rows = {row["method"]: row for row in rows if row["seen"] == offered.get(row["method"])}
    whole = {(row["ranking"], row["retriever"]): row for row in metrics["ablation"] if row["queries"] == 3}
    for metric in METRICS:
        assert rows["gloss"][metric] == metrics["parts"][0][metric]
        assert whole["paper", "dense"][metric] == rows["gloss-paper"][metric]
    assert [row["left_out"] for row in metrics["parts"]] == ["none", *PARTS]
    assert len(metrics["comparisons"]) == 2 * 2 * (len(METHODS) - 1) and len(metrics["ties"]) == 100
    assert sum(row["gain"] for row in metrics["importances"]) == pytest.approx(1) and metrics["text_weights"] == []
    assert not any(row["in_sample"] for row in metrics["rows"])


def test_finished_stages_are_skipped(small_run, executed, capsys):
    _, file = small_run
    assert main(["run", str(file)]) == 0
    assert executed == []
    printed = capsys.readouterr().out
    assert printed.count("up to date") == 6
    assert "recall@5" in printed and "06_user_segments.html" in printed and "05_methods.png" in printed


@pytest.mark.parametrize(
    ("change", "rerun"),
    [
        (("retriever", "bm25"), ["04", "05", "06"]),
        (("lora_rank", "8"), ["02", "04", "05", "06"]),
        (("max_users", "50"), ["01", "02", "03", "04", "05", "06"]),
        (("power_min", "9"), ["05", "06"]),
    ],
)
def test_a_changed_parameter_reruns_its_stage_and_what_builds_on_it(copied_run, executed, change, rerun):
    _, file = copied_run
    notebooks.run([str(file)], [change])
    assert [stage[:2] for stage in executed] == rerun


def test_a_changed_artifact_is_made_again(copied_run, executed):
    folder, file = copied_run
    raw = bytearray(folder.qrels.read_bytes())
    raw[3] ^= 1
    folder.qrels.write_bytes(raw)
    notebooks.run([str(file)], [])
    assert [stage[:2] for stage in executed] == ["04", "05", "06"]


def test_from_until_force(copied_run, executed, capsys):
    _, file = copied_run
    notebooks.run([str(file)], [("num_beams", "2")], first="05", last="5", force=True)
    assert [stage[:2] for stage in executed] == ["05"]
    assert "04_retrieve: kept as it was made, with other values of num_beams" in capsys.readouterr().out
    with pytest.raises(GlossError, match="take one of 01, 02"):
        notebooks.run([str(file)], [], first="07")
    with pytest.raises(GlossError, match="nothing to run"):
        notebooks.run([str(file)], [], first="05", last="02")


def test_goes_on_from_the_stage_that_failed(copied_run, capfd):
    folder, file = copied_run
    before = folder.stages()
    assert main(["run", str(file), "-p", "show_user", "nobody", "--until", "04"]) == 1
    error = capfd.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: 04_retrieve: parameter show_user is 'nobody'")
    assert folder.stages()[EXPLORE] == before[EXPLORE]
    assert (folder.notebooks / "04_retrieve.failed.ipynb").exists()
    assert main(["run", str(file), "--until", "05"]) == 0
    printed = capfd.readouterr().out
    assert "03_build_index: up to date" in printed
    assert not (folder.notebooks / "04_retrieve.failed.ipynb").exists() or "04_retrieve: up to date" in printed


def test_a_failing_cell_is_shown(copied_run, monkeypatch, capfd, tmp_path):
    _, file = copied_run
    books = tmp_path / "notebooks"
    books.mkdir()
    for stage in STAGES:
        book = json.loads((notebooks.NOTEBOOKS / f"{stage}.ipynb").read_text())
        if stage == SEGMENTS:
            book["cells"][2]["source"] = "1 / 0"
        (books / f"{stage}.ipynb").write_text(json.dumps(book))
    monkeypatch.setattr(notebooks, "NOTEBOOKS", books)
    assert main(["run", str(file), "--force", "--from", "06"]) == 1
    error = capfd.readouterr().err
    assert "06_user_segments failed in cell" in error and "ZeroDivisionError: division by zero" in error


@pytest.mark.parametrize("kind", ["other files", "repository", "above it"])
def test_a_folder_that_is_no_run_is_refused_and_left_as_it_is(tmp_path, executed, kind):
    (tmp_path / "parts").mkdir()
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks/01_explore_data.ipynb").write_text("mine")
    root = {"other files": tmp_path, "repository": ROOT, "above it": ROOT / "tests/../.."}[kind]
    before = sorted(path.name for path in root.iterdir())
    with one_line_error("run_dir", "choose a", "this repository" if kind != "other files" else "not empty"):
        notebooks.run([str(ROOT / "params/demo.yaml")], [("run_dir", str(root))])
    with one_line_error("run_dir", "choose a"):
        open_alone(EXPLORE, RunFolder(root))
    assert not executed and sorted(path.name for path in root.iterdir()) == before
    assert (tmp_path / "notebooks/01_explore_data.ipynb").read_text() == "mine"


@pytest.mark.parametrize("mark", ["manifest.json", "params.yaml", ".run.lock"])
def test_a_run_that_was_cut_off_early_is_taken_up(tmp_path, mark):
    (tmp_path / mark).write_text("{}")
    (tmp_path / "figures").mkdir()
    assert open_alone(EXPLORE, RunFolder(tmp_path)).folder.root == tmp_path


def test_queries_that_stop_a_run_before_any_work_can_be_looked_at(tmp_path, executed):
    good = {"reviewer_id": "u", "asin": "t", "seen_asins": [], "generated_sequences": ["x"]}
    file, folder = tmp_path / "queries.jsonl", RunFolder(tmp_path / "run")
    file.write_text("\n".join(map(json.dumps, [good, good | {"reviewer_id": "v v"}])))
    for _ in range(2):  # what it leaves is the folder of a run
        with one_line_error("1 of 2 records", "line 2: reviewer_id is not an id", f"are in {folder.refused}"):
            told = [("queries_file", str(file)), ("run_dir", str(folder.root))]
            notebooks.run([str(ROOT / "params/demo.yaml")], told)
    assert read_json(folder.refused)["place"] == "line 2" and not executed


def test_run_dir_by_default_is_named_after_the_files(tmp_path):
    params = ROOT / "params"
    toys, llama, demo = (str(params / f"{name}.yaml") for name in ("toys", "llama-1b", "demo"))
    assert given.read([toys, llama], [])["run_dir"] == str(ROOT / "runs/toys-llama-1b")
    assert given.read([demo], [])["run_dir"] == str(ROOT / "runs/demo")
    own = tmp_path / "own.yaml"
    own.write_text("run_dir: runs/mine\n")
    assert given.read([toys, str(own)], [])["run_dir"] == str(ROOT / "runs/mine")
    assert given.read([str(own), llama], [])["run_dir"] == str(ROOT / "runs/mine")


def test_later_files_and_the_command_line_win(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.yaml").write_text("num_beams: 2\nseed: 1\ndata_dir: here\n")
    (tmp_path / "b.yaml").write_text("seed: 2\n")
    values = given.read(["a.yaml", "b.yaml"], [("num_beams", "4"), ("run_dir", "x"), ("learning_rate", "1e-4")])
    assert (values["num_beams"], values["seed"], values["learning_rate"]) == (4, 2, 1e-4)
    assert values["run_dir"] == str(tmp_path / "x")  # on the command line, from the caller's folder
    assert values["data_dir"] == str(ROOT / "here")  # in a file, from the repository's root
