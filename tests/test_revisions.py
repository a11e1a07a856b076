"""Revisions of hub models: which commit a name stands for, and that the asked one is loaded, from a hand-made cache."""

import http.server
import json
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import one_line_error
from sentence_transformers import SentenceTransformer
from sentence_transformers.models import StaticEmbedding

from gloss_utils.base import hub
from gloss_utils.base.files import read_json, write_json
from gloss_utils.language import models, qlora, tiny
from gloss_utils.search import DEFAULT_ENCODER, DenseIndex, Encoder, build_dense, encoder, load_encoder

OLD, NEW = "a" * 40, "b" * 40
TITLES = ["Rose Toner", "Day Cream", "Base Coat"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    """A hub cache with two snapshots of a language model and of an encoder: `main` is the new one, `v1` the old one."""
    root, tokenizer = tmp_path_factory.mktemp("hub"), tiny.train_tokenizer(TITLES, 300)
    for seed, commit in enumerate((OLD, NEW)):
        torch.manual_seed(seed)
        folder = root / "models--someone--writer/snapshots" / commit
        tiny.new_model(tokenizer, layers=1, width=64).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        weights = np.random.default_rng(seed).normal(size=(len(tokenizer), 8)).astype(np.float32)
        encodes = SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_weights=weights)], device="cpu")
        encodes.save_pretrained(str(root / "models--someone--encoder/snapshots" / commit))
    for model in root.iterdir():
        (model / "refs").mkdir()
        (model / "refs/main").write_text(NEW)
        (model / "refs/v1").write_text(OLD)
    return root


@pytest.fixture
def offline(cache, monkeypatch) -> Path:
    """The cache in place, and a hub that does not answer."""
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(cache))
    for room in (hub, models, encoder):
        monkeypatch.setattr(room, "only_local", lambda name: True)
    return cache


@pytest.fixture
def online(offline, monkeypatch):
    """A hub that answers: the `main` of its only model, someone/writer, has moved on; its servers know no other."""
    moved = "c" * 40

    class Hub(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            answers = {
                "/api/models/someone/writer": (200, {"id": "someone/writer", "sha": moved}, None),
                "/api/models/someone/writer/revision/v1": (200, {"id": "someone/writer", "sha": OLD}, None),
                "/api/models/someone/writer/revision/v9": (404, {}, "RevisionNotFound"),
                "/api/models/someone/encoder": (503, {}, None),
            }
            status, body, code = answers.get(self.path, (404, {}, "RepoNotFound"))
            self.send_response(status)
            if code:
                self.send_header("X-Error-Code", code)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, *_):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    hub_api = hub.huggingface_hub.HfApi
    monkeypatch.setattr(hub, "only_local", lambda name: False)
    monkeypatch.setattr(hub.huggingface_hub, "HfApi", lambda: hub_api(endpoint=address))
    yield moved
    server.shutdown()
    server.server_close()


def test_the_commit_of_a_name_from_the_cache(offline, tmp_path):
    assert hub.resolve("someone/writer") == hub.resolve("someone/writer", "main") == NEW
    assert hub.resolve("someone/writer", "v1") == hub.resolve("someone/writer", OLD) == OLD
    assert hub.resolve(tmp_path) is None
    with one_line_error(f"{tmp_path} is a local folder, which has no revisions"):
        hub.resolve(tmp_path, "v1")
    for revision in ("v9", "c" * 40, "../snapshots", ".."):
        with one_line_error(f"model 'someone/writer' at revision {revision!r} is neither", "does not answer"):
            hub.resolve("someone/writer", revision)
    with one_line_error("model 'nobody/model' is neither a local folder nor in the cache"):
        hub.resolve("nobody/model")


def test_the_commit_of_a_name_from_the_hub(online):
    assert hub.resolve("someone/writer") == online and hub.resolve("someone/writer", "v1") == OLD
    assert hub.resolve("someone/writer", NEW) == NEW  # cached: the hub need not be asked
    with one_line_error("model 'someone/writer' has no revision 'v9'"):
        hub.resolve("someone/writer", "v9")
    with one_line_error("model 'nobody/model' is neither a local folder nor on the Hugging Face hub"):
        hub.resolve("nobody/model")
    assert hub.resolve("someone/encoder") == NEW  # of a hub in trouble, the cache is asked
    with one_line_error("not a name", "nor on the Hugging Face hub"):
        hub.resolve("not a name")


def weights(folder: Path) -> torch.Tensor:
    return models.load_base(folder, False)[0].get_input_embeddings().weight


def test_the_asked_revision_of_a_base_model_is_loaded(offline, tmp_path):
    snapshots = {commit: weights(offline / "models--someone--writer/snapshots" / commit) for commit in (OLD, NEW)}
    assert not torch.equal(*snapshots.values())
    settings = qlora.QLoRA(2, 2, 0.0, ["q_proj"], False, 64, False, 1)
    for revision, commit in {None: NEW, OLD: OLD, NEW: NEW, "v1": OLD}.items():
        loaded, tokenizer = models.load_base("someone/writer", False, revision)
        assert torch.equal(loaded.get_input_embeddings().weight, snapshots[commit])
        adapted, _ = qlora.with_adapters("someone/writer", settings, revision)
        assert torch.equal(adapted.get_input_embeddings().weight, snapshots[commit])
    qlora.save_adapter(tmp_path, adapted, tokenizer, settings)
    finetuned, _ = models.load_finetuned("someone/writer", tmp_path, False, OLD)
    assert torch.equal(finetuned.get_input_embeddings().weight, snapshots[OLD])
    with one_line_error(f"base model 'someone/writer' at revision {'c' * 40} is neither"):
        models.load_base("someone/writer", False, "c" * 40)


def test_an_index_keeps_the_revision_of_its_encoder(offline, tmp_path):
    old, new = (load_encoder("someone/encoder", commit).encode(["Rose Cream"]) for commit in (OLD, NEW))
    assert not np.allclose(old, new)
    np.testing.assert_array_equal(load_encoder("someone/encoder").encode(["Rose Cream"]), new)
    for kind in ("flat", "hnsw"):
        build_dense(tmp_path / kind, TITLES, Encoder("someone/encoder", OLD), kind)
        assert read_json(tmp_path / kind / "encoder.json")["revision"] == OLD
        found = DenseIndex.load(tmp_path / kind).encode(["Rose Cream"])
        np.testing.assert_allclose(found, old / np.linalg.norm(old), rtol=1e-5)
    np.testing.assert_allclose(DenseIndex.build(TITLES, "someone/encoder", OLD).encode(["Rose Cream"]), found)
    shutil.copytree(tmp_path / "flat", tmp_path / "before")  # as indexes were written before
    write_json(tmp_path / "before/encoder.json", {"encoder": "someone/encoder", "kind": "flat"})
    assert DenseIndex.load(tmp_path / "before").encoder.revision is None


def test_encoders_without_that_revision(offline):
    with one_line_error(f"encoder {DEFAULT_ENCODER} is installed here and has no revisions"):
        load_encoder(DEFAULT_ENCODER, OLD)
    with one_line_error(f"encoder 'someone/encoder' at revision {'c' * 40} is neither"):
        load_encoder("someone/encoder", "c" * 40)
