"""Raw files as records, block by block: JSON lines, Python literals, delimited text, CSV and Parquet.

Arrow parses a whole block at once. Where it cannot, or where a value needs a closer look, the block's records are read
one by one instead. A Python literal is parsed, never executed.
"""

import ast
import csv
import gzip
import json
import warnings
import zipfile
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet
from tqdm import tqdm

from gloss_utils.base.errors import GlossError
from gloss_utils.data.rejects import Unusable

BLOCK = 2**22  # bytes parsed at once
LONGEST = 2**24  # bytes of a line that are read
SPAN = 100  # lines that one value of a CSV file may go over
LITERAL = 2**20  # bytes of a Python literal: parsing takes some 500 times as much memory
HEAD = 1000  # lines of JSON that are searched for the names of columns
ROWS = 2**13  # rows of a block of CSV whose values may go over lines

csv.field_size_limit(LONGEST)  # Python's own limit is 128 KiB


@dataclass(frozen=True)
class Layout:
    """How a file is written. fields: the file's column or key for each of our names (user, item, time, rating).

    form: json, literal, delimited, csv or parquet. typed: True for published JSON, in which an id is always a text, a
    time a whole number and a rating a number. text: an item's text, as a template over columns. member: the file
    inside a zip archive. separator, encoding: of delimited text, which knows no quotes. columns: of delimited text and
    CSV. spans: whether a quoted CSV value may go over several lines; if not, a stray quote costs only its own line.
    """

    form: str
    fields: dict[str, str]
    typed: bool = True
    text: str = "{title}"
    member: str | None = None
    separator: str = "\t"
    columns: tuple[str, ...] = ()
    encoding: str = "utf-8"
    spans: bool = False


@dataclass(frozen=True)
class Block:
    """Some records of a file. table: all of them at once, or None where Arrow cannot read them all.

    records: yields of each its place (as "line 7"), what it looks like in the file, and a function that parses it and
    raises `Unusable` where that is not possible.
    """

    table: pa.Table | pa.RecordBatch | None
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
            records = _csv_records(source, first, layout)
            while some := list(islice(records, ROWS)):
                yield Block(None, partial(iter, some))
            return
        table, parse = _parsers(layout, columns, wanted)
        for number, block in _line_blocks(source, first):
            yield Block(table(block), partial(_line_records, number, block, parse))


def _parsers(layout: Layout, columns: dict[str, pa.DataType], wanted) -> tuple[Callable, Callable]:
    """A function that makes a table (or None) of a block, and one that makes a record of a line."""
    if layout.form == "json":
        return partial(_json_table, layout, columns), _json_record
    if layout.form == "literal":
        start = f"{{'{layout.fields['item']}': '".encode()
        return lambda block: None, partial(_literal_record, start, wanted)
    return partial(_csv_table, layout, list(columns)), partial(_csv_record, layout)


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


def _number_of_lines(block: bytes) -> int:
    return block.count(b"\n") + (not block.endswith(b"\n"))


# ---- JSON lines and Python literals


def _json_table(layout: Layout, columns: dict[str, pa.DataType], block: bytes) -> pa.Table | None:
    options = pa.json.ParseOptions(
        explicit_schema=pa.schema(columns) if layout.typed else None,
        unexpected_field_behavior="ignore" if layout.typed else "infer",
    )
    reading = pa.json.ReadOptions(use_threads=False, block_size=len(block) + 1)
    try:
        table = pa.json.read_json(pa.BufferReader(block), reading, options)
        there = set(table.column_names)  # all of a schema's; a column without any value counts as absent
        table = table.select([name for name in columns if name in there and table[name].null_count < len(table)])
        table.validate(full=True)
    except (pa.ArrowException, ValueError):
        return None
    return table if len(table) == _number_of_lines(block) else None


def _json_record(line: bytes):
    try:
        return json.loads(line.decode("utf-8", errors="replace"))
    except (ValueError, RecursionError):
        raise Unusable("it is not JSON") from None


