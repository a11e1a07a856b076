"""Generation around the decoder: batches, the journal, memory, the catalogue's texts, and what can be wrong."""

import json

import pandas as pd
import pytest
import torch
from helpers import one_line_error, run_of
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from gloss_utils.data import prompts, splits
from gloss_utils.data import queries as query_files
from gloss_utils.data.dataset import Dataset
from gloss_utils.language import beam_search as decoding
from gloss_utils.language import cache_tree as tree
from gloss_utils.language import generation as generate
from gloss_utils.language import hf_generate as plain_decoding
from gloss_utils.language import tiny
from gloss_utils.rank import items_of_exact_titles
from gloss_utils.runs.journal import Journal

TITLES = ["Brightwater Rose Toner", "Elmroot Day Cream", "Cassia Lane Base Coat", "Dove Hollow Alum Block"]


@pytest.fixture
def run(copied_run):
    """Stage 4 at work in a copy of the small run, with batches of a few users."""

    def at_work(**values):
        work = run_of(copied_run, **({"generation_batch_tokens": 2000} | values))
        work.made_from = "test"
        return work

    return at_work


def some(run, users: int = 20) -> tuple[pd.DataFrame, Dataset]:
    data = Dataset.load(run.folder.data)
    return splits.evaluation_examples(data, "test").head(users), data


def generated(run, notes=None, users: int = 20) -> pd.DataFrame:
    examples, data = some(run, users)
    return generate.queries(run, examples, data, [] if notes is None else notes)


def test_batches_keep_to_the_budget_and_are_sorted_by_length():
    lengths = [5, 30, 7, 7, 100, 2]
    batches = generate.plan(lengths, new_columns=10, budget=80)
    assert batches == [[4], [1, 2], [3, 0, 5]]
    assert sorted(place for batch in batches for place in batch) == list(range(6))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * (max(lengths[i] for i in batch) + 10) <= 80
    assert generate.plan([], 10, 80) == []


def test_texts_do_not_depend_on_the_batches(run):
    by_few, by_many = generated(run()), generated(run(generation_batch_tokens=10**6))
    assert by_few["texts"].tolist() == by_many["texts"].tolist()


def test_texts_are_those_of_each_user_alone(run):
    work = run()
    examples, data = some(work, 5)
    found, writer = generated(work, users=5), generate.Writer.load(work)
    inputs = generate.encode(work, writer.tokenizer, examples, data)
    for place, row in enumerate(found.itertuples()):
        texts, logprobs, lengths = writer.write([inputs[place]], [place])[0]
        assert (row.user, row.texts, row.lengths) == (examples["user"][place], texts, lengths)
        assert row.logprobs == pytest.approx(logprobs, abs=1e-4)


class Killed(BaseException):
    pass


def kill_in_batch(monkeypatch, number: int):
    """Let the process die at the start of that many-th batch."""
    calls, write = [], generate.Writer.write

    def dying(writer, inputs, numbers):
        calls.append(numbers)
        if len(calls) == number:
            raise Killed
        return write(writer, inputs, numbers)

    monkeypatch.setattr(generate.Writer, "write", dying)
    return calls


@pytest.mark.parametrize("decoding", ["free", "sample"])
def test_killed_and_resumed_gives_the_same_bytes(run, monkeypatch, tmp_path, decoding):
    expected = generated(run(decoding=decoding))
    for journal in run().folder.root.glob("*.journal"):
        journal.unlink()
    with monkeypatch.context() as patched, pytest.raises(Killed):
        kill_in_batch(patched, 3)
        generated(run(decoding=decoding))
    (journal,) = run().folder.root.glob("*.journal")
    with open(journal, "ab") as out:
        out.write(b'{"batch": 2, "rows": [[["Tit')  # the line that was being written
    notes, calls = [], kill_in_batch(monkeypatch, -1)
    resumed = generated(run(decoding=decoding), notes)
    query_files.write(tmp_path / "expected", expected)
    query_files.write(tmp_path / "resumed", resumed)
    assert (tmp_path / "resumed").read_bytes() == (tmp_path / "expected").read_bytes()
    assert any("half-written" in note for note in notes)
    assert any("2 of " in note and "batches are those of a run that was cut off" in note for note in notes)
    assert len(calls) == len(read_lines(journal)) - 1 - 2


def read_lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_journal_goes_when_the_stage_is_finished(run):
    work = run()
    generated(work)
    assert work.temporary == list(work.folder.root.glob("*.journal"))
    work.stage = "04_retrieve"
    work.finish()
    assert not list(work.folder.root.glob("*.journal"))


def test_a_damaged_batch_is_dropped(tmp_path):
    path = tmp_path / "queries.journal"
    journal = Journal(path, "plan", [1, 2, 1])
    journal.add(0, [[["a"], [-1.5], [2]]])
    journal.add(1, [[["b"], [-1.0], [1]], [["c"], [-2.0], [1]]])
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b'"b"', b'"x"'))
    again = Journal(path, "plan", [1, 2, 1])
    assert again.done == {0: [[["a"], [-1.5], [2]]]} and len(again.notes) == 1
    assert Journal(path, "plan", [1, 2, 1]).notes == []  # it was cut out of the file
    path.write_bytes(whole)
    assert set(Journal(path, "plan", [1, 2, 1]).done) == {0, 1}
    assert set(Journal(path, "plan", [1, 3, 1]).done) == {0}  # a batch of another size is none of the plan


