"""`engine: ray`: a function mapped over parts by a pool of workers, on this machine or on the cluster of RAY_ADDRESS.

A part whose worker dies is done again by another. On a cluster, all nodes need this package and see the run folder.
"""

import copyreg
import logging
import mmap
import operator
import os
import socket
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain

import numpy as np

from gloss_utils.base.errors import GlossError
from gloss_utils.base.parts import in_order

TRIES = 4  # at a part whose workers die
DYING = "workers die again and again, often for lack of memory; lower workers or generation_batch_tokens"


class _Worker:
    """A process of the pool, which loads its tool at its first part."""

    def __init__(self, threads: int, load: Callable, work: Callable):
        os.environ["OMP_NUM_THREADS"] = str(threads)
        if torch := sys.modules.get("torch"):  # what is loaded already has counted its threads
            torch.set_num_threads(threads)
        self.load, self.work, self.tool = load, work, None

    def do(self, number: int, part):
        """The number of a part, and the result of the work on it."""
        # An error for the user is returned: Ray would wrap in its own, and print, what is raised.
        try:
            if self.tool is None:
                self.tool = self.load()
            return number, self.work(self.tool, part)
        except GlossError as error:
            return number, error


def map_parts(
    work: Callable, load: Callable, parts: Iterable[tuple[int, object]], workers: int, on_gpu: bool = False
) -> Iterator[tuple[int, object]]:
    """Yields `(number, work(load(), part))` for each `(number, part)`, as soon as it is done, in any order.

    work, load: functions that can be pickled; `load` is called once per worker. A part is taken when a worker is free
    for it, and one more. on_gpu: where there are GPUs, each worker has one, and there are no more workers than these.
    Raises the `GlossError` of a part, and one where workers cannot start or keep dying.
    """
    parts = iter(parts)
    if (first := next(parts, None)) is None:
        return
    with session() as ray:
        cpus, gpus = (int(ray.cluster_resources().get(kind, 0)) for kind in ("CPU", "GPU"))
        gpus *= on_gpu
        workers = min(workers, gpus or workers)
        actors = ray.remote(_Worker).options(
            num_cpus=int(workers <= cpus), num_gpus=int(gpus > 0), max_restarts=-1, max_task_retries=TRIES - 1
        )
        given, pool, started = [ray.put(value) for value in (load, work)], ray.util.ActorPool([]), 0

        def finished() -> tuple[int, object]:
            number, result = pool.get_next_unordered()
            if isinstance(result, GlossError):
                raise result
            return number, result

        try:
            for part in chain([first], parts):
                done = None
                if started < workers:
                    pool.push(actors.remote(max(1, cpus // workers), *given))
                    started += 1
                elif not pool.has_free():
                    done = finished()
                pool.submit(lambda actor, part: actor.do.remote(*part), part)
                if done:  # its worker has the next part before anything is made of it
                    yield done
            while pool.has_next():
                yield finished()
        except ray.exceptions.RayActorError as error:
            if error.actor_init_failed:
                reason = str(error).strip().splitlines()[-1]
                raise GlossError(f"no worker can start ({reason}); install this package on every node") from error
            raise GlossError(DYING) from error


@contextmanager
def each_in_order(count: int | None) -> Iterator[Callable]:
    """`map` by so many of Ray's workers (null: here); Ray runs until this context is left."""
    if count is None:
        yield map
        return
    with session():
        yield lambda work, parts: in_order(map_parts(operator.call, lambda: work, enumerate(parts), count))


def _mapped(array: np.memmap):
    """How a memory-mapped array is pickled: as its file's name, so that each process of a machine maps it itself."""
    named = array.filename is not None and isinstance(array._mmap, mmap.mmap)  # a temporary file may have no name
    if not named or not array.flags.c_contiguous or array.mode != "r":
        return np.asarray(array).__reduce_ex__(5)
    begin = np.frombuffer(array._mmap, np.uint8).__array_interface__["data"][0]
    at = array.offset - array.offset % mmap.ALLOCATIONGRANULARITY + array.__array_interface__["data"][0] - begin
    return np.memmap, (array.filename, array.dtype, "r", at, array.shape)


copyreg.pickle(np.memmap, _mapped)


@contextmanager
def session():
    """The module ray, with Ray running: the one that runs already, the cluster of RAY_ADDRESS, or one started here.

    What was started or joined here is left at the end. Raises `GlossError` where no cluster answers.
    """
    import ray  # an extra: `parameters.check_files` says where it is missing
    import ray.util

    if ray.is_initialized():
        yield ray
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    address = os.environ.get("RAY_ADDRESS") or "local"
    local = {"include_dashboard": False} if address == "local" else {}
    try:
        if address not in ("local", "auto"):
            _check_reachable(ray, address)
        with _stderr_shut():
            ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **local)
    except (OSError, ValueError) as error:
        raise GlossError(
            f"RAY_ADDRESS is {address!r}, and no Ray cluster there lets this process in; give the HOST:PORT of one "
            "that runs (and RAY_AUTH_MODE=token if it wants a token), or unset it to work on this machine"
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _check_reachable(ray, address: str):
    """Raise an `OSError` or `ValueError` where nothing listens at HOST:PORT; Ray itself would try for many minutes."""
    host, _, port = address.rpartition(":")
    if host in ("localhost", "127.0.0.1"):
        host = ray.util.get_node_ip_address()  # as Ray takes it
    socket.create_connection((host, int(port)), timeout=10).close()


@contextmanager
def _stderr_shut():
    """Send the process's standard error nowhere: Ray's core writes to it whatever the log level is."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