def _literal_record(start: bytes, wanted, line: bytes):
    """A Python literal, or None where it starts with the id (after `start`) of an item that is not wanted."""
    if line.startswith(start):
        found, quote, _ = line[len(start) : len(start) + 100].partition(b"'")
        if quote and b"\\" not in found and found.decode("utf-8", errors="replace") not in wanted:
            return None
    if len(line) > LITERAL:
        raise Unusable(f"it is longer than {LITERAL:,} bytes")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # a lone backslash in a title
            return ast.literal_eval(line.decode("utf-8", errors="replace").strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise Unusable("it is not a Python literal") from None


# ---- delimited text and CSV


def _csv_table(layout: Layout, needed: list[str], block: bytes) -> pa.Table | None:
    delimited = layout.form == "delimited"
    if delimited:
        block = block.replace(layout.separator.encode(), b"\t")  # Arrow takes no separator of two characters
    try:
        table = pa.csv.read_csv(
            pa.BufferReader(block),
            pa.csv.ReadOptions(
                use_threads=False, column_names=layout.columns, block_size=len(block) + 1, encoding=layout.encoding
            ),
            pa.csv.ParseOptions(delimiter="\t", quote_char=False) if delimited else None,
            pa.csv.ConvertOptions(column_types=dict.fromkeys(layout.columns, pa.string()), include_columns=needed),
        )
    except (pa.ArrowException, ValueError):
        return None
    # A quote that is never closed makes one row of many lines; a lone carriage return makes two of one.
    plain = len(table) == _number_of_lines(block) and block.count(b"\r") == block.count(b"\r\n")
    return table if plain else None


def _csv_record(layout: Layout, line: bytes) -> dict:
    """A record that is one line. Delimited text may have more columns than we name, CSV may not."""
    text = line.decode(layout.encoding, errors="replace")
    if layout.form == "delimited":
        values = text.rstrip("\r").split(layout.separator)
        return _with_names(layout, values[: len(layout.columns)])
    reader = csv.reader([text, ""])
    try:
        values = next(reader)
    except csv.Error as error:
        raise Unusable(f"it is not CSV ({error})") from None
    if reader.line_num > 1:
        raise Unusable("a quote in it is not closed (in a table of interactions, no value may go over lines)")
    return _with_names(layout, values)


def _with_names(layout: Layout, values: list[str], problem: str | None = None) -> dict:
    if problem:
        raise Unusable(problem)
    if len(values) != len(layout.columns):
        raise Unusable(f"it has {len(values)} columns, not {len(layout.columns)}")
    return dict(zip(layout.columns, values, strict=True))


def _csv_records(source, number: int, layout: Layout) -> Iterator[tuple[str, bytes, Callable]]:
    """Records whose quoted values may go over lines, from the line of this number on.

    Where quotes do not fit, only the record's first line is given up: what its stray quote swallowed is read again.
    """
    again: deque[bytes] = deque()

    def lines(taken: list[bytes]) -> Iterator[str]:
        while len(taken) < SPAN and (line := again.popleft() if again else source.readline(LONGEST)):
            taken.append(line)
            yield line.decode("utf-8", errors="replace")

    while True:
        taken, values, problem = [], [], None
        try:
            values = next(csv.reader(lines(taken), strict=True), [])
        except csv.Error as error:
            problem = f"it is not CSV ({error})"
        if not taken:
            return
        if len(taken) > 1 and (problem or len(values) != len(layout.columns)):
            problem = "a quote in it is not closed"
            again.extendleft(reversed(taken[1:]))
            del taken[1:]
        if problem or values:
            yield f"line {number}", b"".join(taken), partial(_with_names, layout, values, problem)
        number += len(taken)


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
                yield Block(batch, partial(_row_records, batch, done + 1))
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
            record = _json_record(line)
            names |= dict.fromkeys(record) if isinstance(record, dict) else {}
    return list(names)
