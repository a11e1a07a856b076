"""Bad input on the command line: one line that says what, where and what to do; earlier results stay as they were."""

import errno
import gzip
import http.server
import json
import os
import shutil
import threading

import pytest
from conftest import write_parameters

from gloss_utils.__main__ import main
from gloss_utils.base import hub
from gloss_utils.base.errors import GlossError
from gloss_utils.base.files import fingerprint, write_whole
from gloss_utils.runs.contents import input_path
from gloss_utils.runs.folder import RunFolder
from gloss_utils.runs.parameters import EXPLORE, FINE_TUNE


def error_of(capfd, *arguments) -> str:
    """Run the command line, which must fail, and return its last line of error, which must be all that is said."""
    capfd.readouterr()
    assert main(["run", *map(str, arguments)]) == 1
    lines = capfd.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("error: "), lines[-5:]
    return lines[-1].removeprefix("error: ")


def results(folder: RunFolder) -> dict[str, str]:
    kept = (folder.metrics, folder.queries, folder.adapter, folder.rankings, folder.items, folder.manifest)
    return {str(path): fingerprint(path) for path in kept}


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("num_beam", "5", "unknown parameter 'num_beam' (value 5); did you mean num_beams?"),
        ("nonsense", "5", "unknown parameter 'nonsense' (value 5); there are run_dir, "),
        ("num_beams", "five", "parameter num_beams is 'five'; it has to be a valid integer"),
        ("num_beams", "0", "parameter num_beams is 0; it has to be greater than or equal to 1"),
        ("num_beams", "true", "parameter num_beams is True; it has to be a valid integer"),
        ("tiny_width", "100", "parameter tiny_width is 100; it has to be a multiple of 64"),
        ("num_beams", "2.5", "parameter num_beams is 2.5; it has to be a valid integer"),
        ("max_rejected", "2", "parameter max_rejected is 2; it has to be less than or equal to 1"),
        ("max_rejected", ".nan", "parameter max_rejected is nan; it has to be"),
        ("max_rejected", "true", "parameter max_rejected is True; it has to be a number"),
        ("learning_rate", "fast", "parameter learning_rate is 'fast'; it has to be a valid number"),
        ("learning_rate", ".inf", "parameter learning_rate is inf; it has to be a finite number"),
        ("split", "train", "parameter split is 'train'; it has to be 'test', 'validation' or 'next'"),
        ("dataset", "books", "parameter dataset is 'books'; it has to be demo, beauty, toys, sports, amazon2018"),
        ("exclude_seen", "maybe", "parameter exclude_seen is 'maybe'; it has to be a valid boolean or null"),
        ("seed", "null", "parameter seed is None; it has to be a valid integer"),
        ("lora_modules", "q_proj", "parameter lora_modules is 'q_proj'; it has to be a valid list"),
        ("power_min", "5", "parameter power_min is 5; it has to be above cold_start_max (5)"),
        ("dataset", "amazon2018-../x", "it has to be demo, beauty, toys, sports, amazon2018-CATEGORY"),
        ("dataset", "table", "parameter interactions_file is None, and there is no such file"),
        ("holdout", "future", "it has to be 'leave_one_out' or 'time'"),
        ("max_new_tokens", "1024", "parameter max_new_tokens is 1024; it has to be at most 1022"),
        ("ranking_weights", "/nowhere/w.yaml", "parameter ranking_weights is '/nowhere/w.yaml', and there is no such"),
    ],
)
def test_parameters_are_checked_before_any_work(tmp_path, capfd, name, value, says):
    file = write_parameters(tmp_path / "p.yaml", run_dir=str(tmp_path / "run"))
    assert says in error_of(capfd, file, "-p", name, value)
    assert not (tmp_path / "run").exists()


def test_the_paper_ranking_needs_its_weights_file_too(tmp_path, capfd):
    """The baseline item-knn counts as the weights file says."""
    file = write_parameters(tmp_path / "p.yaml", run_dir=str(tmp_path / "run"), ranking="paper")
    assert "there is no such file" in error_of(capfd, file, "-p", "ranking_weights", "/nowhere/w.yaml")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "cannot be read (No such file or directory)"),
        ("- a\n- b\n", "holds a list; write one `name: value` a line"),
        ("a: [1\n", "is not YAML"),
        ("extends: p.yaml\n", "extends itself"),
        ("extends: none.yaml\n", "none.yaml cannot be read (No such file or directory)"),
    ],
)
def test_parameter_files(tmp_path, capfd, text, says):
    file = tmp_path / "p.yaml"
    if text:
        file.write_text(text)
    assert says in error_of(capfd, file)


def test_queries_file_missing(copied_run, capfd):
    folder, file = copied_run
    before = results(folder)
    assert "there is no such file" in error_of(capfd, file, "-p", "queries_file", "/nowhere/queries.json")
    assert results(folder) == before


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"\x89PNG nothing of the kind", "is cut or damaged"),
        (b'[{"reviewer_id": "A"', "is not a JSON list"),
        (b'{"a": 1}\n{"b": 2}\n', "holds no usable record"),
        ("many bad", "more than max_rejected = 0.01 allows"),
    ],
)
def test_queries_file_not_in_its_format(copied_run, capfd, tmp_path, content, says):
    folder, file = copied_run
    if content == "many bad":
        lines = folder.queries.read_text().splitlines()
        content = "\n".join([*lines, "{}"]).encode()
    path = tmp_path / "queries.json"
    path.write_bytes(content)
    before = results(folder)
    message = error_of(capfd, file, "-p", "queries_file", path)
    assert says in message and str(path) in message
    assert results(folder) == before


