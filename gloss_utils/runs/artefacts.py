"""The costly artefacts of a run: what each is made from, whether it is there, and where another run has the same.

Everything else in a run folder (rankings, metrics, figures, tables, executed notebooks) is a view of them, which is
made again in seconds. An artefact is known by what it was made from, by content and never by a path: the parameters
that change it, the content of its sources, and the version of its recipe. So folders can be moved, and an artefact that
is there, whole and made from the same is never made again.
"""

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from gloss_utils.base.files import digest, fingerprint, write_json, write_whole
from gloss_utils.base.seals import as_json, read_seal, seal_of, write_sealed
from gloss_utils.runs.parameters import EVALUATE, EXPLORE, FINE_TUNE, INDEX, REMAKE, RETRIEVE


@dataclass(frozen=True)
class Recipe:
    """How a costly artefact is made.

    path: in the run folder. parameters: those that change the result. sources: what else it is made from (see
    `contents.contents`). version: raise it when the code makes another result from the same, then run
    `python -m tests.recipes`. content: the files of it that other artefacts depend on, as a pattern ("": all of it).
    """

    stage: str
    path: str
    parameters: tuple[str, ...]
    sources: tuple[str, ...]
    version: int = 1
    content: str = ""


_RAW = ("dataset", "user_column", "item_column", "time_column", "item_id_column", "item_text")
_RULES = ("k_core", "min_history", "max_history", "holdout", "holdout_share", "time_target", "max_users")
_RULES += ("new_item_fraction", "seed")
_TINY = ("tiny_layers", "tiny_width", "tiny_vocabulary", "tiny_steps", "tiny_learning_rate", "max_length")
_LORA = ("load_in_4bit", "lora_rank", "lora_alpha", "lora_dropout", "lora_modules", "max_length")
_LORA += ("tuning", "loss", "ranking_share")
_TRAINING = ("learning_rate", "lr_scheduler", "warmup_steps", "weight_decay", "optimizer", "batch_size")
_TRAINING += ("gradient_accumulation", "epochs", "patience", "bf16_on_cpu", "seed")
_DECODING = ("split", "num_beams", "max_new_tokens", "decoding", "temperature", "top_p", "generation_batch_tokens")
_DECODING += ("num_return_sequences", "guide", "length_penalty", "max_length", "load_in_4bit", "lora_alpha", "seed")
_SASREC = ("sasrec_epochs", "sasrec_width", "sasrec_loss", "sasrec_search", "sasrec_seeds", "split", "seed")

RECIPES = {
    "data": Recipe(EXPLORE, "data", _RAW + _RULES, ("raw",), version=2),
    "base": Recipe(FINE_TUNE, "model/base", (*_TINY, "bf16_on_cpu", "seed"), ("items",)),
    "adapter": Recipe(FINE_TUNE, "model/adapter", _LORA + _TRAINING, ("base_model", "data"), content="*.safetensors"),
    "dense": Recipe(INDEX, "index/dense", ("index", "rerank_from_disk"), ("encoder", "items")),
    "bm25": Recipe(INDEX, "index/bm25", (), ("items",), version=2),
    "texts": Recipe(RETRIEVE, "queries.jsonl", _DECODING, ("base_model", "adapter", "data")),
    "cooccurrence": Recipe(RETRIEVE, "cooccurrence", (), ("data", "learnable", "counting")),
    "asked": Recipe(
        RETRIEVE, "asked", (*_DECODING, "ask", "ranking_share"), ("base_model", "adapter", "data", "proposed")
    ),
    "sasrec": Recipe(EVALUATE, "model/sasrec", _SASREC, ("histories", "data"), version=3),
}
assert tuple(RECIPES) == REMAKE  # the names that the parameter `remake` takes
# Parameters that came later, and the value that changes nothing. With it they stand in no seal, so that what was made
# before them stays good.
LATER = {
    "num_return_sequences": None,
    "guide": 0.0,
    "length_penalty": 1.0,
    "tuning": "lora",
    "loss": "text",
    "ranking_share": 0.0,
}


KEPT, TO_MAKE, MISSING, DAMAGED = "kept", "to make", "missing", "damaged"


@dataclass(frozen=True)
class State:
    """What is known of an artefact. kind: kept, to make, missing or damaged.

    seconds: what making it took the last time (None: unknown). size: of what is there, in bytes (None: nothing is).
    seal: of one that is kept. wanted: what it is to be made from (None: not known yet).
    """

    kind: str
    why: str = ""
    seconds: float | None = None
    size: int | None = None
    seal: dict | None = None
    wanted: dict | None = None

    @property
    def is_broken(self) -> bool:
        """Whether it was made from the same before, and is no longer as it was."""
        return self.kind in (MISSING, DAMAGED)

    def cost(self) -> str:
        """What making it took, in words."""
        return "what it cost is not known" if self.seconds is None else f"it took {duration(self.seconds)} to make"

    def broken(self, path: Path, name: str) -> str:
        """The error of an artefact that is not as it was."""
        return (
            f"{path} is {self.kind}: {self.why}, and {self.cost()}. Put it back as it was, or let it be made again: "
            f"-p remake {name} (in its notebook, remake = [{name!r}])"
        )


