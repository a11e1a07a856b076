"""One run at a time in a run folder: locks that the death of their holder releases, so that none is ever stale.

A runner holds one lock until its last stage is done, and every stage, in whatever kernel, another from `open_run` to
`finish`; neither starts where a stranger holds the other. They are `flock`s: good on local disks, and between hosts on
NFS where client and server lock (Linux does, through the server's lock service). A file system without locks keeps
nobody apart, which a line says.
"""

import fcntl
import os
import socket
import time
from contextlib import contextmanager
from pathlib import Path
from weakref import WeakValueDictionary

from gloss_utils.base.errors import GlossError

RUNNER_HOLDS = "GLOSS_RUNNER_HOLDS"  # in a kernel's environment: the run folder that the runner which started it holds
DYING = 10  # seconds that the kernel of a runner that was killed may take to notice

_taken: WeakValueDictionary[Path, "Lock"] = WeakValueDictionary()


class Lock:
    """A file that this process has locked, until `release`, or until the object or the process is gone."""

    def __init__(self, handle):
        self.handle = handle

    def release(self):
        """Let others have it."""
        self.handle.close()


def take(path: Path, patience: float = 0) -> Lock:
    """Lock a file, which is made where it is not there; again in the same process, it is the same lock.

    patience: seconds to wait for another holder. Raises `GlossError`, which names the holder, where that is not enough.
    """
    path, until = path.absolute(), time.monotonic() + patience
    held = _taken.get(path)
    if held and not held.handle.closed:
        return held
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = Lock(open(path, "a+", encoding="utf-8", errors="replace"))  # noqa: SIM115
        _wait(lock, path, until)
        me = f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}"
        lock.handle.truncate(0)
        print(me, file=lock.handle, flush=True)
    except OSError as error:
        raise GlossError(f"{path.parent} cannot be written ({error.strerror}); choose another run_dir") from error
    _taken[path] = lock
    return lock


def _wait(lock: Lock, path: Path, until: float):
    while True:
        try:
            return fcntl.flock(lock.handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() < until:
                time.sleep(0.2)
                continue
            lock.handle.seek(0)
            holder = " ".join(lock.handle.read().split()) or "another process"
            lock.release()
            raise GlossError(
                f"{path.parent} is in use by {holder}; wait until that ends (or shut that kernel down), or choose "
                "another run_dir"
            ) from None
        except OSError as error:
            return print(f"{path.parent} cannot be locked ({error.strerror}); never start two runs in it at a time")


def take_stage(stage_lock: Path, run_lock: Path) -> Lock:
    """A stage's lock. Raises `GlossError` where another stage, or a runner that did not start this kernel, has one."""
    lock = take(stage_lock)
    if os.environ.get(RUNNER_HOLDS) != str(run_lock.parent.absolute()):
        try:
            take(run_lock).release()
        except BaseException:
            lock.release()
            raise
    return lock


@contextmanager
def for_runner(run_lock: Path, stage_lock: Path):
    """Hold a runner's lock, which the kernels that it starts know of. Raises `GlossError` where a stage or another
    runner is at work."""
    lock = take(run_lock)
    before = os.environ.get(RUNNER_HOLDS)
    try:
        take(stage_lock, DYING).release()
        os.environ[RUNNER_HOLDS] = str(run_lock.parent.absolute())
        yield
    finally:
        os.environ.pop(RUNNER_HOLDS, None)
        if before is not None:
            os.environ[RUNNER_HOLDS] = before
        lock.release()
