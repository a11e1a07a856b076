"""Generation around the decoder: batches, the journal, memory, the catalogue's texts, and what can be wrong."""

import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from helpers import one_line_error, run_of
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from gloss_utils import language, retrieve
from gloss_utils.base.seals import is_sealed, seal_of
from gloss_utils.data import prompts, splits
from gloss_utils.data.dataset import Dataset
from gloss_utils.language import beam_search, cache_tree, generation, hf_generate, tiny
from gloss_utils.language.generation import Decoding, TitleTrie, Writer, plan_batches
from gloss_utils.language.models import load_finetuned, load_tokenizer
from gloss_utils.rank import ExactTitles
from gloss_utils.runs import asking, parameters
from gloss_utils.runs.journal import Journal

TITLES = ["Brightwater Rose Toner", "Elmroot Day Cream", "Cassia Lane Base Coat", "Dove Hollow Alum Block"]


@pytest.fixture
def run(copied_run):
    """Stage 4 at work in a copy of the small run, with batches of a few users."""

    def at_work(**values):
        return run_of(copied_run, **({"generation_batch_tokens": 2000, "queries_file": None} | values))

    return at_work


def examples(run, users: int = 20) -> pd.DataFrame:
    return splits.evaluation_examples(Dataset.load(run.folder.data), "test").head(users)


def generated(run, users: int = 20) -> list[generation.Row]:
    """What the model writes for some users; the journal stays."""
    histories, data = examples(run, users)["history"], Dataset.load(run.folder.data)
    return [tuple(row) for row in asking.written(run, data, histories)]


def texts(run, **more) -> list[list[str]]:
    return [row[0] for row in generated(run, **more)]


def journals(run) -> list[Path]:
    return list(run.folder.unfinished.glob("texts-*"))


def delete_journals(run):
    for journal in journals(run):
        journal.unlink()


def test_batches_keep_to_the_budget_and_are_sorted_by_length():
    lengths = [5, 30, 7, 7, 100, 2]
    batches = plan_batches(lengths, new_columns=10, budget=80)
    assert batches == [[4], [1, 2], [3, 0, 5]]
    assert sorted(place for batch in batches for place in batch) == list(range(6))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * (max(lengths[i] for i in batch) + 10) <= 80
    assert plan_batches([], 10, 80) == []


def test_texts_do_not_depend_on_the_batches(run):
    assert texts(run()) == texts(run(generation_batch_tokens=10**6))


def test_texts_are_those_of_each_user_alone(run):
    work = run()
    writer = Writer(*load_finetuned(work.folder.base, work.folder.adapter, True), work.settings(Decoding))
    titles = Dataset.load(work.folder.data).titles()
    histories = [[titles[item] for item in history] for history in examples(work, 5)["history"]]
    inputs = prompts.encode_prompts(writer.tokenizer, histories, work["max_length"] - work["max_new_tokens"])
    for place, row in enumerate(generated(work, users=5)):
        [(texts, logprobs, lengths)] = writer.write([inputs[place]], [place])
        assert (row[0], row[2]) == (texts, lengths) and row[1] == pytest.approx(logprobs, abs=1e-4)


@pytest.mark.parametrize("decoding", ["free", "catalogue"])
def test_a_wider_search_keeps_the_best_of_its_texts(run, decoding):
    wide = generated(run(decoding=decoding, num_beams=6), users=5)
    for kept, row in zip(
        generated(run(decoding=decoding, num_beams=6, num_return_sequences=2), users=5), wide, strict=True
    ):
        assert all(some == every[:2] for some, every in zip(kept, row, strict=True))
    with one_line_error("num_return_sequences is 6", "num_beams (5)"):
        parameters.check({"num_return_sequences": 6})


class Killed(BaseException):
    pass


def kill_in_batch(monkeypatch, number: int):
    """Let the process die at the start of that many-th batch."""
    calls, write = [], Writer.write

    def dying(writer, inputs, numbers):
        calls.append(numbers)
        if len(calls) == number:
            raise Killed
        return write(writer, inputs, numbers)

    monkeypatch.setattr(Writer, "write", dying)
    return calls


