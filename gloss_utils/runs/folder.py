"""A run folder: the names of its files, and the manifest, which says of each finished stage what it was made from."""

import json
import os
from pathlib import Path

from gloss_utils.base.errors import GlossError
from gloss_utils.base.files import digest, fingerprint, read_json
from gloss_utils.runs import artefacts
from gloss_utils.runs.artefacts import KEPT, RECIPES, TO_MAKE, State, differing, path_of
from gloss_utils.runs.contents import contents, input_path, known_by
from gloss_utils.runs.parameters import (
    EVALUATE,
    EXPLORE,
    FINE_TUNE,
    INDEX,
    MODELS,
    NOTEBOOKS,
    RETRIEVE,
    ROOT,
    SEGMENTS,
    STAGES,
    defaults,
    that_matter,
)

DICTIONARIES = ("parameters", "inputs", "artefacts", "outputs", "builds_on", "revisions", "versions")
RAW = ("data_dir", "interactions_file", "items_file")  # the parameters of raw files

# What a stage reads from earlier ones. Stage 04 needs the fine-tuned model only where no queries file is given.
NEEDS = {
    EXPLORE: (),
    FINE_TUNE: (EXPLORE,),
    INDEX: (EXPLORE,),
    RETRIEVE: (EXPLORE, FINE_TUNE, INDEX),
    EVALUATE: (EXPLORE, INDEX, RETRIEVE),
    SEGMENTS: (EXPLORE, INDEX, RETRIEVE, EVALUATE),
}


def needs(stage: str, values: dict) -> tuple[str, ...]:
    """The stages that `stage` with these parameters builds on."""
    replayed = stage == RETRIEVE and values.get("queries_file")
    return tuple(other for other in NEEDS[stage] if not (replayed and other == FINE_TUNE))


