"""The two indexes: order, rounding, and what comes back from disk."""

import math
import subprocess
import sys
from functools import partial
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from helpers import dense, one_line_error, run_of

from gloss_utils import build_index
from gloss_utils.data.prompts import item_text
from gloss_utils.report import data_plots
from gloss_utils.runs import workers
from gloss_utils.runs.folder import RunFolder
from gloss_utils.runs.parameters import INDEX, ROOT
from gloss_utils.runs.run import Run
from gloss_utils.search import DEFAULT_ENCODER, BM25Index, DenseIndex, build_dense, encoder, on_disk
from gloss_utils.search.dense import MARGIN


def near(similarities: list[float]) -> DenseIndex:
    """An index whose item "0" has these inner products with the items "1", "2", …, and 1 with itself."""
    first = [(1.0, 0.0)]
    return dense([str(number) for number in range(len(similarities) + 1)], first + [(s, 0.0) for s in similarities])


def test_dense_order_and_rounding():
    ids, scores = near([0.1234549, 0.9, 0.1234551, -0.5]).search(["0"], 5)
    assert ids.tolist() == [[0, 2, 3, 1, 4]]
    assert scores.tolist() == [[1.0, 0.9, 0.12346, 0.12345, -0.5]]


def test_similarities_that_differ_by_noise_are_a_tie_in_the_metadatas_order():
    # 0.500001 … 0.500004 rise with the place, so that unrounded the order would be reversed.
    ids, scores = near([0.500001, 0.500002, 0.500003, 0.500004, 0.50002]).search(["0"], 4)
    assert ids.tolist() == [[0, 5, 1, 2]]
    assert scores.tolist() == [[1.0, 0.50002, 0.5, 0.5]]


@pytest.mark.parametrize("ties", [MARGIN - 1, MARGIN + 1, 4 * MARGIN, 40 * MARGIN])
@pytest.mark.parametrize("k", [1, 2, 5])
def test_ties_beyond_the_margin(ties, k):
    noise = np.linspace(0, 4e-6, ties)  # the last of the tied is the nearest before rounding
    found = near([0.1] * 3 + list(0.5 + noise) + [0.2] * 3)
    ids, scores = found.search(["0", "1"], k)
    assert ids[0].tolist() == [0, 4, 5, 6, 7][:k]
    assert scores[0].tolist() == [1.0, 0.5, 0.5, 0.5, 0.5][:k]
    assert scores[1, 0] == 0.1 and ids[1, 0] == 0  # a second text in the same call has an order of its own


def test_all_items_equal():
    assert dense(list("abc"), np.ones((3, 2))).search(["c"], 2)[0].tolist() == [[0, 1]]
    many = 200
    ids, _ = dense([str(n) for n in range(many)], np.ones((many, 2))).search(["199"], 3)
    assert ids.tolist() == [[0, 1, 2]]


def test_equal_texts_and_k_larger_than_the_catalogue():
    twice = dense(["a", "b", "a"], [(1, 0), (0, 1), (1, 0)])
    ids, scores = twice.search(["a", "b", "a"], 10)
    assert ids.tolist() == [[0, 2, 1], [1, 0, 2], [0, 2, 1]]
    assert scores.tolist() == [[1, 1, 0], [1, 0, 0], [1, 1, 0]]


def test_a_wrong_encoder_is_refused(tmp_path, monkeypatch):
    with one_line_error(str(tmp_path / "none"), DEFAULT_ENCODER):
        encoder.load_encoder(str(tmp_path / "none"))
    monkeypatch.setattr(encoder, "DEFAULT_ENCODER_SHA256", "0" * 64)
    with one_line_error(DEFAULT_ENCODER, "0" * 64):
        encoder.load_encoder(DEFAULT_ENCODER)


def test_the_room_loads_no_model_library_until_it_encodes():
    heavy = "{'torch', 'transformers', 'sentence_transformers'}"
    code = f"import sys, gloss_utils.search; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


LETTERS = ["a", "bb", "ccc", "dddd", "eeeee"]


@pytest.fixture
def few_texts_per_part(monkeypatch):
    monkeypatch.setattr(build_index, "TEXTS_PER_PART", 2)


def encoding(folder, **values) -> Run:
    values = {
        "encoder": "an encoder",
        "workers": 2,
        "engine": "local",
        "index": "flat",
        "rerank_from_disk": True,
    } | values
    return Run(RunFolder(folder), INDEX, {}, values, known={"encoder": "its weights", "items": "the catalogue's"})


