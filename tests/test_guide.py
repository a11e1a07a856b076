"""Beams that histories guide: against a plain loop without cache or sums, and what the weights may be made from."""

import numpy as np
import pytest
from helpers import one_line_error, run_of, small_llama
from scipy import sparse
from test_decoding import VOCABULARY, logprob, prompts, titles

from gloss_utils import language, retrieve
from gloss_utils.data import splits
from gloss_utils.data.dataset import Dataset
from gloss_utils.language import beam_search, cache_tree
from gloss_utils.language.guide import Guide
from gloss_utils.language.models import load_tokenizer
from gloss_utils.language.trie import Trie
from gloss_utils.rank import likely_next
from gloss_utils.runs import asking, parameters

END = 3


def catalogue() -> tuple[list[tuple[int, ...]], sparse.csr_matrix, np.ndarray]:
    """The texts of a trie in its order, and weights of each prompt, most of them 0, and for all."""
    texts = sorted(set(map(tuple, titles(END))))
    rng = np.random.default_rng(5)
    own = rng.random((len(prompts()), len(texts))) * (rng.random((len(prompts()), len(texts))) < 0.3)
    own[2] = 0  # a user whose history says nothing
    return texts, sparse.csr_matrix(own), rng.random(len(texts)) / 100 + 1e-4


def plain_search(model, prompt, num_beams, texts, weights, share, length_penalty):
    """The same search as a loop over lists: texts, best first. weights: of each text."""

    def mass(prefix):
        return sum(weight for text, weight in zip(texts, weights, strict=True) if text[: len(prefix)] == prefix)

    beams, finished = [((), 0.0)], []
    while beams:
        length, found = len(beams[0][0]) + 1, []
        for prefix, score in beams:
            for token in sorted({text[length - 1] for text in texts if text[: length - 1] == prefix}):
                child = (*prefix, token)
                own = logprob(model, [*prompt, *prefix], [token])
                found.append((child, score + (1 - share) * own + share * np.log(mass(child) / mass(prefix))))
        found.sort(key=lambda pair: -pair[1])
        finished += [(text, score / length**length_penalty) for text, score in found[:num_beams] if text[-1] == END]
        finished = sorted(finished, key=lambda pair: -pair[1])[:num_beams]
        beams = [pair for pair in found[: 2 * num_beams] if pair[0][-1] != END][:num_beams]
        if beams and len(finished) == num_beams and beams[0][1] / length**length_penalty <= finished[-1][1]:
            break
    return [list(text) for text, _ in finished]


@pytest.mark.parametrize("share", [0.3, 0.7, 1.0])
@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
def test_guided_beams_are_those_of_a_plain_loop(share, length_penalty):
    model, (texts, own, common) = small_llama(VOCABULARY), catalogue()
    trie, moved = Trie(texts), 0
    for num_beams in (1, 4):
        guide = Guide(trie, share, own, common, "cpu")
        found = beam_search.beam_search(model, prompts(), num_beams, 1, END, trie, length_penalty, guide)
        plain = beam_search.beam_search(model, prompts(), num_beams, 1, END, trie, length_penalty)
        for user, (prompt, one) in enumerate(zip(prompts(), found, strict=True)):
            weights = own[[user]].toarray()[0] + common
            assert one.tokens == plain_search(model, prompt, num_beams, texts, weights, share, length_penalty)
            assert one.logprobs == pytest.approx([logprob(model, prompt, text) for text in one.tokens], abs=1e-4)
            moved += one.tokens != plain[user].tokens
    assert moved  # the plain loop is none that ignores the weights, too


def test_a_guide_that_counts_nothing_changes_nothing():
    model, (texts, own, common) = small_llama(VOCABULARY), catalogue()
    trie = Trie(texts)
    guide = Guide(trie, 0.0, own, common, "cpu")
    given = (model, prompts(), 4, 1, END, trie, 1.0)
    assert beam_search.beam_search(*given, guide) == beam_search.beam_search(*given)


def test_histories_alone_order_the_texts_by_their_weights():
    model, (texts, own, common) = small_llama(VOCABULARY), catalogue()
    trie = Trie(texts)
    guide = Guide(trie, 1.0, own, common, "cpu")
    found = beam_search.beam_search(model, prompts(), len(texts), 1, END, trie, 0.0, guide)
    for user, one in enumerate(found):
        weights = own[[user]].toarray()[0] + common
        assert one.tokens == [list(texts[place]) for place in np.argsort(-weights)]


