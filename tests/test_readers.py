"""Raw files: reading them, whatever is in them, and what is kept of what cannot be used."""

import ast
import gzip
import hashlib
import json
from dataclasses import replace

import pandas as pd
import pytest
from helpers import frame_of, one_line_error, write_lines

from gloss_utils.data import interactions, raw_files, raw_lines, readers, rejects, sources
from gloss_utils.data.rejects import Rejects

AMAZON = sources.published("beauty")


def read_reviews(path, max_rejected) -> tuple[pd.DataFrame, int]:
    """The frame, and how many records were rejected."""
    rejects = Rejects()
    found = readers.read_interactions(replace(AMAZON.interactions, path=path), rejects, max_rejected)
    return frame_of(found), len(rejects.records)


def read_metadata(path, wanted, max_rejected) -> tuple[pd.DataFrame, int]:
    """The frame, and how many records were rejected."""
    rejects = Rejects()
    return readers.read_items(replace(AMAZON.items, path=path), wanted, rejects, max_rejected), len(rejects.records)


def review(user="u", item="i", time=1, **others) -> str:
    return json.dumps({"reviewerID": user, "asin": item, "unixReviewTime": time, "overall": 4.0} | others)


@pytest.mark.parametrize("zipped", [False, True])
def test_reviews_in_the_files_order(tmp_path, zipped):
    second = '{"reviewerID": "a", "asin": "é", "unixReviewTime": 0, "reviewText": "more"}'
    path = write_lines(tmp_path / "reviews", [review("b", "x", 7), "", second], zipped)
    frame, bad = read_reviews(path, 0)
    assert list(frame.columns) == ["user", "item", "time", "rating"]
    assert frame[["user", "item", "time"]].values.tolist() == [["b", "x", 7], ["a", "é", 0]]
    assert frame["rating"][0] == 4.0 and frame["rating"].isna()[1]
    assert bad == 0


@pytest.mark.parametrize(
    "line",
    [
        "{'reviewerID': 'u', 'asin': 'i', 'unixReviewTime': 1}",  # a literal, not JSON
        review()[:-5],
        "[]",
        "null",
        '"text"',
        "7",
        '{"asin": "i", "unixReviewTime": 1}',
        '{"reviewerID": "u", "unixReviewTime": 1}',
        '{"reviewerID": "u", "asin": "i"}',
        review(user=""),
        review(user=3.0),
        review(item=None),
        review(item=""),
        review(user="A 1"),  # a TREC file separates its columns by spaces
        review(item="B\t1"),
        review(time="soon"),
        review(time=None),
        review(time=float("nan")),
        review(time=float("inf")),
        review(time=True),
        review(time=10**30),
        review(overall="good"),
        review(overall=[5]),
        pytest.param("[" * 100_000, id="deep"),
    ],
)
def test_a_malformed_review_is_counted_and_left_out(tmp_path, line):
    path = write_lines(tmp_path / "reviews", [review("first"), line, review("last")])
    frame, bad = read_reviews(path, 1 / 3)
    assert frame["user"].tolist() == ["first", "last"]
    assert bad == 1


@pytest.mark.parametrize("kind", ["reviews", "metadata"])
def test_max_rejected_is_the_largest_share_allowed(tmp_path, kind):
    good = {"reviews": review(), "metadata": "{'asin': 'i', 'title': 'Soap'}"}[kind]
    path = write_lines(tmp_path / kind, [good] * 3 + ["broken"])

    def read(share):
        return read_reviews(path, share) if kind == "reviews" else read_metadata(path, {"i"}, share)

    assert read(0.25)[1] == 1
    with one_line_error(str(path), "1 of 4", "line 4", "max_rejected"):
        read(0.2499)


def test_a_file_without_one_good_line_is_refused_whatever_is_allowed(tmp_path):
    broken = write_lines(tmp_path / "broken", ["x", "y"])
    empty = write_lines(tmp_path / "empty", [])
    for path in (broken, empty):
        with one_line_error(str(path), "no usable record"):
            read_reviews(path, 1)
        with one_line_error(str(path), "no usable record"):
            read_metadata(path, {"i"}, 1)


