"""Every parameter: its type, what is allowed, which stages declare it. Values are in params/ and the notebooks."""

import argparse
import ast
import importlib.util
import math
import os
from dataclasses import dataclass
from pathlib import Path

import yaml

from gloss_utils.base.errors import GlossError
from gloss_utils.data.sources import DATASETS, is_dataset

ROOT = Path(__file__).resolve().parents[2]

STAGES = ("01_explore_data", "02_fine_tune", "03_build_index", "04_retrieve", "05_evaluate", "06_user_segments")
EXPLORE, FINE_TUNE, INDEX, RETRIEVE, EVALUATE, SEGMENTS = STAGES


@dataclass(frozen=True)
class Parameter:
    """One parameter: `kind` is a type, or "path" (a file or folder), "model" (a folder or a hub name) or "dataset"."""

    stages: tuple[str, ...]
    kind: object
    choices: tuple = ()
    minimum: float | None = None
    maximum: float | None = None
    nullable: bool = False
    multiple_of: int = 1

    def allowed(self) -> str:
        """What the user may give, in words."""
        if self.choices:
            text = "one of " + ", ".join(map(str, self.choices))
        else:
            names = {
                int: "a whole number",
                float: "a number",
                bool: "true or false",
                str: "a text",
                list: "a list of texts",
                "path": "a path",
                "model": "a folder or a model name",
                "dataset": DATASETS,
            }
            text = names[self.kind]
            if self.minimum is not None:
                text += f" from {self.minimum:g}" + (f" to {self.maximum:g}" if self.maximum is not None else " up")
            if self.multiple_of > 1:
                text += f", a multiple of {self.multiple_of}"
        return text + (" or null" if self.nullable else "")


def _p(*stages, kind, **limits):
    return Parameter(stages, kind, **limits)


