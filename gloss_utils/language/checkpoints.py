"""Checkpoints of a training: sealed with their hash once they are whole, and read only while they match it."""

import re
import shutil
from pathlib import Path

from gloss_utils.base.files import fingerprint, read_json, sync, write_whole

KEPT = 2  # the latest ones, besides the best


def seal(checkpoint: Path):
    """Put a checkpoint's hash beside it: from now on it is whole."""
    sync(checkpoint)
    with write_whole(_seal(checkpoint)) as part:
        part.write_text(fingerprint(checkpoint) + "\n")


def is_sound(checkpoint: Path) -> bool:
    """Whether a checkpoint was sealed and is still what it was then."""
    seal = _seal(checkpoint)
    return (
        checkpoint.is_dir() and seal.is_file() and seal.read_text(errors="replace").strip() == fingerprint(checkpoint)
    )


def last_sound(folder: Path) -> Path | None:
    """The latest checkpoint of a training that can be gone on from: it is sound, and so is the best one before it.

    Those that were cut off are removed. Damaged ones are set aside, and a line is printed for each.
    """
    for checkpoint in _all(folder):
        if not _seal(checkpoint).exists():
            shutil.rmtree(checkpoint)
        elif not is_sound(checkpoint):
            aside = checkpoint.with_name(f"damaged-{checkpoint.name}")
            shutil.rmtree(aside, ignore_errors=True)
            _seal(checkpoint).unlink()
            checkpoint.rename(aside)
            print(f"{checkpoint} is not as it was written; it is set aside as {aside.name}, and an earlier one is used")
    for checkpoint in _all(folder):
        best = read_json(checkpoint / "trainer_state.json")["best_global_step"]
        if not best or _named(folder, best).is_dir():
            return checkpoint
    return None


def best(folder: Path, step: int | None) -> Path | None:
    """The checkpoint of the best step, wherever the run folder was when the step was noted."""
    return _named(folder, step) if step and _named(folder, step).is_dir() else None


def prune(folder: Path, best: Path | None):
    """Remove all checkpoints but the latest ones and the best."""
    for checkpoint in _all(folder)[KEPT:]:
        if checkpoint != best:
            _seal(checkpoint).unlink(missing_ok=True)
            shutil.rmtree(checkpoint)


def _all(folder: Path) -> list[Path]:
    found = [path for path in folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted((path for path in found if path.is_dir()), key=lambda path: -int(path.name.split("-")[1]))


def _named(folder: Path, step: int) -> Path:
    return folder / f"checkpoint-{step}"


def _seal(checkpoint: Path) -> Path:
    return checkpoint.with_name(f"{checkpoint.name}.sha256")
