"""Files of generated queries: the published format and our own."""

import gzip
import json

import pandas as pd
import pytest
from helpers import SHARED, one_line_error

from gloss_utils.data import queries
from gloss_utils.data.rejects import Rejects


def read(path, texts_per_user, max_rejected, targets=True):
    """The frame, and a line for each record that cannot be used."""
    rejects = Rejects()
    frame = queries.read(path, texts_per_user, max_rejected, targets, rejects)
    return frame, [f"{kept['place']}: {kept['reason']}" for kept in rejects.records]


def record(user="u", **others) -> dict:
    return {"reviewer_id": user, "asin": "t", "seen_asins": ["a", "b"], "generated_sequences": ["x", "y"]} | others


def without(key: str) -> dict:
    return {name: value for name, value in record().items() if name != key}


def saved(tmp_path, *records, layout="list", zipped=False):
    text = json.dumps(records, indent=1) if layout == "list" else "\n".join(map(json.dumps, records)) + "\n"
    path = tmp_path / "queries"
    path.write_bytes(gzip.compress(text.encode()) if zipped else text.encode())
    return path


@pytest.mark.parametrize("layout", ["list", "lines"])
@pytest.mark.parametrize("zipped", [False, True])
def test_reading_what_the_papers_code_writes(tmp_path, layout, zipped):
    path = saved(tmp_path, record("v"), record("u", seen_asins=[], asin="s"), layout=layout, zipped=zipped)
    frame, rejected = read(path, 5, 0)
    assert rejected == []
    assert list(frame.columns) == ["user", "history", "target", "texts", "logprobs", "lengths"]
    assert frame.values.tolist() == [
        ["v", ["a", "b"], "t", ["x", "y"], [None, None], [None, None]],
        ["u", [], "s", ["x", "y"], [None, None], [None, None]],
    ]


def test_our_own_format_comes_back_as_it_was(tmp_path):
    frame = pd.DataFrame(
        [
            ("u", ["a", "b"], "t", ["Title: Crème\u2028 &amp;\n\x85", ""], [-1.25, None], [7, None]),
            ("ü", [], "s", ["one"], [-1e-9], [50]),
        ],
        columns=queries.COLUMNS,
    )
    path = tmp_path / "queries.jsonl"
    queries.write(path, frame)
    back, rejected = read(path, 5, 0)
    assert rejected == [] and back.values.tolist() == frame.values.tolist()
    first = json.loads(path.read_text(encoding="utf-8").split("\n")[0])
    assert first["reviewer_id"] == "u" and first["asin"] == "t" and first["seen_asins"] == ["a", "b"]
    assert first["logprobs"] == [-1.25, None] and first["lengths"] == [7, None]


def test_texts_beyond_those_wanted_are_left_out_with_their_scores(tmp_path):
    long = record(generated_sequences=list("wxyz"), logprobs=[-1.0, -2.0, -3.0, -4.0], lengths=[4, 3, 2, 1])
    (row,) = read(saved(tmp_path, long), 2, 0)[0].itertuples()
    assert (row.texts, row.logprobs, row.lengths) == (["w", "x"], [-1.0, -2.0], [4, 3])
    (row,) = read(saved(tmp_path, long), 9, 0)[0].itertuples()
    assert (row.texts, row.lengths) == (list("wxyz"), [4, 3, 2, 1])


UNUSABLE = {
    "no object": ["text"],
    "null": None,
    "no user": without("reviewer_id"),
    "user is a number": record(7),
    "user is blank": record(" "),
    "user with a space": record("A 1"),  # a TREC file separates its columns by spaces
    "no target": without("asin"),
    "target is null": record(asin=None),
    "target is blank": record(asin=""),
    "target with a space": record(asin="B 1"),
    "no history": without("seen_asins"),
    "history is a text": record(seen_asins="ab"),
    "history of numbers": record(seen_asins=[1]),
    "no texts": without("generated_sequences"),
    "texts is a text": record(generated_sequences="x"),
    "texts is empty": record(generated_sequences=[]),
    "a text is null": record(generated_sequences=["x", None]),
    "scores do not match": record(logprobs=[-1.0]),
    "scores are texts": record(logprobs=["-1", "-2"]),
    "scores are no list": record(logprobs=-1.0),
    "lengths are no whole numbers": record(lengths=[1.5, 2]),
    "lengths do not match": record(lengths=[1, 2, 3]),
    "a text of no tokens": record(logprobs=[-1, -1], lengths=[0, 1]),
    "a score beyond all floats": record(logprobs=[-(10**400), -1]),
    "a score that is no number": record(logprobs=[float("nan"), -1]),
    "a length beyond all floats": record(lengths=[10**400, 1]),
    "history with half a character": record(seen_asins=["a", "\ud800"]),
}