@pytest.mark.parametrize("decoding", ["free", "sample"])
def test_killed_and_resumed_gives_the_same_bytes(run, monkeypatch, decoding, capsys):
    expected = generated(run(decoding=decoding))
    delete_journals(run())
    with monkeypatch.context() as patched, pytest.raises(Killed):
        kill_in_batch(patched, 3)
        generated(run(decoding=decoding))
    (journal,) = journals(run())
    with open(journal, "ab") as out:
        out.write(b'{"batch": 2, "rows": [[["Tit')  # the line that was being written
    calls = kill_in_batch(monkeypatch, -1)
    resumed = generated(run(decoding=decoding))
    assert resumed == expected  # each float, too
    first, second = capsys.readouterr().out.splitlines()
    assert "half-written" in first
    assert "2 of " in second and "batches are those of a run that was cut off" in second
    assert len(calls) == len(read_lines(journal)) - 1 - 2


def read_lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_journal_goes_when_the_texts_are_sealed(run, monkeypatch, capsys):
    work, before = run(generation_batch_tokens=10**6), run().folder.queries.read_bytes()
    data, write = Dataset.load(work.folder.data), retrieve.query_files.write
    seal_of(work.folder.queries).unlink()
    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(retrieve.query_files, "write", lambda *_: (_ for _ in ()).throw(Killed))
        retrieve._generated(work, data)
    assert len(journals(work)) == 1
    monkeypatch.setattr(retrieve.query_files, "write", write)
    monkeypatch.setattr(language, "load_finetuned", lambda *_: pytest.fail("a model is loaded"))  # the journal is whole
    retrieve._generated(work, data)
    assert is_sealed(work.folder.queries) and not journals(work)
    capsys.readouterr()
    retrieve._generated(work, data)
    assert "nothing that it is made from has changed" in capsys.readouterr().out
    assert [json.loads(line)["generated_sequences"] for line in work.folder.queries.read_bytes().splitlines()] == [
        json.loads(line)["generated_sequences"] for line in before.splitlines()
    ]


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
    assert len(journals(work)) == 2  # each plan has its own: going back loses nothing


def test_a_batch_that_does_not_fit_in_memory_is_halved(run, monkeypatch):
    expected, search, sizes = texts(run()), beam_search.beam_search, []

    def small(model, inputs, *rest):
        sizes.append(len(inputs))
        if len(inputs) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return search(model, inputs, *rest)

    delete_journals(run())
    monkeypatch.setattr(beam_search, "beam_search", small)
    assert texts(run()) == expected
    assert max(sizes) > 2 and min(sizes) <= 2


