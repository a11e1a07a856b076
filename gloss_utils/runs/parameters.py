"""Every parameter of a run: one model a stage, with each parameter's type, default, limits and meaning.

This is the only place where a default stands. `python -m gloss_utils cells` writes the first cell of each notebook from
here, and a test fails where a cell differs. Files of parameters and `-p NAME VALUE` are checked by the same models.
"""

import difflib
import importlib.util
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, Strict, ValidationError
from pydantic_core import PydanticCustomError

from gloss_utils.base.errors import GlossError
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


def _names(value):
    return [value] if isinstance(value, str) else value


Text = Annotated[str, AfterValidator(_text)]
FilePath = Annotated[Text, AfterValidator(_from_root)]  # relative ones start at the repository's root
ModelName = Annotated[Text, AfterValidator(_model)]  # a folder, or a name on the Hugging Face hub
Dataset = Annotated[Text, AfterValidator(_dataset)]
User = Annotated[Text, BeforeValidator(_user)]
Whole = Annotated[int, Strict()]
Number = Annotated[float, BeforeValidator(_number), Field(allow_inf_nan=False)]  # YAML reads 1e-4 as a text: taken, too
Flag = Annotated[bool, Strict()]
# The costly artefacts of a run.
REMAKE = ("data", "base", "adapter", "dense", "bm25", "texts", "cooccurrence", "asked", "sasrec")
Artefacts = Annotated[list[Literal[REMAKE]], BeforeValidator(_names)]
LORA_MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def default(value, meaning: str | None = None, **limits):
    """A parameter: its default, its meaning (the comment in the notebook's cell), its limits (as ge, le)."""
    return Field(value, description=meaning, **limits)


class Parameters(BaseModel):
    """What every stage has to know."""

    model_config = ConfigDict(extra="forbid", validate_default=True)

    run_dir: FilePath = default("runs/demo", "where this run keeps its data, model, index and results")
    remake: Artefacts = default([], 'costly artefacts to make anew though they are there, as ["adapter"]')


class Files(Parameters):
    """Of the stages that read files from outside."""

    max_rejected: Number = default(0.01, "the run stops where a larger share of the records cannot be used", ge=0, le=1)


class Queries(Parameters):
    """Of the stages that need no model where the texts come from a file."""

    queries_file: FilePath | None = default(None, "texts made elsewhere; None: the fine-tuned model makes them")


class Workers(Parameters):
    """Of the stages whose work can be given to several processes."""

    engine: Literal["local", "ray"] = default("local", "local, or ray: the cluster of RAY_ADDRESS, else here")
    workers: Whole = default(1, "under ray: processes side by side, one per GPU", ge=1)


class ExploreData(Workers, Files):
    """Stage 1."""

    dataset: Dataset = default("demo", "demo, beauty, toys, sports, amazon2018-…, amazon2023-…, movielens-…, table")
    data_dir: FilePath = default("data", "where the raw files are, or are downloaded to")
    data_address: Text | None = default(None, "address to download them from; None: the publisher's")
    interactions_file: FilePath | None = default(None, "dataset table: .csv, .jsonl or .parquet, who took what")
    items_file: FilePath | None = default(None, "dataset table: the items and their texts")
    user_column: Text = default("user", "the column of interactions_file that holds the user")
    item_column: Text = default("item", "its column that holds the item")
    time_column: Text = default("time", "its column that holds the time: numbers, or dates as 2024-05-31 12:00")
    item_id_column: Text = default("item", "the column of items_file that holds the id")
    item_text: Text | None = default(None, 'an item\'s text, as "{title} by {brand}"; None: the title')
    k_core: Whole = default(0, "users and items with fewer interactions are left out; 0: all are kept", ge=0)
    min_history: Whole = default(3, "users with fewer interactions are left out", ge=3)
    max_history: Whole | None = default(None, "only so many latest interactions per user; None: all", ge=3)
    holdout: Literal["leave_one_out", "time"] = default("leave_one_out", "each user's last item; time: after a date")
    holdout_share: Number = default(
        0.1, "time: share of interactions in the test period; validation has as many", ge=0.001, le=0.4
    )
    time_target: Literal["first", "last", "all"] = default("first", "time: which of a user's items in the period")
    max_users: Whole | None = default(None, "train and evaluate on so many users, drawn; None: on all", ge=1)
    new_item_fraction: Number = default(0.0, "share of items kept out of all training", ge=0, le=0.5)
    ranking_share: Number = default(
        0.0, "share of training users whose last item is kept from the model, to teach the ranking", ge=0, le=0.5
    )
    seed: Whole = default(3407, "of every random draw", ge=0, lt=2**32)


