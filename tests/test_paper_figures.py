"""Result tables and what is drawn from them: the right bars, labels and files."""

import json
import re
from types import SimpleNamespace

import matplotlib.pyplot as plt
import nbformat
import pandas as pd
import papermill
import pytest
from helpers import one_line_error
from matplotlib.collections import PathCollection
from matplotlib.colors import to_hex

from benchmarks import results_page
from gloss_utils import paper_figures
from gloss_utils.__main__ import main
from gloss_utils.report import data_plots, metrics, plots, published, result_plots, tables
from gloss_utils.runs import notebooks, results
from gloss_utils.runs.parameters import ROOT

DRAWN = ("rankings", "comparison", "number_of_queries", "retrievers", "segments", "cost")
COMMITTED = sorted((ROOT / "figures/results").glob("*.json"))
BEAMS, SEEDS, NEW = (sorted((ROOT / "figures/results" / name).glob("*.json")) for name in ("beams", "seeds", "new"))


def row(method: str, recall: float, **about) -> dict:
    values = {"recall@5": recall, "ndcg@5": recall / 2}
    ends = {f"{name}_{end}": v * f for name, v in values.items() for end, f in (("low", 0.9), ("high", 1.2))}
    return {"method": method, "split": "test", "users": 1234} | values | ends | about


@pytest.fixture
def replay() -> dict:
    rows = [
        row(method, 0.01 * place, texts=f"beauty-llama-{size}.validation.json.gz", dataset="beauty", split="validation")
        for place, method in enumerate([*result_plots.RANKINGS, "ranx rrf"], 1)
        for size in ("1b", "3b")
    ]
    return {"name": "replay", "command": "c", "commit": "d", "inputs": {"e": "f"}, "parameters": {}, "rows": rows}


@pytest.fixture
def measured() -> dict:
    groups = ("all", "cold-start", "power", "new-items")
    rows = [row(m, 0.05, segment=s, in_sample=False) for m in ("popularity", "gloss") for s in groups]
    ablation = [
        row("", 0.01 * count, ranking=rule, retriever="dense", queries=count)
        for rule in ("paper", "hybrid")
        for count in (1, 2, 3)
    ]
    parameters = {"base_model": "tiny", "decoding": "free", "ranking": "hybrid", "encoder": "small"}
    about = {"name": "run", "command": "c", "commit": "d", "inputs": {}, "parameters": parameters, "dataset": "beauty"}
    seconds = {"02_fine_tune": 60, "03_build_index": 20, "04_retrieve": 40, "05_evaluate": 1000}
    return about | {"rows": rows, "ablation": ablation, "seconds": seconds}


@pytest.fixture
def baselines() -> dict:
    rows = [row(method, 0.03, segment="all") for method in ("popularity", "item-knn", "sasrec")]
    about = {"name": "beauty, baselines", "command": "c", "commit": "d", "inputs": {}, "parameters": {"seed": 1}}
    return about | {"dataset": "beauty", "rows": rows, "seconds": {"all but SASRec": 30, "SASRec": 600}}


def points(axis: plt.Axes, place: int = 1) -> dict[str, list[float]]:
    """The points of a panel by label, which the legend has in the same colour; place: 0 for their x, 1 for their y."""
    [legend], [dots] = axis.figure.legends, [found for found in axis.collections if isinstance(found, PathCollection)]
    marks = zip(legend.legend_handles, legend.get_texts(), strict=True)
    names = {to_hex(mark.get_edgecolor()[0]): text.get_text() for mark, text in marks}
    shown = {}
    for colour, offsets in zip(dots.get_edgecolors(), dots.get_offsets(), strict=True):
        shown.setdefault(names[to_hex(colour)], []).append(round(float(offsets[place]), 9))
    return shown


