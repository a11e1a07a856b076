"""Every parameter of a run: one model a stage, with each parameter's type, default, limits and meaning.

This is the only place where a default stands. `python -m gloss_utils cells` writes the first cell of each notebook from
here, and a test fails where a cell differs. Files of parameters and `-p NAME VALUE` are checked by the same models.
"""

import argparse
import ast
import difflib
import importlib.util
import json
import os
from pathlib import Path
from typing import Annotated, Literal, get_args

import nbformat
import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, Strict, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from gloss_utils.base.errors import GlossError
from gloss_utils.base.files import write_whole
from gloss_utils.data.sources import DATASETS, is_dataset

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = ROOT / "notebooks"


def _wrong(should_be: str) -> PydanticCustomError:
    return PydanticCustomError("parameter", f"Input should be {should_be}")


def _text(value: str) -> str:
    if not value.strip():
        raise _wrong("a text that is not blank")
    return value


def _dataset(value: str) -> str:
    if not is_dataset(value):
        raise _wrong(DATASETS)
    return value


def _from_root(value: str) -> str:
    return str(ROOT / Path(value).expanduser())


def _model(value: str) -> str:
    return _from_root(value) if (ROOT / value).is_dir() else value


def _number(value):
    if isinstance(value, bool):  # which Python takes for 0 or 1
        raise _wrong("a number")
    return value


def _user(value):
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value  # an id may be all digits


Text = Annotated[str, AfterValidator(_text)]
FilePath = Annotated[Text, AfterValidator(_from_root)]  # relative ones start at the repository's root
ModelName = Annotated[Text, AfterValidator(_model)]  # a folder, or a name on the Hugging Face hub
Whole = Annotated[int, Strict()]
Number = Annotated[float, BeforeValidator(_number), Field(allow_inf_nan=False)]  # YAML reads 1e-4 as a text: taken, too
Flag = Annotated[bool, Strict()]


class Parameters(BaseModel):
    """What every stage has to know."""

    model_config = ConfigDict(extra="forbid", validate_default=True)

    run_dir: FilePath = Field("runs/demo", description="where this run keeps its data, model, index and results")


class Files(Parameters):
    """Of the stages that read files from outside."""

    max_rejected: Number = Field(0.01, ge=0, le=1, description="more unusable records, as a share of all, stop the run")


class Queries(Parameters):
    """Of the stages that need no model where the texts come from a file."""

    queries_file: FilePath | None = Field(
        None, description="texts made elsewhere; None: the fine-tuned model makes them"
    )


class Workers(Parameters):
    """Of the stages whose work can be given to several processes."""

    engine: Literal["local", "ray"] = Field("local", description="local, or ray: the cluster of RAY_ADDRESS, else here")
    workers: Whole = Field(1, ge=1, description="under ray: processes side by side, one per GPU")


class ExploreData(Files):
    """Stage 1."""

    dataset: Annotated[Text, AfterValidator(_dataset)] = Field(
        "demo",
        description="demo, beauty, toys, sports, amazon2018-…, amazon2023-…, movielens-100k, movielens-1m or table",
    )
    data_dir: FilePath = Field("data", description="where the raw files are, or are downloaded to")
    data_address: Text | None = Field(None, description="from where; None: from where they are published")
    interactions_file: FilePath | None = Field(
        None, description="dataset table: .csv, .jsonl or .parquet, who took what"
    )
    items_file: FilePath | None = Field(None, description="dataset table: the items and their texts")
    user_column: Text = Field("user", description="columns of interactions_file")
    item_column: Text = "item"
    time_column: Text = Field("time", description="numbers, or dates as 2024-05-31 12:00")
    item_id_column: Text = Field("item", description="the column of items_file that holds the id")
    item_text: Text | None = Field(None, description='an item\'s text, as "{title} by {brand}"; None: the title')
    k_core: Whole = Field(0, ge=0, description="users and items with fewer interactions are left out; 0: none is")
    min_history: Whole = Field(3, ge=3, description="users with fewer interactions are left out")
    max_history: Whole | None = Field(None, ge=3, description="only so many latest interactions per user; None: all")
    holdout: Literal["leave_one_out", "time"] = Field(
        "leave_one_out", description="the target is each user's last item; or, by time, what came last for everybody"
    )
    holdout_share: Number = Field(
        0.1, ge=0.001, le=0.4, description="time: the share held out for test, and as much for validation"
    )
    max_users: Whole | None = Field(None, ge=1, description="train and evaluate on so many users, drawn; None: on all")
    new_item_fraction: Number = Field(
        0.0, ge=0, le=0.5, description="share of items kept out of training, as if they came later"
    )
    seed: Whole = Field(3407, ge=0, lt=2**32, description="of every random draw")