class FineTune(Queries):
    """Stage 2."""

    base_model: ModelName = default("tiny", 'a folder, a Hugging Face name, or "tiny"')
    base_revision: Text | None = default(None, "of a Hugging Face model: a commit, tag or branch; None: the latest")
    tiny_layers: Whole = default(4, "tiny_*: size and training of the tiny base model", ge=1)
    tiny_width: Whole = default(192, ge=64, multiple_of=64)
    tiny_vocabulary: Whole = default(2000, ge=300)
    tiny_steps: Whole = default(300, ge=1)
    tiny_learning_rate: Number = default(0.002, ge=0)
    tuning: Literal["lora", "full"] = default("lora", "lora (adapters beside the weights) or full (all weights)")
    loss: Literal["text", "catalogue"] = default("text", "text (the paper's), or catalogue: where titles differ")
    load_in_4bit: Flag = default(True, "QLoRA: the base model in 4 bits")
    lora_rank: Whole = default(16, ge=1)
    lora_alpha: Whole = default(16, ge=1)
    lora_dropout: Number = default(0.0, ge=0, le=1)
    lora_modules: list[Text] = default(LORA_MODULES, min_length=1)
    max_length: Whole = default(1024, "tokens; longer texts lose their oldest items", ge=16)
    learning_rate: Number = default(0.002, ge=0)
    lr_scheduler: Literal["linear", "cosine", "constant_with_warmup"] = "linear"
    warmup_steps: Whole = default(20, ge=0)
    weight_decay: Number = default(0.01, ge=0)
    optimizer: Literal["adamw_8bit", "adamw_torch"] = default("adamw_torch", "adamw_torch or adamw_8bit")
    batch_size: Whole = default(4, "one step takes batch_size × gradient_accumulation texts", ge=1)
    gradient_accumulation: Whole = default(4, ge=1)
    gradient_checkpointing: Flag = default(False, "less memory; slower without unsloth")
    epochs: Whole = default(5, "at most", ge=1)
    patience: Whole = default(3, "epochs without a lower validation loss before training stops", ge=1)
    bf16_on_cpu: Flag = default(False, "multiply in bfloat16 where the processor can; GPUs always do")
    recall_users: Whole = default(0, "validation users it writes for after each epoch, to see Recall@5; 0: none", ge=0)
    report_to: Literal["none", "tensorboard", "wandb"] = default("none", "none, tensorboard or wandb")


class BuildIndex(Workers):
    """Stage 3."""

    encoder: ModelName = default("all-MiniLM-L6-v2", "a sentence-transformers model: a folder or a Hugging Face name")
    encoder_revision: Text | None = default(None, "as base_revision")
    index: Literal["auto", "flat", "hnsw", "ivfpq"] = default("auto", "flat (exact), hnsw, ivfpq; auto: by size")
    rerank_from_disk: Flag = default(True, "hnsw, ivfpq: exact similarities of what they find")


class Retrieve(Workers, Queries, Files):
    """Stage 4."""

    split: Literal["test", "validation", "next"] = default("test", "test, validation, or next: what to offer now")
    num_beams: Whole = default(5, "beams of the search; sample: texts drawn; queries_file: texts read", ge=1)
    num_return_sequences: Whole | None = default(None, "texts kept per user, the best or first; None: all", ge=1)
    max_new_tokens: Whole = default(50, "per text", ge=1)
    decoding: Literal["free", "catalogue", "sample"] = default(
        "free", "free (any text, as in the paper), catalogue (its titles only) or sample (drawn at random)"
    )
    guide: Number = default(0.0, "catalogue: how much histories steer the beams, 0 (not) to 1", ge=0, le=1)
    length_penalty: Number = default(1.0, "texts' order: 1: by log-probability per token, 0: by its sum", ge=0, le=2)
    temperature: Number = default(1.0, "sample: of the draw", ge=0.01)
    top_p: Number = default(1.0, "sample: from the likeliest tokens with this total probability", ge=0.01, le=1)
    generation_batch_tokens: Whole = default(16384, "users at a time × tokens of each; fewer need less memory", ge=1)
    retriever: Literal["dense", "bm25"] = default("dense", "dense or bm25")
    ranking: Literal["paper", "fused", "hybrid", "learned"] = default(
        "learned", "learned (by training users), hybrid (fixed weights), fused (texts alone) or paper (its rule)"
    )
    ask: Whole = default(
        0, "learned: items per user, proposed by histories, whose probability the model is asked for; 0: none", ge=0
    )
    new_item_favour: Number = default(
        0.5, "learned: how much new items are favoured; 0: as trees say, -100: never offered", ge=-100, le=100
    )
    ranking_weights: FilePath = default("params/ranking/weights.yaml", "hybrid: how much each kind of evidence counts")
    top_k: Whole | None = default(None, "items found per text; None: 1 for paper, else 20", ge=1)
    exclude_seen: Flag | None = default(None, "leave out what the user has; None: no for paper, else yes")
    ranking_depth: Whole = default(10, "items in a ranking, at most", ge=1)
    show_user: User | None = default(None, "whose story is shown; None: one is chosen")


