"""Raw files: reading them line by line, and getting them over HTTP."""

import ast
import gzip
import hashlib
import json
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
from helpers import one_line_error, write_lines

from gloss_utils import sources


def review(user="u", item="i", time=1, **others) -> str:
    return json.dumps({"reviewerID": user, "asin": item, "unixReviewTime": time, "overall": 4.0} | others)


@pytest.mark.parametrize("zipped", [False, True])
def test_reviews_in_the_files_order(tmp_path, zipped):
    second = '{"reviewerID": "a", "asin": "é", "unixReviewTime": 0, "reviewText": "more"}'
    path = write_lines(tmp_path / "reviews", [review("b", "x", 7), "", second], zipped)
    frame, bad = sources.read_reviews(path, 0)
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
        review(user=3),
        review(item=None),
        review(item=""),
        review(user="A 1"),  # a TREC file separates its columns by spaces
        review(item="B\t1"),
        review(time="2014"),
        review(time=1.5),
        review(time=True),
        review(time=10**30),
        review(overall="good"),
        review(overall=[5]),
        pytest.param("[" * 100_000, id="deep"),
    ],
)
def test_a_malformed_review_is_counted_and_left_out(tmp_path, line):
    path = write_lines(tmp_path / "reviews", [review("first"), line, review("last")])
    frame, bad = sources.read_reviews(path, 1 / 3)
    assert frame["user"].tolist() == ["first", "last"]
    assert bad == 1


@pytest.mark.parametrize("kind", ["reviews", "metadata"])
def test_max_rejected_is_the_largest_share_allowed(tmp_path, kind):
    good = {"reviews": review(), "metadata": "{'asin': 'i', 'title': 'Soap'}"}[kind]
    path = write_lines(tmp_path / kind, [good] * 3 + ["broken"])

    def read(share):
        return sources.read_reviews(path, share) if kind == "reviews" else sources.read_metadata(path, {"i"}, share)

    assert read(0.25)[1] == 1
    with one_line_error(str(path), "1 of 4", "line 4", "max_rejected"):
        read(0.2499)


def test_a_file_without_one_good_line_is_refused_whatever_is_allowed(tmp_path):
    broken = write_lines(tmp_path / "broken", ["x", "y"])
    empty = write_lines(tmp_path / "empty", [])
    for path in (broken, empty):
        with one_line_error(str(path), "no usable line"):
            sources.read_reviews(path, 1)
        with one_line_error(str(path), "no usable line"):
            sources.read_metadata(path, {"i"}, 1)


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
        sources.read_reviews(path, 1)


def test_bytes_that_are_not_utf8_do_not_stop_the_reading(tmp_path):
    path = tmp_path / "reviews"
    path.write_bytes(review("u", reviewText="X").encode().replace(b"X", b"\xff") + b"\n")
    assert sources.read_reviews(path, 0)[0]["user"].tolist() == ["u"]


@pytest.mark.parametrize("zipped", [False, True])
def test_metadata_titles_of_wanted_items(tmp_path, zipped):
    lines = [
        "{'asin': 'c', 'title': \"Nobody's &amp; Soap\", 'price': 9.99, 'related': {'also_bought': ['a']}}",
        "{'asin': 'x', 'title': 'not wanted'}",
        "{'asin': 'a', 'price': 1.0}",
        "{'asin': 'a', 'title': 'listed again'}",
    ]
    frame, bad = sources.read_metadata(write_lines(tmp_path / "meta", lines, zipped), {"a", "c"}, 0)
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
    frame, bad = sources.read_metadata(path, {"a"}, 0.5)
    assert frame["title"].tolist() == ["A"] and bad == 1


