"""Work on a costly artefact in batches, each noted on the disk: what was cut off goes on after its last batch."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from gloss_utils.base.files import digest, write_whole
from gloss_utils.runs import workers
from gloss_utils.runs.journal import Journal
from gloss_utils.runs.run import Run


def in_batches(run: Run, name: str, about, batches: list[list[int]], work: Callable[..., Iterator], verb: str) -> list:
    """The rows of all places, in order; a row is a JSON value.

    name: of the artefact. about: JSON values that say what is worked on. batches: the places of each. work: called with
    the batches that are left (number -> places) and `map_parts` (null: all is done here), it yields a batch's number,
    its rows, and a line to print or null. verb: what the progress bar says.
    """
    plan = digest([run.made_from(name), about, batches])
    journal = Journal(run.unfinished(name, plan), plan, [len(batch) for batch in batches])
    for note in journal.notes:
        print(note)
    _say_what_is_done(len(journal.done), len(batches), "batches")
    left = {number: places for number, places in enumerate(batches) if number not in journal.done}
    map_parts = partial(workers.map_parts, workers=run["workers"]) if run["engine"] == "ray" else None
    done, total, notices = sum(map(len, journal.done.values())), sum(map(len, batches)), {None}
    with tqdm(total=total, initial=done, desc=verb, unit="user", mininterval=2) as bar:
        for number, rows, notice in work(left, map_parts):
            journal.add(number, rows)
            bar.update(len(rows))
            if notice not in notices:
                notices.add(notice)
                print(notice)
    found = {}
    for number, rows in journal.done.items():
        found |= zip(batches[number], rows, strict=True)
    return [found[place] for place in range(total)]


def rows_of(run: Run, name: str, texts: list[str], size: int, load: Callable, work: Callable, verb: str) -> np.ndarray:
    """Rows of numbers, one per text, by `work(load(), part)` for parts of `size` texts, under Ray by its workers.

    name: of the artefact. verb: what the progress bar says. A finished part is a file, named by its texts; a part that
    has one is not done again. The parts are the same under both engines.
    """
    folder = run.unfinished(name)
    parts = {start: texts[start : start + size] for start in range(0, len(texts), size)}
    files = {start: folder / f"{digest(part)}.npy" for start, part in parts.items()}
    left = {start: part for start, part in parts.items() if not _has_rows(files[start], len(part))}
    _say_what_is_done(len(parts) - len(left), len(parts), "parts")
    if run["engine"] == "ray":
        done = workers.map_parts(work, load, left.items(), run["workers"])
    else:
        done = ((start, work(load(), part)) for start, part in left.items())
    total, before = len(texts), len(texts) - sum(map(len, left.values()))
    with tqdm(total=total, initial=before, desc=verb, unit="text", mininterval=2, disable=total <= size) as bar:
        for start, rows in done:
            with write_whole(files[start]) as part, open(part, "wb") as file:
                np.save(file, rows)
            bar.update(len(rows))
    return np.concatenate([np.load(files[start]) for start in parts])


def _has_rows(file: Path, count: int) -> bool:
    """Whether a file holds so many rows; one that is missing or damaged does not."""
    try:
        return len(np.load(file, mmap_mode="r")) == count
    except (OSError, ValueError, EOFError):
        return False


def _say_what_is_done(done: int, total: int, what: str):
    if done:
        print(f"{done} of {total} {what} are those of a run that was cut off")
