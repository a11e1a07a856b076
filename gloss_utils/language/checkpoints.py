"""Checkpoints of a training: sealed once they are whole, and read only while their seal holds."""

import re
import shutil
from pathlib import Path

from gloss_utils.base.files import read_json
from gloss_utils.base.seals import is_sealed, seal_of

KEPT = 2  # the latest ones, besides the best


def last_sound(folder: Path, made_from: dict) -> Path | None:
    """The latest checkpoint that this training can go on from: it is sound, and so is the best one before it.

    Checkpoints that were cut off, or belong to another training, are deleted. Damaged ones are set aside, and a line
    is printed for each.
    """
    for checkpoint in _all(folder):
        if is_sealed(checkpoint, made_from):
            continue
        if is_sealed(checkpoint) or not seal_of(checkpoint).exists():
            _delete(checkpoint)
            continue
        aside = checkpoint.with_name(f"damaged-{checkpoint.name}")
        shutil.rmtree(aside, ignore_errors=True)
        seal_of(checkpoint).unlink()
        checkpoint.rename(aside)
        print(f"{checkpoint} is not as it was written; it is set aside as {aside.name}, and an earlier one is used")
    for checkpoint in _all(folder):
        step = read_json(checkpoint / "trainer_state.json")["best_global_step"]
        if not step or best(folder, step):
            return checkpoint
    return None


def best(folder: Path, step: int | None) -> Path | None:
    """The checkpoint of the best step, wherever the folder was when the step was noted."""
    found = folder / f"checkpoint-{step}"
    return found if step and found.is_dir() else None


def prune(folder: Path, best: Path | None):
    """Delete all checkpoints but the latest ones and the best."""
    for checkpoint in _all(folder)[KEPT:]:
        if checkpoint != best:
            _delete(checkpoint)


def _delete(checkpoint: Path):
    seal_of(checkpoint).unlink(missing_ok=True)
    shutil.rmtree(checkpoint)


def _all(folder: Path) -> list[Path]:
    found = [path for path in folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted((path for path in found if path.is_dir()), key=lambda path: -int(path.name.split("-")[1]))