def lengths(tool, texts: list[str]) -> np.ndarray:
    return np.array([[len(text)] for text in texts], dtype=np.float32)


def test_workers_encode_parts_whose_vectors_are_put_in_order(tmp_path, monkeypatch, few_texts_per_part):
    def backwards(work, load, parts, workers, on_gpu):
        assert workers == 2 and on_gpu and load.args == ("an encoder", None) and work is build_index.encode_texts
        yield from reversed([(number, lengths(None, texts)) for number, texts in parts])

    monkeypatch.setattr(workers, "map_parts", backwards, raising=False)
    found = build_index.encode_in_parts(encoding(tmp_path, engine="ray"), encoder.Encoder("an encoder"), LETTERS)
    assert found[:, 0].tolist() == [1, 2, 3, 4, 5] and found.dtype == np.float32


@pytest.mark.parametrize("engine", ["local", "ray"])
def test_encoding_that_was_cut_off_goes_on_after_its_last_part(
    tmp_path, monkeypatch, capsys, few_texts_per_part, engine
):
    asked, lives = [], [1]

    def dying(tool, texts):
        if not lives[0]:
            raise KeyboardInterrupt
        lives[0] -= 1
        asked.append(texts)
        return lengths(tool, texts)

    def mapped(work, load, parts, workers, on_gpu):
        yield from ((number, work(load, texts)) for number, texts in parts)

    monkeypatch.setattr(workers, "map_parts", mapped, raising=False)
    monkeypatch.setattr(build_index, "encode_texts", dying)
    run, encode = encoding(tmp_path), SimpleNamespace(name="an encoder", revision=None, model="its model")
    with pytest.raises(KeyboardInterrupt):
        build_index.encode_in_parts(run, encode, LETTERS)
    lives[0], [done] = 1, run.unfinished("dense").iterdir()
    done.write_bytes(done.read_bytes()[:-1])  # of a file cut short nothing is taken
    with pytest.raises(KeyboardInterrupt):
        build_index.encode_in_parts(run, encode, LETTERS)
    lives[0] = 9
    found = build_index.encode_in_parts(encoding(tmp_path, engine=engine), encode, LETTERS)
    assert found[:, 0].tolist() == [1, 2, 3, 4, 5]
    assert asked == [LETTERS[:2], LETTERS[:2], LETTERS[2:4], LETTERS[4:]]
    assert capsys.readouterr().out == "1 of 3 parts are those of a run that was cut off\n"
    lives[0] = 9
    other = encoding(tmp_path, index="hnsw")  # another plan, whose parts are its own
    build_index.encode_in_parts(other, encode, LETTERS[:2])
    assert asked[4:] == [LETTERS[:2]]


def test_stage_3_loads_the_encoder_once(copied_run, monkeypatch):
    loaded, real = [], encoder.load_encoder
    monkeypatch.setattr(encoder, "load_encoder", lambda *given: loaded.append(given) or real(*given))
    build_index.prepare(run_of(copied_run, index="auto", remake=["dense"]))  # auto asks the encoder for its dimension
    assert loaded == [(DEFAULT_ENCODER, None)]


