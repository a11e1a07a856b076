"""Guard of the recipes' versions: what each costly artefact of the small demo run held when it was last recorded.

    python -m tests.recipes

records them in tests/recipes.json. That is needed after a recipe's version was raised, and after the demo or the small
run's parameters were changed. It refuses where an artefact has changed and its recipe's version has not.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors.numpy import load_file

from gloss_utils.base.files import digest, read_json, write_json
from gloss_utils.data.dataset import Dataset
from gloss_utils.rank import cooccurrence
from gloss_utils.runs import notebooks
from gloss_utils.runs.artefacts import LATER, RECIPES, path_of
from gloss_utils.runs.folder import RunFolder
from gloss_utils.search import BM25Index, DenseIndex
from tests.conftest import write_parameters, write_small_shop

RECORDED = Path(__file__).with_name("recipes.json")
CLOSE = 2e-3  # how far numbers may be apart on another processor; training for ten steps moves them by far more
SAME_TEXTS = 0.9  # the share of texts that have to be the same there


def directions(arrays: dict[str, np.ndarray]) -> list[float]:
    """One number for each array, which tells it from others of the same shape: its cosine with a random direction."""
    found = []
    for number, name in enumerate(sorted(arrays)):
        flat = arrays[name].astype(np.float64).ravel()
        random = np.random.default_rng(number).standard_normal(len(flat))
        found.append(float(flat @ random / max(np.linalg.norm(flat), 1e-12)))
    return found


def probe(folder: RunFolder, name: str) -> list:
    """What an artefact holds, in a few texts (compared as they are) and numbers (compared nearly)."""
    path = path_of(folder.root, name)
    if name == "data":
        data = Dataset.load(path)
        return [digest(table.to_csv(index=False)) for table in (data.interactions, data.items, data.users)]
    if name == "dense":
        return directions({"vectors": DenseIndex.load(path).vectors()})
    if name == "bm25":
        [postings] = BM25Index.load(path).parts
        return directions({each: getattr(postings, each) for each in ("starts", "places", "codes", "often", "length")})
    if name == "cooccurrence":
        matrix = cooccurrence.load(path, len(Dataset.load(folder.data).items))
        return directions({each: getattr(matrix, each) for each in cooccurrence.ARRAYS})
    if name == "texts":
        rows = pd.read_json(path, lines=True)
        return [*rows["generated_sequences"].explode(), *rows["logprobs"].explode().astype(float)]
    return directions(load_file(next(path.glob("*.safetensors"))))


def current(folder: RunFolder) -> dict[str, dict]:
    """Version, parameters and probe of each artefact of the small run."""
    stages, found = folder.stages(), {}
    for name, recipe in RECIPES.items():
        if name not in stages[recipe.stage]["artefacts"]:  # `asked`, which tests/test_asked.py holds to plain passes
            continue
        made_from = stages[recipe.stage]["artefacts"][name]["made_from"]
        keys = (*recipe.parameters, *(["raw"] if name == "data" else []))
        given = {key: made_from[key] for key in keys if key not in LATER or key in made_from}
        found[name] = {"version": recipe.version, "given": digest(given), "probe": probe(folder, name)}
    return found


def first_change(recorded: dict[str, dict], now: dict[str, dict]) -> tuple[str, str] | None:
    """The first artefact that is not as it was recorded, and why: "raise" its version, or "record" it; None: all are.

    What comes later is made from it, and changes with it.
    """
    for name, is_now in now.items():
        before = recorded.get(name)
        if before is None or any(before[key] != is_now[key] for key in ("version", "given")):
            return name, "record"
        if not same(before["probe"], is_now["probe"]):
            return name, "raise"
    return None


def same(one: list, other: list) -> bool:
    """Whether two probes hold the same."""
    if len(one) != len(other):
        return False
    texts = [a == b for a, b in zip(one, other, strict=True) if isinstance(a, str) or isinstance(b, str)]
    numbers = [(a, b) for a, b in zip(one, other, strict=True) if not (isinstance(a, str) or isinstance(b, str))]
    enough = SAME_TEXTS if numbers else 1  # texts alone are hashes
    close = [abs(a - b) <= CLOSE * max(1, abs(a)) for a, b in numbers]
    return (not texts or np.mean(texts) >= enough) and (not close or np.mean(close) >= (SAME_TEXTS if texts else 1))


def main() -> int:
    """Record the artefacts of a new small run; returns the exit status."""
    with tempfile.TemporaryDirectory() as scratch:
        values = {"run_dir": f"{scratch}/run", "data_dir": f"{scratch}/data"}
        write_small_shop(Path(scratch) / "data")
        notebooks.run([str(write_parameters(Path(scratch) / "small.yaml", **values))], [])
        now = current(RunFolder(Path(scratch) / "run"))
    changed = first_change(read_json(RECORDED), now) if RECORDED.exists() else None
    if changed and changed[1] == "raise":
        print(f"{changed[0]} has changed: raise the version of its recipe in gloss_utils/runs/artefacts.py first")
        return 1
    write_json(RECORDED, now)
    print(f"recorded in {RECORDED}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