class FineTune(Queries):
    """Stage 2."""

    base_model: ModelName = Field("tiny", description='a folder, a Hugging Face name, or "tiny"')
    tiny_layers: Whole = Field(4, ge=1, description="tiny_*: size and training of the tiny base model")
    tiny_width: Whole = Field(192, ge=64, multiple_of=64)
    tiny_vocabulary: Whole = Field(2000, ge=300)
    tiny_steps: Whole = Field(300, ge=1)
    tiny_learning_rate: Number = Field(0.002, ge=0)
    load_in_4bit: Flag = Field(True, description="QLoRA: the base model in 4 bits")
    lora_rank: Whole = Field(16, ge=1)
    lora_alpha: Whole = Field(16, ge=1)
    lora_dropout: Number = Field(0.0, ge=0, le=1)
    lora_modules: list[Text] = Field(
        ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"], min_length=1
    )
    max_length: Whole = Field(1024, ge=16, description="tokens; longer texts lose their oldest items")
    learning_rate: Number = Field(0.002, ge=0)
    lr_scheduler: Literal["linear", "cosine", "constant_with_warmup"] = "linear"
    warmup_steps: Whole = Field(20, ge=0)
    weight_decay: Number = Field(0.01, ge=0)
    optimizer: Literal["adamw_8bit", "adamw_torch"] = Field("adamw_torch", description="adamw_torch or adamw_8bit")
    batch_size: Whole = Field(4, ge=1, description="one step takes batch_size × gradient_accumulation texts")
    gradient_accumulation: Whole = Field(4, ge=1)
    gradient_checkpointing: Flag = Field(False, description="less memory, but slower")
    epochs: Whole = Field(5, ge=1, description="at most")
    patience: Whole = Field(3, ge=1, description="epochs without a lower validation loss before training stops")
    bf16_on_cpu: Flag = Field(False, description="multiply in bfloat16 where the processor can; GPUs always do")
    report_to: Literal["none", "tensorboard", "wandb"] = Field("none", description="none, tensorboard or wandb")


class BuildIndex(Workers):
    """Stage 3."""

    encoder: ModelName = Field(
        "all-MiniLM-L6-v2", description="a sentence-transformers model: a folder or a Hugging Face name"
    )
    index: Literal["auto", "flat", "hnsw", "ivfpq"] = Field(
        "auto", description="flat (exact), hnsw, ivfpq, or auto: chosen by the number of items and the memory"
    )
    rerank_from_disk: Flag = Field(True, description="hnsw, ivfpq: exact similarities of what they find")


class Retrieve(Workers, Queries, Files):
    """Stage 4."""

    split: Literal["test", "validation", "next"] = Field(
        "test", description="test, validation, or next: what to offer now, without a target"
    )
    num_beams: Whole = Field(5, ge=1, description="texts per user")
    max_new_tokens: Whole = Field(50, ge=1, description="per text")
    decoding: Literal["free", "catalogue", "sample"] = Field(
        "free", description="free (any text, as in the paper), catalogue (its titles only) or sample (drawn at random)"
    )
    temperature: Number = Field(1.0, ge=0.01, description="of sample, as top_p")
    top_p: Number = Field(1.0, ge=0.01, le=1)
    generation_batch_tokens: Whole = Field(
        16384, ge=1, description="users at a time × tokens of each; fewer need less memory"
    )
    retriever: Literal["dense", "bm25"] = Field("dense", description="dense or bm25")
    ranking: Literal["paper", "fused", "hybrid"] = Field(
        "hybrid",
        description="hybrid (texts, histories, last item, popularity), fused (texts alone) or paper (its rule)",
    )
    ranking_weights: FilePath = Field(
        "params/ranking/weights.yaml", description="how much each kind of evidence counts"
    )
    top_k: Whole | None = Field(None, ge=1, description="items found per text; None: 1 for paper, else 20")
    exclude_seen: Flag | None = Field(None, description="leave out what the user has; None: no for paper, else yes")
    ranking_depth: Whole = Field(10, ge=1, description="items in a ranking, at most")
    sasrec_epochs: Whole = Field(20, ge=0, description="training of the rival SASRec, at most; 0: without it")
    sasrec_width: Whole = Field(64, ge=2, multiple_of=2)
    show_user: Annotated[Text, BeforeValidator(_user)] | None = Field(
        None, description="whose story is shown; None: one is chosen"
    )


class Evaluate(Parameters):
    """Stage 5."""

    cold_start_max: Whole = Field(5, ge=3, description="users with at most so many interactions are cold-start users")
    power_min: Whole | None = Field(
        None, ge=4, description="users with at least so many are power users; None: the top tenth"
    )


class UserSegments(Parameters):
    """Stage 6."""

    added_title: Text | None = Field(
        None, description="an item to add after training; None: a new edition of the best-seller"
    )


