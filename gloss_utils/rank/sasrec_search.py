"""The search for SASRec's settings: so many trials on validation users, and the training with several seeds.

A trial trains with settings drawn from `GRID` and ranks for held-out users, seen items left out. The settings that the
run was given are the first trial, so that a search ends with nothing worse on these users. No evaluated user's target
is read.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

from gloss_utils.base.files import read_json, write_json
from gloss_utils.rank import sasrec
from gloss_utils.rank.sasrec import CRITERION, LOSSES, SASRec, Settings

GRID = {"width": (64, 128, 256), "dropout": (0.2, 0.5), "learning_rate": (5e-4, 1e-3, 3e-3), "loss": LOSSES}
TRIALS = "trials.json"


@dataclass(frozen=True)
class TrainingData:
    """What is learnt from and what is chosen by.

    sequences: items, oldest first. validation: user, history, target, of users whose targets no sequence holds. items:
    ids in the catalogue's order.
    """

    sequences: list[Sequence[str]]
    validation: pd.DataFrame
    items: Sequence[str]

    def train(self, settings: Settings, checkpoints: Path) -> SASRec:
        """A model with these settings."""
        return sasrec.train(self.sequences, self.validation, self.items, settings, checkpoints)

    def ndcg(self, model: SASRec) -> float:
        """What settings are chosen by (see `sasrec.ndcg`)."""
        return sasrec.ndcg(model, self.validation, self.sequences, self.items)


def drawn(given: Settings, trials: int) -> list[Settings]:
    """The settings of all trials: the given ones, then others of the grid, in an order drawn with their seed."""
    grid = [dict(zip(GRID, values, strict=True)) for values in product(*GRID.values())]
    own = {name: value for name, value in _told(given).items() if name in GRID}
    order = np.random.default_rng(given.seed).permutation(len(grid))
    others = [replace(given, **grid[place]) for place in order if grid[place] != own]
    return [given, *others][:trials]


Trained = tuple[dict[int, SASRec], dict]  # the models by seed, the first first, and what was tried


def train(data: TrainingData, given: Settings, trials: int, seeds: int, checkpoints: Path) -> Trained:
    """Search, and train with each seed.

    trials: 0 takes the given settings. seeds: so many, from the given one up. checkpoints: where the work is kept; what
    was cut off goes on from there.
    """
    candidates = drawn(given, trials)
    tried = [_trial(data, settings, number, checkpoints) for number, settings in enumerate(candidates, 1)]
    best = max(tried, key=lambda trial: (trial[CRITERION], -trial["trial"]), default=None)
    chosen = candidates[best["trial"] - 1] if best else given
    models = {given.seed: data.train(chosen, _checkpoints(checkpoints, best["trial"] if best else 0))}
    for seed in range(given.seed + 1, given.seed + seeds):
        models[seed] = data.train(replace(chosen, seed=seed), checkpoints / f"seed-{seed}")
    about = {"budget": trials, "validation_users": len(data.validation), "chosen": _told(chosen)}
    return models, about | {"seeds": list(models), "trials": tried}


def _trial(data: TrainingData, settings: Settings, number: int, checkpoints: Path) -> dict:
    """A trial's settings and what they reach; of one that is finished, its note. Its checkpoint stays, for the best one
    is not trained again."""
    note = checkpoints / f"trial-{number}.json"
    if not note.exists():
        model = data.train(settings, _checkpoints(checkpoints, number))
        write_json(note, {"trial": number} | _told(settings) | {CRITERION: round(data.ndcg(model), 6)})
    return read_json(note)


def _checkpoints(folder: Path, trial: int) -> Path:
    return folder / f"trial-{trial}"


def _told(settings: Settings) -> dict:
    """The settings with what null stands for."""
    defaults = {"dropout": sasrec.DROPOUT, "learning_rate": sasrec.LEARNING_RATE}
    return {name: defaults.get(name) if value is None else value for name, value in asdict(settings).items()}


def save(models: dict[int, SASRec], about: dict, folder: Path):
    """Write what `train` returns: the first seed's model in `folder`, the others' in `folder/seed-N`."""
    for place, (seed, model) in enumerate(models.items()):
        model.save_pretrained(folder / f"seed-{seed}" if place else folder)
    write_json(folder / TRIALS, about)


def load(folder: Path) -> Trained:
    """What `save` wrote."""
    about = read_json(folder / TRIALS)
    first, *others = about["seeds"]
    return {first: sasrec.load(folder)} | {seed: sasrec.load(folder / f"seed-{seed}") for seed in others}, about