@pytest.mark.parametrize("damage", ["cut", "garbled", "sum"])
def test_a_damaged_gzip_file_is_refused(tmp_path, damage):
    # Reviews that compress badly, so that good lines come before the damage.
    lines = [review(user=hashlib.sha256(bytes([i % 256, i // 256])).hexdigest()) for i in range(3000)]
    whole = gzip.compress("\n".join(lines).encode())
    middle = len(whole) // 2
    path = tmp_path / "reviews.gz"
    path.write_bytes(
        {
            "cut": whole[:middle],
            "garbled": whole[:10] + b"\xff" * 64 + whole[74:],
            "sum": whole[:-8] + b"\0" * 8,
        }[damage]
    )
    with one_line_error(str(path), "cut or damaged"):
        read_reviews(path, 1)


def test_bytes_that_are_not_utf8_do_not_stop_the_reading(tmp_path):
    path = tmp_path / "reviews"
    path.write_bytes(review("u", reviewText="X").encode().replace(b"X", b"\xff") + b"\n")
    assert read_reviews(path, 0)[0]["user"].tolist() == ["u"]


@pytest.mark.parametrize("zipped", [False, True])
def test_metadata_titles_of_wanted_items(tmp_path, zipped):
    lines = [
        "{'asin': 'c', 'title': \"Nobody's &amp; Soap\", 'price': 9.99, 'related': {'also_bought': ['a']}}",
        "{'asin': 'x', 'title': 'not wanted'}",
        "{'asin': 'a', 'price': 1.0}",
        "{'asin': 'a', 'title': 'listed again'}",
    ]
    frame, bad = read_metadata(write_lines(tmp_path / "meta", lines, zipped), {"a", "c"}, 0)
    assert list(frame.columns) == ["item", "title"]
    assert frame["item"].tolist() == ["c", "a", "a"]
    assert frame["title"][0] == "Nobody's &amp; Soap" and frame["title"][2] == "listed again"
    assert frame["title"].isna().tolist() == [False, True, False]
    assert bad == 0


@pytest.mark.parametrize(
    "line",
    [
        "{'asin': 'a'",
        "{'title': 'no asin'}",
        "{'asin': 'a', 'title': ['x']}",
        "[1]",
        "a b",
        pytest.param("(" * 100_000, id="deep"),
    ],
)
def test_a_malformed_metadata_line_is_counted_and_left_out(tmp_path, line):
    path = write_lines(tmp_path / "meta", ["{'asin': 'a', 'title': 'A'}", line])
    frame, bad = read_metadata(path, {"a"}, 0.5)
    assert frame["title"].tolist() == ["A"] and bad == 1


def test_a_literal_that_would_fill_the_memory_is_not_parsed(tmp_path, monkeypatch):
    monkeypatch.setattr(raw_files, "LITERAL", 1000)
    long = "{'asin': 'a', 'title': 'A', 'more': [" + "0," * 1000 + "]}"
    frame, bad = read_metadata(write_lines(tmp_path / "meta", [long, "{'asin': 'a', 'title': 'A'}"]), {"a"}, 0.5)
    assert len(frame) == 1 and bad == 1


def test_metadata_of_unwanted_items_is_not_parsed(tmp_path, monkeypatch):
    parsed, literal_eval = [], ast.literal_eval
    monkeypatch.setattr(ast, "literal_eval", lambda text: parsed.append(text) or literal_eval(text))
    lines = ["{'asin': 'x', 'title': 'broken", "{'asin': 'a', 'title': 'A'}", "{'asin': 'y', 'title': 'Y'}"]
    _, bad = read_metadata(write_lines(tmp_path / "meta", lines), {"a"}, 0)
    assert parsed == ["{'asin': 'a', 'title': 'A'}"]
    assert bad == 0


def test_nothing_in_a_line_is_executed(tmp_path):
    mark = tmp_path / "executed"
    calls = [
        f"__import__('os').system('touch {mark}')",
        f"{{'asin': 'a', 'title': __import__('os').system('touch {mark}')}}",
        f"{{'asin': 'a', 'title': str(open('{mark}', 'w'))}}",
    ]
    path = write_lines(tmp_path / "meta", ["{'asin': 'a', 'title': 'A'}", *calls])
    frame, bad = read_metadata(path, {"a"}, 1)
    assert frame["title"].tolist() == ["A"] and bad == 3
    path = write_lines(tmp_path / "reviews", [review(), *calls])
    assert read_reviews(path, 1)[1] == 3
    assert not mark.exists()


def test_of_many_rejects_all_are_counted_and_the_first_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(rejects, "KEPT", 2)
    monkeypatch.setattr(rejects, "SHOWN", 8)
    noted = Rejects(tmp_path / "rejected.jsonl")
    path = write_lines(
        tmp_path / "reviews", [review(), "broken \ud83d and long".encode("utf-8", "replace").decode(), "[]", "{}"]
    )
    reviews = replace(AMAZON.interactions, path=path)
    readers.read_interactions(reviews, noted, 0.75)
    noted.write()
    kept = [json.loads(line) for line in (tmp_path / "rejected.jsonl").read_text().splitlines()]
    assert [(one["place"], one["record"]) for one in kept] == [("line 2", "broken ?"), ("line 3", "[]")]
    assert noted.reasons(path, "interactions").total() == 3
    with one_line_error("3 of 4", "line 2: it is not JSON", "rejected.jsonl"):
        readers.read_interactions(reviews, Rejects(tmp_path / "rejected.jsonl"), 0.74)


def test_a_line_without_end_is_cut_and_rejected(tmp_path, monkeypatch):
    monkeypatch.setattr(raw_lines, "BLOCK", 64)
    monkeypatch.setattr(raw_lines, "LONGEST", 256)
    path = write_lines(tmp_path / "reviews", [review("a"), "x" * 5000, review("b")])
    frame, bad = read_reviews(path, 1)
    assert frame["user"].tolist() == ["a", "b"] and bad == 1


def test_blocks_and_their_borders_do_not_show(tmp_path, monkeypatch):
    lines = [review(f"u{number}", time=number) for number in range(500)]
    path = write_lines(tmp_path / "reviews", [*lines, "broken", "", *lines])
    whole, bad = read_reviews(path, 1)
    monkeypatch.setattr(raw_lines, "BLOCK", 1000)
    monkeypatch.setattr(interactions, "ENCODED", 64)
    pd.testing.assert_frame_equal(read_reviews(path, 1)[0], whole)
    assert bad == 1 and len(whole) == 1000
