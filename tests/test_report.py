"""Executed notebooks as pages: nothing is fetched, what is not ours is escaped, and a run's notebooks join into one."""

import base64
import re

import pandas as pd
import pytest
from bs4 import BeautifulSoup
from nbformat import v4, write

from gloss_utils import retrieve
from gloss_utils.__main__ import main
from gloss_utils.base.files import write_json
from gloss_utils.data.queries import COLUMNS
from gloss_utils.report import html, tables
from gloss_utils.runs import results
from gloss_utils.runs.folder import RunFolder, identity
from gloss_utils.runs.parameters import EXPLORE, FINE_TUNE, INDEX, RETRIEVE, STAGES
from tests.helpers import dataset, one_line_error

PIXEL = base64.b64encode(b"not really a picture").decode()


def made(stage: str):
    """An executed notebook with two headings, a figure, a table and a progress bar."""
    table = {"text/html": f"<table><tr><td>{stage} &lt;i&gt;</td></tr></table>"}
    outputs = [
        v4.new_output("display_data", {"image/png": PIXEL}),
        v4.new_output("display_data", table),
        v4.new_output("stream", name="stderr", text="bar: 100%"),
    ]
    cells = [
        v4.new_markdown_cell(f"# {int(stage[:2])} · A & B\n\nWords.\n\n## Where `x` < 1"),
        v4.new_code_cell("draw()", outputs=outputs, execution_count=1),
    ]
    return v4.new_notebook(
        cells=cells, metadata={"widgets": {"application/vnd.jupyter.widget-state+json": {"state": {}}}}
    )


def finish(folder: RunFolder, *stages: str, **parameters):
    """Put stages, each built on the one before, into the manifest of a run, with made notebooks."""
    entries = {}
    for stage in stages:
        entries[stage] = {
            "parameters": parameters,
            "inputs": {},
            "outputs": {},
            "builds_on": {other: identity(entries[other]) for other in list(entries)[-1:]},
            "artefacts": {},
            "revisions": {},
            "code": "",
            "seconds": 61.2,
            "versions": {"python": "3.11.1"},
        }
        folder.notebooks.mkdir(parents=True, exist_ok=True)
        write(made(stage), folder.notebooks / f"{stage}.ipynb")
    write_json(folder.manifest, entries)


def fetched(page: str) -> list[str]:
    """What a browser would fetch to show a page, and its scripts."""
    soup = BeautifulSoup(page, "html.parser")
    found = [tag[name] for tag in soup.find_all() for name in ("src", "href") if tag.get(name)]
    found += re.findall(r"@import[^;]*|url\((?!['\"]?(?:data:|#))[^)]*\)", page)
    return [link for link in found if not link.startswith(("data:", "#"))] + soup.find_all(["script", "link", "iframe"])


def test_a_page_fetches_nothing_and_runs_nothing():
    page = html.page(made(EXPLORE), "<b>&</b>")
    assert not fetched(page)
    assert f"data:image/png;base64,{PIXEL}" in page and "draw" in page
    assert BeautifulSoup(page, "html.parser").title.text == "<b>&</b>"


def test_a_report_joins_what_is_finished_and_says_what_is_not(tmp_path, capsys):
    folder = RunFolder(tmp_path / "<i>run")
    finish(folder, *STAGES[:2], base_model="<b>tiny" + "y" * 60, data_dir="/somewhere/else/data")
    assert main(["report", str(folder.root)]) == 0
    page = folder.report.read_text("utf-8")
    soup = BeautifulSoup(page, "html.parser")
    assert not fetched(page) and not list(folder.root.glob(".*partial*"))
    assert soup.h1.text == "GLoSS · <i>run" and not soup.find("b")
    assert [heading.text.rstrip("¶") for heading in soup.main.find_all(["h1", "h2"])[2:]] == [
        "1 · A & B",
        "Where x < 1",
        "2 · A & B",
        "Where x < 1",
    ]
    links = soup.nav.find_all("a")
    assert [link.text for link in links] == ["1 · A & B", "Where x < 1", "2 · A & B", "Where x < 1"]
    assert all(soup.find(id=link["href"].removeprefix("#")) for link in links)
    assert len({link["href"] for link in links}) == 2  # a heading leads to its cell
    assert len(soup.find_all("img")) == 2 and len(soup.main.find_all("details")) == 3  # the code, and the parameters
    assert (
        "base_model <b>tiny" + "y" * 60 in soup.text and "data_dir data" in soup.text and "/somewhere" not in soup.text
    )
    assert "There are no metrics" in soup.text
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "left out: 03_build_index, which is not finished" and len(printed) == 5
    assert printed[-1] == str(folder.report)
    assert "Left out: 03_build_index, which is not finished." in soup.text


def test_stages_that_are_not_what_they_were_are_left_out(tmp_path):
    folder = RunFolder(tmp_path)
    finish(folder, *STAGES[:4])
    entries = folder.stages()
    entries[EXPLORE]["parameters"] = {"seed": 1}
    entries[RETRIEVE]["outputs"] = {"<script>x": "cafe"}
    write_json(folder.manifest, entries)
    (folder.notebooks / f"{INDEX}.ipynb").unlink()
    left_out = results.write_report(folder)
    assert left_out[FINE_TUNE] == "is older than 01_explore_data, on which it builds"
    assert "by hand" in left_out[INDEX] and left_out[RETRIEVE] == "left <script>x otherwise than it is now"
    assert EXPLORE not in left_out
    soup = BeautifulSoup(folder.report.read_text("utf-8"), "html.parser")
    assert not soup.find("script") and "04_retrieve, which left <script>x otherwise" in soup.text


