"""BM25 leaves most items out and must answer as bm25s does when it scores all of them: same places, same scores."""

import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import bm25s
import numpy as np
import pytest
from helpers import real
from numba.core import dispatcher

from benchmarks import made_up
from gloss_utils.data.prompts import item_text
from gloss_utils.runs.parameters import ROOT
from gloss_utils.search import BM25Index, bm25, maxscore, postings
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


def asked(texts: list[str], count: int) -> list[str]:
    """Texts of the catalogue, others of some of its words, some of them twice, and what no item has."""
    draw = random.Random(3)
    words = [word for text in draw.sample(texts, count) for word in text.split()]
    mixed = [" ".join(draw.choices(words, k=draw.randint(1, 12))) for _ in range(count)]
    return [*draw.sample(texts, count), *mixed, "Title:", "Title: zzz", "zzz", "", "w1", "Title: w1 w2 w2 w1 zzz w1"]


def test_made_up_titles():
    texts = [item_text(title) for title in titles(3000)]
    reference, index = Plainly(texts), BM25Index.build(texts)
    for k in (1, 20, 240, 3000, 4000):
        assert_same(index, reference, asked(texts, 25), k)


@pytest.mark.parametrize("name", ["beauty", "toys"])
def test_real_titles(name):
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


@pytest.mark.parametrize(("window", "fewer"), [(1, 16), (5, 0), (5, 2), (2**13, 1000)])
def test_ties_repeated_words_and_other_windows_and_ways_to_look_up(monkeypatch, window, fewer):
    monkeypatch.setattr(bm25, "WINDOW", window)
    monkeypatch.setattr(bm25, "FEWER", fewer)
    for texts, queries, _ in catalogues(8):
        reference, index = Plainly(texts), BM25Index.build(texts)
        for k in (0, 1, 5, 30, len(texts), len(texts) + 1):
            assert_same(index, reference, queries, k)


def test_long_texts():
    draw = random.Random(3)
    words = [f"w{number}" for number in range(50)]
    texts = [" ".join(draw.choices(words, k=draw.randint(1, 300))) for _ in range(300)]
    index = BM25Index.build(texts)
    assert index.parts[0].codes.dtype == np.uint16  # compiled for itself
    assert_same(index, Plainly(texts), texts[:20], 20)


def test_most_items_are_left_out(monkeypatch):
    """Python runs what numba compiles, and notes which postings are looked at."""
    texts, looked_at = [item_text(title) for title in titles(3000)], set()
    index = BM25Index.build(texts)
    expected = index.search(texts[:1], 5)

    class Noting(list):
        def __getitem__(self, at):
            looked_at.add(at)
            return super().__getitem__(at)

    for name in ("best", "_able", "_next", "_seek"):
        monkeypatch.setattr(maxscore, name, getattr(maxscore, name).py_func)
    [part] = index.parts
    part.places = Noting(part.places)
    np.testing.assert_array_equal(index.search(texts[:1], 5), expected)
    start, stop = part.starts[part.number("title") :][:2]
    assert 0 < len(looked_at & set(range(start, stop))) < 300  # all 3,000 have this word


def test_two_threads_search_one_index():
    texts = [item_text(title) for title in titles(3000)]
    index = BM25Index.build(texts)
    expected = index.search(texts[:200], 20)
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda text: index.search([text], 20), texts[:200]))
    for number, values in enumerate(expected):
        np.testing.assert_array_equal(np.vstack([row[number] for row in found]), values)


def test_numba_is_loaded_by_the_first_search():
    code = "import sys\nfrom gloss_utils.search import BM25Index\nindex = BM25Index.build(['soap'])\n"
    code += "print('numba' in sys.modules)\nindex.search(['soap'], 1)\nprint('numba' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert found.stdout.split() == ["False", "True"], found.stderr


def test_a_search_where_no_compiled_code_can_be_kept(monkeypatch):
    def nowhere(*given):
        raise RuntimeError("no locator available")

    monkeypatch.setattr(dispatcher, "FunctionCache", nowhere)
    compiled = maxscore._compiled(maxscore._seek.py_func)
    assert compiled(np.arange(9), 0, 9, 4) == 4


def test_a_part_that_is_added_answers_as_if_all_were_built_at_once(tmp_path):
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
    assert not any(
        array.flags.writeable for array in vars(BM25Index.build(texts).parts[0]).values()
    )  # both are compiled once
    assert isinstance(part.places.base, np.memmap) and isinstance(part.letters.base, np.memmap)
    words = sorted({word for text in Plainly.tokenize(texts) for word in text})
    assert [part.number(word) for word in words] == list(range(len(words)))
    assert [part.number(word) for word in ("", "a", "titl", "titles", "zzz", "é")] == [None] * 6
