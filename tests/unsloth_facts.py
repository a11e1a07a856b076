"""What the pinned unsloth is called with and does, as its own source says, in `unsloth_facts.json`.

`python -m tests.unsloth_facts WHEEL_OR_FOLDER` records it from the wheel of the version in requirements/gpu.txt (get it
with `pip download --no-deps`); no import and no GPU is needed. The tests fake unsloth by these facts, and compare them
with the package where it is installed.
"""

import ast
import json
import re
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

RECORDED = Path(__file__).with_name("unsloth_facts.json")
LOADER, LLAMA, TOOLS = "unsloth/models/loader.py", "unsloth/models/llama.py", "unsloth/models/_utils.py"


def facts(source: Path) -> dict:
    """The facts of an unsloth wheel, or of the folder that holds the package `unsloth`."""
    trees = {name: ast.parse(read(source, name)) for name in (LOADER, LLAMA, TOOLS)}
    load = function(trees[LOADER], "FastLanguageModel", "from_pretrained")
    adapt = function(trees[LLAMA], "FastLlamaModel", "get_peft_model")
    statistics = function(trees[TOOLS], None, "get_statistics")
    lines = ast.unparse(function(trees[LLAMA], "FastLlamaModel", "from_pretrained"))
    configs = re.findall(r"AutoConfig\.from_pretrained\(([^)]*)\)", lines)
    return {
        "from_pretrained": _parameters(load),
        "get_peft_model": _parameters(adapt),
        "statistics_are_off_by": sorted(_variables(statistics)),
        "statistics_are_off_by_argument": [each.arg for each in statistics.args.args],
        "asks_for_a_config_without_local_files_only": any("local_files_only" not in call for call in configs),
        "always_patches_the_tokenizer": "patch_tokenizer(model, tokenizer)" in lines,
        "bf16_from_compute_capability": int(re.search(r"major_version >= (\d)", ast.unparse(trees[TOOLS]))[1]),
    }


def read(source: Path, name: str) -> str:
    """A file of a wheel or of the folder that holds a package."""
    if source.is_dir():
        return (source / name).read_text(encoding="utf-8")
    with zipfile.ZipFile(source) as wheel:
        return wheel.read(name).decode()


def function(tree: ast.Module, owner: str | None, name: str) -> ast.FunctionDef | ast.AsyncFunctionDef:
    """A function of a module, or a method of its class `owner`."""
    body = tree.body if owner is None else next(n.body for n in tree.body if getattr(n, "name", None) == owner)
    return next(node for node in body if getattr(node, "name", None) == name and hasattr(node, "args"))


def _parameters(function: ast.FunctionDef) -> dict:
    arguments = function.args
    names = [each.arg for each in (*arguments.args, *arguments.kwonlyargs)]
    return {"names": names, "takes_more": arguments.kwarg is not None}


def _variables(function: ast.FunctionDef) -> set[str]:
    texts = {node.value for node in ast.walk(function) if isinstance(node, ast.Constant)}
    return {text for text in texts if isinstance(text, str) and re.fullmatch(r"[A-Z][A-Z_]{6,}", text)}


def record(facts: Callable[[Path], dict], to: Path) -> int:
    """Record the facts of the wheel or folder that the command line names; returns the exit status."""
    to.write_text(json.dumps(facts(Path(sys.argv[1])), indent=1) + "\n", encoding="utf-8")
    print(f"recorded in {to}")
    return 0


if __name__ == "__main__":
    sys.exit(record(facts, RECORDED))