def test_base_model_not_to_be_had(copied_run, capfd, tmp_path, monkeypatch):
    folder, file = copied_run
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    before = results(folder)
    assert error_of(capfd, file, "-p", "base_model", "nobody/no-such-model", "--until", "02") == (
        "base model 'nobody/no-such-model' is neither a local folder nor reachable on the Hugging Face "
        "hub; give the folder of a model, go online, or take base_model: tiny"
    )
    empty = tmp_path / "empty"
    empty.mkdir()
    assert f"base model folder {empty} cannot be loaded" in error_of(
        capfd, file, "-p", "base_model", empty, "--until", "02"
    )
    assert results(folder) == before


def test_the_hub_is_asked_before_its_client_retries(monkeypatch, tmp_path):
    constants = hub.huggingface_hub.constants
    server = http.server.HTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    assert not hub.only_local("nobody/model")
    assert hub.only_local(tmp_path)
    server.shutdown()
    server.server_close()
    assert hub.only_local("nobody/model")


def test_gated_base_model_says_what_to_do(monkeypatch):
    import httpx
    from huggingface_hub.errors import GatedRepoError

    from gloss_utils.language import models

    request = httpx.Request("GET", "https://localhost/model")

    def gated(*args, **kwargs):
        try:
            raise GatedRepoError("403", response=httpx.Response(403, request=request))
        except GatedRepoError as error:
            raise OSError("You are trying to access a gated repo.") from error

    monkeypatch.setattr(models, "only_local", lambda name: False)
    monkeypatch.setattr(models.AutoTokenizer, "from_pretrained", gated)
    with pytest.raises(GlossError, match=r"accept its licence .* run `hf auth login`"):
        models.load_base("meta-llama/Llama-3.2-1B", True)


def test_encoder_not_to_be_had(copied_run, capfd, monkeypatch):
    folder, file = copied_run
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    before = results(folder)
    assert "model 'nobody/no-such-encoder' is neither a local folder nor in the cache of this machine" in error_of(
        capfd, file, "-p", "encoder", "nobody/no-such-encoder"
    )
    assert results(folder) == before


def test_raw_file_cut_in_the_middle(small_run, tmp_path, capfd):
    folder, file = small_run
    data = tmp_path / "data"
    data.mkdir()
    for path in (file.parent / "data").glob("*.gz"):
        raw = path.read_bytes()
        (data / path.name).write_bytes(raw[: len(raw) // 2] if "reviews" in path.name else raw)
    before = results(folder)
    message = error_of(capfd, file, "-p", "data_dir", data, "-p", "run_dir", tmp_path / "run")
    assert "reviews_Demo_5.json.gz is cut or damaged in the middle of its packed data" in message
    assert not (tmp_path / "run/data").exists() and results(folder) == before


def test_raw_file_without_one_good_line(small_run, tmp_path, capfd):
    _, file = small_run
    data = tmp_path / "data"
    shutil.copytree(file.parent / "data", data)
    (data / "reviews_Demo_5.json.gz").write_bytes(gzip.compress(b"not a review\n" * 5))
    message = error_of(capfd, file, "-p", "data_dir", data, "-p", "run_dir", tmp_path / "run")
    assert "holds no usable record: 5 read (the first is line 1: it is not JSON)" in message


def test_run_folder_of_other_raw_files_or_dataset(copied_run, tmp_path, capfd):
    folder, file = copied_run
    data = tmp_path / "data"
    data.mkdir()
    inputs = folder.stages()[EXPLORE]["inputs"]
    for name in inputs:
        shutil.copy(input_path(name, folder.stages()[EXPLORE]["parameters"]), data)
    reviews = data / "reviews_Demo_5.json.gz"
    lines = gzip.decompress(reviews.read_bytes()).splitlines(keepends=True)
    reviews.write_bytes(gzip.compress(b"".join(lines[:-1])))
    before = results(folder)
    assert "was made from other raw files than reviews_Demo_5.json.gz" in error_of(capfd, file, "-p", "data_dir", data)
    assert "was made from dataset 'demo', not 'toys'" in error_of(capfd, file, "-p", "dataset", "toys")
    assert results(folder) == before


def test_nothing_to_download_from(tmp_path, capfd, monkeypatch):
    file = write_parameters(
        tmp_path / "p.yaml", dataset="beauty", run_dir=str(tmp_path / "run"), data_dir=str(tmp_path / "data")
    )
    for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    message = error_of(capfd, file)
    assert "holds no reviews_Beauty_5.json.gz, and it could not be downloaded" in message
    assert "set data_dir to the folder that has it" in message


def test_a_write_that_fails_leaves_what_was_there(tmp_path):
    path = tmp_path / "old"
    path.write_text("before")
    with pytest.raises(GlossError, match=r"the disk is full: .*old was not written"), write_whole(path) as part:
        part.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert path.read_text() == "before" and os.listdir(tmp_path) == ["old"]


def test_full_disk_loses_nothing(full_disk):
    path = full_disk / "old"
    with write_whole(path) as part:
        part.write_text("before")
    with (
        pytest.raises(GlossError, match=r"the disk is full: .*old was not written and nothing was lost"),
        write_whole(path) as part,
    ):
        part.write_bytes(b"x" * 300_000)
    assert path.read_text() == "before" and os.listdir(full_disk) == ["old"]


def test_full_disk_in_a_run(full_disk, small_run, capfd):
    _, file = small_run
    message = error_of(capfd, file, "-p", "run_dir", full_disk / "run", "--until", "02")
    assert "the disk is full" in message
    folder = RunFolder(full_disk / "run")
    for path in folder.root.rglob("*.json"):
        json.loads(path.read_text())
    assert FINE_TUNE not in folder.stages()
