"""Raw files as records, block by block: JSON lines, Python literals, delimited text, CSV and Parquet.

Arrow parses a block of lines at once; what it cannot, is read record by record. A literal is parsed, never executed.
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
HEAD = 1000  # lines of JSON that are looked at for the names of columns

csv.field_size_limit(LONGEST)  # Python's own limit is 128 KiB


@dataclass(frozen=True)
class Layout:
    """How a file is written. fields: the column or key of what we need, by our name (user, item, time, rating).

    form: json, literal, delimited, csv or parquet. typed: whether published files hold texts as ids, a whole number as
    time and a number as rating, or anything may come. text: of an item, as a template over columns. member: the file
    inside a zip archive. separator, encoding: of delimited text, which quotes nothing. columns: of delimited text and
    CSV. spans: whether a quoted value of CSV may go over lines; where it may not, a stray quote costs its line only.
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


Block = tuple[
    pa.Table | None, Callable[[], Iterator[tuple[str, Any, Any]]]
]  # a table if all is plain; place, what, record


@contextmanager
def _opened(path: Path, member: str | None, name: str) -> Iterator[Any]:
    """The file's bytes, unpacked, with a progress bar over what is read of the disk."""
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


def _header(source) -> tuple[bytes, int]:
    """The first line that is not blank, and the number of the next."""
    number = 1
    while (line := source.readline(LONGEST)) and not line.strip():
        number += 1
    return line, number + 1


def _line_blocks(source, number: int) -> Iterator[tuple[int, bytes]]:
    """Whole lines, about `BLOCK` bytes at once, and the number of the first; a longer line than `LONGEST` is cut."""
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


def _lines(path: Path, layout: Layout, name: str, table: Callable, record: Callable) -> Iterator[Block]:
    """Blocks of a file of lines. table: bytes to a table, or null; record: a line's bytes to a record."""
    with _opened(path, layout.member, name) as source:
        number = _header(source)[1] if layout.form == "csv" else 1
        for first, block in _line_blocks(source, number):

            def one_by_one(first=first, block=block):
                for place, line in enumerate(block.split(b"\n"), first):
                    if line.strip():
                        yield f"line {place}", line, partial(record, line)

            yield table(block), one_by_one


def _rows(batches: Iterator[pa.Table]) -> Iterator[Block]:
    """Blocks of a file that Arrow has cut into rows."""
    done = 0
    for batch in batches:

        def one_by_one(batch=batch, done=done):
            values = [_values(column) for column in batch.columns]
            for number, row in enumerate(zip(*values, strict=True), done + 1):
                record = dict(zip(batch.column_names, row, strict=True))
                yield f"row {number}", record, lambda record=record: record

        yield batch, one_by_one
        done += len(batch)


def _values(column: pa.Array) -> list:
    """A column's values; null for one that Python has no value for, as the year 10000."""
    if pa.types.is_string(column.type) or pa.types.is_binary(column.type):  # bytes: not all may be UTF-8
        return [value and value.decode("utf-8", errors="replace") for value in column.cast(pa.binary()).to_pylist()]
    try:
        return column.to_pylist()
    except (ValueError, OverflowError):
        return [_value(scalar) for scalar in column]


def _value(scalar: pa.Scalar):
    try:
        return scalar.as_py()
    except (ValueError, OverflowError):
        return None


def blocks(
    path: Path,
    layout: Layout,
    columns: dict[str, pa.DataType],
    name: str,
    wanted: set[str] = frozenset(),
) -> Iterator[Block]:
    """A file as blocks; columns: what is needed of it, and its type in published files."""
    if layout.form == "json":
        return _lines(path, layout, name, partial(_json_table, columns, layout.typed), _json_record)
    if layout.form == "literal":
        return _lines(
            path,
            layout,
            name,
            lambda block: None,
            partial(_literal_record, f"{{'{layout.fields['item']}': '".encode(), wanted),
        )
    if layout.form == "delimited":
        return _lines(path, layout, name, partial(_delimited_table, layout), partial(_delimited_record, layout))
    if layout.form == "csv" and layout.spans:
        return _csv_rows(path, layout, name)
    if layout.form == "csv":
        return _lines(path, layout, name, partial(_csv_table, layout, list(columns)), partial(_csv_record, layout))
    return _rows(_parquet_batches(path, list(columns), name))


def _json_table(columns: dict[str, pa.DataType], typed: bool, block: bytes) -> pa.Table | None:
    options = pa.json.ParseOptions(
        explicit_schema=pa.schema(columns) if typed else None,
        unexpected_field_behavior="ignore" if typed else "infer",
    )
    reading = pa.json.ReadOptions(use_threads=False, block_size=len(block) + 1)
    try:
        table = pa.json.read_json(pa.BufferReader(block), reading, options)
        there = set(table.column_names)  # all of a schema's, and those null throughout are as good as absent
        table = table.select([name for name in columns if name in there and table[name].null_count < len(table)])
        table.validate(full=True)
    except (pa.ArrowException, ValueError):
        return None
    return table if len(table) == block.count(b"\n") + (not block.endswith(b"\n")) else None