@pytest.mark.parametrize("kind", ["flat", "hnsw"])
def test_the_index_has_the_same_bytes_after_a_kill(tmp_path, monkeypatch, few_texts_per_part, kind):
    vectors, calls = np.random.default_rng(3).random((40, 8), dtype=np.float32), []
    monkeypatch.setattr(on_disk, "BATCH", 9)

    def encode(tool, texts):
        calls.append(texts)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return vectors[[int(text) for text in texts]]

    monkeypatch.setattr(build_index, "encode_texts", encode)
    texts, tool = [str(number % 25) for number in range(40)], SimpleNamespace(model=None)
    for name in ("cut off", "not cut off"):
        encode_all = partial(build_index.encode_in_parts, encoding(tmp_path / name, index=kind), tool)
        if name == "cut off":
            with pytest.raises(KeyboardInterrupt):
                build_dense(tmp_path / name / "dense", texts, encoder.Encoder("none"), kind, encode=encode_all)
        build_dense(tmp_path / name / "dense", texts, encoder.Encoder("none"), kind, encode=encode_all)
    one, other = (sorted((tmp_path / name / "dense").iterdir()) for name in ("cut off", "not cut off"))
    assert [path.name for path in one] == [path.name for path in other] and len(one) >= 3
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(one, other, strict=True))
    assert len(calls) <= 1 + 2 * (25 // 2 + 4)  # no part twice but the one that was cut off


TITLES = ["Rose Hand Cream", "Dog Leash", "Silk Conditioner", "Rose Hand Cream", "Puzzle, 500 Pieces", "Dog Collar"]
TEXTS = [f"Title: {title}" for title in TITLES]


@pytest.fixture(scope="module")
def encoded():
    return DenseIndex.build(TEXTS, DEFAULT_ENCODER)


def test_the_default_encoder(encoded):
    vectors = encoded.vectors()
    assert vectors.shape == (6, 384) and vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert (vectors[0] == vectors[3]).all()  # equal texts share one vector
    ids, scores = encoded.search([TEXTS[3], "Title: leash for dogs", "shampoo"], 2)
    assert ids.tolist()[0] == [0, 3] and scores.tolist()[0] == [1.0, 1.0]
    assert sorted(ids.tolist()[1]) == [1, 5] and ids[1, 0] == 1
    assert ids[2, 0] == 2
    np.testing.assert_array_equal(scores, np.round(scores, 5))


def test_a_texts_similarity_is_the_inner_product_of_unit_vectors(encoded):
    text = "Title: rose soap"
    (vector,) = encoded.encoder.model.encode([text])
    (ids,), (scores,) = encoded.search([text], 6)
    expected = encoded.vectors() @ (vector / np.linalg.norm(vector))
    np.testing.assert_allclose(scores, expected[ids], atol=2e-5)
    assert scores.tolist() == sorted(scores, reverse=True)


def test_a_saved_dense_index_answers_alike(encoded, tmp_path):
    encoded.save(tmp_path / "dense")
    loaded = DenseIndex.load(tmp_path / "dense")
    assert (loaded.texts, loaded.encoder.name) == (TEXTS, DEFAULT_ENCODER)
    for ours, theirs in zip(encoded.search([*TEXTS, "soap"], 4), loaded.search([*TEXTS, "soap"], 4), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert [path.name for path in tmp_path.iterdir()] == ["dense"]


# ---- BM25

WORDS = ["Title: red soap", "Title: blue soap", "Title: blue cream jar", "Title: red soap", "Title: the brush"]


def lucene(documents_with: int, length: int) -> float:
    """BM25 of one word that occurs once in a text, in Lucene's variant. Five texts; without stop words, 3 + 3 + 4 + 3 +
    2 words."""
    idf = math.log(1 + (5 - documents_with + 0.5) / (documents_with + 0.5))
    return idf / (1 + 1.5 * (1 - 0.75 + 0.75 * length / (15 / 5)))


@pytest.fixture(scope="module")
def words():
    return BM25Index.build(WORDS)


def test_bm25_scores_and_order(words):
    ids, scores = words.search(["blue cream", "SOAP", "Title: soap"], 5)
    cream = lucene(2, 4) + lucene(1, 4)
    assert ids.tolist() == [[2, 1, 0, 3, 4], [0, 1, 3, 2, 4], [0, 1, 3, 4, 2]]
    soap, title = lucene(3, 3), [lucene(5, length) for length in (3, 3, 3, 2, 4)]
    np.testing.assert_allclose(scores[0], [cream, lucene(2, 3), 0, 0, 0], atol=6e-6)
    np.testing.assert_allclose(scores[1], [soap, soap, soap, 0, 0], atol=6e-6)
    np.testing.assert_allclose(scores[2], [soap + title[0]] * 3 + title[3:], atol=6e-6)
    np.testing.assert_array_equal(scores, np.round(scores, 5))


@pytest.mark.parametrize("text", ["nothing here", "soaps", "the", "", "!?"])
def test_a_text_that_shares_no_word_gets_the_first_items(words, text):
    ids, scores = words.search([text], 3)  # no stemming; "the" is a stop word
    assert ids.tolist() == [[0, 1, 2]] and scores.tolist() == [[0, 0, 0]]


JAX = """
import sys
class lax:
    @staticmethod
    def top_k(scores, k):
        sys.exit("jax takes the GPU's memory")
sys.modules["jax.lax"] = lax
print("jax")
"""


@pytest.mark.parametrize("first", ["", "import jax\n"])
def test_bm25s_does_not_import_jax(tmp_path, first):
    (tmp_path / "jax.py").write_text(JAX, encoding="utf-8")
    asked = "from gloss_utils.search import BM25Index\nprint(BM25Index.build(['soap', 'jar']).search(['jar'], 1)[0])\n"
    code = f"import sys\nsys.path.insert(0, {str(tmp_path)!r})\n{first}{asked}import jax\nprint(jax.lax)"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    lines = ["[[1]]", "jax", "<class 'jax.lax'>"]  # who wants jax has it
    assert found.stdout.splitlines() == ([*lines[1:2], lines[0], lines[2]] if first else lines), found.stderr


def test_bm25_unknown_words_do_not_matter_and_repeated_ones_count(words):
    ids, scores = words.search(["zzz blue", "blue", "blue blue"], 2)
    assert ids.tolist() == [[1, 2]] * 3
    assert scores[0].tolist() == scores[1].tolist()
    np.testing.assert_allclose(scores[2], 2 * scores[1], atol=2e-5)


def test_bm25_many_ties_and_k_larger_than_the_catalogue(words):
    assert words.search(["blue"], 99)[0].tolist() == [[1, 2, 0, 3, 4]]
    same = BM25Index.build(["Title: soap"] * 500 + ["Title: brush"])
    assert words.search([], 2)[0].shape == (0, 2)
    assert same.search(["soap"], 7)[0].tolist() == [[0, 1, 2, 3, 4, 5, 6]]
    assert same.search(["brush"], 3)[0].tolist() == [[500, 0, 1]]


def test_a_saved_bm25_index_answers_alike(words, tmp_path):
    words.save(tmp_path / "bm25")
    loaded, texts = BM25Index.load(tmp_path / "bm25"), [*WORDS, "blue", "zzz"]
    for ours, theirs in zip(words.search(texts, 4), loaded.search(texts, 4), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert [path.name for path in tmp_path.iterdir()] == ["bm25"]


@pytest.mark.parametrize(
    ("titles", "words"),
    [
        (["Красное яблоко", "Синяя груша"], {"яблоко", "груша"}),
        (["红色的苹果 手机壳", "蓝色的香蕉 手机壳"], {"红色的苹果", "手机壳"}),
        (["crème brûlée", "soap"], {"crème", "brûlée", "soap"}),
        (["苹果", "a", "12345"], set()),
        (["only one"], set()),
        (["", ""], set()),
    ],
)
def test_catalogues_of_any_language_and_size_are_found_by_words_and_mapped(titles, words):
    texts = [item_text(title) for title in titles]
    ids, scores = BM25Index.build(texts).search(texts, 1)
    assert (scores > 0).all() and [texts[place] for place in ids[:, 0]] == texts
    vectors = np.random.default_rng(3).random((len(titles), 8), dtype=np.float32)
    for some in (vectors, np.ones_like(vectors)):  # the encoder may tell no two of them apart
        figure = data_plots.catalogue_map(some, pd.Series(titles), seed=3)
        assert sum(len(points.get_offsets()) for points in figure.axes[0].collections) == len(titles)
        assert all(np.isfinite(points.get_offsets()).all() for points in figure.axes[0].collections)
        labels = [label.get_text() for legend in figure.legends for label in legend.get_texts()]
        named = {word for label in labels for word in label.split(", ")}
        assert words <= named if some is vectors else bool(words) == bool(named)
        data_plots.plt.close(figure)


@pytest.mark.parametrize("titles", [["soap", "comb", "soap"], ["soap"], ["soap", "soap"]])
def test_neighbours_are_other_titles_if_there_are_any(titles):
    data = SimpleNamespace(items=pd.DataFrame({"title": titles}))
    texts = [item_text(title) for title in titles]
    both = dense(texts, [(title == "soap", title != "soap") for title in titles]), BM25Index.build(texts)
    table = build_index.neighbours(build_index.Indexes(data, *both), titles).data
    assert list(table.columns) == ["dense: item", "dense: score", "bm25: item", "bm25: score"]
    assert table.index.names == ["title", "rank"] and table.index.is_unique
    others = {(title, other) for title in titles for other in titles if title != other}
    assert {(title, row["dense: item"]) for (title, _), row in table.iterrows()} == others
