"""Work on blocks of users, each block's results in a folder of its own: what was cut off goes on after the last one."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path

from gloss_utils.base.files import digest, write_whole
from gloss_utils.base.parts import in_order, map_here
from gloss_utils.runs import workers
from gloss_utils.runs.folder import code_of, identity
from gloss_utils.runs.parameters import that_matter
from gloss_utils.runs.run import Run

Done = Iterator[tuple[object, Path]]


@contextmanager
def in_blocks(run: Run, name: str, blocks: Iterable, load: Callable, work: Callable) -> Iterator[Done]:
    """Yield an iterator of all blocks, in order, each with the folder that `work(load(), block, folder)` has filled, in
    this process or under Ray by its workers.

    name: of the work, by which unfinished work is known. The folders stay until this context is left without an error;
    they are taken again where parameters, code and all that the stage has read are the same.
    """
    stages, seals = run.folder.stages(), {name: seal["sha256"] for name, seal in run.artefacts.items()}
    about = [code_of(run.stage), that_matter(run.parameters), run.inputs, run.known, seals]
    builds_on = {stage: identity(entry) for stage, entry in stages.items() if stage < run.stage}
    root = run.unfinished(name, digest([about, builds_on]))
    yield filled(root, blocks, load, work, run.ray_workers)
    run.clear(name)


def filled(root: Path, blocks: Iterable, load: Callable, work: Callable, count: int | None = None) -> Done:
    """The same for folders in `root`, which are taken as they are where they are there. count: of Ray's workers; null:
    all is done here."""
    given = {}  # blocks that were given out, by number

    def parts() -> Iterator[tuple[int, tuple]]:
        for number, block in enumerate(blocks):
            given[number] = block
            yield number, (block, root / str(number))

    if before := len(list(root.glob("[0-9]*"))):
        print(f"{before} blocks of users are those of a run that was cut off")
    map_parts = map_here if count is None else partial(workers.map_parts, workers=count)
    done = map_parts(partial(_fill, work), partial(cache, load), parts())
    for number in in_order((number, number) for number, _ in done):
        yield given.pop(number), root / str(number)


def _fill(work: Callable, tool: Callable, part: tuple[object, Path]):
    """Work on a block, unless it is done. tool: loads it, once, where that is needed."""
    block, folder = part
    if not folder.exists():
        with write_whole(folder) as new:
            new.mkdir()
            work(tool(), block, new)
