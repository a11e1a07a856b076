"""The merged model as others load it, and texts from a small local server that speaks as vLLM does."""

import http.server
import importlib.util
import json
import threading
from pathlib import Path

import pytest
import torch
from helpers import one_line_error, run_of
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from gloss_utils.__main__ import main
from gloss_utils.base.files import read_json, write_json
from gloss_utils.base.seals import read_seal, seal_of
from gloss_utils.data import prompts, server, splits
from gloss_utils.data import queries as query_files
from gloss_utils.data.dataset import Dataset
from gloss_utils.language import models
from gloss_utils.runs import export
from gloss_utils.runs.parameters import FINE_TUNE
from tests import vllm_facts

# ---- merge


def test_a_merged_folder_is_an_ordinary_model_that_computes_the_same(copied_run, tmp_path, capsys):
    run, to = run_of(copied_run), tmp_path / "merged"
    GenerationConfig(repetition_penalty=3.0, top_k=2, do_sample=True).save_pretrained(run.folder.base)
    assert main(["merge", str(run.folder.root), str(to)]) == 0
    assert str(to) in capsys.readouterr().out
    assert (to / "model.safetensors").exists() and (to / "tokenizer.json").exists()
    merged, tokenizer = AutoModelForCausalLM.from_pretrained(to), AutoTokenizer.from_pretrained(to)
    told = read_json(to / "config.json")  # by these a server knows how to load it
    assert (told["architectures"], told["dtype"]) == (["LlamaForCausalLM"], "bfloat16")
    assert merged.dtype == torch.bfloat16 and "quantization_config" not in told
    kept = read_json(to / "generation_config.json")
    assert kept["eos_token_id"] == tokenizer.eos_token_id and "repetition_penalty" not in kept and "top_k" not in kept
    expected, own = models.load_finetuned(run.folder.base, run.folder.adapter, True)
    assert own.get_vocab() == tokenizer.get_vocab()
    ids = torch.tensor([list(range(3, 60))])
    with torch.inference_mode():
        found, right = merged.float()(ids).logits, expected(ids).logits
    assert (found - right).abs().max() < 0.05 * right.std()
    assert main(["merge", str(run.folder.root), str(to)]) == 1
    assert "is there already" in capsys.readouterr().err


def test_a_run_without_a_model_cannot_be_merged(tmp_path, capsys):
    assert main(["merge", str(tmp_path), str(tmp_path / "merged")]) == 1
    assert "holds no finished 02_fine_tune" in capsys.readouterr().err


# ---- texts of a server


def test_vllm_takes_what_it_is_asked_and_answers_as_the_small_server_does():
    facts = read_json(vllm_facts.RECORDED)
    beams = server.Request("merged", 5, 30, beams=True).body([1, 2], 0)
    assert {*beams, *server.Request("merged", 5, 30, beams=False).body([1, 2], 0)} <= set(facts["request"])
    neutral = {"temperature": 0.0, "length_penalty": 1.0, "include_stop_str_in_output": True}
    assert neutral.items() <= beams.items() and neutral.keys() <= set(facts["beams_depend_on"])
    assert {"text", "logprobs"} <= set(facts["choice"]) and "token_logprobs" in facts["logprobs"]
    # That is: where the end token is not asked for, a beam's log-probabilities are short of what it is ranked by.
    assert facts["a_beam_has_its_end_token_only_if_asked"] and facts["an_end_token_is_not_in_the_text"]
    assert facts["logprobs_are_those_of_the_tokens_that_a_beam_has"] and facts["beams_are_ranked_by_all_their_tokens"]
    assert facts["text_n_is_drawn_with_seed_plus_n"] and facts["logprobs_mode"] == "raw_logprobs"
    assert beams["top_k"] >= facts["takes_top_k_from"]


def test_the_facts_are_those_of_the_package():
    spec = importlib.util.find_spec("vllm")
    if spec is None:
        pytest.skip("vLLM is not installed; its facts were recorded from a wheel")
    found = vllm_facts.facts(Path(spec.origin).parents[1])
    assert found == read_json(vllm_facts.RECORDED) | {"version": found["version"]}


