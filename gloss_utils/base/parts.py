"""Work on parts in this process; `runs.workers.map_parts` does the same on others."""

from collections.abc import Callable, Iterable, Iterator
from functools import cache


def map_here(work: Callable, load: Callable, parts: Iterable[tuple[int, object]]) -> Iterator[tuple[int, object]]:
    """Yields `(number, work(load(), part))` of each `(number, part)`, in order; `load` is called once, if at all."""
    tool = cache(load)
    return ((number, work(tool(), part)) for number, part in parts)