class Evaluate(Parameters):
    """Stage 5."""

    cold_start_max: Whole = default(5, "users with at most so many interactions are cold-start users", ge=3)
    power_min: Whole | None = default(None, "users with at least so many are power users; None: the top tenth", ge=4)
    sasrec_epochs: Whole = default(20, "training of the baseline SASRec, at most; 0: without it", ge=0)
    sasrec_width: Whole = default(64, ge=2, multiple_of=2)
    sasrec_loss: Literal["cross-entropy", "sampled softmax"] = default(
        "cross-entropy", "cross-entropy (over all items) or sampled softmax"
    )
    sasrec_search: Whole = default(0, "trials of its hyperparameters, on validation users; 0: none", ge=0)
    sasrec_seeds: Whole = default(1, "trained with so many seeds, whose spread is shown", ge=1)
    shuffle_test: Flag = default(False, "rank again from shuffled histories: how much does each method lose?")


class UserSegments(Parameters):
    """Stage 6."""

    added_title: Text | None = default(None, "an item to add after training; None: a new edition of the best-seller")


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
PATHS = ("run_dir", "data_dir", "interactions_file", "items_file", "queries_file", "ranking_weights")
STAGES = EXPLORE, FINE_TUNE, INDEX, RETRIEVE, EVALUATE, SEGMENTS = tuple(MODELS)
PAPER = "07_paper_figures"  # which reads finished runs, and is none of their stages


def defaults(stage: str) -> dict:
    """A stage's parameters by default."""
    return MODELS[stage]().model_dump()


def settings_of(kind: type, parameters: dict, **values):
    """A dataclass of settings: of the fields that are named as a parameter its value, and `values`."""
    names = {field.name for field in fields(kind)} & set(parameters)
    return kind(**{name: parameters[name] for name in names} | values)


def that_matter(values: dict) -> dict:
    """Parameters without those that say where something is or what to make anew: by these, runs are compared."""
    kept = {name: value for name, value in values.items() if name not in (*PATHS, "remake")}
    folders = {name for name in ("base_model", "encoder") if Path(str(kept.get(name))).is_absolute()}
    return kept | dict.fromkeys(folders, "a folder")


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
    if checked.tuning == "full" and checked.load_in_4bit:
        raise GlossError("parameter tuning is 'full', which trains no 4-bit weights; set load_in_4bit to false")
    if checked.ask and (checked.ranking != "learned" or checked.queries_file is not None):
        raise GlossError(
            f"parameter ask is {checked.ask}, which is for ranking: learned and a model of the run's own; set it to 0"
        )
    if checked.ask and values.get("ranking_share") == 0 and checked.split != "validation":
        raise GlossError(
            f"parameter ask is {checked.ask}, but no user is left to learn from how far to trust the model; set "
            "ranking_share (as 0.2), or split to validation"
        )
    if checked.ask and checked.shuffle_test:
        raise GlossError(
            f"parameter shuffle_test is true with ask {checked.ask}: the model has answered after histories as they "
            "are, and not after shuffled ones; set one of the two to its default"
        )
    if checked.loss == "catalogue" and values.get("decoding", "catalogue") != "catalogue":
        raise GlossError(
            f"parameter decoding is {checked.decoding!r}, but loss is 'catalogue', by which a model learns nothing but "
            "to choose among the catalogue's titles; set decoding to catalogue"
        )
    if (checked.num_return_sequences or 0) > checked.num_beams:
        raise GlossError(
            f"parameter num_return_sequences is {checked.num_return_sequences}; it has to be at most num_beams "
            f"({checked.num_beams}), or null"
        )
    if checked.guide and checked.decoding != "catalogue":
        raise GlossError(f"parameter guide is {checked.guide}, which is for decoding: catalogue; set it to 0")
    if checked.max_new_tokens > checked.max_length - 2:  # a prompt has two tokens at least
        raise GlossError(
            f"parameter max_new_tokens is {checked.max_new_tokens}; it has to be at most {checked.max_length - 2} "
            "(max_length less 2)"
        )
    return {name: getattr(checked, name) for name in values}


def texts_per_user(values) -> int:
    """How many texts are kept for each user. values: those of stage 4, or a run."""
    return values["num_return_sequences"] or values["num_beams"]


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
