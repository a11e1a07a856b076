"""Work on a costly artefact in batches, each noted on the disk: what was cut off goes on after its last batch."""

from collections.abc import Callable, Iterator
from functools import partial

from tqdm import tqdm

from gloss_utils.base.files import digest
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
    if journal.done:
        print(f"{len(journal.done)} of {len(batches)} batches are those of a run that was cut off")
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