def test_a_prompt_that_does_not_fit_in_memory(run, monkeypatch):
    def none(*arguments):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(beam_search, "beam_search", none)
    with one_line_error("does not fit in memory", "lower num_beams, max_new_tokens or max_length"):
        generated(run())
    with one_line_error("with 9 beams", "lower num_beams, max_new_tokens or max_length"):
        generated(run(num_beams=9, num_return_sequences=5))
    monkeypatch.setattr(beam_search, "beam_search", lambda *arguments: (_ for _ in ()).throw(RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        generated(run())


def test_models_that_do_not_fit_fall_back_with_a_notice(run, monkeypatch, capsys):
    expected = texts(run())
    delete_journals(run())
    monkeypatch.setattr(cache_tree, "unfit", lambda model: "its window slides")
    calls, search = [], hf_generate.beam_search
    monkeypatch.setattr(hf_generate, "beam_search", lambda *given: (calls.append(1), search(*given))[1])
    assert texts(run()) == expected and calls
    notice = "Generation falls back to transformers' generate, which is slower: its window slides.\n"
    assert capsys.readouterr().out == notice


def test_catalogue_texts_are_titles_and_the_first_items_of_a_text_are_found(run):
    work = run(decoding="catalogue", max_new_tokens=1)
    data = Dataset.load(work.folder.data)
    titles = {prompts.item_text(title) for title in data.items["title"]}
    for written in texts(work):
        assert len(set(written) & titles) == len(written) == 3
    twice = data.items["title"].iloc[5]
    items = pd.concat([data.items, pd.DataFrame({"item": ["TWIN"], "title": [twice]})])
    twins = pd.DataFrame({"user": ["U"], "texts": [[prompts.item_text(twice)]]})
    titles = dict(zip(items["item"], items["title"], strict=True))
    first = {"user": "U", "query": 1, "item": data.items["item"].iloc[5], "score": 1.0, "strength": 1.0}
    assert ExactTitles(titles).find(twins).to_dict("records") == [first]
    assert ExactTitles(titles).find(twins, 3).to_dict("records") == [first, first | {"item": "TWIN"}]


def test_more_beams_than_titles(run):
    work = run(decoding="catalogue")
    titles = Dataset.load(work.folder.data).items["title"].nunique()
    with one_line_error(f"parameter num_beams is {titles + 1}", f"catalogue's {titles} different titles"):
        generated(run(decoding="catalogue", num_beams=titles + 1))


def test_titles_that_the_tokenizer_cannot_write_or_tell_apart(monkeypatch):
    monkeypatch.setattr(generation, "AT_ONCE", 2)
    spaced = Tokenizer(models.BPE())  # characters that it has not seen are nothing to it
    spaced.pre_tokenizer = pre_tokenizers.Whitespace()
    spaced.train_from_iterator(
        ["Title: Rose Toner"], trainers.BpeTrainer(special_tokens=["<end>"], show_progress=False)
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=spaced, eos_token="<end>")
    title_trie = TitleTrie(tokenizer, ["Rose", "☃", "Rose Toner", "Rose ☃", "Rose"])
    assert sorted(title_trie.texts.to_pylist()) == ["Title: Rose", "Title: Rose Toner"]
    assert title_trie.of_items(["Rose", "Rose ☃"]).nnz == 1  # of what is left out, there is no text
    tokens = prompts.encode_texts(tokenizer, ["Title: Rose", "Title: Rose Toner"])
    tokens = [[*ids, tokenizer.eos_token_id] for ids in tokens]
    assert title_trie.tokens(tokenizer, ["Rose ☃", "Rose Toner", "Rose"]) == [*tokens, tokens[0]]
    (note,) = title_trie.notes
    assert note.startswith("2 titles are left out") and "'Title: ☃'" in note
    with one_line_error("can write no title of the catalogue"):
        TitleTrie(tokenizer, ["☃"])


def test_the_trie_of_a_run_is_built_once(run, monkeypatch):
    built, real, work = [], language.TitleTrie, run(decoding="catalogue", loss="catalogue", ask=1)
    monkeypatch.setattr(language, "TitleTrie", lambda *given: built.append(1) or real(*given))
    data = Dataset.load(work.folder.data)
    work.known["proposed"] = "one"
    asking._built.cache_clear()
    asking.written(work, data, pd.Series([[]]))
    monkeypatch.setattr(asking, "encode_texts", lambda *_: pytest.fail("titles were tokenised again"))
    asking.scored(work, data, pd.DataFrame({"user": ["ann"], "item": data.items["item"].head(1)}), {"ann": []})
    assert len(built) == 1
    fewer = dict(list(data.titles().items())[1:])
    assert len(asking.title_trie(work, fewer).texts) < len(data.titles()) and len(built) == 2


def test_an_empty_history_is_a_prompt_without_titles(run):
    work = run()
    [(texts, _, _)] = asking.written(work, Dataset.load(work.folder.data), pd.Series([[]]))
    assert len(texts) == 3


def test_a_base_model_of_another_vocabulary(run):
    work = run()
    other = tiny.train_tokenizer(TITLES, 400)
    tiny.new_model(other, 1, 64).save_pretrained(work.folder.base)
    other.save_pretrained(work.folder.base)
    known = len(load_tokenizer(work.folder.adapter))
    with one_line_error("another vocabulary", f"({known:,} tokens)", "run stage 02 again"):
        load_finetuned(work.folder.base, work.folder.adapter, True)


def test_a_whole_journal_needs_no_model(run, monkeypatch):
    first = generated(run())
    monkeypatch.setattr(language, "load_finetuned", lambda *_: pytest.fail("a model is loaded"))
    assert generated(run()) == first
