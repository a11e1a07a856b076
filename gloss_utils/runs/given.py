"""Parameters as they are given: in files, on the command line, in the first cells of notebooks."""

import argparse
import ast
import json
import os
from pathlib import Path

import yaml

from gloss_utils.base.errors import GlossError
from gloss_utils.base.files import write_whole
from gloss_utils.runs.parameters import MODELS, NOTEBOOKS, PAPER, PATHS, ROOT, STAGES, check, defaults

PAPER_CELL = """runs = ["{run_dir}"]  # run folders or files of results, from the repository's root
figures_dir = "{run_dir}/paper"  # where figures and tables go"""


def read(files: list[str], overrides: list[tuple[str, str]]) -> dict:
    """The parameters of files, later over earlier, and `-p` over all; by default `run_dir` is named after the files."""
    values = {"run_dir": str(ROOT / "runs" / "-".join(Path(file).stem for file in files))}
    for file in files:
        values |= read_file(file)
    values |= {name: from_command_line(name, text) for name, text in overrides}
    return check(values)


def resolve(stage: str, values: dict) -> dict:
    """A stage's own parameters: those given, and the defaults of the others."""
    return check(defaults(stage) | given_to(stage, values))


def given_to(stage: str, values: dict) -> dict:
    """Those of some parameters that a stage has."""
    return {name: values[name] for name in MODELS[stage].model_fields if name in values}


def read_file(path: str | Path, below: tuple[Path, ...] = ()) -> dict:
    """Read a flat YAML file of parameters; `extends: FILE`, from its own folder, names a file whose values it changes.

    Raises `GlossError` where a file is missing, is not flat YAML, or extends itself.
    """
    path = Path(path)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise GlossError(f"parameter file {path} cannot be read ({error.strerror}); give a file of params/") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise GlossError(f"parameter file {path} is not YAML: {reason}") from None
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise GlossError(f"parameter file {path} holds a {type(values).__name__}; write one `name: value` a line")
    if path in below:
        raise GlossError(f"parameter file {path} extends itself; name another file in extends")
    extended = values.pop("extends", None)
    return values if extended is None else read_file(path.parent / str(extended), (*below, path)) | values


def from_command_line(name: str, text: str):
    """Read a `-p NAME VALUE` pair: the value as YAML, a relative path from the caller's folder."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = text
    is_model = name in ("base_model", "encoder") and Path(text).is_dir()
    if value is not None and (name in PATHS or is_model):
        return os.path.abspath(Path(text).expanduser())
    return value


def add_parameters(parser: argparse.ArgumentParser):
    """Let a command line take files of parameters, and single parameters over them: `FILE... [-p NAME VALUE]...`."""
    parser.add_argument("files", nargs="+", metavar="FILE", help="files of parameters; later ones over earlier ones")
    parser.add_argument(
        "-p",
        dest="overrides",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "VALUE"),
        help="a parameter, over the files'; the value is read as YAML",
    )


def assigned(source: str) -> dict:
    """The `name = literal` assignments of a notebook's cell of parameters."""
    found = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign):
            try:
                found[node.targets[0].id] = ast.literal_eval(node.value)
            except ValueError:
                raise GlossError(f"parameter {node.targets[0].id} is {ast.unparse(node.value)}; give a value") from None
    return found


def names_assigned(source: str) -> list[str]:
    """The names that a cell assigns values to."""
    assignments = [node for node in ast.parse(source).body if isinstance(node, ast.Assign)]
    return [target.id for node in assignments for target in node.targets if isinstance(target, ast.Name)]


def cell(stage: str, values: dict | None = None) -> str:
    """The first code cell of a notebook: each parameter of a stage with its value, or else its default, and meaning."""
    model, lines = MODELS[stage], []
    own = [name for name in model.__annotations__ if name != "run_dir"]  # before those that it shares with other stages
    for name in dict.fromkeys(("run_dir", *own, *model.model_fields)):
        field = model.model_fields[name]
        value = (values or {}).get(name, field.default)
        shown = json.dumps(value) if isinstance(value, (str, list)) else repr(value)
        lines.append(f"{name} = {shown}" + (f"  # {field.description}" if field.description else ""))
    return "\n".join(lines)


def write_cells(values: dict | None = None, to: Path = NOTEBOOKS) -> list[str]:
    """Write the notebooks with these parameters in their first code cells; in another folder than their own, those that
    are there are left as they are. Returns the names of what was written."""
    import nbformat  # takes seconds to import, and kernels read parameters without it

    cells = {stage: cell(stage, values) for stage in STAGES}
    if values:
        cells[PAPER] = PAPER_CELL.format(**values)
    written = [name for name in cells if to == NOTEBOOKS or not (to / f"{name}.ipynb").exists()]
    for name in written:
        notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
        next(each for each in notebook.cells if "parameters" in each.metadata.get("tags", [])).source = cells[name]
        with write_whole(to / f"{name}.ipynb") as part:
            nbformat.write(notebook, part)
    return written
