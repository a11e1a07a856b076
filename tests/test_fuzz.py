"""The readers on whatever hypothesis thinks of: they end with a table or one line, and reject by one rule."""

import ast
import csv
import io
import json
import math
from dataclasses import replace

import pandas as pd
import pytest
from helpers import dataset, frame_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gloss_utils import retrieve
from gloss_utils.base.errors import GlossError
from gloss_utils.data import queries, readers, sources, templates
from gloss_utils.data.raw_files import RawFile
from gloss_utils.data.readers import is_id
from gloss_utils.data.rejects import Rejects

# Bounded: the same few hundred cases in every run.
BOUNDED = settings(
    max_examples=300, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=3,
)
IDS = st.sampled_from(["a", "b", "é", "2014-01-01", "a b", "", "\u2028", 7]) | VALUES
TIMES = st.integers(-5, 2**40) | VALUES
REVIEW = st.fixed_dictionaries(
    {"reviewerID": IDS, "asin": IDS, "unixReviewTime": TIMES},
    optional={"overall": st.floats(0, 5) | VALUES, "summary": VALUES},
)
ITEM = st.fixed_dictionaries({"asin": IDS}, optional={"title": st.text(max_size=8) | VALUES, "price": VALUES})
HALVES = st.text(st.characters(exclude_categories=()), max_size=5)  # halves of surrogate pairs among them
NUMBERS = st.lists(st.none() | st.integers(-1, 2) | st.floats() | st.just(10**400), min_size=1, max_size=2)
GOOD_QUERIES = st.fixed_dictionaries(
    {
        "reviewer_id": st.sampled_from("abcdefgh"),
        "asin": st.just("a"),
        "seen_asins": st.lists(HALVES, max_size=3),
        "generated_sequences": st.lists(HALVES, min_size=1, max_size=2),
    },
    optional={"logprobs": NUMBERS, "lengths": NUMBERS},
)
QUERIES = GOOD_QUERIES | st.fixed_dictionaries(
    {"reviewer_id": IDS, "asin": IDS, "seen_asins": VALUES | st.lists(IDS, max_size=3)},
    optional={"generated_sequences": st.lists(HALVES, max_size=3) | VALUES, "logprobs": VALUES, "lengths": VALUES},
)
CATALOGUE = dataset({"u": "ab"})
JUNK = st.binary(max_size=30) | st.sampled_from(
    [b"", b" ", b"\r", b"{}", b"[]", b"{} {}", b'{"asin": "a"', b"\x1f\x8b", b"\xef\xbb\xbf{}"]
)


def lines_of(records, write):
    return st.lists(records.map(write) | JUNK, max_size=12).map(b"\n".join)


def as_json(record) -> bytes:
    return json.dumps(record).encode()


def as_literal(record) -> bytes:
    return repr(record).encode("utf-8", errors="surrogatepass")


def interactions_of(file, text: bytes) -> tuple[list, Rejects] | None:
    file.path.write_bytes(text)
    rejects = Rejects()
    try:
        frame = frame_of(readers.read_interactions(file, rejects, 1))
    except GlossError as error:
        assert "\n" not in str(error)
        return None
    return [tuple(row) for row in frame.itertuples(index=False)], rejects


@given(lines_of(REVIEW, as_json))
@BOUNDED
def test_reviews(tmp_path, text):
    file = replace(sources.published("beauty").interactions, path=tmp_path / "reviews")
    found = interactions_of(file, text)
    # Line by line, each for itself, gives the same rows: no line has a say in how another is read.
    alone = [interactions_of(file, line) for line in text.split(b"\n")] if not text.startswith(b"\x1f\x8b") else []
    rows = [row for part in alone if part for row in part[0]]
    if found is None:
        assert rows == []
        return
    assert repr(found[0]) == repr(rows) or text.startswith(b"\x1f\x8b")
    assert all(is_id(user) and is_id(item) and isinstance(time, int) for user, item, time, _ in found[0])
    assert len(found[0]) + len(found[1].records) == sum(bool(line.strip()) for line in text.split(b"\n"))


@pytest.mark.parametrize("form", ["literal", "json"])
@given(data=st.data())
@BOUNDED
def test_metadata(tmp_path, form, data):
    write = as_literal if form == "literal" else as_json
    text = data.draw(lines_of(ITEM, write))
    file = replace(sources.published("beauty" if form == "literal" else "amazon2018-x").items, path=tmp_path / "meta")
    file.path.write_bytes(text)
    try:
        frame = readers.read_items(file, {"a", "é", "2014-01-01", "7"}, Rejects(), 1)
    except GlossError as error:
        assert "\n" not in str(error)
        return
    expected = []
    for line in text.split(b"\n"):
        try:
            decoded = line.decode("utf-8", errors="replace").strip()
            record = ast.literal_eval(decoded) if form == "literal" else json.loads(decoded)
            item, title = record["asin"], record.get("title")
        except Exception:
            continue
        item = str(item) if isinstance(item, int) and not isinstance(item, bool) else item
        numeric = isinstance(title, (int, float)) and not isinstance(title, bool)
        if item in ("a", "é", "2014-01-01", "7") and (title is None or numeric or isinstance(title, str)):
            empty = title is None or (math.isinf(title) or math.isnan(title) if numeric else not title.strip())
            expected.append((item, None if empty else templates.whole_characters(str(title))))
    found = [(item, title if isinstance(title, str) else None) for item, title in frame.itertuples(index=False)]
    assert found == expected


