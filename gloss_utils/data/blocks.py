"""Raw files, packed or not, as blocks of records.

Arrow reads a whole block at once. Where it cannot, or where a value needs a closer look, the block's records are read
one by one instead.
"""

import csv
import gzip
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
from tqdm import tqdm

from gloss_utils.base.errors import GlossError
from gloss_utils.data.formats import LONGEST, Layout, csv_records, json_record, parsers
from gloss_utils.data.rejects import Unusable

BLOCK = 2**22  # bytes parsed at once
HEAD = 1000  # lines of JSON that are searched for the names of columns
ROWS = 2**13  # rows of a block of CSV whose values may go over lines


@dataclass(frozen=True)
class Block:
    """Some records of a file. table: all of them at once, or None where Arrow cannot read them all.

    records: yields of each its place (as "line 7"), what it looks like in the file, and a function that parses it and
    raises `Unusable` where that is not possible.
    """

    table: pa.Table | None
    records: Callable[[], Iterator[tuple[str, Any, Callable[[], Any]]]]


def blocks(path: Path, layout: Layout, columns: dict[str, pa.DataType], name: str, wanted=frozenset()) -> Iterator:
    """Yield a file as `Block`s.

    columns: those that are needed, with their types in published files. name: of the progress bar. wanted: items; of
    Python literals, which are slow to parse, no others are parsed (their records are None).
    Raises `GlossError` where the file is damaged.
    """
    if layout.form == "parquet":
        yield from _parquet_blocks(path, list(columns), name)
        return
    with _opened(path, layout.member, name) as source:
        first = _first_line(source)[1] + 1 if layout.form == "csv" else 1
        if layout.form == "csv" and layout.spans:
            records = csv_records(iter(partial(source.readline, LONGEST), b""), first, layout)
            while some := list(islice(records, ROWS)):
                yield Block(None, partial(iter, some))
            return
        table, parse = parsers(layout, columns, wanted)
        for number, block in _line_blocks(source, first):
            yield Block(table(block), partial(_line_records, number, block, parse))


# ---- bytes and lines


@contextmanager
def _opened(path: Path, member: str | None, name: str) -> Iterator[Any]:
    """The file's bytes, unpacked, with a progress bar over what is read from the disk."""
    try:
        with (
            open(path, "rb") as raw,
            tqdm.wrapattr(raw, "read", total=path.stat().st_size, desc=name, mininterval=1) as counted,
        ):
            if member:
                with zipfile.ZipFile(counted) as archive, archive.open(member) as inner:
                    yield inner
            else:
                yield gzip.GzipFile(fileobj=counted) if _is_gzip(raw) else counted
    except (EOFError, gzip.BadGzipFile, zlib.error):
        raise GlossError(
            f"{path} is cut or damaged in the middle of its packed data; delete it and get it again"
        ) from None
    except zipfile.BadZipFile as error:
        raise GlossError(f"{path} is no sound zip archive ({error}); delete it and get it again") from None
    except KeyError:
        raise GlossError(f"{path} has no {member} in it; get it again, as it is published") from None


def _is_gzip(raw) -> bool:
    magic = raw.read(2)
    raw.seek(0)
    return magic == b"\x1f\x8b"


def _first_line(source) -> tuple[bytes, int]:
    """The first line that is not blank, and its number."""
    number = 1
    while (line := source.readline(LONGEST)) and not line.strip():
        number += 1
    return line, number


def _line_blocks(source, number: int) -> Iterator[tuple[int, bytes]]:
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


def _line_records(number: int, block: bytes, parse: Callable) -> Iterator[tuple[str, bytes, Callable]]:
    for place, line in enumerate(block.split(b"\n"), number):
        if line.strip():
            yield f"line {place}", line, partial(parse, line)


# ---- Parquet


def _parquet_blocks(path: Path, columns: list[str], name: str) -> Iterator[Block]:
    done = 0
    try:
        with (
            pa.parquet.ParquetFile(path, page_checksum_verification=True) as file,
            tqdm(total=file.metadata.num_rows, desc=name, unit="row") as bar,
        ):
            for batch in file.iter_batches(columns=columns, batch_size=2**16):
                batch.validate(full=True)
                bar.update(len(batch))
                yield Block(pa.Table.from_batches([batch]), partial(_row_records, batch, done + 1))
                done += len(batch)
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise GlossError(f"{path} is damaged and cannot be read as Parquet ({reason}); make it again") from None


def _row_records(batch: pa.RecordBatch, number: int) -> Iterator[tuple[str, dict, Callable]]:
    for place, row in enumerate(zip(*batch.columns, strict=True), number):
        record = dict(zip(batch.column_names, map(_value, row), strict=True))
        yield f"row {place}", record, partial(dict, record)


def _value(scalar: pa.Scalar):
    """A value in Python; None where Python has none for it, as for the year 10000."""
    try:
        value = scalar.as_py()
    except (ValueError, OverflowError):
        return None
    return value.decode("utf-8", errors="replace") if isinstance(value, bytes) else value


# ---- names of columns


def columns_of(path: Path, form: str) -> list[str]:
    """The names of the columns of a CSV, JSON-lines (of its first `HEAD` lines) or Parquet file.

    Raises `GlossError` where it is no such file.
    """
    try:
        if form == "parquet":
            return pa.parquet.read_schema(path).names
        with open(path, "rb") as raw:
            source = gzip.GzipFile(fileobj=raw) if _is_gzip(raw) else raw
            names = _json_names(source) if form == "json" else _csv_names(source)
        if not names:
            raise ValueError("no column is named in it")
    except (pa.ArrowException, ValueError, csv.Error, OSError, EOFError, zlib.error) as error:
        raise GlossError(f"{path} cannot be read as {form} ({' '.join(str(error).split())})") from None
    return names


def _csv_names(source) -> list[str]:
    return next(csv.reader([_first_line(source)[0].decode("utf-8-sig")], strict=True), [])


def _json_names(source) -> list[str]:
    names = {}
    for line in islice(iter(partial(source.readline, LONGEST), b""), HEAD):
        with suppress(Unusable):
            record = json_record(line)
            names |= dict.fromkeys(record) if isinstance(record, dict) else {}
    return list(names)
