"""Every package that is imported is declared, and the lock files hold what is declared."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions

import nbformat
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from gloss_utils.runs.parameters import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
OWN = {
    "gloss_utils",
    "benchmarks",
    "tests",
    "conftest",
    "helpers",
    "kill",
    "test_decoding",
    "test_finetune",
}  # modules of this repository
NAMES = {"google": None}  # of Colab


def declared(*extras: str) -> dict[str, Requirement]:
    """The requirements of the package and of some extras, by normalised name."""
    lines = PROJECT["dependencies"] + [line for extra in extras for line in PROJECT["optional-dependencies"][extra]]
    return {canonicalize_name(required.name): required for required in map(Requirement, lines)}


def sources(folder: str) -> list[str]:
    """The Python sources below a folder; of notebooks, their code cells."""
    found = [path.read_text(encoding="utf-8") for path in (ROOT / folder).rglob("*.py")]
    for path in (ROOT / folder).glob("*.ipynb"):
        cells = nbformat.read(path, as_version=4).cells
        code = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
        found.append(re.sub(r"^( *)[%!].*$", r"\1pass", code, flags=re.MULTILINE))
    return found


def imported(folder: str) -> set[str]:
    """The distributions that the sources below a folder import, by normalised name."""
    modules = set()
    for node in (node for source in sources(folder) for node in ast.walk(ast.parse(source))):
        if isinstance(node, ast.Import):
            modules |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            modules.add(node.module.split(".")[0])
    installed = packages_distributions()
    modules -= OWN | set(sys.stdlib_module_names)
    names = {name for module in modules for name in installed.get(module, [NAMES.get(module, module)])}
    return {canonicalize_name(name) for name in names if name}


@pytest.mark.parametrize(
    ("folder", "extras"),
    [("gloss_utils", ("gpu", "ray")), ("notebooks", ()), ("benchmarks", ("test",)), ("tests", ("test",))],
)
def test_what_is_imported_is_declared(folder, extras):
    found = imported(folder)
    assert folder == "notebooks" or len(found) > 5
    assert found <= set(declared(*extras))


def test_versions_are_pinned():
    for name, required in declared("gpu", "ray", "test", "dev").items():
        assert re.fullmatch(r"==[\w.]+", str(required.specifier)), name


@pytest.mark.parametrize(("lock", "extras"), [("cpu", ("test",)), ("gpu", ("gpu", "test"))])
def test_lock_files_hold_what_is_declared(lock, extras):
    text = (ROOT / f"requirements/{lock}.txt").read_text(encoding="utf-8")
    locked = [Requirement(line) for line in text.splitlines()]
    assert not re.search(r"://|\s/|@|index|#", text)  # no address, no path of a machine
    versions = {(canonicalize_name(one.name), str(one.specifier)) for one in locked}
    missing = {(name, str(one.specifier)) for name, one in declared(*extras).items()} - versions
    assert not missing, "run `make lock`"
    assert any(one.name.startswith("nvidia") for one in locked) == (lock == "gpu")