class AllParameters(ExploreData, FineTune, BuildIndex, Retrieve, Evaluate, UserSegments):
    """All stages' parameters."""


MODELS: dict[str, type[Parameters]] = {
    "01_explore_data": ExploreData,
    "02_fine_tune": FineTune,
    "03_build_index": BuildIndex,
    "04_retrieve": Retrieve,
    "05_evaluate": Evaluate,
    "06_user_segments": UserSegments,
}
STAGES = EXPLORE, FINE_TUNE, INDEX, RETRIEVE, EVALUATE, SEGMENTS = tuple(MODELS)


def defaults(stage: str) -> dict:
    """A stage's parameters by default."""
    return MODELS[stage]().model_dump()


def check(values: dict) -> dict:
    """Parameters in their types, with paths from the repository's root.

    values: some or all parameters of some or all stages; what is not given counts by its default where two have to
    fit. Raises a one-line `GlossError` at the first that is wrong.
    """
    try:
        checked = AllParameters(**values)
    except ValidationError as error:
        raise GlossError(_one_line(values, error)) from None
    if checked.power_min is not None and checked.power_min <= checked.cold_start_max:
        raise GlossError(
            f"parameter power_min is {checked.power_min}; it has to be above cold_start_max ({checked.cold_start_max})"
        )
    if checked.max_new_tokens > checked.max_length - 2:  # a prompt has two tokens at least
        raise GlossError(
            f"parameter max_new_tokens is {checked.max_new_tokens}; it has to be at most {checked.max_length - 2} "
            "(max_length less 2)"
        )
    return {name: getattr(checked, name) for name in values}


def _one_line(values: dict, error: ValidationError) -> str:
    first = error.errors()[0]
    name = str(first["loc"][0])
    if first["type"] == "extra_forbidden":
        like = difflib.get_close_matches(name, AllParameters.model_fields, n=1)
        cure = f"did you mean {like[0]}?" if like else f"there are {', '.join(AllParameters.model_fields)}"
        return f"unknown parameter {name!r} (value {values[name]!r}); {cure}"
    should_be = first["msg"].removeprefix("Input should be ")
    null = " or null" if type(None) in get_args(AllParameters.model_fields[name].annotation) else ""
    return f"parameter {name} is {values[name]!r}; it has to be {should_be}{null}"


def check_files(values: dict):
    """Raise `GlossError` where a file that is to be read, or a package that is to be used, is not there."""
    own_data = values.get("dataset") == "table"
    for name, needed, cure in (
        ("queries_file", values.get("queries_file") is not None, "give a file of queries, or null to generate them"),
        ("interactions_file", own_data, "dataset table reads your own file, see params/my_data.yaml"),
        ("items_file", own_data, "dataset table reads your own file, see params/my_data.yaml"),
        ("ranking_weights", "ranking_weights" in values, "give a file like params/ranking/weights.yaml"),
    ):
        path = values.get(name)
        if needed and not (path and Path(path).is_file()):
            raise GlossError(f"parameter {name} is {path!r}, and there is no such file; {cure}")
    if values.get("engine") == "ray" and importlib.util.find_spec("ray") is None:
        raise GlossError(
            "parameter engine is 'ray', but ray is not installed; "
            'pip install "gloss-utils[ray]", or set engine to local'
        )


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
    field = AllParameters.model_fields.get(name)
    is_path = field is not None and (_has(field, _from_root) or (_has(field, _model) and Path(text).is_dir()))
    return os.path.abspath(Path(text).expanduser()) if value is not None and is_path else value


def _has(field: FieldInfo, validator) -> bool:
    kinds = (field, *get_args(field.annotation))
    found = [part for kind in kinds for part in getattr(kind, "metadata", getattr(kind, "__metadata__", ()))]
    return any(isinstance(part, AfterValidator) and part.func is validator for part in found)


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


def cell(stage: str) -> str:
    """The first code cell of a stage's notebook: each parameter with its default and its meaning."""
    model, lines = MODELS[stage], []
    own = [name for name in model.__annotations__ if name != "run_dir"]  # before those that it shares with other stages
    for name in dict.fromkeys(("run_dir", *own, *model.model_fields)):
        field = model.model_fields[name]
        default = json.dumps(field.default) if isinstance(field.default, (str, list)) else repr(field.default)
        lines.append(f"{name} = {default}" + (f"  # {field.description}" if field.description else ""))
    return "\n".join(lines)


def write_cells():
    """Write the parameters into the notebooks' first code cells."""
    for stage in STAGES:
        path = NOTEBOOKS / f"{stage}.ipynb"
        notebook = nbformat.read(path, as_version=4)
        next(each for each in notebook.cells if "parameters" in each.metadata.get("tags", [])).source = cell(stage)
        with write_whole(path) as part:
            nbformat.write(notebook, part)
