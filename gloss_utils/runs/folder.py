"""A run folder: the names of its files, and the manifest, which says of each finished stage what it was made from."""

import os
from pathlib import Path

from gloss_utils.base.errors import GlossError
from gloss_utils.base.files import digest, fingerprint, read_json
from gloss_utils.base.seals import seal_of
from gloss_utils.runs.parameters import EVALUATE, EXPLORE, FINE_TUNE, INDEX, PATHS, RETRIEVE, ROOT, SEGMENTS, STAGES

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
        self.data = self.root / "data"
        self.items = self.data / "items.parquet"
        self.interactions = self.data / "interactions.parquet"
        self.users = self.data / "users.parquet"
        self.statistics = self.data / "statistics.json"
        self.rejected_data = self.data / "rejected.jsonl"
        self.rejected_queries = self.root / "rejected.jsonl"
        self.base = self.root / "model/base"
        self.checkpoints = self.root / "model/checkpoints"
        self.adapter = self.root / "model/adapter"
        self.tracking = self.root / "model/tracking"
        self.training = self.adapter / "training.json"
        self.sasrec = self.root / "model/sasrec"
        self.dense_index = self.root / "index/dense"
        self.bm25_index = self.root / "index/bm25"
        self.queries = self.root / "queries.jsonl"
        self.recommendations = self.root / "recommendations.parquet"
        self.rankings = self.root / "rankings"
        self.qrels = self.root / "qrels.trec"
        self.per_user = self.root / "per_user.parquet"
        self.metrics = self.root / "metrics.json"
        self.figures = self.root / "figures"
        self.notebooks = self.root / "notebooks"
        self.report = self.root / "report.html"

    def ranking(self, method: str) -> Path:
        """The TREC file of a method's rankings."""
        return self.rankings / f"{method}.trec"

    def journal(self, plan: str) -> Path:
        """Where generation by this plan (a digest) notes finished batches until its stage is finished."""
        return self.root / f"queries.{plan[:12]}.journal"

    def data_key(self) -> dict[str, str]:
        """What the tables of stage 1 hold, for the seal of what is made from them."""
        return {path.stem: fingerprint(path) for path in (self.items, self.interactions, self.users, self.statistics)}

    def break_seals(self, stage: str):
        """Make the next run of a stage make its costly artefacts anew, also where nothing has changed."""
        costly = {FINE_TUNE: (self.base, self.adapter), RETRIEVE: (self.queries, self.sasrec)}
        for path in costly.get(stage, ()):
            seal_of(path).unlink(missing_ok=True)

    def stages(self) -> dict:
        """The manifest: what is known of each finished stage. Raises `GlossError` where it is damaged."""
        stages = read_json(self.manifest) if self.manifest.exists() else {}
        if not (isinstance(stages, dict) and all(map(_is_entry, stages, stages.values()))):
            raise GlossError(f"{self.manifest} is damaged; delete it and run again")
        return stages

    def outdated(self, stage: str) -> str | None:
        """The stage that a finished stage builds on and that has come out otherwise since, or None."""
        stages = self.stages()
        for other, value in stages[stage]["builds_on"].items():
            if identity(stages.get(other)) != value:
                return other
        return None

    def damaged(self, entry: dict) -> str | None:
        """The first output of a stage that is missing or changed since it was made, or None."""
        for name, value in entry["outputs"].items():
            path = self.root / name
            if not path.exists() or fingerprint(path) != value:
                return name
        return None

    def why_run(self, stage: str, values: dict) -> str | None:
        """Why `stage` has to be run; None where it was finished with these parameters and nothing changed since."""
        entry = self.stages().get(stage)
        if entry is None:
            return "it is not finished yet"
        if stage == FINE_TUNE and values["queries_file"]:
            return None  # there is nothing to do
        before = entry["parameters"]
        if other := [name for name in before | values if before.get(name, ...) != values.get(name, ...)]:
            return f"it was finished with other values of {', '.join(other)}"
        if newer := self.outdated(stage):
            return f"{newer} was run again after it"
        if changed := changed_input(entry):
            return f"{changed} is missing or not as it was read"
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
        if holds and not holds & {path.name for path in (self.manifest, self.parameters, self.run_lock)}:
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
            if damaged := self.damaged(stages[other]):
                raise GlossError(
                    f"{self.root / damaged} is missing or not as {other} left it; run notebooks/{other}.ipynb again"
                )
            # Later stages load the models that these two were given; raw data is read once, and may be gone.
            changed = changed_input(stages[other]) if other in (FINE_TUNE, INDEX) else None
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


def changed_input(entry: dict) -> str | None:
    """The first file or folder from outside that is missing or changed since a stage read it, or None."""
    for name, value in entry["inputs"].items():
        if not Path(name).exists() or fingerprint(name) != value:
            return name
    return None


def identity(entry: dict | None) -> str | None:
    """What makes a finished stage itself, wherever it and its inputs lie: parameters, what it read, what it wrote."""
    if entry is None:
        return None
    parameters = {name: value for name, value in entry["parameters"].items() if name not in PATHS}
    return digest([parameters, sorted(entry["inputs"].values()), entry["outputs"]])


def _is_entry(stage: str, entry) -> bool:
    if stage not in STAGES or not isinstance(entry, dict) or "seconds" not in entry:
        return False
    if not all(
        isinstance(entry.get(key), dict) for key in ("parameters", "inputs", "outputs", "builds_on", "versions")
    ):
        return False
    paths = (Path(name) for name in entry["outputs"])  # what a stage no longer writes is deleted by these names
    return all(not path.is_absolute() and ".." not in path.parts for path in paths)