@pytest.mark.parametrize("layout", ["list", "lines"])
@pytest.mark.parametrize("why", UNUSABLE)
def test_a_record_that_cannot_be_used_is_named_and_left_out(tmp_path, why, layout):
    path = saved(tmp_path, record("first"), UNUSABLE[why], record("last"), layout=layout)
    frame, rejected = read(path, 5, 1)
    assert frame["user"].tolist() == ["first", "last"]
    assert len(rejected) == 1 and rejected[0].startswith("record 2: " if layout == "list" else "line 2: ")


def test_a_line_that_is_not_json_and_a_blank_one(tmp_path):
    path = tmp_path / "queries"
    path.write_text(json.dumps(record("u")) + "\n\n{broken\n" + json.dumps(record("v")) + "\n")
    frame, rejected = read(path, 5, 0.34)
    assert frame["user"].tolist() == ["u", "v"] and len(rejected) == 1 and rejected[0].startswith("line 3: ")


def test_half_a_character_does_not_stop_the_writing(tmp_path):
    # JSON may hold half of a surrogate pair: a text that was cut inside an emoji.
    path = saved(tmp_path, record("u"), record("v", generated_sequences=["Title: \ud83d", "y"]))
    frame, rejected = read(path, 5, 1)
    queries.write(tmp_path / "again", frame)
    assert len(read(tmp_path / "again", 5, 1)[0]) == len(frame) == 2 - len(rejected)


def test_the_first_record_of_a_user_counts(tmp_path):
    frame, rejected = read(saved(tmp_path, record("u", asin="1"), record("v"), record("u", asin="2")), 5, 0.4)
    assert frame["user"].tolist() == ["u", "v"] and frame["target"].tolist() == ["1", "t"]
    assert len(rejected) == 1 and rejected[0].startswith("record 3: ")


def test_max_rejected_is_the_largest_share_allowed(tmp_path):
    path = saved(tmp_path, *map(record, "abc"), record(asin=None))
    assert len(read(path, 5, 0.25)[0]) == 3
    with one_line_error(str(path), "1 of 4", "record 4: asin", "max_rejected"):
        read(path, 5, 0.2499)


def test_where_nothing_is_held_out_no_target_is_needed(tmp_path):
    path = saved(tmp_path, record("u"), without("asin") | {"reviewer_id": "v"}, record("w", asin=None))
    frame, rejected = read(path, 5, 0, targets=False)
    assert frame["user"].tolist() == ["u", "v", "w"] and rejected == []
    assert frame["target"].astype(object).tolist() == ["t", None, None]
    queries.write(tmp_path / "again", frame)
    targets = [json.loads(line)["asin"] for line in (tmp_path / "again").read_text().splitlines()]
    assert targets == ["t", None, None]


@pytest.mark.parametrize("content", [b"", b"[]", b"\n \n", b"{}", b"[{}]", b"null", b"[1, 2]", b"no json\nat all"])
def test_a_file_without_one_usable_record(tmp_path, content):
    path = tmp_path / "queries"
    path.write_bytes(content)
    with one_line_error(str(path), "no usable record"):
        read(path, 5, 1)


@pytest.mark.parametrize("layout", ["list", "lines"])
def test_a_cut_gzip_file(tmp_path, layout):
    path = saved(tmp_path, *(record(f"u{number}") for number in range(100)), layout=layout, zipped=True)
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:-4], whole[:-8] + b"\0" * 8, whole[:20] + b"\xff" * 20):
        path.write_bytes(damaged)
        with one_line_error(str(path)):
            read(path, 5, 1)


def test_a_cut_list_and_bytes_that_are_no_text(tmp_path):
    path = saved(tmp_path, record("u"), record("v"))
    path.write_bytes(path.read_bytes()[:-10])
    with one_line_error(str(path), "not a JSON list"):
        read(path, 5, 1)
    path.write_bytes(b"\xff\xfe\x00")
    with one_line_error(str(path), "cut or damaged"):
        read(path, 5, 1)


def test_a_missing_file_or_a_folder(tmp_path):
    for path in (tmp_path / "none.json", tmp_path):
        with one_line_error(str(path), "cannot be read"):
            read(path, 5, 1)


@pytest.mark.parametrize(
    ("name", "users"), [("beauty-llama-1b", 1118), ("beauty-llama-3b", 1118), ("toys-llama-1b", 969)]
)
def test_the_published_files(name, users):
    path = SHARED / f"data/generations/{name}.validation.json.gz"
    if not path.is_file():
        pytest.skip(f"{path} is absent")
    frame, rejected = read(path, 5, 0)
    assert rejected == [] and len(frame) == users == frame["user"].nunique()
    assert (frame["texts"].map(len) == 5).all() and (frame["history"].map(len) > 0).all()
    assert frame["texts"].explode().str.startswith("Title: ").mean() > 0.9
