"""One run at a time in a run folder. The death of its holder releases a lock, so that none is ever stale.

The runner holds one lock until its last stage is done, and every stage, in whatever kernel, another from `open_run` to
`finish`. Neither starts where somebody else holds the other one.
"""

import os
import socket
import time
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from gloss_utils.base.errors import GlossError

RUNNER_HOLDS = "GLOSS_RUNNER_HOLDS"  # in a kernel's environment: the run folder of the runner that started it
DYING = 10  # seconds that the kernel of a runner that was killed may take to notice


def take(path: Path, patience: float = 0) -> FileLock:
    """Lock a file, which is made where it is missing. In one process, it is the same lock each time.

    patience: seconds to wait for another holder. Raises `GlossError`, which names the holder, where that is not enough.
    """
    path = path.absolute()
    holder = path.with_name(f"{path.name}.holder")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path, is_singleton=True)
        if not lock.is_locked:
            lock.acquire(timeout=patience, poll_interval=0.2)
            since = time.strftime("%Y-%m-%d %H:%M:%S")
            holder.write_text(f"process {os.getpid()} on {socket.gethostname()} since {since}", encoding="utf-8")
    except Timeout:
        name = "another process"
        with suppress(OSError):
            name = holder.read_text(encoding="utf-8", errors="replace") or name
        raise GlossError(
            f"{path.parent} is in use by {name}; wait until that ends (or shut that kernel down), or choose "
            "another run_dir"
        ) from None
    except OSError as error:
        raise GlossError(f"{path.parent} cannot be written ({error.strerror}); choose another run_dir") from error
    return lock


def take_stage(stage_lock: Path, run_lock: Path) -> FileLock:
    """The lock of a stage. Raises `GlossError` where another stage, or a runner that did not start this kernel, holds
    one."""
    lock = take(stage_lock)
    if os.environ.get(RUNNER_HOLDS) != str(run_lock.parent.absolute()):
        try:
            take(run_lock).release(force=True)
        except BaseException:
            lock.release(force=True)
            raise
    return lock


@contextmanager
def for_runner(run_lock: Path, stage_lock: Path):
    """Hold the runner's lock, which the kernels that it starts know of. Raises `GlossError` where a stage or another
    runner is at work."""
    lock = take(run_lock)
    before = os.environ.get(RUNNER_HOLDS)
    try:
        take(stage_lock, DYING).release(force=True)
        os.environ[RUNNER_HOLDS] = str(run_lock.parent.absolute())
        yield
    finally:
        os.environ.pop(RUNNER_HOLDS, None)
        if before is not None:
            os.environ[RUNNER_HOLDS] = before
        lock.release(force=True)
