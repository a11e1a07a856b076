"""Approximate indexes on disk: what they find, in what order, and that texts and vectors are found again."""

from pathlib import Path

import numpy as np
import pytest
from helpers import dataset, dense, one_line_error

from gloss_utils import build_index
from gloss_utils.base.seals import seal
from gloss_utils.runs import parameters
from gloss_utils.runs.contents import contents
from gloss_utils.runs.folder import RunFolder
from gloss_utils.runs.parameters import INDEX
from gloss_utils.runs.run import Run
from gloss_utils.search import DEFAULT_ENCODER, DenseIndex, Encoder, build_dense, on_disk
from gloss_utils.search.on_disk import FLAT, HNSW, IVFPQ, Places

ITEMS, DIMENSIONS, BATCH = 3000, 64, 700
GIB = 2**30


def made(count: int, seed: int) -> np.ndarray:
    """Unit vectors in clusters."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(0).standard_normal((60, DIMENSIONS))
    vectors = centres[rng.integers(60, size=count)] + 0.7 * rng.standard_normal((count, DIMENSIONS))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


VECTORS = made(ITEMS, 1)
VECTORS[50] = VECTORS[2000] = VECTORS[2999] = VECTORS[7]
TEXTS = [f"Title: thing {number}" for number in range(ITEMS)]
for place in (50, 2000, 2999):
    TEXTS[place] = TEXTS[7]


def encode(texts: list[str]) -> np.ndarray:
    """The vector of each text; those that differ by nothing but noise are not the same text."""
    return VECTORS[[TEXTS.index(text) for text in texts]]


def write(folder, kind: str, rerank: bool = True) -> DenseIndex:
    return build_dense(folder, TEXTS, Encoder("no such encoder"), kind, rerank, encode)


@pytest.fixture(scope="module", autouse=True)
def small():
    """Batches smaller than the catalogue, codes that are quickly trained."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(on_disk, "BATCH", BATCH)
        patched.setattr(on_disk, "CODE_BYTES", 16)
        yield


@pytest.fixture(scope="module", params=[HNSW, IVFPQ])
def built(request, tmp_path_factory) -> DenseIndex:
    return write(tmp_path_factory.mktemp("index") / "dense", request.param)


@pytest.fixture(scope="module")
def flat() -> DenseIndex:
    return dense(TEXTS, VECTORS)


