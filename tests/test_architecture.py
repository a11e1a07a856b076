"""The house as docs/architecture.md describes it: who may import whom, and five lines that use each room alone."""

import ast
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from gloss_utils.runs.parameters import ROOT, STAGES

PACKAGE = ROOT / "gloss_utils"
ROOMS = ("base", "data", "search", "language", "rank", "report", "runs")  # each may import from those before it
DOORS = {stage[3:] for stage in (*STAGES, "07_paper_figures")}
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
DOCUMENT = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
EXAMPLES = dict(re.findall(r"^## `(\w+)`.*?```python\n(.*?)```", DOCUMENT, re.MULTILINE | re.DOTALL))


def imported(path: Path) -> set[str]:
    """The modules of this package that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "gloss_utils":
            found |= {
                name if (name := f"{node.module}.{alias.name}") in MODULES else node.module for alias in node.names
            }
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name in MODULES}
    return found


def floor(module: str) -> int:
    """A room's place in `ROOMS`; doors and the command line stand above all rooms."""
    parts = module.split(".")
    return ROOMS.index(parts[1]) if len(parts) > 1 and parts[1] in ROOMS else len(ROOMS)


def test_the_top_of_the_package_holds_one_door_per_notebook_and_nothing_else():
    top = {path.stem for path in PACKAGE.glob("*.py")}
    assert top == DOORS | {"__init__", "__main__"}
    assert {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"} == set(ROOMS)
    assert {path.stem[3:] for path in (ROOT / "notebooks").glob("[0-9]*.ipynb")} == DOORS


@pytest.mark.parametrize("module", [name for name in MODULES if name != "gloss_utils"])
def test_arrows_go_one_way(module):
    for other in imported(MODULES[module]):
        assert floor(other) <= floor(module) or other == "gloss_utils", f"{module} imports {other}"
        if floor(module) < ROOMS.index("runs"):
            assert not other.startswith("gloss_utils.runs"), f"{module} knows of run folders"


def test_there_is_no_circle():
    TopologicalSorter({name: imported(path) - {name} for name, path in MODULES.items()}).prepare()


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("[0-9]*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_imports_its_door_alone(path):
    text = path.read_text(encoding="utf-8")
    assert set(re.findall(r"(?:from|import) (gloss_utils[\w.]*)(?: import (\w+))?", text)) == {
        ("gloss_utils", path.stem[3:])
    }


@pytest.mark.parametrize("room", ["base", "data", "search", "rank"])
def test_these_rooms_load_without_torch(room):
    code = f"import sys, gloss_utils.{room}; raise SystemExit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_the_language_model_loads_without_indexes():
    code = "import sys, gloss_utils.language; raise SystemExit(bool({'faiss', 'bm25s'} & {*sys.modules}))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.parametrize("room", ROOMS)
def test_each_room_says_what_it_is_for_and_what_may_be_imported(room):
    tree = ast.parse((PACKAGE / room / "__init__.py").read_text(encoding="utf-8"))
    assert len(ast.get_docstring(tree).splitlines()) > 1
    assert any(isinstance(node, ast.Assign) and node.targets[0].id == "__all__" for node in tree.body)


@pytest.mark.parametrize("room", ROOMS)
def test_the_lines_of_the_document_run(room, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = EXAMPLES[room]
    assert len([line for line in lines.splitlines() if line.strip() and not line.startswith(("from ", "import "))]) <= 6
    exec(compile(lines, f"docs/architecture.md, {room}", "exec"), {})


def test_the_lines_of_the_guide_run(small_run, capsys):
    guide = (ROOT / "docs/guide.md").read_text(encoding="utf-8")
    [lines] = re.findall(r"```python\n(.*?)```", guide, re.DOTALL)
    exec(compile(lines.replace("runs/demo", str(small_run[0].root)), "docs/guide.md", "exec"), {})
    assert "recall@5" in capsys.readouterr().out