def _json_record(line: bytes):
    try:
        return json.loads(line.decode("utf-8", errors="replace"))
    except (ValueError, RecursionError):
        raise Unusable("it is not JSON") from None


def _literal_record(start: bytes, wanted: set[str], line: bytes):
    """A Python literal, or null where it starts with the id (after `start`) of an item that is not wanted."""
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


def _delimited_table(layout: Layout, block: bytes) -> pa.Table | None:
    try:
        return pa.csv.read_csv(
            pa.BufferReader(block.replace(layout.separator.encode(), b"\t")),
            pa.csv.ReadOptions(
                use_threads=False, column_names=layout.columns, block_size=len(block) + 1, encoding=layout.encoding
            ),
            pa.csv.ParseOptions(delimiter="\t", quote_char=False),
            pa.csv.ConvertOptions(column_types=dict.fromkeys(layout.columns, pa.string())),
        )
    except (pa.ArrowException, ValueError):
        return None


def _delimited_record(layout: Layout, line: bytes) -> dict:
    values = line.decode(layout.encoding, errors="replace").rstrip("\r").split(layout.separator)
    if len(values) < len(layout.columns):
        raise Unusable(f"it has {len(values)} columns, not {len(layout.columns)}")
    return dict(zip(layout.columns, values, strict=False))


def _csv_table(layout: Layout, needed: list[str], block: bytes) -> pa.Table | None:
    try:
        table = pa.csv.read_csv(
            pa.BufferReader(block),
            pa.csv.ReadOptions(use_threads=False, column_names=layout.columns, block_size=len(block) + 1),
            convert_options=pa.csv.ConvertOptions(
                column_types=dict.fromkeys(layout.columns, pa.string()), include_columns=needed
            ),
        )
    except (pa.ArrowException, ValueError):
        return None
    # A quote that is never closed makes one row of many lines; a lone carriage return makes two of one.
    lines = block.count(b"\n") + (not block.endswith(b"\n"))
    return table if len(table) == lines and block.count(b"\r") == block.count(b"\r\n") else None


def _csv_record(layout: Layout, line: bytes) -> dict:
    reader = csv.reader([line.decode("utf-8", errors="replace"), ""])
    try:
        values = next(reader)
    except csv.Error as error:
        raise Unusable(f"it is not CSV ({error})") from None
    if reader.line_num > 1:
        raise Unusable("a quote in it is not closed (in a table of interactions, no value may go over lines)")
    return _named(layout, values)


def _named(layout: Layout, values: list[str]) -> dict:
    if len(values) != len(layout.columns):
        raise Unusable(f"it has {len(values)} columns, not {len(layout.columns)}")
    return dict(zip(layout.columns, values, strict=True))


def _csv_rows(path: Path, layout: Layout, name: str) -> Iterator[Block]:
    with _opened(path, None, name) as source:
        records = _csv_spans(source, layout)
        while block := list(islice(records, 2**13)):
            yield None, partial(iter, block)


def _csv_spans(source, layout: Layout) -> Iterator[tuple[str, bytes, Callable]]:
    """Records whose quoted values may go over lines. Of one that is not sound, the first line alone is given up: what
    a stray quote has swallowed is read again."""
    _, number = _header(source)
    ahead: deque[bytes] = deque()

    def lines(taken: list[bytes]) -> Iterator[str]:
        while len(taken) < SPAN and (line := ahead.popleft() if ahead else source.readline(LONGEST)):
            taken.append(line)
            yield line.decode("utf-8", errors="replace")

    while True:
        taken, problem, values = [], None, None
        try:
            values = next(csv.reader(lines(taken), strict=True), None)
        except csv.Error as error:
            problem = f"it is not CSV ({error})"
        if not taken:
            return
        if len(taken) > 1 and (problem or len(values) != len(layout.columns)):
            problem = "a quote in it is not closed"
            ahead.extendleft(reversed(taken[1:]))
            del taken[1:]
        if problem or values:
            yield f"line {number}", b"".join(taken), partial(_sound, layout, problem, values)
        number += len(taken)


def _sound(layout: Layout, problem: str | None, values: list[str]) -> dict:
    if problem:
        raise Unusable(problem)
    return _named(layout, values)


def _parquet_batches(path: Path, columns: list[str], name: str) -> Iterator[pa.Table]:
    try:
        with (
            pa.parquet.ParquetFile(path, page_checksum_verification=True) as file,
            tqdm(total=file.metadata.num_rows, desc=name, unit="row") as bar,
        ):
            for batch in file.iter_batches(columns=columns, batch_size=2**16):
                batch.validate(full=True)
                bar.update(len(batch))
                yield batch
    except (pa.ArrowException, OSError) as error:
        told = " ".join(str(error).split())[:200]
        raise GlossError(f"{path} is damaged and cannot be read as Parquet ({told}); make it again") from None


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
    return next(csv.reader([_header(source)[0].decode("utf-8-sig")], strict=True), [])


def _json_names(source) -> list[str]:
    names = {}
    for line in islice(iter(partial(source.readline, LONGEST), b""), HEAD):
        with suppress(Unusable):
            record = _json_record(line)
            names |= dict.fromkeys(record) if isinstance(record, dict) else {}
    return list(names)