def test_auto_takes_what_fits():
    assert on_disk.choose(12_000, 384, 24 * GIB)[0] == FLAT
    assert on_disk.choose(on_disk.FLAT_ITEMS, 384, 24 * GIB)[0] == FLAT
    assert on_disk.choose(on_disk.FLAT_ITEMS + 1, 384, 24 * GIB)[0] == HNSW
    assert on_disk.choose(500_000, 384, 2 * GIB)[0] == HNSW  # 0.7 GiB of vectors, a quarter of 2 GiB is 0.5
    assert on_disk.choose(48_000_000, 384, 24 * GIB)[0] == IVFPQ
    assert on_disk.choose(500_000, 384, GIB // 2)[0] == IVFPQ
    why = on_disk.choose(12_000, 384, 24 * GIB)[1]
    assert "12,000 items" in why and "6.0 GiB" in why


def test_nearly_all_of_the_nearest_are_found_and_their_similarities_are_exact(built, flat):
    queries = made(200, 2)
    ids, scores = built.nearest(queries, 10)
    expected, _ = flat.nearest(queries, 10)
    assert np.mean([np.isin(a, b).mean() for a, b in zip(expected, ids, strict=True)]) > 0.95
    exact = np.einsum("qd,qkd->qk", queries.astype(np.float64), VECTORS[ids].astype(np.float64))
    np.testing.assert_allclose(scores, exact, atol=6e-6)
    np.testing.assert_array_equal(scores, np.round(scores, 5))
    assert (np.diff(scores) <= 0).all()


def test_an_items_own_text_is_found_with_similarity_1_and_its_twins_in_the_catalogues_order(built):
    ids, scores = built.search([TEXTS[7], TEXTS[11]], 4)  # no encoder is needed
    assert ids[0].tolist() == [7, 50, 2000, 2999] and scores[0].tolist() == [1.0] * 4
    assert ids[1, 0] == 11 and scores[1, 0] == 1.0
    assert built.search([TEXTS[7]], 2)[0].tolist() == [[7, 50]]


def test_more_twins_than_are_re_ranked_keep_the_catalogues_order(built, monkeypatch):
    monkeypatch.setattr("gloss_utils.search.dense.RERANKED", 1)
    assert built.search([TEXTS[7]], 2)[0].tolist() == [[7, 50]]
    assert built.search([TEXTS[7]], 4)[0].tolist() == [[7, 50, 2000, 2999]]


def test_more_than_the_catalogue_has(built, flat):
    queries = made(3, 3)
    ids, scores = built.nearest(queries, ITEMS + 5)
    _, similar = flat.nearest(queries, ITEMS + 5)
    assert ids.shape == (3, ITEMS)
    np.testing.assert_allclose(scores, similar, atol=1.1e-5)
    assert all(sorted(row) == list(range(ITEMS)) for row in ids.tolist())


def test_it_is_memory_mapped_and_reads_no_more_than_asked_for(built):
    assert isinstance(built.vectors(), np.memmap) and built.vectors().shape == (ITEMS, DIMENSIONS)
    np.testing.assert_array_equal(built.vectors(), VECTORS)
    assert built.texts.get(TEXTS[2999], -1) == 7 and built.texts.get("Title: thing 7 ", -1) == -1


def test_strength_is_that_of_the_flat_index(built, flat):
    np.testing.assert_allclose(built.strength(np.array([1.0, 0.2])), flat.strength(np.array([1.0, 0.2])))


def test_items_that_are_added_are_found_exactly(built):
    new, asked = dict(zip(["Title: new", *"abc"], made(4, 9), strict=True)), []

    def encode_new(texts):
        asked.extend(texts)
        return np.array([new[text] for text in texts])

    before = DenseIndex(built.texts, built.faiss, encode_new, built.about)
    longer = before.extended(["Title: new", TEXTS[3], "a"]).extended(["Title: new", "b", "c"])
    assert asked == ["Title: new", "a", "b", "c"]
    ids, scores = longer.nearest(np.array(list(new.values())), 3)
    assert ids[:, 0].tolist() == [ITEMS, ITEMS + 2, ITEMS + 4, ITEMS + 5] and (scores[:, 0] == 1).all()
    assert longer.search(["Title: new", TEXTS[3]], 2)[0].tolist() == [[ITEMS, ITEMS + 3], [3, ITEMS + 1]]
    assert len(longer) == len(longer.vectors()) == ITEMS + 6
    np.testing.assert_array_equal(longer.encode([TEXTS[3], "c"]), [VECTORS[3], new["c"]])
    np.testing.assert_array_equal(longer.vectors()[[5, -1]], [VECTORS[5], new["c"]])
    assert len(before) == ITEMS and before.nearest(new["c"][None], 1)[1] < 1


def test_without_re_ranking_similarities_are_those_of_the_codes(tmp_path):
    rough = write(tmp_path / "dense", IVFPQ, rerank=False)
    ids, scores = rough.search(TEXTS[:100], 5)
    assert (np.diff(scores) <= 0).all() and (scores[:, 0] != 1).any()
    assert np.mean([own in row for own, row in enumerate(ids.tolist())]) > 0.9


def test_a_text_is_found_at_its_first_place_and_only_as_it_is(tmp_path):
    folder = tmp_path / "50% off? #1"  # which an address of a file has to quote
    folder.mkdir()
    places = Places.write(folder, ["aa", "b", "a\0c", "aa", "a\0d", "ééé", "", "12", "Aa"])
    sought = ["a\0d", "aa", "a\0c", "b", "a", "aa ", "ééé", "éé", "", "12", "012", "Aa", "AA"]
    assert [places.get(text, -1) for text in sought] == [4, 0, 2, 1, -1, -1, 5, -1, 6, 7, -1, 8, -1]


def test_the_same_texts_make_the_same_files(built, tmp_path):
    again = write(tmp_path / "dense", built.about["kind"])
    assert again.about == built.about
    folder = Path(built.faiss.file.filename).parent
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["encoder.json", "index.faiss", "texts.sqlite", "vectors.npy"]
    assert all((folder / name).read_bytes() == (tmp_path / "dense" / name).read_bytes() for name in names)


def test_equal_texts_are_encoded_once_over_all_batches(tmp_path, monkeypatch):
    monkeypatch.setattr(on_disk, "BATCH", 2)
    asked = []

    def counted(texts):
        asked.extend(texts)
        return np.array([[len(text), 1.0] for text in texts], dtype=np.float32)

    texts = ["a", "bb", "a", "bb", "ccc", "a"]
    vectors = on_disk.write_vectors(tmp_path / "v.npy", texts, Places.write(tmp_path, texts), counted)
    assert asked == ["a", "bb", "ccc"] and vectors[:, 0].tolist() == [1, 2, 1, 2, 3, 1]


def test_one_pass_over_blocks_is_exact():
    queries = made(20, 4)
    scores, places = on_disk.exact(VECTORS, queries, 10)
    expected = np.sort(queries @ VECTORS.T, axis=1)[:, ::-1][:, :10]
    np.testing.assert_allclose(scores, expected, atol=1e-6)
    np.testing.assert_allclose(np.take_along_axis(queries @ VECTORS.T, places, 1), expected, atol=1e-6)


def test_a_write_that_fails_leaves_nothing(tmp_path):
    def broken(texts):
        raise RuntimeError("the encoder died")

    with pytest.raises(RuntimeError):
        build_dense(tmp_path / "dense", TEXTS, Encoder("none"), HNSW, encode=broken)
    assert not list(tmp_path.iterdir())


def test_a_wrong_kind_is_refused():
    with one_line_error("index", "'lsh'", "'auto', 'flat', 'hnsw' or 'ivfpq'"):
        parameters.check({"index": "lsh"})
    with one_line_error("rerank_from_disk", "'perhaps'"):
        parameters.check({"rerank_from_disk": "perhaps"})


def test_few_items_can_be_indexed(tmp_path):
    def encode(texts: list[str]) -> np.ndarray:
        return np.eye(8, dtype=np.float32)[: len(texts)]

    for kind in (HNSW, IVFPQ):
        small = build_dense(tmp_path / kind, ["a", "b", "c"], Encoder("none"), kind, encode=encode)
        assert small.search(["b"], 9)[0].tolist() == [[1, 0, 2]]


def test_a_saved_flat_index_says_its_kind(flat, tmp_path):
    flat.save(tmp_path / "dense")
    assert DenseIndex.load(tmp_path / "dense").about == {"kind": FLAT}


@pytest.mark.parametrize("asked, taken", [("auto", FLAT), (HNSW, HNSW), (IVFPQ, IVFPQ)])
def test_stage_3_builds_what_is_asked_for_and_says_so(tmp_path, asked, taken):
    data, folder = dataset({"u": "abc", "v": "bcd"}), RunFolder(tmp_path)
    data.save(folder.data)
    seal(folder.data)
    values = {"index": asked, "rerank_from_disk": True, "encoder": DEFAULT_ENCODER, "engine": "local"}
    values["encoder_revision"] = None
    run = Run(folder, INDEX, {}, values, known=contents(tmp_path, values, {}))
    indexes = build_index.prepare(run)
    found = indexes.dense
    assert found.search(["Title: title c"], 1)[0].tolist() == [[2]]
    loaded = DenseIndex.load(folder.dense_index)
    assert loaded.about["kind"] == taken and build_index.what_was_built(run, indexes).data["value"]["kind"] == taken
    np.testing.assert_array_equal(loaded.search(["Title: title b"], 4), found.search(["Title: title b"], 4))
    longer = loaded.extended(["Title: a new thing", "Title: title a"])
    assert longer.search(["Title: title a"], 2)[0].tolist() == [[0, 5]]
