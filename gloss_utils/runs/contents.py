"""The contents of what costly artefacts are made from, as far as a run folder knows them before it works.

`raw`: the raw files. `items`: the table of items. `data`, `base`, `adapter`: these artefacts. `base_model`, `encoder`:
the models. `histories`: what the users of stage 4 had before. `proposed`: what histories propose to
them. `learnable`: the sequences that may be learned from beside them. `counting`: how these are counted. Each is a
sha256, or, for a model from the hub, its name and commit: never a path.
"""

from pathlib import Path

from gloss_utils.base.errors import GlossError
from gloss_utils.base.files import digest, fingerprint
from gloss_utils.base.seals import read_seal
from gloss_utils.runs import artefacts
from gloss_utils.runs.artefacts import RECIPES
from gloss_utils.runs.parameters import EXPLORE, RETRIEVE

REVISIONS = {"base_model": "base_revision", "encoder": "encoder_revision"}
MADE_WITH = {"base_model": "adapter", "encoder": "dense"}  # the artefact that each model goes into


def contents(root: Path, values: dict, stages: dict) -> dict[str, str | None]:
    """The contents by name; None where they are not known yet. stages: the manifest."""
    found = {"raw": raw(values, stages.get(EXPLORE, {}).get("inputs", {}))}
    found |= {name: stages.get(RETRIEVE, {}).get(name) for name in ("histories", "proposed", "learnable")}
    found["counting"] = counting(values)
    for name in REVISIONS:
        if name in values:
            found[name] = model(name, values, known_revision(root, name, values, stages))
    for name in ("data", "base", "adapter"):
        seal = read_seal(artefacts.path_of(root, name)) or artefacts.noted(name, stages)
        found |= known_by(name, seal, root, values)
    return found


def known_by(name: str, seal: dict | None, root: Path, values: dict) -> dict[str, str | None]:
    """The contents that are known by the seal of an artefact."""
    content = seal and seal.get("content", seal["sha256"])
    found, items = {name: content}, artefacts.path_of(root, "data") / "items.parquet"
    if name == "data":
        found["items"] = fingerprint(items) if items.exists() else None
    if name == "base" and values.get("base_model") == "tiny":
        found["base_model"] = content
    return found


def raw(values: dict, inputs: dict[str, str]) -> str | None:
    """The content of the raw files that stage 1 read; of those that are gone, as it was. inputs: as the manifest has
    them."""
    now = dict(inputs)
    for name in inputs:
        path = input_path(name, values)
        if path and path.exists():
            now[name] = fingerprint(path)
    return content_of(now) if now else None


def content_of(inputs: dict[str, str]) -> str:
    """The content of some files, whatever they are called. inputs: the sha256 of each."""
    return digest(sorted(inputs.values()))


def input_path(name: str, values: dict) -> Path | None:
    """Where a file from outside is now. name: of a parameter, or of one and a file in its folder; None where the
    parameter is not set."""
    parameter, _, file = name.partition("/")
    return Path(values[parameter]) / file if values.get(parameter) else None


def counting(values: dict) -> str | None:
    """How co-occurrence is counted; None where no file says so, or one that is not sound: stage 4 will report it."""
    if "ranking_weights" not in values:
        return None
    from gloss_utils.rank.weights import HybridSettings  # loads ir-measures and scipy

    try:
        return digest(HybridSettings.read(values["ranking_weights"]).counting())
    except GlossError:
        return None


def model(name: str, values: dict, revision: str | None) -> str | None:
    """What a model is: the sha256 of a folder; of one from the hub its name and commit, where that is known."""
    from gloss_utils.search.encoder import DEFAULT_ENCODER, DEFAULT_ENCODER_SHA256  # loads FAISS

    value = values[name]
    if Path(value).is_dir():
        return fingerprint(value)
    if value == DEFAULT_ENCODER:
        return DEFAULT_ENCODER_SHA256
    return revision and f"{value}@{revision}"


def known_revision(root: Path, name: str, values: dict, stages: dict) -> str | None:
    """The commit that a model of the hub was resolved to before, with the same name and asked-for revision."""
    asked, recipe = REVISIONS[name], RECIPES[MADE_WITH[name]]
    if recipe.stage in stages:
        entry = stages[recipe.stage]
        same = all(entry["parameters"].get(each) == values.get(each) for each in (name, asked))
        return entry["revisions"].get(name) if same else None
    seal = read_seal(artefacts.path_of(root, MADE_WITH[name])) or {"made_from": {}}  # where the manifest is gone
    model, _, commit = str(seal["made_from"].get(name)).rpartition("@")
    return commit if model == values[name] and values.get(asked) in (None, commit) else None