class RunFolder:
    """The one place that knows where a run keeps what."""

    def __init__(self, root: str | Path):
        self.root = Path(root)
        self.run_lock = self.root / ".run.lock"
        self.stage_lock = self.root / ".stage.lock"
        self.parameters = self.root / "params.yaml"
        self.manifest = self.root / "manifest.json"
        self.data = path_of(self.root, "data")
        self.items = self.data / "items.parquet"
        self.users = self.data / "users.parquet"
        self.statistics = self.data / "statistics.json"
        self.rejected_data = self.data / "rejected.jsonl"
        self.rejected_queries = self.root / "rejected.jsonl"
        self.refused = self.root / "refused.jsonl"  # records that stopped a stage, which leaves no result
        self.base = path_of(self.root, "base")
        self.adapter = path_of(self.root, "adapter")
        self.tracking = self.root / "model/tracking"
        self.training = self.adapter / "training.json"
        self.asked = path_of(self.root, "asked")
        self.sasrec = path_of(self.root, "sasrec")
        self.dense_index = path_of(self.root, "dense")
        self.bm25_index = path_of(self.root, "bm25")
        self.queries = path_of(self.root, "texts")
        self.recommendations = self.root / "recommendations.parquet"
        self.rankings = self.root / "rankings"
        self.asked_examples = self.root / "asked_examples.parquet"  # which say what asking the model is worth
        self.trees = self.root / "trees.txt"  # those of learned, in lightgbm's form
        self.qrels = self.root / "qrels.trec"
        self.per_user = self.root / "per_user.parquet"
        self.metrics = self.root / "metrics.json"
        self.figures = self.root / "figures"
        self.notebooks = self.root / "notebooks"
        self.report = self.root / "report.html"
        self.lab = self.root / "lab"  # notebooks to step through by hand
        self.unfinished = self.root / "unfinished"  # checkpoints and journals
        self.kept = self.root / "kept"  # artefacts in whose place another came
        self.hashes = self.root / ".hashes.json"

    def ranking(self, method: str, seen: str | None = None) -> Path:
        """The TREC file of a method's rankings: as stage 4 offers them, or, by stage 5, with seen items "left out" or
        "kept in"."""
        return self.rankings / (f"{method}-seen-{seen.replace(' ', '-')}.trec" if seen else f"{method}.trec")

    def stages(self) -> dict:
        """The manifest: what is known of each finished stage. Raises `GlossError` where it is damaged."""
        stages = read_json(self.manifest) if self.manifest.exists() else {}
        if not (isinstance(stages, dict) and all(map(_is_entry, stages, stages.values()))):
            raise GlossError(
                f"{self.manifest} is damaged, or of an earlier version; delete it and run again: what is costly stays"
            )
        return stages

    def outdated(self, stage: str) -> str | None:
        """The stage that a finished stage builds on and that has come out otherwise since, or None."""
        stages = self.stages()
        for other, value in stages[stage]["builds_on"].items():
            if identity(stages.get(other)) != value:
                return other
        return None

    def damaged(self, entry: dict) -> str | None:
        """The first view of a stage (table, ranking, figure) that is missing or changed since it was made, or None."""
        for name, value in entry["outputs"].items():
            path = self.root / name
            if not path.exists() or fingerprint(path) != value:
                return name
        return None

    def states(self, values: dict, stage: str | None = None) -> dict[str, State]:
        """What is known of each costly artefact of a run with these parameters, or of those of one stage."""
        known, found = contents(self.root, values, self.stages()), {}
        for name in artefacts.of_run(values):
            if not values.keys() >= set(RECIPES[name].parameters):  # of a later stage, not asked for
                continue
            wanted = artefacts.made_from(name, values, known)
            found[name] = artefacts.state(self.root, name, wanted, self.record(name))
            if found[name].kind == TO_MAKE:  # what is made from it is not known, either
                known |= dict.fromkeys(known_by(name, None, self.root, values))
        return {name: state for name, state in found.items() if stage in (None, RECIPES[name].stage)}

    def record(self, name: str) -> dict | None:
        """What the manifest noted of a costly artefact (see `artefacts.noted`)."""
        return artefacts.noted(name, self.stages())

    def why_run(self, stage: str, values: dict) -> str | None:
        """Why `stage` has to be run; None where it was finished with these parameters and nothing changed since.

        values: the parameters of this stage and of those before it.
        """
        entry = self.stages().get(stage)
        if entry is None:
            return "it is not finished yet"
        if stage == FINE_TUNE and values["queries_file"]:
            return None  # there is nothing to do
        own = {name: values[name] for name in MODELS[stage].model_fields if name in values and name != "run_dir"}
        if other := differing(that_matter(entry["parameters"]), that_matter(own)):
            return f"it was finished with other values of {', '.join(other)}"
        if entry["code"] != code_of(stage):
            return "its code has changed since"
        if newer := self.outdated(stage):
            return f"{newer} was run again after it"
        if changed := changed_input(entry, values):
            return f"{changed} is missing or not as it was read"
        for name, state in self.states(values, stage).items():
            if state.kind != KEPT:
                return f"{RECIPES[name].path}: {state.why}"
        if damaged := self.damaged(entry):
            return f"{self.root / damaged} is missing or not as it was left"
        return None

    def check_is_run(self):
        """Raise `GlossError` where the folder holds other things than a run, whose stages would replace them."""
        root = self.root.resolve()
        if ROOT.resolve().is_relative_to(root):
            raise GlossError(f"run_dir {self.root} holds this repository; choose a folder for the run alone")
        try:
            holds = set(os.listdir(root)) if root.is_dir() else set()
        except OSError as error:
            raise GlossError(f"run_dir {self.root} cannot be read ({error.strerror}); choose another") from error
        if holds and not holds & {path.name for path in (self.manifest, self.parameters, self.run_lock, self.lab)}:
            raise GlossError(
                f"run_dir {self.root} is not empty and not the folder of a run; choose a new or an empty folder"
            )

    def check_dataset(self, values: dict):
        """Raise `GlossError` where the folder was made from another dataset than the one asked for, if one is."""
        made_from = self.stages().get(EXPLORE, {}).get("parameters", {}).get("dataset")
        asked = values.get("dataset", made_from)
        if made_from is not None and made_from != asked:
            raise GlossError(
                f"{self.root} was made from dataset {made_from!r}, not {asked!r}; "
                "choose another run_dir, or delete that folder"
            )

    def earlier(self, stage: str, values: dict) -> dict:
        """The parameters of the stages that this one builds on. Raises `GlossError` where one is not sound."""
        stages, earlier = self.stages(), {}
        for other in needs(stage, values):
            if other not in stages:
                raise GlossError(f"{self.root} holds no finished {other}; run notebooks/{other}.ipynb first")
            if damaged := self.damaged({"outputs": results_of(stages[other])}):
                raise GlossError(
                    f"{self.root / damaged} is missing or not as {other} left it; run notebooks/{other}.ipynb again"
                )
            if set(stages[other]["parameters"]) != set(defaults(other)) - {"run_dir", "remake"}:
                raise GlossError(f"another version finished {other} in {self.root}; run notebooks/{other}.ipynb again")
            # Later stages load the models that these two were given; raw data is read once, and may be gone.
            changed = changed_input(stages[other], stages[other]["parameters"]) if other in (FINE_TUNE, INDEX) else None
            if changed:
                raise GlossError(f"{changed} is missing or not as {other} read it; run notebooks/{other}.ipynb again")
            if newer := self.outdated(other):
                raise GlossError(f"{newer} was run again after {other}; run notebooks/{other}.ipynb again, too")
            if other == FINE_TUNE and stages[other]["parameters"]["queries_file"]:
                raise GlossError(
                    f"{other} trained nothing, because queries_file was given; "
                    f"run notebooks/{other}.ipynb without it first"
                )
            earlier |= stages[other]["parameters"]
        return earlier


