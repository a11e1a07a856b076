"""Work on parts in this process; `runs.workers.map_parts` does the same on others."""

from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import TypeVar

Result = TypeVar("Result")


def map_here(work: Callable, load: Callable, parts: Iterable[tuple[int, object]]) -> Iterator[tuple[int, object]]:
    """Yields `(number, work(load(), part))` of each `(number, part)`, in order; `load` is called once, if at all."""
    tool = cache(load)
    return ((number, work(tool(), part)) for number, part in parts)


def in_order(results: Iterable[tuple[int, Result]]) -> Iterator[Result]:
    """Results that come with their numbers, which are 0 and up in any order, by number."""
    waiting, turn = {}, 0
    for number, result in results:
        waiting[number] = result
        while turn in waiting:
            yield waiting.pop(turn)
            turn += 1