class Server(http.server.ThreadingHTTPServer):
    """Answers as vLLM does by `vllm_facts.json`; `statuses` says with which status, request by request (then 200).

    Keeps what it was asked. Without `knows_beams`, as SGLang, it overlooks the word and writes one text n times.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests, self.statuses, self.texts, self.scores, self.lengths = [], [], None, True, {}
        self.knows_beams = True
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self._answer(200, {"data": [{"id": "merged"}]})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append(body)
        status = self.server.statuses.pop(0) if self.server.statuses else 200
        if status != 200:
            self._answer(status, {"error": "no such thing"})
            return
        numbers = range(self.server.texts or body["n"])
        if not self.server.knows_beams and not body["temperature"]:
            numbers = [0] * len(numbers)
        said = body.get("include_stop_str_in_output") or "use_beam_search" not in body
        choices = [
            {
                "text": f" Title: item {sum(body['prompt'])} {number}",
                "logprobs": self._logprobs(number, said) if self.server.scores else None,
            }
            for number in reversed(numbers)
        ]
        self._answer(200, {"choices": choices})

    def _logprobs(self, number: int, end_is_said: bool) -> dict:
        """Of a text of one token, certain ones, and an end: by the whole, the first is the best; else the last one."""
        certain = self.server.lengths.get(number, 2) - 2
        tokens = ["item", *["more"] * certain, "</s>"][: 1 + certain + end_is_said]
        return {
            "tokens": tokens,
            "token_logprobs": [-1.0 + 0.1 * number, *[0.0] * certain, -0.6 * number][: len(tokens)],
        }

    def _answer(self, status: int, value: dict):
        raw = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *_):
        pass


@pytest.fixture
def vllm(monkeypatch):
    monkeypatch.setattr(server, "WAITS", (0, 0))
    found = Server()
    yield found
    found.shutdown()
    found.server_close()


def asked(small_run, vllm, to, *more: str) -> int:
    _, file = small_run
    return main(["fetch-texts", str(file), "--server", f"{vllm.address}/v1", "--to", str(to), "--at-once", "2", *more])


def test_a_server_writes_a_queries_file(small_run, vllm, tmp_path, capsys):
    run, to = run_of(small_run), tmp_path / "texts.jsonl"
    vllm.statuses = [503]  # it is busy for a moment
    assert asked(small_run, vllm, to) == 0, capsys.readouterr().err
    data = Dataset.load(run.folder.data)
    examples, titles = splits.evaluation_examples(data, "test"), data.titles()
    named = [[titles[item] for item in history] for history in examples["history"]]
    tokenizer = models.load_tokenizer(run.folder.adapter)
    inputs = prompts.encode_prompts(tokenizer, named, run["max_length"] - run["max_new_tokens"])
    found = query_files.read(to, run["num_beams"], 0)
    assert found["user"].tolist() == examples["user"].tolist()
    assert found["target"].tolist() == examples["target"].tolist()
    for ids, row in zip(inputs, found.itertuples(), strict=True):
        assert row.texts == [f"Title: item {sum(ids)} {number}" for number in range(3)]  # best first
        assert row.logprobs == pytest.approx([-1.0, -1.5, -2.0]) and row.lengths == [2, 2, 2]
    assert len(vllm.requests) == len(inputs) + 1
    first = vllm.requests[0]
    assert first["use_beam_search"] and first["n"] == 3 and first["model"] == "merged"
    assert (first["repetition_penalty"], first["length_penalty"], first["temperature"]) == (1.0, 1.0, 0.0)
    settings = read_json(to.with_name("texts.jsonl.settings.json"))
    assert settings["asked"]["beams"] and settings["asked"]["max_new_tokens"] == run["max_new_tokens"]
    assert settings["prompt"].startswith(prompts.INSTRUCTION) and settings["adapter"]["sha256"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["texts.jsonl", "texts.jsonl.settings.json"]


def test_a_length_penalty_is_asked_for_and_orders_what_comes(small_run, vllm, tmp_path):
    vllm.lengths = {2: 9}  # tokens of the text that is last by the sum
    assert asked(small_run, vllm, tmp_path / "mean.jsonl") == 0
    assert asked(small_run, vllm, tmp_path / "sum.jsonl", "-p", "length_penalty", "0") == 0
    assert [vllm.requests[at]["length_penalty"] for at in (0, -1)] == [1.0, 0.0]
    for name, lengths in (("mean.jsonl", [9, 2, 2]), ("sum.jsonl", [2, 2, 9])):
        assert query_files.read(tmp_path / name, 3, 0)["lengths"].iloc[0] == lengths


def test_what_was_written_before_is_not_asked_for_again(small_run, vllm, tmp_path, capsys):
    to, half = tmp_path / "texts.jsonl", 20
    vllm.statuses = [200] * half + [400] * 100
    assert asked(small_run, vllm, to, "-p", "decoding", "sample", "-p", "temperature", "0.7") == 1
    assert "refuses /v1/completions: status 400" in capsys.readouterr().err and not to.exists()
    before, vllm.statuses = len(vllm.requests), []
    assert asked(small_run, vllm, to, "-p", "decoding", "sample", "-p", "temperature", "0.7") == 0
    users = len(query_files.read(to, 3, 0))
    done = users - (len(vllm.requests) - before)
    assert (
        half - 2 <= done <= half and f"{done} of {users} users are those of an earlier start" in capsys.readouterr().out
    )
    drawn = vllm.requests[-1]
    assert "use_beam_search" not in drawn and drawn["temperature"] == 0.7
    # vLLM draws the n texts of a request with n seeds, from this one on.
    seeds = {request["seed"] + nth for request in vllm.requests[before:] for nth in range(request["n"])}
    assert len(seeds) == (users - done) * drawn["n"]


def test_a_server_that_says_no_scores(small_run, vllm, tmp_path):
    vllm.scores = False
    assert asked(small_run, vllm, tmp_path / "texts.jsonl") == 0
    assert query_files.read(tmp_path / "texts.jsonl", 3, 0)["logprobs"].iloc[0] == [None] * 3


def test_servers_that_cannot_be_used(small_run, vllm, tmp_path, capsys):
    vllm.texts = 1
    assert asked(small_run, vllm, tmp_path / "texts.jsonl") == 1
    assert "gave 1 of 3 texts; it may not write beams" in capsys.readouterr().err
    assert asked(small_run, vllm, tmp_path / "texts.jsonl", "-p", "decoding", "catalogue") == 1
    assert "cannot be bound to the catalogue" in capsys.readouterr().err
    vllm.texts, vllm.knows_beams = None, False
    assert asked(small_run, vllm, tmp_path / "texts.jsonl") == 1
    assert "gave one text 3 times; it may not write beams" in capsys.readouterr().err
    vllm.shutdown()
    vllm.server_close()
    assert asked(small_run, vllm, tmp_path / "texts.jsonl", "-p", "num_beams", "2") == 1
    assert "does not answer" in capsys.readouterr().err


def test_a_run_without_an_adapter_cannot_be_asked_for(copied_run, tmp_path):
    folder, _ = copied_run
    folder.adapter.rename(tmp_path / "elsewhere")
    with one_line_error("holds no finished 02_fine_tune"):
        list(export.fetch_texts(folder, {"decoding": "free"}, "http://localhost", None, tmp_path / "texts", 1))
    (tmp_path / "elsewhere").rename(folder.adapter)
    write_json(folder.manifest, {})  # stage 2 was killed at its end
    with one_line_error("holds no finished 02_fine_tune"):
        list(export.fetch_texts(folder, {"decoding": "free"}, "http://localhost", None, tmp_path / "texts", 1))


def test_texts_of_another_adapter_are_not_taken(copied_run, vllm, tmp_path, capsys):
    folder, to, half = copied_run[0], tmp_path / "texts.jsonl", 20
    vllm.statuses = [200] * half + [400] * 100
    assert asked(copied_run, vllm, to) == 1 and "status 400" in capsys.readouterr().err
    [journal] = tmp_path.glob(".texts.jsonl.journal")
    seal = read_seal(folder.adapter) | {"sha256": "another", "content": "another"}
    write_json(seal_of(folder.adapter), seal)  # trained again, and killed before stage 2 was finished
    vllm.statuses = []
    assert asked(copied_run, vllm, to) == 1
    assert "was not finished after its last training" in capsys.readouterr().err
    stages = read_json(folder.manifest)
    stages[FINE_TUNE]["artefacts"]["adapter"] = seal
    write_json(folder.manifest, stages)
    assert asked(copied_run, vllm, to) == 1
    assert f"{journal} is the journal of another plan" in capsys.readouterr().err


def test_at_once_is_one_or_more(small_run, vllm, tmp_path, capsys):
    assert asked(small_run, vllm, tmp_path / "texts.jsonl", "--at-once", "0") == 1
    assert "--at-once is 0; allowed is 1 or more" in capsys.readouterr().err


def test_a_server_is_asked_for_as_many_beams_as_texts(small_run, tmp_path):
    wide = {"decoding": "free", "num_beams": 20, "num_return_sequences": 5}
    with one_line_error("as many beams as texts", "-p num_return_sequences null"):
        list(export.fetch_texts(small_run[0], wide, "http://localhost", None, tmp_path / "texts", 1))
