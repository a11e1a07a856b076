"""The bytes of a raw file, packed or not, as lines and as blocks of whole lines."""

import gzip
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from gloss_utils.base.errors import GlossError

BLOCK = 2**22  # bytes read at once
LONGEST = 2**24  # bytes of a line that are read


@contextmanager
def opened(path: str | Path, member: str | None, name: str) -> Iterator[Any]:
    """A file's bytes, unpacked, with a progress bar (called `name`) over what is read from the disk.

    member: the file inside a zip archive. Raises `GlossError` where the packed data is damaged, or has no such file.
    """
    try:
        with (
            open(path, "rb") as raw,
            tqdm.wrapattr(raw, "read", total=Path(path).stat().st_size, desc=name, mininterval=1) as counted,
        ):
            if member:
                with zipfile.ZipFile(counted) as archive, archive.open(member) as inner:
                    yield inner
            else:
                yield gzip.GzipFile(fileobj=counted) if is_gzip(raw) else counted
    except (EOFError, gzip.BadGzipFile, zlib.error):
        raise GlossError(
            f"{path} is cut or damaged in the middle of its packed data; delete it and get it again"
        ) from None
    except zipfile.BadZipFile as error:
        raise GlossError(f"{path} is no sound zip archive ({error}); delete it and get it again") from None
    except KeyError:
        raise GlossError(f"{path} has no {member} in it; get it again, as it is published") from None


def is_gzip(raw) -> bool:
    """Whether a file, at its start, is gzipped; it is at its start again afterwards."""
    magic = raw.read(2)
    raw.seek(0)
    return magic == b"\x1f\x8b"


def first_line(source) -> tuple[bytes, int]:
    """The first line that is not blank, and its number."""
    number = 1
    while (line := source.readline(LONGEST)) and not line.strip():
        number += 1
    return line, number


def each_line(source) -> Iterator[bytes]:
    """The lines, blank ones too; one longer than `LONGEST` comes in pieces."""
    return iter(partial(source.readline, LONGEST), b"")


def line_blocks(source, number: int) -> Iterator[tuple[int, bytes]]:
    """Whole lines, about `BLOCK` bytes at once, and the number of the first; a line longer than `LONGEST` is cut."""
    rest = b""
    while data := source.read(BLOCK):
        head, newline, tail = data.rpartition(b"\n")
        if newline:
            block = rest + head + newline
            yield number, block
            number += block.count(b"\n")
            rest = tail
        else:
            rest = (rest + data)[:LONGEST]
    if rest:
        yield number, rest


def lines(number: int, block: bytes) -> Iterator[tuple[str, bytes]]:
    """The lines of a block that are not blank, each with its place. number: of the first."""
    for place, line in enumerate(block.split(b"\n"), number):
        if line.strip():
            yield f"line {place}", line