def test_a_journal_of_another_plan(run, tmp_path):
    path = tmp_path / "queries.journal"
    Journal(path, "one plan", [1])
    with one_line_error(str(path), "another plan", "delete it"):
        Journal(path, "another", [1])
    work = run()
    generated(work)
    generated(run(num_beams=2))
    assert len(list(work.folder.root.glob("*.journal"))) == 2  # each plan has its own: going back loses nothing


def test_a_batch_that_does_not_fit_in_memory_is_halved(run, monkeypatch):
    expected, search, sizes = generated(run()), decoding.beam_search, []

    def small(model, inputs, *rest):
        sizes.append(len(inputs))
        if len(inputs) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return search(model, inputs, *rest)

    for journal in run().folder.root.glob("*.journal"):
        journal.unlink()
    monkeypatch.setattr(decoding, "beam_search", small)
    assert generated(run())["texts"].tolist() == expected["texts"].tolist()
    assert max(sizes) > 2 and min(sizes) <= 2


def test_a_prompt_that_does_not_fit_in_memory(run, monkeypatch):
    def none(*arguments):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(decoding, "beam_search", none)
    with one_line_error("does not fit in memory", "lower num_beams, max_new_tokens or max_length"):
        generated(run())
    monkeypatch.setattr(decoding, "beam_search", lambda *arguments: (_ for _ in ()).throw(RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        generated(run())


def test_models_that_do_not_fit_fall_back_with_a_notice(run, monkeypatch):
    expected, notes = generated(run()), []
    for journal in run().folder.root.glob("*.journal"):
        journal.unlink()
    monkeypatch.setattr(tree, "unfit", lambda model: "its window slides")
    calls, search = [], plain_decoding.beam_search
    monkeypatch.setattr(plain_decoding, "beam_search", lambda *given: (calls.append(1), search(*given))[1])
    assert generated(run(), notes)["texts"].tolist() == expected["texts"].tolist() and calls
    assert "Generation falls back to transformers' generate, which is slower: its window slides." in notes


def test_catalogue_texts_are_titles_and_all_items_of_a_text_are_found(run):
    work = run(decoding="catalogue", max_new_tokens=1)
    found, data = generated(work), Dataset.load(work.folder.data)
    texts = {prompts.item_text(title) for title in data.items["title"]}
    for row in found.itertuples():
        assert len(set(row.texts) & texts) == len(row.texts) == 3
    twice = data.items["title"].iloc[5]
    items = pd.concat([data.items, pd.DataFrame({"item": ["TWIN"], "title": [twice]})])
    texts = pd.DataFrame({"user": ["U"], "texts": [[prompts.item_text(twice)]]})
    named = items_of_exact_titles(texts, dict(zip(items["item"], items["title"], strict=True)))
    assert named.to_dict("list") == {
        "user": ["U", "U"],
        "query": [1, 1],
        "item": [data.items["item"].iloc[5], "TWIN"],
        "score": [1.0, 1.0],
        "strength": [1.0, 1.0],
    }


def test_more_beams_than_titles(run):
    work = run(decoding="catalogue")
    titles = Dataset.load(work.folder.data).items["title"].nunique()
    with one_line_error(f"parameter num_beams is {titles + 1}", f"catalogue's {titles} different titles"):
        generated(run(decoding="catalogue", num_beams=titles + 1))


def test_titles_that_the_tokenizer_cannot_write_or_tell_apart():
    spaced = Tokenizer(models.BPE())  # characters that it has not seen are nothing to it
    spaced.pre_tokenizer = pre_tokenizers.Whitespace()
    spaced.train_from_iterator(
        ["Title: Rose Toner"], trainers.BpeTrainer(special_tokens=["<end>"], show_progress=False)
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=spaced, eos_token="<end>")
    catalogue = generate.Catalogue(tokenizer, ["Rose", "☃", "Rose Toner", "Rose ☃", "Rose"])
    assert set(catalogue.text.values()) == {"Title: Rose", "Title: Rose Toner"}
    (note,) = catalogue.notes
    assert note.startswith("2 titles are left out") and "'Title: ☃'" in note
    with one_line_error("can write no title of the catalogue"):
        generate.Catalogue(tokenizer, ["☃"])


def test_an_empty_history_is_a_prompt_without_titles(run):
    work = run()
    examples = pd.DataFrame({"user": ["U"], "history": [[]], "target": [None]})
    found = generate.queries(work, examples, Dataset.load(work.folder.data), [])
    assert len(found["texts"][0]) == 3


def test_a_base_model_of_another_vocabulary(run):
    work = run()
    other = tiny.train_tokenizer(TITLES, 400)
    tiny.new_model(other, 1, 64).save_pretrained(work.folder.base)
    other.save_pretrained(work.folder.base)
    known = len(generate.load_tokenizer(work))
    with one_line_error("another vocabulary", f"({known:,} tokens)", "run stage 02 again"):
        generate.load_model(work)


def test_a_whole_journal_needs_no_model(run, monkeypatch):
    first = generated(run())
    monkeypatch.setattr(generate.Writer, "load", None)
    pd.testing.assert_frame_equal(generated(run()), first)
