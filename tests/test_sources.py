"""Raw files: which there are, getting them from a server that fails in many ways, and the user's own tables."""

import gzip
import hashlib
import json
import random
import subprocess
import sys
import threading
import time
import zipfile
from dataclasses import replace
from datetime import date
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest
from helpers import frame_of, one_line_error, write_lines

from gloss_utils.base.errors import GlossError
from gloss_utils.data import downloads, raw_lines, sources, templates
from gloss_utils.data.rejects import Rejects
from gloss_utils.data.rules import build

NAMES = ("reviews_Beauty_5.json.gz", "meta_Beauty.json.gz")
BODY = gzip.compress(random.Random(0).randbytes(200_000))


class Handler(BaseHTTPRequestHandler):
    """Serves `server.files` (path: bytes), with ranges, and does what `server.faults` says, one a request."""

    def do_GET(self):
        path = self.path.removeprefix("/")
        fault = self.server.faults.pop(0) if self.server.faults else ""
        self.server.asked.append((path, self.headers.get("Range")))
        body = self.server.files.get(path)
        if fault.startswith("sends to "):
            self.send_response(302)
            self.send_header("Location", fault.removeprefix("sends to "))
            self.end_headers()
            return
        if body is None or fault.isdigit():
            self.send_error(int(fault or 404))
            return
        tag, start = f'"{hashlib.md5(body).hexdigest()}"', 0
        if self.headers.get("Range") and self.headers.get("If-Range") == tag and fault != "ignores ranges":
            start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
        if start >= len(body):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        if start:
            shown = 0 if fault == "another range" else start
            self.send_header("Content-Range", f"bytes {shown}-{len(body) - 1}/{len(body)}")
        self.send_header("ETag", f"W/{tag}" if fault == "weak tag" else tag)
        length = len(body) - start + {"announces more": 100, "announces less": -100}.get(fault, 0)
        self.send_header("Content-Length", fault.removeprefix("length ") if "length" in fault else str(length))
        if fault == "labels it packed":
            self.send_header("Content-Encoding", "gzip")
        self.end_headers()
        rest = b"" if fault in ("length 0", "sends nothing") else body[start:]
        if fault == "wrong bytes":
            rest = bytes(len(rest))
        if fault == "dawdles":
            self.wfile.write(rest[:1000])
            time.sleep(0.5)
            rest = rest[1000:]
        self.wfile.write(rest[: len(rest) // 2] if fault in ("cuts", "weak tag") else rest)
        self.close_connection = True

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    """An HTTP server on this machine that stands in for SNAP, with Beauty's two files."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked, server.faults, server.files = [], [], {NAMES[0]: BODY, NAMES[1]: gzip.compress(b"{}\n")}
    server.address = f"http://127.0.0.1:{server.server_port}/"
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    monkeypatch.setattr(downloads, "PAUSE", 0.001)
    yield server
    server.shutdown()
    server.server_close()


def test_files_are_downloaded_once_and_their_sum_is_kept(tmp_path, server):
    data_dir = tmp_path / "new/data"
    paths = sources.find("beauty", data_dir, server.address).paths
    assert paths == tuple(data_dir / name for name in NAMES)
    for path in paths:
        assert path.read_bytes() == server.files[path.name]
        sealed = json.loads(path.with_name(path.name + ".seal").read_text())
        assert sealed["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert sorted(path.name for path in data_dir.iterdir()) == sorted([*NAMES, *(f"{name}.seal" for name in NAMES)])
    assert sources.find("beauty", data_dir, server.address).paths == paths
    assert [path for path, _ in server.asked] == list(NAMES)


def test_an_altered_download_is_refused(tmp_path, server):
    path = sources.find("beauty", tmp_path, server.address).interactions.path
    path.write_bytes(path.read_bytes() + b"\0")
    with one_line_error(str(path), "is not what was downloaded"):
        sources.find("beauty", tmp_path, server.address)


def test_files_of_the_users_own_are_taken_as_they_are_gzipped_or_not(tmp_path, server):
    own = write_lines(tmp_path / NAMES[0].removesuffix(".gz"), ["{}"])
    other = write_lines(tmp_path / NAMES[1], ["{'asin': 'i'}"], zipped=True)
    assert sources.find("beauty", tmp_path, server.address).paths == (own, other)
    assert server.asked == []


def test_a_connection_that_is_cut_is_gone_on_with(tmp_path, server):
    server.faults = ["cuts", "cuts"]
    downloads.fetch(server.address + NAMES[0], tmp_path / "file.gz")
    assert (tmp_path / "file.gz").read_bytes() == BODY
    ranges = [asked for _, asked in server.asked]
    assert ranges[0] is None and ranges[1] == f"bytes={len(BODY) // 2}-" and ranges[2] > ranges[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file.gz", "file.gz.seal"]


def test_what_came_is_kept_for_the_next_call(tmp_path, server):
    server.faults = ["cuts", *["503"] * (downloads.ATTEMPTS - 1)]
    with one_line_error("file.gz", server.address, "503", "run again to go on"):
        downloads.fetch(server.address + NAMES[0], tmp_path / "file.gz")
    assert not (tmp_path / "file.gz").exists()
    asked = len(server.asked)
    downloads.fetch(server.address + NAMES[0], tmp_path / "file.gz")
    assert (tmp_path / "file.gz").read_bytes() == BODY
    assert server.asked[asked:] == [(NAMES[0], f"bytes={len(BODY) // 2}-")]


def test_a_file_that_changed_meanwhile_is_begun_anew(tmp_path, server):
    server.faults = ["cuts", *["503"] * (downloads.ATTEMPTS - 1)]
    with one_line_error("503"):
        downloads.fetch(server.address + NAMES[0], tmp_path / "file.gz")
    server.files[NAMES[0]] = other = gzip.compress(random.Random(1).randbytes(150_000))
    downloads.fetch(server.address + NAMES[0], tmp_path / "file.gz")
    assert (tmp_path / "file.gz").read_bytes() == other


@pytest.mark.parametrize(
    "faults",
    [
        ["wrong bytes"],
        ["announces more"],
        ["announces less"],
        ["labels it packed"],
        ["500", "429", "503"],
        ["cuts", "ignores ranges"],
        ["cuts", "another range"],
        ["weak tag"],
        ["length abc"],
        ["length "],
        ["length 5, 5"],
        ["length 0"],
        ["sends nothing"],
        ["cuts", "wrong bytes"],
        ["wrong bytes", "cuts"],
    ],
    ids=" then ".join,
)
def test_a_server_that_fails_for_a_while_costs_nothing(tmp_path, server, faults):
    server.faults = list(faults)
    downloads.fetch(server.address + NAMES[0], tmp_path / "file.gz")
    assert (tmp_path / "file.gz").read_bytes() == BODY
    assert not server.faults


@pytest.mark.parametrize("fault", ["wrong bytes", "announces more", "announces less", "500"])
def test_a_server_that_keeps_failing_leaves_no_file(tmp_path, server, fault):
    server.faults = [fault] * 100
    with one_line_error(NAMES[0], server.address, "data_dir"):
        sources.find("beauty", tmp_path, server.address)
    assert len(server.asked) == downloads.ATTEMPTS
    assert not [path for path in tmp_path.iterdir() if not path.name.startswith(".")]


def test_what_the_server_refuses_is_not_asked_again(tmp_path, server):
    with one_line_error("reviews_Toys_and_Games_5.json.gz", server.address, "404", "data_dir"):
        sources.find("toys", tmp_path / "data", server.address)
    assert len(server.asked) == 1
    with one_line_error(NAMES[0], "http://127.0.0.1:9/", "ConnectionError"):
        sources.find("beauty", tmp_path / "data", "http://127.0.0.1:9/")


@pytest.mark.parametrize("address", ["http://[::1", "file:///etc/passwd"])
def test_an_address_that_leads_nowhere_is_one_line(tmp_path, server, address):
    server.faults = [f"sends to {address}"]
    with one_line_error("file.gz", server.address, "could not be downloaded"):
        downloads.fetch(server.address + NAMES[0], tmp_path / "file.gz")


@pytest.mark.parametrize("dataset", ["beauty", "demo"])
def test_a_data_dir_that_cannot_be_is_one_line(tmp_path, dataset):
    (tmp_path / "file").write_text("")
    for data_dir in (tmp_path / "file", tmp_path / "file/below", tmp_path / ("x" * 300)):
        with one_line_error(str(data_dir), "choose another"):
            sources.find(dataset, data_dir, "http://127.0.0.1:9/")
    with one_line_error("amazon2018", "aaa", "name too long"):
        sources.find("amazon2018-" + "a" * 300, tmp_path, "http://127.0.0.1:9/")


def test_two_processes_download_a_file_once(tmp_path, server):
    server.faults = ["dawdles"]
    other = "from pathlib import Path\nfrom gloss_utils.data import downloads\n"
    other += f"downloads.fetch({server.address + NAMES[0]!r}, "
    process = subprocess.Popen([sys.executable, "-c", f"{other}Path({str(tmp_path / 'file.gz')!r}))"])
    while not server.asked:
        time.sleep(0.01)
    downloads.fetch(server.address + NAMES[0], tmp_path / "file.gz")
    assert process.wait() == 0 and len(server.asked) == 1
    assert (tmp_path / "file.gz").read_bytes() == BODY
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file.gz", "file.gz.seal"]


@pytest.mark.parametrize(
    ("dataset", "paths"),
    [
        ("amazon2018-All_Beauty", ["categoryFilesSmall/All_Beauty_5.json.gz", "metaFiles2/meta_All_Beauty.json.gz"]),
        (
            "amazon2023-All_Beauty",
            ["raw/review_categories/All_Beauty.jsonl.gz", "raw/meta_categories/meta_All_Beauty.jsonl.gz"],
        ),
    ],
)
def test_what_is_asked_of_a_published_address(tmp_path, server, dataset, paths):
    server.files = dict.fromkeys(paths, BODY)
    found = sources.find(dataset, tmp_path, server.address).paths
    assert [path for path, _ in server.asked] == paths
    assert all(path.parent == tmp_path / dataset[:10] for path in found)  # 2014 and 2018 share names


def test_movielens_is_one_archive_that_is_checked(tmp_path, server):
    with zipfile.ZipFile(tmp_path / "made.zip", "w") as archive:
        archive.writestr("ml-100k/u.data", "1\t2\t3\t4\n" * 1000)
    body = (tmp_path / "made.zip").read_bytes()
    server.files, server.faults = {"ml-100k.zip": body}, ["wrong bytes"]
    found = sources.find("movielens-100k", tmp_path / "data", server.address).paths
    assert found == (tmp_path / "data/ml-100k.zip",) * 2 and found[0].read_bytes() == body
    assert len(server.asked) == 2  # once for nothing, once for both tables


@pytest.mark.parametrize(
    "name", ["amazon2018-../x", "amazon2018-", "amazon2019-Beauty", "Beauty", "amazon2023-a/b", "table "]
)
def test_no_dataset_name_leads_out_of_its_folder(name):
    assert not sources.is_dataset(name)
    with one_line_error(repr(name), "movielens-1m"):
        sources.find(name, "data")


# ---- published layouts, with lines made up in their form

LINES_2018 = (
    [
        '{"overall": 5.0, "verified": true, "reviewTime": "09 1, 2016", "reviewerID": "A1", "asin": "B1", '
        '"reviewText": "…", "summary": "…", "unixReviewTime": 1472688000}',
        '{"overall": 4.0, "reviewerID": "A2", "asin": "B2", "unixReviewTime": 1472688001, "vote": "3"}',
    ],
    [
        '{"category": [], "description": ["…"], "title": "Soap", "brand": "Alder", "price": "$9.99", "asin": "B1"}',
        '{"category": ["x"], "title": "Balm", "brand": "", "rank": ["y"], "asin": "B2"}',
        '{"title": "Nobody\'s", "asin": "B3"}',
    ],
)
LINES_2023 = (
    [
        '{"rating": 5.0, "title": "…", "text": "…", "images": [], "asin": "B11", "parent_asin": "B1", "user_id": "A1", '
        '"timestamp": 1588687728923, "helpful_vote": 0, "verified_purchase": true}',
        '{"rating": 1.0, "asin": "B12", "parent_asin": "B2", "user_id": "A2", "timestamp": 1588687728924}',
    ],
    [
        '{"main_category": "All Beauty", "title": "Soap", "price": null, "details": {}, "parent_asin": "B1"}',
        '{"main_category": null, "title": "Balm", "price": 3.5, "details": {"a": "b"}, "parent_asin": "B2"}',
    ],
)


def made_source(dataset: str, interactions, items) -> sources.Source:
    """Files that were made here, with the layouts of a published data set."""
    found = sources.published(dataset)
    return sources.Source(replace(found.interactions, path=interactions), replace(found.items, path=items))


def frames(*asked, **more) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What `sources.read` returns, both as tables."""
    interactions, items = sources.read(*asked, **more)
    return frame_of(interactions), items


@pytest.mark.parametrize(
    ("dataset", "lines", "times"),
    [
        ("amazon2018-All_Beauty", LINES_2018, [1472688000, 1472688001]),
        ("amazon2023-All_Beauty", LINES_2023, [1588687728923, 1588687728924]),
    ],
)
def test_the_layouts_of_amazon_2018_and_2023(tmp_path, dataset, lines, times):
    paths = [write_lines(tmp_path / name, part, zipped=True) for name, part in zip("ri", lines, strict=True)]
    interactions, items = frames(made_source(dataset, *paths), max_rejected=0)
    assert interactions["user"].tolist() == ["A1", "A2"] and interactions["item"].tolist() == ["B1", "B2"]
    assert interactions["time"].tolist() == times
    assert items.values.tolist() == [["B1", "Soap"], ["B2", "Balm"]]


def test_the_layouts_of_movielens(tmp_path):
    files = {
        "ml-100k/u.data": "1\t1\t5\t874965758\n1\t2\t3\t876893171\n1\t2\n",
        "ml-100k/u.item": "1|Toy Story (1995)|01-Jan-1995||http://x|0|0|1\n2|Misérables, Les (1995)|01-Jan-1995||http://y|0|1|0\n3\n",
        "ml-1m/ratings.dat": "1::1::5::978300760\n1::2::3::978302109\nbroken\n",
        "ml-1m/movies.dat": "1::Toy Story (1995)::Animation|Comedy\n2::Misérables, Les (1995)::Drama\nbroken\n",
    }
    for dataset in ("movielens-100k", "movielens-1m"):
        path = tmp_path / sources.published(dataset).items.path
        with zipfile.ZipFile(path, "w") as archive:
            for name, text in files.items():
                archive.writestr(name, text.encode("latin-1"))
        rejects = Rejects()
        interactions, items = frames(sources.find(dataset, tmp_path), rejects, 0.34)
        # One archive holds both tables, and each has a bad line of its own: one of three.
        assert [rejects.reasons(path, kind).total() for kind in ("interactions", "items")] == [1, 1]
        assert interactions["item"].tolist() == ["1", "2"] and interactions["rating"].tolist() == [5.0, 3.0]
        assert items["title"].tolist() == ["Toy Story (1995)", "Misérables, Les (1995)"]
    with_genres = sources.read(sources.find(dataset, tmp_path, item_text="{title}, {genres}"), max_rejected=0.34)[1]
    assert with_genres["title"].tolist()[1] == "Misérables, Les (1995), Drama"


# ---- the user's own tables

OWN = {
    "user_column": "who",
    "item_column": "what",
    "time_column": "when",
    "item_id_column": "id",
    "item_text": "{title} by {brand}",
}
ROWS = [("u 1".replace(" ", ""), 10, "2024-05-31 12:00"), ("ü", 11, "2024-05-31T12:00:01"), ("u1", 11, "2024-06-01")]
ITEMS = [(10, "Soap, “fine”", "Alder"), (11, "Balm\nof two lines", None), (12, None, None)]


def own_source(values: dict) -> sources.Source:
    """The tables that these parameters name."""
    values = dict(values)
    return sources.find(sources.TABLE, item_text=values.pop("item_text"), own=sources.OwnTables(**values))


def own_files(folder, form: str, zipped: bool = False) -> dict:
    frames = {
        "interactions_file": pd.DataFrame(ROWS, columns=["who", "what", "when"]).assign(more=1.5),
        "items_file": pd.DataFrame(ITEMS, columns=["id", "title", "brand"]),
    }
    values = dict(OWN)
    for name, frame in frames.items():
        path = folder / f"{name}.{form}{'.gz' if zipped else ''}"
        if form == "csv":
            frame.to_csv(path, index=False)
        elif form == "jsonl":
            frame.to_json(path, orient="records", lines=True, force_ascii=False)
        else:
            frame.to_parquet(path)
        values[name] = str(path)
    return values


@pytest.mark.parametrize(
    ("form", "zipped"), [("csv", False), ("csv", True), ("jsonl", False), ("jsonl", True), ("parquet", False)]
)
def test_own_tables_say_the_same_in_every_form(tmp_path, form, zipped):
    source = own_source(own_files(tmp_path, form, zipped))
    rejects = Rejects()
    interactions, items = frames(source, rejects, 0)
    assert rejects.records == []
    assert interactions["user"].tolist() == ["u1", "ü", "u1"] and interactions["item"].tolist() == ["10", "11", "11"]
    assert interactions["time"].tolist() == [1717156800, 1717156801, 1717200000]
    assert items["item"].tolist() == ["10", "11"]
    assert items["title"].tolist() == ["Soap, “fine” by Alder", "Balm\nof two lines"]


def test_bad_rows_of_an_own_csv_are_rejected_with_their_reason(tmp_path):
    lines = ["who,what,when", "u,1,5", "u,2", "u 3,3,5", ",4,5", "u,5,someday", 'u,"6",7.9', "u,7,8,9", "u,é,5"]
    (tmp_path / "i.csv").write_bytes("\n".join(lines).encode() + b"\nu,\xff\xfe x,5\n")
    write_lines(tmp_path / "t.csv", ["id,title,brand", "1,Soap,Alder", "6,Balm,"])
    values = OWN | {"interactions_file": str(tmp_path / "i.csv"), "items_file": str(tmp_path / "t.csv")}
    source = own_source(values)
    rejects = Rejects(tmp_path / "rejected.jsonl")
    interactions, _ = frames(source, rejects, 0.7)
    assert interactions["item"].tolist() == ["1", "é", "6"] and interactions["time"].tolist() == [5, 5, 7]
    reasons = {kept["place"]: kept["reason"] for kept in rejects.records}
    assert len(reasons) == 6 and reasons["line 3"] == "it has 2 columns, not 3"
    assert sum("is not an id" in reason for reason in reasons.values()) == 3
    assert sum("date" in reason for reason in reasons.values()) == 1
    with one_line_error("i.csv", "6 of 9", "max_rejected", "rejected.jsonl"):
        sources.read(source, Rejects(tmp_path / "rejected.jsonl"), 0.6)
    assert len((tmp_path / "rejected.jsonl").read_text().splitlines()) == 6


def read_own(folder, interactions: list | bytes, items: list | bytes, share: float, form: str = "csv", **values):
    """Read two tables of the user's own, given as lines; what `sources.read` returns, and the rejects."""
    for name, lines in (("i", interactions), ("t", items)):
        data = lines if isinstance(lines, bytes) else "".join(line + "\n" for line in lines).encode()
        (folder / f"{name}.{form}").write_bytes(data)
    files = {"interactions_file": str(folder / f"i.{form}"), "items_file": str(folder / f"t.{form}")}
    values, rejects = OWN | files | values, Rejects()
    source = own_source(values)
    return *frames(source, rejects, share), rejects


GOODS = ["id,title,brand", "1,Soap,Alder", "2,Balm,Oak"]
ORDERS = ["who,what,when", *(f"user{number},{1 + number % 2},{number}" for number in range(20_000))]


@pytest.mark.parametrize("block", [2**22, 2**12])
def test_stray_quotes_in_a_csv_cost_their_lines_and_no_others(tmp_path, monkeypatch, block):
    monkeypatch.setattr(raw_lines, "BLOCK", block)
    lines = list(ORDERS)
    lines[100], lines[15_000], lines[-1] = '"' + lines[100], '"' + lines[15_000], 'u,"1,5'
    interactions, _, rejects = read_own(tmp_path, lines, GOODS, 0.01)
    assert len(interactions) == 19_997
    assert [kept["place"] for kept in rejects.records] == ["line 101", "line 15001", "line 20001"]
    assert {kept["kind"] for kept in rejects.records} == {"interactions"}
    # A value of two lines is no value of interactions: both are counted.
    with one_line_error("i.csv", "2 of 20,000", "line 8: a quote in it is not closed", "max_rejected"):
        read_own(tmp_path, [*ORDERS[:7], 'u,"1', 'x",5', *ORDERS[9:]], GOODS, 0)


def test_stray_quotes_in_a_table_of_items_cost_their_lines_and_no_others(tmp_path):
    goods = [f"{number},Thing {number},Oak" for number in range(1, 2000)]
    goods[10] = '11,"Thing,Oak'  # never closed
    goods[50], goods[60] = '51,"Thing,Oak', '61,"Thing,Oak'  # the second ends the first, in the middle of a value
    goods[70] = '71,"A thing\nof ""two"" lines, and, commas","Oak"'
    goods[80] = '81,5" pipe,Oak'
    goods[90] = "92,Thing"
    orders = ["who,what,when", *(f"u,{item},{item}" for item in range(1, 2000))]
    _, items, rejects = read_own(tmp_path, orders, ["", "id,title,brand", *goods, ""], 0.01)
    assert len(items) == 1999 - 4
    places = [int(kept["place"].removeprefix("line ")) for kept in rejects.records]
    assert places == [13, 53, 63, 94]  # of the file, blank lines and the item's two counted
    titles = dict(items.itertuples(index=False))
    assert titles["71"] == 'A thing\nof "two" lines, and, commas by Oak' and titles["81"] == '5" pipe by Oak'


def test_lines_of_another_length_and_bytes_of_no_text_are_rejected_together(tmp_path):
    lines = [line.encode() for line in ORDERS[:200]]
    lines[50] = b"user,\xff"
    goods = b"id,title,brand\n1,\xff Soap,Alder\n2,\xfe\n"
    interactions, items, rejects = read_own(tmp_path, b"\n".join(lines), goods, 0.5)
    assert len(interactions) == 198 and items.values.tolist() == [["1", "\ufffd Soap by Alder"]]
    assert [kept["reason"] for kept in rejects.records] == ["it has 2 columns, not 3"] * 2


def test_a_damaged_parquet_file_is_refused_or_read(tmp_path):
    values = own_files(tmp_path, "parquet")
    path = tmp_path / "interactions_file.parquet"
    rows = [(f"u{number}", str(number % 3), number) for number in range(20_000)]
    pd.DataFrame(rows, columns=["who", "what", "when"]).to_parquet(path)
    source = own_source(values)
    sound, refused = path.read_bytes(), 0
    for place in range(1000, len(sound) - 5000, len(sound) // 25):
        path.write_bytes(sound[:place] + bytes(byte ^ 0xFF for byte in sound[place : place + 3]) + sound[place + 3 :])
        try:
            sources.read(source, Rejects(), 1)
        except GlossError as error:
            assert "\n" not in str(error) and path.name in str(error)
            refused += 1
    assert refused > 2


@pytest.mark.parametrize("first", ["broken", "", "[]", '{"who": "u", "what": 1}'])
def test_the_first_line_of_a_json_table_does_not_decide(tmp_path, first):
    orders = [first, *['{"who": "u", "what": 1, "when": 5}'] * 200]
    goods = ["", '{"id": 1, "brand": "Alder"}', '{"id": 2, "title": "Soap"}']
    interactions, items, rejects = read_own(tmp_path, orders, goods, 0.01, "jsonl")
    assert len(interactions) == 200 and len(rejects.records) == bool(first)
    assert items.values.tolist() == [["1", "Alder"]]
    with one_line_error("i.jsonl", "'buyer'", "who, what, when"):
        read_own(tmp_path, orders, goods, 0.01, "jsonl", user_column="buyer")
    with one_line_error("t.jsonl", "'titel'", "item_text"):
        read_own(tmp_path, orders, goods, 0.01, "jsonl", item_text="{titel} ({brand})")


def test_texts_that_are_no_numbers_or_dates_are_no_times_in_whatever_company(tmp_path):
    for others in (["u,1,5"], ["u,1,5.5"]):
        interactions, _, rejects = read_own(tmp_path, [ORDERS[0], *others, "u,1,0x10", "u,2, 7", "u,1,+8"], GOODS, 0.5)
        assert interactions["time"].tolist() == [5, 7, 8]
        assert [kept["place"] for kept in rejects.records] == ["line 3"]


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        (pa.array([date(2024, 5, 31), date(1969, 12, 31), None], pa.date32()), {"u0": 1717113600, "u1": -86400}),
        (pa.array([date(2024, 5, 31), date(1969, 12, 31), None], pa.date64()), {"u0": 1717113600, "u1": -86400}),
        (pa.array([Decimal("7.50"), Decimal("7.25"), None]), {"u1": 7, "u0": 7}),
        (pa.array([5.9, 5.1, float("nan")]), {"u1": 5, "u0": 5}),
        (pa.array([-1, -1500, 10**15], pa.timestamp("ms")), {"u1": -2, "u0": -1}),
        (pa.array([1_900, 1_100, None], pa.timestamp("us", "Europe/Berlin")), {"u1": 0, "u0": 0}),
        (pa.array([1_900, 1_100, 2**62], pa.timestamp("ns")), {"u1": 0, "u0": 0, "u2": 2**62 // 10**9}),
        (pa.array(["2024-05-31T00:00:00.7", "2024-05-31T00:00:00.6", "24:00"]), {"u1": 1717113600, "u0": 1717113600}),
        (pa.array(["9", "8", "9" * 5000]), {"u0": 9, "u1": 8}),
        (pa.array([2**61, -(2**61), 5], pa.timestamp("us")), {"u2": 0}),
    ],
)
def test_times_of_every_kind_keep_their_order(tmp_path, times, expected):
    pa.parquet.write_table(
        pa.table({"who": ["u0", "u1", "u2"], "what": [1, 1, 1], "when": times}), tmp_path / "i.parquet"
    )
    write_lines(tmp_path / "t.csv", GOODS)
    files = {"interactions_file": str(tmp_path / "i.parquet"), "items_file": str(tmp_path / "t.csv")}
    source = own_source(OWN | files)
    rejects = Rejects()
    interactions, _ = frames(source, rejects, 1)
    assert dict(zip(interactions["user"], interactions["time"], strict=True)) == expected
    assert interactions["user"].tolist() == list(expected) and len(interactions) + len(rejects.records) == 3


@pytest.mark.parametrize(
    ("template", "record", "text"),
    [
        ("{a} ({b})", "A B", "A (B)"),
        ("{a} ({b})", "A ", "A"),
        ("{a} ({b})", " B", "B"),
        ("{a} by {b}", " B", "B"),
        ("{a} by {b}", "A ", "A"),
        ("Title: {a}", "A", "Title: A"),
        ("{a}, {b} ml", "A ", "A"),
        ("{a}, {b} ml, {c}", "A  C", "A, C"),
        ("{a} by {b}, {c}", "A  C", "A, C"),
        ("{a} by {b} of {c}", "A  C", "A of C"),
        ("{a} - {b}{c}", "A  C", "A - C"),
        ("{a} ({b}, {c})", "A B ", "A (B)"),
        ("{a} ({b}, {c})", "A  C", "A (C)"),
        ("{a} ({b}, {c})", "A  ", "A"),
        ("{a} ({b}, {c})", " B C", "B, C"),
        ("{a} (by {b} [{c}]) new", "A B ", "A (by B) new"),
        ("{a} (by {b} [{c}])", "A  ", "A"),
        ("{a} “{b}”: {c}", "A  C", "A: C"),
        ("{a}: {b} (new)", "A ", "A (new)"),
        ("{a} {{{b}}}", "A B", "A {B}"),
        ("{a} {b}", "", None),
    ],
)
def test_a_template_leaves_out_what_belongs_to_empty_columns(tmp_path, template, record, text):
    values = dict(zip("abc", record.split(" "), strict=False))
    columns = templates.columns(template)
    lines = [json.dumps({"id": 1} | {name: values.get(name) or empty for name in columns}) for empty in ("", " ", None)]
    lines += [json.dumps({"id": 1} | {name: values.get(name) or float("nan") for name in columns})]
    _, items, _ = read_own(tmp_path, ['{"who": "u", "what": 1, "when": 5}'], lines, 0, "jsonl", item_text=template)
    assert [None if pd.isna(found) else found for found in items["title"]] == [text] * 4


def test_a_wrong_column_template_or_kind_is_named(tmp_path):
    values = own_files(tmp_path, "csv")
    for wrong, *words in (
        ({"user_column": "nobody"}, "interactions_file.csv", "'nobody'", "who, what, when, more"),
        ({"item_text": "{name}"}, "items_file.csv", "'name'", "id, title, brand"),
        ({"item_text": "no column"}, "item_text", "braces"),
        ({"item_text": "{title"}, "item_text", "template"),
        ({"item_text": "{title!r}"}, "item_text", "braces"),
        ({"items_file": str(tmp_path / "x.xlsx")}, "items_file", ".parquet"),
    ):
        with one_line_error(*words):
            own_source(values | wrong)
    write_lines(tmp_path / "twice.csv", ["who,what,when,who", "u,1,5,v"])
    with one_line_error("twice.csv", "more than one column 'who'"):
        own_source(values | {"interactions_file": str(tmp_path / "twice.csv")})
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "broken.parquet").write_text("PAR1")
    for name in ("empty.csv", "broken.parquet"):
        with one_line_error(name, "cannot be read"):
            own_source(values | {"items_file": str(tmp_path / name)})


def test_a_template_does_not_look_into_its_values(tmp_path):
    with one_line_error("'title.__class__'"):
        own_source(own_files(tmp_path, "csv") | {"item_text": "{title.__class__}"})


def test_own_tables_become_a_dataset(tmp_path):
    rows = [f"u{user},{item},2024-01-{item + 1:02d}" for user in range(4) for item in range(5)]
    write_lines(tmp_path / "i.csv", ["who,what,when", *rows])
    write_lines(tmp_path / "t.csv", ["id,title,brand", *(f"{item},Thing {item},B" for item in range(5))])
    source = own_source(OWN | {"interactions_file": str(tmp_path / "i.csv"), "items_file": str(tmp_path / "t.csv")})
    data = build(*sources.read(source, Rejects(), 0), None, 0)
    assert data.sequences() == {f"u{user}": list("01234") for user in range(4)}
    assert data.titles()["3"] == "Thing 3 by B"
