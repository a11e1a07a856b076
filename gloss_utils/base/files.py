"""Files and folders written whole or not at all, and what tells that they have not changed since."""

import errno
import hashlib
import json
import os
import shutil
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from gloss_utils.base.errors import GlossError

NOT_WRITABLE = (errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG)


@contextmanager
def write_whole(path: str | Path):
    """Yield a temporary path beside `path`; what was written there takes its place only if the block succeeds.

    Works for files and for folders. Raises `GlossError` where the disk is full or the folder cannot be written;
    what stood at `path` is then untouched.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with full_disk_in_one_line(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            sync(temporary)
            _replace(temporary, path)
    finally:
        with suppress(OSError):  # the error that led here is reported
            remove(temporary)


@contextmanager
def parquet_in_parts(path: str | Path):
    """Yield a function that appends a frame to a Parquet file, each as a part of its own; the file is written whole or
    not at all. The first frame says what columns there are, and of which types."""
    import pyarrow  # which not every stage loads
    from pyarrow.parquet import ParquetWriter

    with write_whole(path) as part, ExitStack() as stack:
        writers = []

        def add(frame):
            schema = writers[0].schema if writers else None
            table = pyarrow.Table.from_pandas(frame, schema=schema, preserve_index=False)
            if not writers:
                writers.append(stack.enter_context(ParquetWriter(part, table.schema)))
            writers[0].write_table(table)

        yield add


@contextmanager
def joined(path: str | Path):
    """Yield a function that appends what a file holds to `path`, which is written whole or not at all."""
    with write_whole(path) as part, open(part, "wb") as whole:

        def add(file: Path):
            with open(file, "rb") as piece:
                shutil.copyfileobj(piece, whole)

        yield add


def remove(path: Path):
    """Delete a file, a link, or a folder with all that is in it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def full_disk_in_one_line(path: Path):
    """Turn what libraries raise when `path` cannot be written into a `GlossError`."""
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) and error.errno in NOT_WRITABLE:
            raise GlossError(f"{path} cannot be written ({error.strerror}); choose another folder") from error
        # Libraries wrap the operating system's error each in their own way, and some drop it.
        says_full = any(words in str(error) for words in ("No space left", "quota exceeded"))
        if says_full or getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or free_space(path) < 2**16:
            raise GlossError(
                f"the disk is full: {path} was not written and nothing was lost; free some space and run again"
            ) from error
        raise


def sync(path: Path):
    """Wait until a file, or a folder with all that is in it, is on the disk."""
    for found in (path, *path.rglob("*")) if path.is_dir() else (path,):
        _sync_one(found)


def _sync_one(path: Path):
    windows = os.name == "nt"  # it opens no folder, and syncs no file that is open for reading only
    if windows and path.is_dir():
        return
    handle = os.open(path, os.O_RDWR if windows else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _replace(temporary: Path, path: Path):
    if path.is_dir():
        old = path.with_name(f".{path.name}.{os.getpid()}.old")
        path.rename(old)
        temporary.rename(path)
        remove(old)
    else:
        temporary.replace(path)
    _sync_one(path.parent)  # the rename itself


def free_space(path: Path) -> int:
    """The bytes that are free on the disk where `path` is, or will be."""
    path = Path(path).absolute()
    return shutil.disk_usage(next(folder for folder in (path, *path.parents) if folder.exists())).free


def write_json(path: Path, value):
    """Write `value` as indented JSON, whole or not at all."""
    with write_whole(path) as part:
        part.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path):
    """Read a JSON file of a run. Raises `GlossError` where it is damaged."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError:
        raise GlossError(f"{path} is damaged; delete it and run again") from None


# Hashes of large files that were taken before, by size, time and inode: they hold for links and after a move, too.
_known: dict[str, str] = {}
LARGE = 2**20  # bytes; smaller files are read each time
SETTLED = 2  # seconds after its last change, a file's time tells it from a later change on every file system


def fingerprint(path: str | Path) -> str:
    """sha256 of a file, or of a folder's names and contents. A large file is read once, until it changes."""
    path = Path(path)
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        names = [f"{file.relative_to(path).as_posix()} {fingerprint(file)}" for file in files]
        return hashlib.sha256("\n".join(names).encode()).hexdigest()
    about = path.stat()
    key = f"{about.st_size} {about.st_mtime_ns} {about.st_ino}"
    if key in _known:
        return _known[key]
    settled = time.time() - about.st_mtime > SETTLED
    with open(path, "rb") as handle:
        found = hashlib.file_digest(handle, "sha256").hexdigest()
    if settled and about.st_size >= LARGE:
        _known[key] = found
    return found


def load_hashes(path: Path):
    """Take over the hashes that another process noted in this file, if it is there and sound."""
    try:
        _known.update(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return


def save_hashes(path: Path):
    """Note the hashes of large files for other processes."""
    write_json(path, _known)


def forget_hashes():
    """Read all files again the next time, as after a fault."""
    _known.clear()


def digest(value) -> str:
    """sha256 of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