def changed_input(entry: dict, values: dict) -> Path | None:
    """The first file or folder from outside that is missing or changed since a stage read it, or None. Raw files may be
    gone once they are read."""
    for name, value in entry["inputs"].items():
        path = input_path(name, values)
        if path is None or not path.exists():
            if name.startswith(RAW):
                continue
            return path or Path(name)
        if fingerprint(path) != value:
            return path
    return None


def results_of(entry: dict) -> dict[str, str]:
    """Those outputs of a stage that later stages may read: all but its figures."""
    return {name: value for name, value in entry["outputs"].items() if not name.startswith("figures/")}


def identity(entry: dict | None) -> str | None:
    """What makes a finished stage itself, wherever it and its inputs lie: parameters, what it read, what it made."""
    if entry is None:
        return None
    made = {name: seal.get("content", seal["sha256"]) for name, seal in entry["artefacts"].items()}
    return digest([that_matter(entry["parameters"]), sorted(entry["inputs"].values()), made, results_of(entry)])


def code_of(stage: str) -> str:
    """The sha256 of the code that makes a stage's views: doors, all rooms but this one, and the notebook's cells."""
    files = sorted(file for file in (ROOT / "gloss_utils").rglob("*.py") if file.parent.name != "runs")
    package = [[file.relative_to(ROOT).as_posix(), file.read_text(encoding="utf-8")] for file in files]
    cells = json.loads((NOTEBOOKS / f"{stage}.ipynb").read_text(encoding="utf-8"))["cells"]
    return digest([package, [cell["source"] for cell in cells]])


def _is_entry(stage: str, entry) -> bool:
    if stage not in STAGES or not isinstance(entry, dict) or not {"seconds", "code"} <= set(entry):
        return False
    if not all(isinstance(entry.get(key), dict) for key in DICTIONARIES):
        return False
    if not all(isinstance(seal, dict) and {"made_from", "sha256"} <= set(seal) for seal in entry["artefacts"].values()):
        return False
    paths = (Path(name) for name in entry["outputs"])  # what a stage no longer writes is deleted by these names
    return all(not path.is_absolute() and ".." not in path.parts for path in paths)
