"""BM25 leaves most items out and must answer as bm25s does when it scores all of them: same places, same scores."""

import random

import bm25s
import numpy as np
import pytest
from helpers import real

from benchmarks import made_up
from gloss_utils.data.prompts import item_text
from gloss_utils.search import BM25Index, bm25, postings
from gloss_utils.search.order import rounded, top_k


class Plainly:
    """The reference: bm25s's own index, and its score of every item for every text."""

    def __init__(self, texts: list[str]):
        self.bm25, tokens = bm25s.BM25(method="lucene", k1=1.5, b=0.75), self.tokenize(texts)
        self.bm25.index(tokens, show_progress=False)
        self.items = len(texts)

    @staticmethod
    def tokenize(texts: list[str]) -> list[list[str]]:
        return bm25s.tokenize(texts, stopwords="english", return_ids=False, show_progress=False)

    def search(self, texts: list[str], k: int) -> tuple[np.ndarray, np.ndarray]:
        rows = []
        for tokens in self.tokenize(texts):
            known = [token for token in tokens if token in self.bm25.vocab_dict]
            scores = rounded(self.bm25.get_scores(known)) if known else np.zeros(self.items)
            rows.append(top_k(np.arange(self.items)[None], scores[None], k))
        return np.vstack([ids for ids, _ in rows]), np.vstack([scores for _, scores in rows])


def titles(count: int) -> list[str]:
    """Made-up ones."""
    return made_up.titles(np.random.default_rng(0), count).to_pylist()


def assert_same(index: BM25Index, reference: Plainly, queries: list[str], k: int):
    (ids, scores), (expected, best) = index.search(queries, k), reference.search(queries, k)
    np.testing.assert_array_equal(ids, expected)
    np.testing.assert_array_equal(scores, best)


@pytest.fixture
def leaves_out(monkeypatch):
    """Items are left out however few there are."""
    monkeypatch.setattr(bm25, "FEW", 0)
    monkeypatch.setattr(bm25, "ENOUGH", 0)


def asked(texts: list[str], count: int) -> list[str]:
    """Texts of the catalogue, others of some of its words, some of them twice, and what no item has."""
    draw = random.Random(3)
    words = [word for text in draw.sample(texts, count) for word in text.split()]
    mixed = [" ".join(draw.choices(words, k=draw.randint(1, 12))) for _ in range(count)]
    return [*draw.sample(texts, count), *mixed, "Title:", "Title: zzz", "zzz", "", "w1", "Title: w1 w2 w2 w1 zzz w1"]


def test_made_up_titles(leaves_out):
    texts = [item_text(title) for title in titles(3000)]
    reference, index = Plainly(texts), BM25Index.build(texts)
    for k in (1, 20, 240, 3000, 4000):
        assert_same(index, reference, asked(texts, 25), k)


@pytest.mark.parametrize("name", ["beauty", "toys"])
def test_real_titles(leaves_out, name):
    texts = [item_text(title) for title in real(name).items["title"]]
    reference, index = Plainly(texts), BM25Index.build(texts)
    for k in (1, 20, 240):
        assert_same(index, reference, asked(texts, 60), k)


def catalogues(count: int):
    """Small catalogues of few words, in which most scores tie, and texts asked."""
    for seed in range(count):
        draw = random.Random(seed)
        words = [f"w{number}" for number in range(draw.choice([3, 20, 200]))]
        weights = [1 / (place + 1) for place in range(len(words))]

        def text(longest: int, draw=draw, words=words, weights=weights) -> str:
            return " ".join(["Title:"] * draw.randint(0, 1) + draw.choices(words, weights, k=draw.randint(0, longest)))

        texts = ["w0", *(text(9) for _ in range(draw.choice([1, 40, 400])))]
        yield texts, [*(text(14) for _ in range(12)), *texts[:4], "", "zzz w0 w0"], draw


@pytest.mark.parametrize("fewer", [0, 2, 1000])
def test_ties_repeated_words_and_other_ways_to_look_up(leaves_out, monkeypatch, fewer):
    monkeypatch.setattr(postings, "FEWER", fewer)
    monkeypatch.setattr(bm25, "SAMPLE", 16)
    for texts, queries, _ in catalogues(8):
        reference, index = Plainly(texts), BM25Index.build(texts)
        for k in (1, 5, 30, len(texts), len(texts) + 1):
            assert_same(index, reference, queries, k)


def test_most_items_are_left_out(monkeypatch):
    monkeypatch.setattr(bm25, "FEW", 0)
    texts = [item_text(title) for title in titles(3000)]
    index, looked_at = BM25Index.build(texts), []
    plain = postings.Postings.look_up
    monkeypatch.setattr(postings.Postings, "look_up", lambda *given: looked_at.append(len(given[2])) or plain(*given))
    index.search(texts[:20], 5)
    assert max(looked_at) < 1500  # the word "title" is in all 3,000


def test_a_part_that_is_added_answers_as_if_all_were_built_at_once(leaves_out, tmp_path):
    for texts, queries, draw in catalogues(6):
        reference, cut = Plainly(texts), draw.randint(1, len(texts) - 1)
        more = sorted({cut, draw.randint(cut, len(texts))})
        index = BM25Index.build(texts[:cut])
        for start, end in zip(more, [*more[1:], len(texts)], strict=True):
            index = index.extended(texts[start:end]) if start < end else index
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        index.save(folder)
        for k in (1, 7, len(texts)):
            assert_same(index, reference, queries, k)
            assert_same(BM25Index.load(folder), reference, queries, k)


def test_blocks_of_texts_make_the_same_files(monkeypatch, tmp_path):
    texts = [item_text(title) for title in titles(300)]
    BM25Index.build(texts).save(tmp_path / "whole")
    monkeypatch.setattr(postings, "BLOCK", 7)
    BM25Index.build(texts).save(tmp_path / "blocks")
    files = sorted(path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole").rglob("*.npy"))
    assert len(files) == 9
    for file in files:
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "blocks" / file).read_bytes()


def test_a_loaded_index_is_memory_mapped_and_reads_few_words(tmp_path):
    texts = [item_text(title) for title in titles(500)]
    BM25Index.build(texts).save(tmp_path / "bm25")
    [part] = BM25Index.load(tmp_path / "bm25").parts
    assert isinstance(part.places.base, np.memmap) and isinstance(part.letters.base, np.memmap)
    words = sorted({word for text in Plainly.tokenize(texts) for word in text})
    assert [part.number(word) for word in words] == list(range(len(words)))
    assert [part.number(word) for word in ("", "a", "titl", "titles", "zzz", "é")] == [None] * 6