def test_metadata_of_unwanted_items_is_not_parsed(tmp_path, monkeypatch):
    parsed, literal_eval = [], ast.literal_eval
    monkeypatch.setattr(ast, "literal_eval", lambda text: parsed.append(text) or literal_eval(text))
    lines = ["{'asin': 'x', 'title': 'broken", "{'asin': 'a', 'title': 'A'}", "{'asin': 'y', 'title': 'Y'}"]
    _, bad = sources.read_metadata(write_lines(tmp_path / "meta", lines), {"a"}, 0)
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
    frame, bad = sources.read_metadata(path, {"a"}, 1)
    assert frame["title"].tolist() == ["A"] and bad == 3
    path = write_lines(tmp_path / "reviews", [review(), *calls])
    assert sources.read_reviews(path, 1)[1] == 3
    assert not mark.exists()


# ---- getting the files

NAMES = ("reviews_Beauty_5.json.gz", "meta_Beauty.json.gz")


class Handler(SimpleHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.path.removeprefix("/"))
        super().do_GET()

    def send_header(self, keyword, value):
        if keyword == "Content-Length":
            value = int(value) + self.server.promised_too_much
        super().send_header(keyword, str(value))

    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    """An HTTP server on this machine that stands in for SNAP, with Beauty's two files."""
    folder = tmp_path / "served"
    folder.mkdir()
    write_lines(folder / NAMES[0], [review()], zipped=True)
    write_lines(folder / NAMES[1], ["{'asin': 'i', 'title': 'Soap'}"], zipped=True)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=folder))
    server.asked, server.promised_too_much, server.folder = [], 0, folder
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    monkeypatch.setattr(sources, "ADDRESS", f"http://127.0.0.1:{server.server_port}/")
    yield server
    server.shutdown()
    server.server_close()


def test_files_are_downloaded_once_and_their_sum_is_kept(tmp_path, server):
    data_dir = tmp_path / "new/data"
    paths = sources.locate("beauty", data_dir)
    assert paths == tuple(data_dir / name for name in NAMES)
    for path in paths:
        assert path.read_bytes() == (server.folder / path.name).read_bytes()
        assert path.with_name(path.name + ".sha256").is_file()
    assert sorted(path.name for path in data_dir.iterdir()) == sorted([*NAMES, *(f"{name}.sha256" for name in NAMES)])
    assert sources.locate("beauty", data_dir) == paths
    assert server.asked == list(NAMES)


def test_the_kept_sum_is_the_files_sha256(tmp_path, server):
    path, _ = sources.locate("beauty", tmp_path / "data")
    kept = path.with_name(path.name + ".sha256").read_text().split()[0]
    assert kept == hashlib.sha256(path.read_bytes()).hexdigest()


def test_an_altered_download_is_refused(tmp_path, server):
    path, _ = sources.locate("beauty", tmp_path)
    path.write_bytes(path.read_bytes() + b"\0")
    with one_line_error(str(path), "is not what was downloaded"):
        sources.locate("beauty", tmp_path)


def test_files_of_the_users_own_are_taken_as_they_are_gzipped_or_not(tmp_path, server):
    own = write_lines(tmp_path / NAMES[0].removesuffix(".gz"), [review()])
    other = write_lines(tmp_path / NAMES[1], ["{'asin': 'i'}"], zipped=True)
    assert sources.locate("beauty", tmp_path) == (own, other)
    assert server.asked == []


def test_a_transfer_that_breaks_off_leaves_no_file(tmp_path, server):
    server.promised_too_much = 100
    with one_line_error(NAMES[0], sources.ADDRESS):
        sources.locate("beauty", tmp_path / "data")
    assert list((tmp_path / "data").iterdir()) == []


def test_an_address_that_does_not_answer_or_has_no_such_file(tmp_path, server, monkeypatch):
    with one_line_error("reviews_Toys_and_Games_5.json.gz", sources.ADDRESS, "data_dir"):
        sources.locate("toys", tmp_path / "data")  # 404
    assert list((tmp_path / "data").iterdir()) == []
    monkeypatch.setattr(sources, "ADDRESS", "http://127.0.0.1:9/")
    with one_line_error(NAMES[0], "http://127.0.0.1:9/", "data_dir"):
        sources.locate("beauty", tmp_path / "data")
    assert list((tmp_path / "data").iterdir()) == []