def test_points_of_rankings(replay):
    figure = result_plots.rankings([replay])
    for axis, factor in zip(figure.axes, (1, 0.5), strict=True):
        assert points(axis) == {
            name: [round(0.01 * place * factor, 9)] * 2 for place, name in enumerate(result_plots.RANKINGS.values(), 1)
        }
        labels = [tick.get_text() for tick in axis.get_xticklabels()]
        assert labels == ["Beauty, Llama 1B\n1,234 users", "Beauty, Llama 3B\n1,234 users"]
    assert [axis.get_title() for axis in figure.axes] == ["Recall@5, validation", "NDCG@5, validation"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(result_plots.RANKINGS.values())
    assert figure.get_size_inches()[0] == plots.PAGE
    plt.close(figure)


def test_points_have_their_intervals(replay):
    figure = result_plots.rankings([replay])
    [ranges] = [found for found in figure.axes[0].collections if not isinstance(found, PathCollection)]
    ends = sorted(tuple(line[:, 1].round(6)) for line in ranges.get_segments())
    assert ends == [(round(0.009 * place, 6), round(0.012 * place, 6)) for place in (1, 2, 3, 4, 5) for _ in range(2)]
    plt.close(figure)


def test_published_values_stand_apart_from_measured_ones(measured):
    figure = result_plots.methods([measured])
    [axis] = figure.axes
    theirs = published.results("beauty", "test")["recall@5"].dropna()
    values, places = points(axis, 0)["published"], points(axis, 1)["published"]
    [dots] = [found for found in axis.collections if isinstance(found, PathCollection)]
    filled = [colour[3] == 1 for colour in dots.get_facecolors()]
    ticks = [tick.get_text() for tick in axis.get_yticklabels()]
    assert ticks[:4] == ["ID-based", "popularity", "LLM-based", "GLoSS tiny, free, hybrid"]
    assert ticks[4:8] == ["ID-based", "SASRec", "BERT4Rec", "FDSA"] and ticks[-4] == "search by text"
    assert {"P5", "GLoSS-8B"} < set(ticks[ticks.index("LLM-based", 4) :]) and len(ticks) == 4 + 3 + len(theirs)
    assert {ticks[int(place)]: value for place, value in zip(places, values, strict=True)} == theirs.to_dict()
    assert filled == [True] * 2 + [False] * len(theirs)
    assert axis.get_title() == "Beauty, test, 1,234 users\nRecall@5"
    plt.close(figure)


def test_one_run_is_the_case_of_one_table(measured):
    rows = [row("gloss-paper", 0.05, segment="all", split="validation")]
    rows.append(row("gloss", 0.06, segment="all", split="validation", in_sample=True))
    lost = {f"{name}_lost{end}": 0.01 for name in ("recall@5", "ndcg@5") for end in ("", "_low", "_high")}
    parts = [{"left_out": part} | lost for part in ("none", "last item", "popularity")]
    parameters = measured["parameters"] | {"queries_file": "/texts/released-1b.json"}
    run = measured | {"rows": rows, "parts": parts, "ties": [0.01, 0.02], "parameters": parameters}
    recall, ndcg = result_plots.methods([run], metrics=("recall@5", "ndcg@5")).axes
    names = ["LLM-based", "GLoSS released-1b, paper's rule", "GLoSS released-1b, hybrid (in-sample)"]
    assert [tick.get_text() for tick in recall.get_yticklabels()] == names  # nothing is published of this split
    assert [list(points(axis, 0).values()) for axis in (recall, ndcg)] == [[[0.05, 0.06]], [[0.025, 0.03]]]
    axes = result_plots.parts([run]).axes
    assert all(list(points(axis, 0).values()) == [[0.01, 0.01]] for axis in axes)
    assert [tick.get_text() for tick in axes[0].get_yticklabels()] == ["last item", "popularity"]
    both = [row("gloss-paper", 0.07, segment="all", split="validation", seen=metrics.LEFT_OUT)]
    both.append(row("gloss-paper", 0.05, segment="all", split="validation", seen=metrics.KEPT_IN))
    [ties] = result_plots.tie_orders([run | {"rows": both}]).axes  # the orders keep seen items in
    assert ties.get_title() == "Beauty, released-1b, validation" and ties.lines[0].get_xdata()[0] == 0.025
    assert result_plots.parts([measured]) is None and result_plots.tie_orders([measured]) is None
    plt.close("all")


def test_lines_of_the_number_of_texts(measured):
    figure = result_plots.number_of_queries([measured, {"rows": []}])
    [axis] = figure.axes
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["paper, dense (small)", "hybrid, dense (small)"]
    assert len(axis.lines) == 2 and list(axis.lines[0].get_xdata()) == [1, 2, 3]
    assert axis.get_title() == "Beauty, tiny, free decoding, test"
    plt.close(figure)


def test_titles_of_many_panels_do_not_touch(measured):
    measured["parameters"] |= {"decoding": "catalogue", "new_item_fraction": 0.05}
    runs = [measured | {"parameters": measured["parameters"] | {"base_model": f"Llama-3.{n}-1B"}} for n in range(5)]
    figure = result_plots.number_of_queries(runs)
    figure.canvas.draw()
    boxes = [axis.title.get_window_extent() for axis in figure.axes]
    assert len(boxes) == 5 and not any(a.overlaps(b) for place, a in enumerate(boxes) for b in boxes[:place])
    plt.close(figure)


def test_each_encoder_has_lines_of_its_own(measured):
    other = measured | {"parameters": measured["parameters"] | {"encoder": "large"}}
    [axis] = result_plots.number_of_queries([measured, other]).axes
    labels = [text.get_text() for text in axis.figure.legends[0].get_texts()]
    assert len(axis.lines) == 4 and labels == [
        f"{ranking}, dense ({encoder})" for encoder in ("small", "large") for ranking in ("paper", "hybrid")
    ]
    plt.close("all")


def test_texts_that_are_ranked_by_other_weights_are_methods_of_their_own_but_no_panel(measured):
    parameters = measured["parameters"]
    files = ("params/ranking/weights.yaml", "mine.yaml")
    runs = [measured | {"parameters": parameters | {"ranking_weights": file}} for file in files]
    [comparison] = result_plots.methods(runs).axes
    names = [tick.get_text() for tick in comparison.get_yticklabels()]
    of_gloss = [name.removeprefix("GLoSS tiny, free, ") for name in names if name.startswith("GLoSS tiny")]
    assert of_gloss == ["hybrid", "hybrid, own weights"]
    assert len(result_plots.segments(runs).axes) == len(result_plots.number_of_queries(runs).axes) == 1
    [cost] = result_plots.cost(runs).axes
    assert list(points(cost)) == ["GLoSS tiny, free, hybrid"]
    plt.close("all")


def test_no_line_leaves_its_panel(measured):
    better = [
        {name: value * 9 if "@5" in name else value for name, value in row.items()} for row in measured["ablation"]
    ]
    figure = result_plots.number_of_queries([measured, measured | {"ablation": better}])
    highest = max(line.get_ydata().max() for axis in figure.axes for line in axis.lines)
    assert all(axis.get_ylim()[0] == 0 and axis.get_ylim()[1] > highest for axis in figure.axes)
    plt.close(figure)


def test_a_run_that_held_items_out_is_shown_apart_from_one_that_did_not(measured, tmp_path):
    held_out = measured | {"parameters": measured["parameters"] | {"new_item_fraction": 0.05}}
    figure = result_plots.retrievers([measured, held_out])
    labels = [tick.get_text().replace("\n", " ") for tick in figure.axes[0].get_yticklabels()]
    assert labels == ["Beauty, tiny, free decoding, test", "Beauty, tiny, free decoding, test, 5% of items new"]
    plt.close(figure)
    figure = result_plots.methods([measured, held_out])
    names = [tick.get_text() for tick in figure.axes[0].get_yticklabels()]
    assert names.count("GLoSS tiny, free, hybrid") == 1
    assert paper_figures.draw([held_out], "comparison", str(tmp_path)) is None  # it learnt from fewer items
    plt.close(figure)


def test_a_method_looks_the_same_in_all_panels(measured):
    groups = ("all", "cold-start")
    runs = [
        measured
        | {"rows": [row(method, 0.05, segment=group) for method in methods for group in groups], "dataset": methods[0]}
        for methods in (("sasrec", "gloss"), ("gloss", "item-knn"))
    ]
    figure = result_plots.segments(runs)
    # Each colour stands for one label, and each label has one marker.
    assert [set(points(axis)) for axis in figure.axes] == [
        {tables.METHODS[method][0] for method in methods} for methods in (("sasrec", "gloss"), ("gloss", "item-knn"))
    ]
    dots = [found for axis in figure.axes for found in axis.collections if isinstance(found, PathCollection)]
    looks = {
        (to_hex(colour), path.vertices.tobytes())
        for found in dots
        for colour, path in zip(found.get_facecolors(), found.get_paths(), strict=True)
    }
    assert len(looks) == 3
    shown = [text.get_text() for text in figure.legends[0].get_texts()]
    assert sorted(shown) == sorted(tables.METHODS[method][0] for method in ("item-knn", "sasrec", "gloss"))
    plt.close(figure)


def test_points_of_the_retrievers(measured):
    figure = result_plots.retrievers([measured, {"rows": []}])
    [axis] = figure.axes
    assert points(axis, 0) == {"paper, dense (small)": [0.03], "hybrid, dense (small)": [0.03]}  # all three texts
    assert [tick.get_text() for tick in axis.get_yticklabels()] == ["Beauty, tiny, free\ndecoding, test"]
    plt.close(figure)


def test_points_of_the_segments(measured, baselines):
    figure = result_plots.segments([baselines, measured])
    [axis] = figure.axes  # the baselines were measured on all users alone
    assert points(axis) == {tables.METHODS["gloss"][0]: [0.05] * 4}
    labels = [tick.get_text() for tick in axis.get_xticklabels()]
    assert labels == [f"{group}\n1,234 users" for group in ("all", "cold-start", "power", "new-items")]
    assert axis.get_ylabel() == "Recall@5"
    plt.close(figure)


def test_points_of_the_cost(measured, baselines):
    figure = result_plots.cost([baselines, measured, {"name": "without seconds"}])
    [axis] = figure.axes
    expected = {"SASRec": [10.0], "item-kNN": [0.5], "GLoSS tiny, free, hybrid": [2.0]}  # evaluating costs nothing
    assert points(axis, 0) == expected
    assert axis.get_ylim() == (0, pytest.approx(1.05 * 0.06))
    assert axis.get_xlabel() == "minutes, training included" and axis.get_title() == "Beauty, test"
    plt.close(figure)


def test_the_table_of_methods_as_csv_and_latex(replay, measured, tmp_path):
    shown = tables.all_methods([replay, measured])
    assert len(shown) == 12 + 2  # segments aside
    assert shown.iloc[-1].tolist() == [
        "beauty", "test", "gloss", "", "", 1234, "run", "0.0500 [0.0450, 0.0600]", "0.0250 [0.0225, 0.0300]",
    ]  # fmt: skip
    tables.save(shown.assign(method="a_b & c"), tmp_path, "methods")
    assert len(pd.read_csv(tmp_path / "methods.csv")) == 14
    latex = (tmp_path / "methods.tex").read_text()
    assert "\\toprule" in latex and "a\\_b \\& c" in latex


@pytest.mark.parametrize(
    ("history", "lines"),
    [([], 0), ([{"step": 10, "loss": 2.0}], 1), ([{"step": 3, "eval_loss": 1.9}], 1)],
)
def test_the_loss_of_a_training_that_logged_little(history, lines):
    figure = data_plots.loss_curves({"history": history})
    assert len(figure.axes[0].lines) == lines


def test_what_training_gains_by_epoch_is_drawn_beside_the_loss():
    history = [{"step": 10, "loss": 2.0, "seconds": 30.0}]
    history += [{"step": 10 * n, "eval_loss": 2.0 - n / 10, "seconds": 60.0 * n, "recall@5": n / 100} for n in (1, 2)]
    losses, recall = data_plots.loss_curves({"history": history}).axes
    assert len(losses.lines) == 2
    [line] = recall.lines
    assert line.get_xdata().tolist() == [1, 2] and line.get_ydata().tolist() == [0.01, 0.02]
    assert recall.get_xlabel() == "minutes of training" and "Recall@5" in recall.get_ylabel()


def test_a_figure_has_the_same_bytes_each_time(replay, tmp_path):
    for folder in ("one", "two"):
        plots.write(result_plots.rankings([replay]), tmp_path / folder, "rankings", dpi=50)
    for name in ("rankings.png", "rankings.pdf"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_the_notebook_draws_what_it_is_given(replay, measured, baselines, tmp_path):
    (tmp_path / "results").mkdir()
    for table in (replay, measured, baselines):
        (tmp_path / f"results/{table['name']}.json").write_text(json.dumps(table))
    parameters = {"figures_dir": str(tmp_path)}
    notebook = ROOT / "notebooks/07_paper_figures.ipynb"
    papermill.execute_notebook(notebook, tmp_path / "out.ipynb", parameters=parameters, progress_bar=False)
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == {
        "out.ipynb",
        "methods.csv",
        "methods.tex",
        *(f"{name}.{kind}" for name in DRAWN for kind in ("png", "pdf")),
    }
    for cell in nbformat.read(notebook, as_version=4).cells:
        assert cell.cell_type == "markdown" or (not cell.outputs and cell.execution_count is None)


@pytest.fixture
def odd(replay, measured, baselines) -> list[dict]:
    """Tables of validation, with names that nobody foresaw, and one of split next."""
    for table in (replay, measured, baselines):
        for found in (*table["rows"], *table.get("ablation", [])):
            found["split"] = "validation"
    for found in replay["rows"]:
        found["texts"] = f"my texts, {found['texts']}"
    measured["rows"].append(row("my method", 0.07, segment="all", split="validation"))
    about = {"parameters": {"seed": 3}, "name": "run 7 of mine", "dataset": "my_own data"}
    upcoming = measured | {"name": "next", "rows": [], "ablation": [], "parts": []}
    return [replay, measured | about, baselines | {"seconds": {"all of them": 3}}, upcoming]


def test_names_that_nobody_foresaw_are_shown_as_they_are(odd):
    replay, measured, baselines, _ = odd
    labels = [tick.get_text() for tick in result_plots.rankings([replay]).axes[0].get_xticklabels()]
    assert labels == [f"my texts, beauty-llama-{size}.validation.json.gz\n1,234 users" for size in ("1b", "3b")]
    [axis] = result_plots.methods([measured]).axes
    names = [tick.get_text() for tick in axis.get_yticklabels()]
    assert names == ["ID-based", "popularity", "LLM-based", "GLoSS run 7 of mine, own ranking", "other", "my method"]
    [axis] = result_plots.number_of_queries([measured]).axes
    assert axis.get_title().replace("\n", " ") == "my_own data, run 7 of mine, validation"
    assert list(points(result_plots.cost([measured, baselines]).axes[0])) == ["GLoSS run 7 of mine, own ranking"]
    plt.close("all")


def test_what_has_nothing_to_draw_is_left_out_with_a_line(odd, baselines, tmp_path, capsys):
    _, measured, _, _ = odd
    few = measured | {"rows": [found for found in measured["rows"] if found["method"] == "popularity"]}
    for name, tables_ in {
        "rankings": [measured],
        "segments": [few],
        "retrievers": [baselines],
        "cost": odd[:3],
    }.items():
        assert paper_figures.draw(tables_, name, str(tmp_path)) is None
        assert capsys.readouterr().out.startswith(f"The figure {name} is left out: no table has results")
    assert not list(tmp_path.iterdir())


def test_a_run_of_split_next_is_left_out_with_a_line(odd, tmp_path, capsys):
    paths = [tmp_path / f"{number}.json" for number in range(4)]
    for path, table in zip(paths, odd, strict=True):
        path.write_text(json.dumps(table))
    assert len(results.read_all(paths, tmp_path)) == 3
    assert capsys.readouterr().out == f"{paths[3]} is left out: it has no metrics, for split next has no targets.\n"
    with one_line_error("none of these results has metrics"):
        results.read_all(paths[3:], tmp_path)


def test_the_notebook_runs_through_with_what_nobody_foresaw(odd, tmp_path):
    paths = [str(tmp_path / f"{table['name']}.json") for table in odd]
    for path, table in zip(paths, odd, strict=True):
        (tmp_path / path).write_text(json.dumps(table))
    notebook, out = ROOT / "notebooks/07_paper_figures.ipynb", tmp_path / "out.ipynb"
    parameters = {"figures_dir": str(tmp_path / "figures"), "runs": paths}
    papermill.execute_notebook(notebook, out, parameters=parameters, progress_bar=False)
    drawn = {path.stem for path in (tmp_path / "figures").glob("*.png")}
    assert drawn == set(DRAWN) - {"comparison", "cost"}  # which are of test users
    assert all(f"The figure {name} is left out" in out.read_text() for name in ("comparison", "cost"))


def test_a_run_is_a_table(small_run):
    folder, _ = small_run
    table = results.read(folder.root)
    assert table["dataset"] == "demo" and set(table["seconds"]) >= {"02_fine_tune", "05_evaluate"}
    assert table["training"]["trainable_parameters"] > 0 and table["rows"] and table["ablation"]
    assert table["commit"] == results.commit() and set(results.FIELDS) <= set(table)
    assert not tables.all_methods([table]).empty


def test_a_run_writes_its_table(small_run, tmp_path, capsys):
    folder, _ = small_run
    assert main(["results", str(folder.root), "make run", "--to", str(tmp_path / "mine.json")]) == 0
    table = results.read(tmp_path / "mine.json")
    assert table["name"] == "mine" and table["command"] == "make run"
    assert table["rows"] == results.read(folder.root)["rows"]
    assert table["parameters"]["ranking_weights"] == "params/ranking/weights.yaml"
    assert str(tmp_path.parent) not in (tmp_path / "mine.json").read_text()
    assert main(["results", str(tmp_path), "make run", "--to", str(tmp_path / "none.json")]) == 1
    assert "holds no finished 05_evaluate" in capsys.readouterr().err and not (tmp_path / "none.json").exists()


def test_the_command_draws_what_it_is_given(small_run, tmp_path, monkeypatch, capsys):
    folder, _ = small_run
    monkeypatch.setattr(notebooks, "execute", lambda stage, passed, _: print(stage, passed))
    monkeypatch.chdir(folder.root.parent)
    assert main(["figures", folder.root.name, "--to", str(tmp_path)]) == 0
    passed = {"runs": [str(folder.root)], "figures_dir": str(tmp_path)}
    assert capsys.readouterr().out == f"07_paper_figures {passed}\nfigures and tables: {tmp_path}\n"
    assert main(["figures", "--to", str(tmp_path)]) == 1
    assert main(["figures", "nowhere"]) == 1
    shown = capsys.readouterr().err.splitlines()
    assert "holds no files of results" in shown[0] and "neither a run folder nor a file of results" in shown[1]


def test_what_is_no_table_gives_one_line(tmp_path):
    with one_line_error("neither a run folder nor a file of results"):
        results.read(tmp_path / "none.json")
    (tmp_path / "list.json").write_text("[]")
    with one_line_error("not a file of results", "name, command"):
        results.read(tmp_path / "list.json")
    about = dict.fromkeys(results.FIELDS, "") | {"rows": [row("gloss", 0.1)]}
    del about["rows"][0]["split"]
    (tmp_path / "rows.json").write_text(json.dumps(about))
    with one_line_error("not a file of results", "no split in its rows"):
        results.read(tmp_path / "rows.json")
    (tmp_path / "rows.json").write_text(json.dumps(about | {"rows": [row("gloss", 0.1, segment="all")]}))
    with one_line_error("not a file of results", "no dataset"):
        results.read(tmp_path / "rows.json")
    with one_line_error("holds no finished 05_evaluate"):
        results.read(tmp_path)


def test_the_commit_is_unknown_without_git(monkeypatch):
    monkeypatch.setattr("subprocess.run", lambda *_, **__: SimpleNamespace(returncode=128, stdout=""))
    assert results.commit() == "unknown"


# ---- the committed ones


@pytest.mark.parametrize("file", COMMITTED, ids=lambda file: file.stem)
def test_committed_tables_say_where_they_come_from(file):
    table = results.read(file)
    assert table["command"].startswith("python -m ") and table["commit"] != "unknown"
    assert " /" not in table["command"] and ".." not in table["command"]  # others do not have these folders
    assert table["rows"] and all(len(digest) == 64 for digest in table["inputs"])
    assert all(
        {"method", "split", "users", "recall@5", "recall@5_low", "recall@5_high"} <= set(row) for row in table["rows"]
    )
    lists = (table.get(name, []) for name in ("rows", "ablation", "parts"))
    assert all("mrr" not in row for rows in lists for row in rows)  # it is mrr@10


def test_the_page_of_results_is_what_the_committed_tables_give():
    page = results_page.PAGE.read_text(encoding="utf-8")
    files = COMMITTED, BEAMS, SEEDS, NEW
    assert page == results_page.results_page(*([results.read(file) for file in some] for some in files))


@pytest.mark.parametrize("file", COMMITTED, ids=lambda file: file.stem)
def test_the_page_of_results_shows_every_row_of_all_users(file):
    page, table = results_page.PAGE.read_text(encoding="utf-8"), results.read(file)
    rows = pd.DataFrame([row for row in table["rows"] if row.get("segment", "all") == "all"])
    if table.get("by_model"):  # the page shows what the model adds to histories
        rows = rows[rows["method"].isin(["gloss", "gloss-histories"]) & (rows["seen"] == "left out")]
    for metric in ("recall@5", "ndcg@5"):
        assert all(shown in page for shown in tables.with_interval(rows, metric)), metric


def test_readme_shows_numbers_of_the_page_of_results():
    page, readme = results_page.PAGE.read_text(encoding="utf-8"), (ROOT / "README.md").read_text(encoding="utf-8")
    shown = re.findall(r"\d\.\d{4} \[\d\.\d{4}, \d\.\d{4}\]", readme)
    assert len(shown) > 8 and all(number in page for number in shown)