def duration(seconds: float) -> str:
    """Seconds in words, as "3 h 12 min"."""
    hours, minutes = divmod(round(seconds / 60), 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min" if seconds >= 120 else f"{seconds:.0f} s"


def of_run(values: dict) -> list[str]:
    """The names of the artefacts that a run with these parameters has."""
    replayed = values.get("queries_file") is not None
    left_out = {
        "base": replayed or values.get("base_model") != "tiny",
        "adapter": replayed,
        "texts": replayed,
        "asked": replayed or not values.get("ask"),
        "sasrec": not values.get("sasrec_epochs") or values.get("split") == "next",
    }
    return [name for name in RECIPES if not left_out.get(name)]


def made_from(name: str, values: dict, contents: dict) -> dict | None:
    """What an artefact is made from, with these parameters and contents of its sources; None where one is not known."""
    recipe = RECIPES[name]
    if any(contents.get(source) is None for source in recipe.sources):
        return None
    named = {parameter: values[parameter] for parameter in recipe.parameters}
    parameters = {name: value for name, value in named.items() if name not in LATER or value != LATER[name]}
    sources = {source: contents[source] for source in recipe.sources}
    return as_json({"recipe": recipe.version} | parameters | sources)


def path_of(root: Path, name: str) -> Path:
    """Where a run folder has an artefact."""
    return root / RECIPES[name].path


def kept_path(root: Path, name: str, made_from: dict) -> Path:
    """Where a run folder keeps an artefact in whose place another came."""
    return root / "kept" / f"{name}-{digest(made_from)[:12]}"


def noted(name: str, stages: dict) -> dict | None:
    """What the manifest noted of an artefact: its seal, as it was; None where it noted nothing."""
    return stages.get(RECIPES[name].stage, {}).get("artefacts", {}).get(name)


def state(root: Path, name: str, wanted: dict | None, in_manifest: dict | None = None) -> State:
    """Whether a run folder has an artefact that was made from `wanted`. in_manifest: what `noted` says of it."""
    path = path_of(root, name)
    seals = [seal for seal in (read_seal(path), in_manifest) if seal]
    if not seals:
        return State(TO_MAKE, "it is not made yet")
    bytes_now = fingerprint(path) if path.exists() else None
    about = {"seconds": seals[0].get("seconds"), "size": size(path), "wanted": wanted}
    for seal in seals:  # one of the two may be damaged
        if seal["made_from"] == wanted and seal["sha256"] == bytes_now:
            return State(KEPT, seal=seal, **about)
    if wanted is None:
        return State(TO_MAKE, "what it is made from is not known yet", **about)
    if other := differing(seals[0]["made_from"], wanted):
        return State(TO_MAKE, f"it was made from other values of {', '.join(other)}", **about)
    if bytes_now is None:
        return State(MISSING, "it was made, and is gone", **about)
    return State(DAMAGED, "its bytes are not those that were written", **about)


def differing(one: dict, other: dict) -> list[str]:
    """The names of the values that differ."""
    return [name for name in one | other if one.get(name, ...) != other.get(name, ...)]


def size(path: Path) -> int | None:
    """The bytes of a file, or of all files in a folder; None where there is neither."""
    if not path.exists():
        return None
    return sum(file.stat().st_size for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file())


@contextmanager
def writing(root: Path, name: str, wanted: dict, begun: float) -> Iterator[Path]:
    """Yield a path to write an artefact to; it is sealed and takes its place if the block succeeds.

    What was there, made from something else, is kept in `kept/`. begun: the time at which making it began.
    """
    about = {}
    with write_sealed(path_of(root, name), wanted, RECIPES[name].content, about) as part:
        yield part
        about["seconds"] = round(time.time() - begun, 1)
        set_aside(root, name, wanted)


def elsewhere(root: Path, name: str, wanted: dict) -> Path | None:
    """Where an artefact that was made from `wanted` is whole: in `kept/`, or in a run folder beside this one that
    belongs to the same person; None: nowhere."""
    kept = kept_path(root, name, wanted)
    places = RECIPES[name].path, kept.relative_to(root).as_posix()
    for found in (kept, *(found for place in places for found in sorted(root.parent.glob(f"*/{place}")))):
        about = read_seal(found) or {}
        if found == path_of(root, name) or about.get("made_from") != wanted or not found.exists():
            continue
        if found.stat().st_uid == root.stat().st_uid and fingerprint(found) == about["sha256"]:
            return found
    return None


def borrow(root: Path, name: str, wanted: dict) -> Path | None:
    """Take an artefact from where it is, if it is `elsewhere`; returns that place.

    Files are linked where the file system can do that: they take no room twice, and each folder can be deleted.
    """
    found = elsewhere(root, name, wanted)
    if found is None:
        return None
    more = {"seconds": read_seal(found).get("seconds")}
    with write_sealed(path_of(root, name), wanted, RECIPES[name].content, more) as part:
        link(found, part)
        set_aside(root, name, wanted)
    return found


def set_aside(root: Path, name: str, wanted: dict | None = None):
    """Keep an artefact that is whole in `kept/`, too, unless it was made from `wanted`: its place is taken next."""
    path, found = path_of(root, name), read_seal(path_of(root, name))
    if found is None or found["made_from"] == wanted or not path.exists() or fingerprint(path) != found["sha256"]:
        return
    kept = kept_path(root, name, found["made_from"])
    with write_whole(kept) as part:
        link(path, part)
    write_json(seal_of(kept), found)


def link(found: Path, to: Path):
    """Link a file, or all files of a folder, to another place; copy where the file system has no links."""
    if found.is_dir():
        shutil.copytree(found, to, copy_function=_link_file)
    else:
        _link_file(found, to)


def _link_file(found: str | Path, to: str | Path):
    try:
        os.link(found, to)
    except OSError:
        shutil.copy2(found, to)
