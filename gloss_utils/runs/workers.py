"""`engine: ray`: generation and encoding by a pool of workers, on this machine or on the cluster of RAY_ADDRESS.

Work is cut into parts: parquet files of one row each, read with Ray Data and given to the workers one at a time. A part
whose worker dies is done again by another. On a cluster, all nodes need this package and see the run folder.
"""

import logging
import os
import pickle
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from gloss_utils.base.errors import GlossError
from gloss_utils.base.files import full_disk_in_one_line
from gloss_utils.language import generation as generate
from gloss_utils.runs.run import Run
from gloss_utils.search.encoder import encode_texts, load_encoder

TRIES = 4  # at a part whose workers die; Ray itself would try for ever
TEXTS_A_PART = 512
DYING = "workers die again and again, often for lack of memory; lower workers or generation_batch_tokens"


def write(
    run: Run, inputs: list[list[int]], batches: dict[int, list[int]], notes: list[str]
) -> Iterator[tuple[int, list[generate.Row]]]:
    """Continue prompts (token ids): yields each batch's number and rows as soon as it is finished, in any order.

    batches: number -> the prompts' places in `inputs`. A line about a slower way that the workers take is added to
    `notes`. Raises `GlossError` as a `generate.Writer` does, and where workers keep dying.
    """
    parts = [
        {"number": number, "places": places, "inputs": [inputs[place] for place in places]}
        for number, places in batches.items()
    ]
    for number, (rows, notice) in _answers(run, parts, partial(generate.Writer.load, run), _write):
        if notice and notice not in notes:
            notes.append(notice)
        yield number, rows


def _write(writer: generate.Writer, part: dict) -> tuple[list[generate.Row], str | None]:
    return writer.write(part["inputs"], part["places"]), writer.notice


def encode(run: Run, texts: list[str]) -> np.ndarray:
    """Vectors of texts in the order given, float32 [texts, dimensions], L2-normalised.

    Raises `GlossError` where the encoder cannot be loaded, or workers keep dying.
    """
    starts = range(0, len(texts), TEXTS_A_PART)
    parts = [{"number": start, "texts": texts[start : start + TEXTS_A_PART]} for start in starts]
    found = dict(_answers(run, parts, partial(load_encoder, run["encoder"]), _encode))
    return np.concatenate([found[start] for start in starts])


def _encode(encoder, part: dict) -> np.ndarray:
    return encode_texts(encoder, part["texts"])


class _Worker:
    """A process of the pool: loads its tool at its first part, and answers each part with its number and the result.

    An error for the user is an answer, too: what is raised, Ray wraps in its own and prints.
    """

    def __init__(self, folder: Path, threads: int, load: Callable, work: Callable):
        torch.set_num_threads(threads)
        self.folder, self.load, self.work = folder, load, work

    @cached_property
    def tool(self):
        return self.load()

    def __call__(self, table: pa.Table) -> pa.Table:
        [part] = table.to_pylist()
        try:
            self._count(part["number"])
            result = self.work(self.tool, part)
        except GlossError as error:
            result = error
        return pa.table({"answer": [pickle.dumps((part["number"], result))]})  # pickled: floats to the last bit

    def _count(self, number: int):
        with open(self.folder / f"{number}.tries", "a") as tries:
            tries.write(".")
            if tries.tell() > TRIES:
                raise GlossError(DYING)


def _answers(run: Run, parts: list[dict], load: Callable, work: Callable) -> Iterator[tuple[int, object]]:
    """Each part's number and `work(load(), part)`, as they come."""
    folder, workers = run.folder.parts, min(run["workers"], len(parts))
    with session() as ray, _written(parts, folder), _quiet(ray):
        # The newer reader packs small files into one block, which one worker would get. Reading takes no CPU of
        # Ray's count: with all of them given to workers, it would never start.
        ray.data.DataContext.get_current().use_datasource_v2 = False
        read = ray.data.read_parquet(str(folder), override_num_blocks=len(parts), num_cpus=0, concurrency=1)
        cpus, gpus = (int(ray.cluster_resources().get(kind, 0)) for kind in ("CPU", "GPU"))
        answers = read.map_batches(
            _Worker,
            fn_constructor_args=(folder, max(1, cpus // workers), load, work),
            batch_size=1,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=1),
            num_cpus=int(workers <= cpus),
            num_gpus=int(gpus > 0),
        )
        try:
            for block in answers.iter_batches(batch_size=None, prefetch_batches=0, batch_format="pyarrow"):
                for answer in block["answer"].to_pylist():
                    number, result = pickle.loads(answer)
                    if isinstance(result, GlossError):
                        raise result
                    yield number, result
        except ray.exceptions.RayActorError as error:  # before its first part
            reason = str(error).strip().splitlines()[-1]
            raise GlossError(f"no worker can start ({reason}); install this package on every node") from error


@contextmanager
def _written(parts: list[dict], folder: Path):
    """A folder with each part as a parquet file of one row, which is removed at the end."""
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
    try:
        with full_disk_in_one_line(folder):
            folder.mkdir()
            for part in parts:
                row = {name: [value] for name, value in part.items()}
                pq.write_table(pa.table(row), folder / f"{part['number']:08}.parquet")
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def session():
    """The module ray, with Ray running: the one that runs already, the cluster of RAY_ADDRESS, or one started here.

    What was started or joined here is left at the end. Raises `GlossError` where no cluster answers.
    """
    import ray  # an extra: `parameters.check_files` says where it is missing
    import ray.data

    if ray.is_initialized():
        yield ray
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    address = os.environ.get("RAY_ADDRESS") or "local"
    local = {"include_dashboard": False} if address == "local" else {}
    try:
        if address not in ("local", "auto"):
            _knock(ray, address)
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


def _knock(ray, address: str):
    """Raise an `OSError` or `ValueError` where nobody listens at HOST:PORT; Ray itself would try for many minutes."""
    host, _, port = address.rpartition(":")
    if host in ("localhost", "127.0.0.1"):
        host = ray.util.get_node_ip_address()  # as Ray takes it
    socket.create_connection((host, int(port)), timeout=10).close()


@contextmanager
def _stderr_shut():
    """Nothing goes to the process's standard error, where Ray's core says past Python's loggers what level it logs."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


@contextmanager
def _quiet(ray):
    """Ray Data without its progress bars and reports, of which a notebook has its own."""
    settings, log = ray.data.DataContext.get_current().copy(), logging.getLogger("ray.data")
    settings.enable_progress_bars = settings.print_on_execution_start = False
    settings.max_consecutive_actor_init_deaths = TRIES - 1
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with ray.data.DataContext.current(settings):
            yield
    finally:
        log.setLevel(level)
