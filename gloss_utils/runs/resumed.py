"""Work on a costly artefact in batches, each noted on the disk: what was cut off goes on after its last batch."""

import pickle
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain, count
from pathlib import Path
from zipfile import ZipFile

import numpy as np
from tqdm import tqdm

from gloss_utils.base.files import digest, write_whole
from gloss_utils.base.parts import map_here
from gloss_utils.runs import workers
from gloss_utils.runs.journal import Journal
from gloss_utils.runs.run import Run

PART = 2**26  # bytes after which `kept_each` begins a new part


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
    map_parts = partial(workers.map_parts, workers=run.ray_workers, on_gpu=True) if run.ray_workers else None
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
    """Rows of numbers, one per text, by `work(load(), part)` for parts of `size` texts (see `in_parts`)."""
    parts = [texts[start : start + size] for start in range(0, len(texts), size)]
    files = in_parts(run, name, parts, load, work, np.savez, verb, "text", on_gpu=True)
    return np.concatenate([np.load(file)["arr_0"] for file in files])


def in_parts(
    run: Run,
    name: str,
    parts: list,
    load: Callable,
    work: Callable,
    save: Callable,
    verb: str,
    unit: str,
    on_gpu: bool = False,
) -> list[Path]:
    """The files with what `work(load(), part)` gives for each part, under Ray by its workers.

    name: of the artefact. save: writes that to an open file, as npz, whose checksums tell a damaged one. verb, unit:
    what the progress bar says. on_gpu: see `workers.map_parts`. A part's file is named by what is in the part; a part
    that has one is not done again. The parts are the same under both engines.
    """
    folder = run.unfinished(name)
    files = [folder / f"{digest(repr(part))}.npz" for part in parts]
    left = {number: part for number, part in enumerate(parts) if not _is_sound(files[number])}
    _say_what_is_done(len(parts) - len(left), len(parts), "parts")
    if run.ray_workers and len(left) > 1:
        done = workers.map_parts(work, load, left.items(), run.ray_workers, on_gpu)
    else:
        done = map_here(work, load, left.items())
    total, before = sum(map(len, parts)), sum(len(part) for number, part in enumerate(parts) if number not in left)
    with tqdm(total=total, initial=before, desc=verb, unit=unit, mininterval=2, disable=len(parts) <= 1) as bar:
        for number, found in done:
            with write_whole(files[number]) as part, open(part, "wb") as file:
                save(file, found)
            bar.update(len(parts[number]))
    return files


def kept_each(folder: Path, each: Callable[[Callable, Iterable], Iterator]) -> Callable:
    """`each`, which calls a function for each of many things, in order, with what it yields kept in `folder`.

    Where the same calls are made again after the work was cut off, the results of whole parts come from there. A part
    is a zip file of pickled results, named by the call and its first result; its checksums tell a damaged one, and from
    such a one on all is done again. folder: of one plan, the code that makes the results included.
    """
    calls = count()

    def kept(work: Callable, things: Iterable) -> Iterator:
        call, things, done = next(calls), iter(things), 0
        while _is_sound(file := folder / f"{call}-{done}.zip"):
            with ZipFile(file) as part:
                for name in part.namelist():
                    next(things)
                    done += 1
                    yield pickle.loads(part.read(name))
        if done:
            print(f"{done} blocks are those of a run that was cut off")
        results = iter(each(work, things))
        for first in results:
            with write_whole(folder / f"{call}-{done}.zip") as path, ZipFile(path, "w") as part:
                for result in chain([first], results):
                    with part.open(str(done), "w", force_zip64=True) as out:
                        pickle.dump(result, out)
                    done += 1
                    yield result
                    if part.fp.tell() >= PART:
                        break

    return kept


def _is_sound(file: Path) -> bool:
    """Whether a zip file, as an npz file is, is there and whole."""
    try:
        with ZipFile(file) as arrays:
            return arrays.testzip() is None
    except Exception:  # what is damaged fails in many ways
        return False


def _say_what_is_done(done: int, total: int, what: str):
    if done:
        print(f"{done} of {total} {what} are those of a run that was cut off")