def test_what_is_no_run_gives_one_line(tmp_path, capsys):
    assert main(["report", str(tmp_path / "none")]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "none is not the folder of a run" in error and not (tmp_path / "none").exists()
    folder = RunFolder(tmp_path)
    finish(folder, EXPLORE)
    (folder.notebooks / f"{EXPLORE}.ipynb").write_text("{ cut")
    with one_line_error("01_explore_data.ipynb is damaged", "--from 01"):
        results.write_report(folder)
    (folder.notebooks / f"{EXPLORE}.ipynb").unlink()
    with one_line_error("nothing to report", "01_explore_data was stepped through by hand"):
        results.write_report(folder)
    assert not folder.report.exists()


def test_a_failed_report_leaves_the_last_one(tmp_path, monkeypatch):
    folder = RunFolder(tmp_path)
    finish(folder, EXPLORE)
    results.write_report(folder)
    before = folder.report.read_bytes()
    monkeypatch.setattr(html, "joined_page", lambda *_, **__: pytest.fail("stopped"))
    with pytest.raises(pytest.fail.Exception):
        results.write_report(folder)
    assert folder.report.read_bytes() == before and not list(tmp_path.glob(".*partial*"))


def test_report_of_a_whole_run(copied_run):
    folder, _ = copied_run
    assert results.write_report(folder) == {}
    soup = BeautifulSoup(page := folder.report.read_text("utf-8"), "html.parser")
    assert not fetched(page)
    assert all(not fetched((folder.notebooks / f"{stage}.html").read_text()) for stage in STAGES)
    assert soup.table.find("th", string="gloss-paper") and "Dataset demo, split test" in soup.text
    assert len(soup.find_all("img")) == 11  # every figure of the run
    assert len([link for link in soup.nav.find_all("a") if re.match(r"\d · ", link.text)]) == 6


def test_tables_are_shown_in_full_and_escaped():
    title = "<b>" + "long " * 30
    page = tables.in_full(pd.DataFrame({"item": [title], "score": [0.123456]}, index=["<i>"])).to_html()
    assert "&lt;b&gt;" + "long " * 30 in page and "0.123<" in page and "<i>" not in page


def test_a_users_story_escapes_what_is_not_ours():
    hostile = "<script>x</script>"
    data = dataset({"u": "ab"})
    data.items["title"] = [f"{hostile} &amp; title", "comb"]
    user = f"{hostile}user"
    queries = pd.DataFrame([(user, ["a", f"{hostile}item"], "a", [f"{hostile}text"], [-1.0], [2])], columns=COLUMNS)
    ranked = pd.DataFrame([(user, 1, "a", 0.5), (user, 2, "b", 0.4)], columns=["user", "rank", "item", "score"])
    page = BeautifulSoup(retrieve.show(retrieve.Retrieved(data, queries, ranked)).data, "html.parser")
    assert not page.find("script") and page.h3.text == f"User {user}"
    lines = [line.text for line in page.find_all("li")]
    assert lines[:2] == [f"{hostile} & title", f"{hostile}item (not in the catalogue)"]
    assert lines[2] == f"{hostile}text (-0.50)" and page.b.text == f"{hostile} & title (0.500) ← target"
    assert page.p.text == f"{hostile} & title"


def test_a_story_shows_what_the_texts_changed():
    data = dataset({"u": "abc"})
    data.items["title"] = ["Soap &amp; Balm", "Comb", "Brush"]
    queries = pd.DataFrame([("u", ["a"], "c", ["Title: Soap &amp; Balm"], [None], [None])], columns=COLUMNS)
    ranked = pd.DataFrame([("u", 1, "c", 0.5), ("u", 2, "b", 0.4)], columns=["user", "rank", "item", "score"])
    alone = ranked.assign(item=["b", "a"])
    page = BeautifulSoup(retrieve.show(retrieve.Retrieved(data, queries, ranked, alone)).data, "html.parser")
    assert [line.text for line in page.find_all("li")] == [
        "Soap & Balm",
        "Title: Soap & Balm",
        "Brush (0.500; not in the first 2) ← target",
        "Comb (0.400; 1)",
    ]
    assert page.p.text == "Brush (place without the generated texts: not in the first 2)"


def test_tables_show_titles_as_people_write_them():
    frame = pd.DataFrame({"item": ["Alder &amp; Vale"], "score": [1]}, index=["Balm &reg;"])
    page = BeautifulSoup(tables.in_full(frame).to_html(), "html.parser")
    assert [cell.text for cell in page.tbody.find_all(["th", "td"])] == ["Balm ®", "Alder & Vale", "1"]


def test_printed_prompts_are_wrapped():
    text = "Some words " * 12 + "\nTitle: " + "word " * 30
    _, second, third, fourth = tables.wrapped(text).splitlines()
    assert not second.startswith(" ") and third.startswith("Title: ") and fourth.startswith(" " * 7 + "word")