PARAMETERS: dict[str, Parameter] = {
    "run_dir": _p(*STAGES, kind="path"),
    "dataset": _p(EXPLORE, kind="dataset"),
    "data_dir": _p(EXPLORE, kind="path"),
    "data_address": _p(EXPLORE, kind=str, nullable=True),
    "interactions_file": _p(EXPLORE, kind="path", nullable=True),
    "items_file": _p(EXPLORE, kind="path", nullable=True),
    "user_column": _p(EXPLORE, kind=str),
    "item_column": _p(EXPLORE, kind=str),
    "time_column": _p(EXPLORE, kind=str),
    "item_id_column": _p(EXPLORE, kind=str),
    "item_text": _p(EXPLORE, kind=str, nullable=True),
    "k_core": _p(EXPLORE, kind=int, minimum=0),
    "min_history": _p(EXPLORE, kind=int, minimum=3),
    "max_history": _p(EXPLORE, kind=int, minimum=3, nullable=True),
    "holdout": _p(EXPLORE, kind=str, choices=("leave_one_out", "time")),
    "holdout_share": _p(EXPLORE, kind=float, minimum=0.001, maximum=0.4),
    "max_users": _p(EXPLORE, kind=int, minimum=1, nullable=True),
    "max_rejected": _p(EXPLORE, RETRIEVE, kind=float, minimum=0, maximum=1),
    "new_item_fraction": _p(EXPLORE, kind=float, minimum=0, maximum=0.5),
    "seed": _p(EXPLORE, kind=int, minimum=0, maximum=2**32 - 1),
    "queries_file": _p(FINE_TUNE, RETRIEVE, kind="path", nullable=True),
    "base_model": _p(FINE_TUNE, kind="model"),
    "tiny_layers": _p(FINE_TUNE, kind=int, minimum=1),
    "tiny_width": _p(FINE_TUNE, kind=int, minimum=64, multiple_of=64),
    "tiny_vocabulary": _p(FINE_TUNE, kind=int, minimum=300),
    "tiny_steps": _p(FINE_TUNE, kind=int, minimum=1),
    "tiny_learning_rate": _p(FINE_TUNE, kind=float, minimum=0),
    "load_in_4bit": _p(FINE_TUNE, kind=bool),
    "lora_rank": _p(FINE_TUNE, kind=int, minimum=1),
    "lora_alpha": _p(FINE_TUNE, kind=int, minimum=1),
    "lora_dropout": _p(FINE_TUNE, kind=float, minimum=0, maximum=1),
    "lora_modules": _p(FINE_TUNE, kind=list),
    "max_length": _p(FINE_TUNE, kind=int, minimum=16),
    "learning_rate": _p(FINE_TUNE, kind=float, minimum=0),
    "lr_scheduler": _p(FINE_TUNE, kind=str, choices=("linear", "cosine", "constant_with_warmup")),
    "warmup_steps": _p(FINE_TUNE, kind=int, minimum=0),
    "weight_decay": _p(FINE_TUNE, kind=float, minimum=0),
    "optimizer": _p(FINE_TUNE, kind=str, choices=("adamw_8bit", "adamw_torch")),
    "batch_size": _p(FINE_TUNE, kind=int, minimum=1),
    "gradient_accumulation": _p(FINE_TUNE, kind=int, minimum=1),
    "gradient_checkpointing": _p(FINE_TUNE, kind=bool),
    "epochs": _p(FINE_TUNE, kind=int, minimum=1),
    "patience": _p(FINE_TUNE, kind=int, minimum=1),
    "bf16_on_cpu": _p(FINE_TUNE, kind=bool),
    "report_to": _p(FINE_TUNE, kind=str, choices=("none", "tensorboard", "wandb")),
    "encoder": _p(INDEX, kind="model"),
    "index": _p(INDEX, kind=str, choices=("auto", "flat", "hnsw", "ivfpq")),
    "rerank_from_disk": _p(INDEX, kind=bool),
    "split": _p(RETRIEVE, kind=str, choices=("test", "validation", "next")),
    "num_beams": _p(RETRIEVE, kind=int, minimum=1),
    "max_new_tokens": _p(RETRIEVE, kind=int, minimum=1),
    "decoding": _p(RETRIEVE, kind=str, choices=("free", "catalogue", "sample")),
    "temperature": _p(RETRIEVE, kind=float, minimum=0.01),
    "top_p": _p(RETRIEVE, kind=float, minimum=0.01, maximum=1),
    "generation_batch_tokens": _p(RETRIEVE, kind=int, minimum=1),
    "engine": _p(INDEX, RETRIEVE, kind=str, choices=("local", "ray")),
    "workers": _p(INDEX, RETRIEVE, kind=int, minimum=1),
    "retriever": _p(RETRIEVE, kind=str, choices=("dense", "bm25")),
    "ranking": _p(RETRIEVE, kind=str, choices=("paper", "fused", "hybrid")),
    "ranking_weights": _p(RETRIEVE, kind="path"),
    "top_k": _p(RETRIEVE, kind=int, minimum=1, nullable=True),
    "exclude_seen": _p(RETRIEVE, kind=bool, nullable=True),
    "ranking_depth": _p(RETRIEVE, kind=int, minimum=1),
    "sasrec_epochs": _p(RETRIEVE, kind=int, minimum=0),
    "sasrec_width": _p(RETRIEVE, kind=int, minimum=2, multiple_of=2),
    "show_user": _p(RETRIEVE, kind=str, nullable=True),
    "cold_start_max": _p(EVALUATE, kind=int, minimum=3),
    "power_min": _p(EVALUATE, kind=int, minimum=4, nullable=True),
    "added_title": _p(SEGMENTS, kind=str, nullable=True),
}


def stage_names(stage: str) -> list[str]:
    """The names of the parameters that a stage declares, `run_dir` first."""
    return [name for name, parameter in PARAMETERS.items() if stage in parameter.stages]


def check(name: str, value):
    """Return `value` in its parameter's type, or raise a one-line `GlossError`.

    Numbers that YAML 1.1 reads as text (`1e-4`) are taken as numbers; paths become absolute, from the repository root.
    """
    if name not in PARAMETERS:
        raise GlossError(f"unknown parameter {name!r} (value {value!r}); allowed are {', '.join(PARAMETERS)}")
    parameter = PARAMETERS[name]
    wrong = GlossError(f"parameter {name} is {value!r}; allowed is {parameter.allowed()}")
    if value is None:
        if not parameter.nullable:
            raise wrong
        return None
    kind = parameter.kind
    if kind in (int, float):
        value = _number(value, kind, wrong)
        below = parameter.minimum is not None and value < parameter.minimum
        above = parameter.maximum is not None and value > parameter.maximum
        if below or above or (kind is int and value % parameter.multiple_of):
            raise wrong
    elif kind is list:
        if not (isinstance(value, list) and value and all(isinstance(part, str) for part in value)):
            raise wrong
    elif kind in ("path", "model", "dataset", str):
        if name == "show_user" and isinstance(value, int) and not isinstance(value, bool):
            value = str(value)  # a user id may be all digits
        if not isinstance(value, str) or not value.strip():
            raise wrong
        if kind == "dataset" and not is_dataset(value):
            raise wrong
        value = _from_root(value, kind)
    elif not isinstance(value, kind):
        raise wrong
    if parameter.choices and value not in parameter.choices:
        raise wrong
    return value