def test_the_texts_below_a_node_are_neighbours():
    texts, _, _ = catalogue()
    trie = Trie(texts)
    for prefix in {text[:length] for text in texts for length in range(len(text))}:
        node = trie.path((*prefix, next(text[len(prefix)] for text in texts if text[: len(prefix)] == prefix)))[-1]
        inside = [place for place, text in enumerate(texts) if text[: len(prefix)] == prefix]
        assert inside == list(range(*trie.span(node)))


def test_weights_of_items_with_one_title_add_up(copied_run):
    run = run_of(copied_run)
    named = ["Rose Toner", "Day Cream", "Rose Toner", "Base Coat"]
    title_trie = language.TitleTrie(load_tokenizer(run.folder.adapter), named)
    [weights] = np.array([[1.0, 2.0, 4.0, 8.0]]) @ title_trie.of_items([*named[:3], "Base Coat"])
    by_text = dict(zip(title_trie.texts.to_pylist(), weights, strict=True))
    assert by_text == {"Title: Rose Toner": 5.0, "Title: Day Cream": 2.0, "Title: Base Coat": 8.0}
    assert title_trie.of_items(["Unknown"]).nnz == 0


def test_what_comes_next_is_shared_out_and_nothing_is_impossible():
    sequences, items = [["a", "b"], ["a", "b", "c"], ["c", "a", "b"]], ["a", "b", "c", "new"]
    own, common = likely_next([["c", "a"], ["new"]], sequences, items)
    shares = own.toarray() + common
    assert shares[0].sum() == pytest.approx(1) and (shares > 0).all()
    assert shares[0].argmax() == 1 and own[[1]].nnz == 0
    assert list(common / common.min()) == pytest.approx([4, 4, 3, 1])


def guided(copied_run, **values):
    return run_of(copied_run, **({"decoding": "catalogue", "queries_file": None} | values))


def weights_of(run, data, examples, monkeypatch) -> tuple:
    """The weights that the writer is given."""
    found = []

    class Stop(Exception):
        pass

    def noting(*given):
        found.append(given[4])
        raise Stop

    monkeypatch.setattr(language, "load_finetuned", lambda *_: (None, None))
    monkeypatch.setattr(language, "Writer", noting)
    with pytest.raises(Stop):
        asking.written(run, data, examples["history"], retrieve._learnable(run, data, examples))
    return found[0]


@pytest.mark.parametrize("split", ["test", "validation"])
def test_no_target_guides_its_own_beams(copied_run, monkeypatch, split):
    run = guided(copied_run, guide=0.5, split=split)
    data = Dataset.load(run.folder.data)
    examples = splits.evaluation_examples(data, split)
    before = weights_of(run, data, examples, monkeypatch)
    # Every evaluated user's target becomes another item.
    other, items = data.items["item"].iloc[0], data.interactions
    wanted = set(zip(examples["user"], examples["target"], strict=True))
    swapped = [pair in wanted for pair in zip(items["user"], items["item"], strict=True)]
    assert sum(swapped) >= len(examples)
    items.loc[swapped, "item"] = other
    data = Dataset.of(data.items, items, data.users, data.statistics)
    after = weights_of(run, data, examples.assign(target=other), monkeypatch)
    assert (before[0] != after[0]).nnz == 0 and (before[1] == after[1]).all()


def test_histories_move_the_texts_of_a_run(copied_run):
    data = Dataset.load(run_of(copied_run).folder.data)
    written = {}
    for guide in (0.0, 0.8):
        run = guided(copied_run, guide=guide)
        examples = splits.evaluation_examples(data, "test").head(20)
        written[guide] = asking.written(run, data, examples["history"], retrieve._learnable(run, data, examples))
    assert [row[0] for row in written[0.0]] != [row[0] for row in written[0.8]]
    totals = {guide: np.mean([row[1][0] for row in rows]) for guide, rows in written.items()}
    assert totals[0.8] < totals[0.0]  # the model's own log-probabilities, which guided beams do not have the best of


def test_what_cannot_be_guided(copied_run, monkeypatch):
    with one_line_error("parameter guide is 0.5", "decoding: catalogue"):
        parameters.check({"guide": 0.5, "decoding": "free"})
    run = guided(copied_run, guide=0.5)
    data = Dataset.load(run.folder.data)
    monkeypatch.setattr(cache_tree, "unfit", lambda model: "its window slides")
    with one_line_error("parameter guide is 0.5", "its window slides"):
        asking.written(run, data, splits.evaluation_examples(data, "test")["history"], {})