PLAIN = ["u", "a", "1", "7", '"1"', "5.5", "-7", "1e3", "2024-05-31", "2024-05-31T12:00:00.25Z", "20240531", "é"]
ODD = [
    *["", " ", " 7", "+3", "1e400", "0x10", "nan", "inf", "1_0", "²", "24:00", "true", "null", "\0", "\r", "9" * 25],
    *[
        '""',
        '"',
        '"a,b"',
        '"x""y"',
        '"x"y',
        'a"b',
        "a b",
        "\u2028",
        "\ufeff",
        "2024-W01-1",
        "2024-05-31T25:00",
        "9" * 5000,
    ],
    *["0001-01-01T00:00+23:59", "9999-12-31T23:59:59-23:59", "2024-05-31 10:00", "2024-05-31T10"],
]
CELLS = st.sampled_from(PLAIN).map(str.encode) | st.sampled_from(ODD).map(str.encode) | st.binary(max_size=3)
TABLE_LINES = {
    "csv": lines_of(st.lists(CELLS, min_size=2, max_size=4), b",".join),
    "json": lines_of(
        st.dictionaries(
            st.sampled_from(["user", "item", "time"]),
            IDS | CELLS.map(lambda cell: cell.decode(errors="replace")) | st.sampled_from([10**400, 1.5, 2**53 + 1]),
        ),
        as_json,
    ),
}


@pytest.mark.parametrize("form", TABLE_LINES)
@given(data=st.data())
@settings(BOUNDED, max_examples=100)
def test_interactions_of_own_tables(tmp_path, form, data):
    text, head = data.draw(TABLE_LINES[form]), b"user,item,time\n" if form == "csv" else b"\n"
    fields = {name: name for name in ("user", "item", "time")}
    file = RawFile(tmp_path / "own", form, fields, typed=False, columns=tuple(fields))
    found = interactions_of(file, head + text)
    alone = [interactions_of(file, head + line) for line in text.split(b"\n")]
    rows = [row for part in alone if part for row in part[0]]
    assert sorted(map(repr, found[0] if found else [])) == sorted(map(repr, rows))
    if found:
        assert len(found[0]) + len(found[1].records) == sum(bool(line.strip()) for line in text.split(b"\n"))


@given(lines_of(st.lists(CELLS, min_size=2, max_size=3), b",".join))
@BOUNDED
def test_items_of_own_tables(tmp_path, text):
    path = tmp_path / "own"
    path.write_bytes(b"item,title\n" + text)
    file = RawFile(path, "csv", {"item": "item"}, typed=False, columns=("item", "title"), spans=True)
    rejects = Rejects()
    try:
        frame = readers.read_items(file, {"1", "u", "a"}, rejects, 1)
    except GlossError as error:
        assert "\n" not in str(error)
        return
    try:
        rows = list(csv.reader(io.StringIO(text.decode("utf-8", errors="replace"), newline=""), strict=True))
    except csv.Error:
        assert rejects.records
        return
    if all(len(row) in (0, 2) for row in rows):
        expected = [tuple(row) for row in rows if row and row[0] in ("1", "u", "a")]
        assert [(item, title or "") for item, title in frame.fillna("").itertuples(index=False)] == [
            (item, title if title.strip() else "") for item, title in expected
        ]


@given(lines_of(QUERIES, as_json) | st.lists(QUERIES, max_size=4).map(as_json))
@BOUNDED
def test_queries(tmp_path, text):
    path = tmp_path / "queries"
    path.write_bytes(text)
    try:
        frame = queries.read(path, 3, 1)
    except GlossError as error:
        assert "\n" not in str(error)
        return
    assert frame["user"].is_unique and frame["user"].map(is_id).all() and frame["target"].map(is_id).all()
    queries.write(tmp_path / "again", frame)
    assert queries.read(tmp_path / "again", 3, 0).values.tolist() == frame.values.tolist()
    ranked = pd.DataFrame([(user, 1, "a", 0.5) for user in frame["user"]], columns=["user", "rank", "item", "score"])
    results = retrieve.Retrieved(CATALOGUE, frame, ranked)
    for user in frame["user"]:
        retrieve.show(results, user).data.encode()