def _number(value, kind, wrong: GlossError):
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise wrong
    if kind is int:
        if not isinstance(value, int):
            raise wrong
        return value
    try:
        value = float(value)
    except ValueError:
        raise wrong from None
    if not math.isfinite(value):
        raise wrong
    return value


def _from_root(value: str, kind) -> str:
    if kind == "path" or (kind == "model" and (ROOT / value).is_dir()):
        return str(ROOT / Path(value).expanduser())
    return value


def check_all(values: dict) -> dict:
    """Check every value, and what only holds between two of them. Raises `GlossError` at the first that is wrong."""
    checked = {name: check(name, value) for name, value in values.items()}
    power, cold = checked.get("power_min"), checked.get("cold_start_max")
    if power is not None and cold is not None and power <= cold:
        raise GlossError(f"parameter power_min is {power}; allowed is a whole number above cold_start_max ({cold})")
    length, new = checked.get("max_length"), checked.get("max_new_tokens")
    if length is not None and new is not None and new > length - 2:  # a prompt has two tokens at least
        raise GlossError(f"parameter max_new_tokens is {new}; allowed is at most {length - 2} (max_length less 2)")
    return checked


def check_files(values: dict):
    """Raise `GlossError` where a file that is to be read, or a package that is to be used, is not there."""
    path = values.get("queries_file")
    if path is not None and not Path(path).is_file():
        raise GlossError(
            f"parameter queries_file is {path!r}, and there is no such file; give the path of a file of "
            "queries, or null to generate them"
        )
    if values.get("dataset") == "table":
        for name in ("interactions_file", "items_file"):
            if values.get(name) is None or not Path(values[name]).is_file():
                raise GlossError(
                    f"parameter {name} is {values.get(name)!r}, which is no file; dataset 'table' reads a .csv, .jsonl "
                    "or .parquet file of your own, see params/my_data.yaml"
                )
    weights = values.get("ranking_weights")
    if weights is not None and values.get("ranking") != "paper" and not Path(weights).is_file():
        raise GlossError(
            f"parameter ranking_weights is {weights!r}, and there is no such file; give a file like "
            "params/ranking/weights.yaml"
        )
    if values.get("engine") == "ray" and importlib.util.find_spec("ray") is None:
        raise GlossError(
            "parameter engine is 'ray', but ray is not installed; "
            'pip install "gloss-utils[ray]", or set engine to local'
        )


def read_file(path: str | Path) -> dict:
    """Read a flat YAML file of parameters. Raises `GlossError` where it is missing or not flat YAML."""
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise GlossError(f"parameter file {path} cannot be read ({error.strerror}); give a file of params/") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise GlossError(f"parameter file {path} is not YAML: {reason}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise GlossError(f"parameter file {path} holds a {type(values).__name__}; write one `name: value` a line")
    return values


def add_arguments(parser: argparse.ArgumentParser):
    """Let a command line take parameter files, and single parameters over them: `FILE... [-p NAME VALUE]...`."""
    parser.add_argument("files", nargs="+", metavar="FILE", help="parameter files; later ones over earlier ones")
    parser.add_argument(
        "-p",
        dest="overrides",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "VALUE"),
        help="a parameter, over the files'; the value is read as YAML",
    )


def from_command_line(name: str, text: str):
    """Read a `-p NAME VALUE` pair: the value as YAML, a relative path from the caller's folder."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = text
    kind = PARAMETERS[name].kind if name in PARAMETERS else None
    if value is not None and (kind == "path" or (kind == "model" and Path(text).is_dir())):
        return os.path.abspath(Path(text).expanduser())
    return value


def assigned(source: str) -> dict:
    """The `name = literal` assignments of a notebook's parameters cell."""
    found = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign):
            try:
                found[node.targets[0].id] = ast.literal_eval(node.value)
            except ValueError:
                raise GlossError(f"parameter {node.targets[0].id} is {ast.unparse(node.value)}; give a value") from None
    return found
