"""Raw files, packed or not, as blocks of records: JSON lines, Python literals, delimited text, CSV and Parquet.

Arrow makes a table of a whole block. Where it cannot, or where a value needs a closer look, the block's records are
parsed one by one. (CSV with quotes always is: Arrow takes stray quotes without a word, and with them the rows that
follow.) A Python literal is parsed, never executed.
"""

import ast
import codecs
import csv
import gzip
import json
import warnings
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
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
from gloss_utils.data.raw_lines import LONGEST, each_line, first_line, is_gzip, line_blocks, lines, opened
from gloss_utils.data.rejects import Unusable

LITERAL = 2**20  # bytes of a Python literal: parsing takes some 500 times as much memory
SPAN = 100  # lines that one value of a CSV file may go over
ROWS = 2**13  # rows of a block of CSV whose values may go over lines
HEAD = 1000  # lines of JSON that are searched for the names of columns

csv.field_size_limit(LONGEST)  # Python's own limit is 128 KiB


@dataclass(frozen=True)
class RawFile:
    """A file of records, and how it is written. path: on this machine, or under the address of a collection.

    form: json, literal, delimited, csv or parquet. fields: the file's column or key for each of our names (user, item,
    time, rating). typed: True for published JSON, in which an id is always a text, a time a whole number and a rating a
    number. text: an item's text, as a template over columns. member: the file inside a zip archive. separator,
    encoding: of delimited text, which knows no quotes. columns: of delimited text and CSV. spans: whether a quoted CSV
    value may go over several lines; if not, a stray quote costs only its own line.
    """

    path: str | Path
    form: str
    fields: dict[str, str]
    typed: bool = True
    text: str = "{title}"
    member: str | None = None
    separator: str = ","
    columns: tuple[str, ...] = ()
    encoding: str = "utf-8"
    spans: bool = False


@dataclass(frozen=True)
class Block:
    """Some records of a file; it can be pickled, for other processes.

    records: yields the place of each (as "line 7") and how it is written in the file (see `parser`). table: makes one
    table of the whole block; raises one of `NOT_PLAIN` where it cannot. Only interactions are read by it.
    """

    records: Callable[[], Iterable[tuple[str, Any]]]
    table: Callable[[], pa.Table] | None = None


NOT_PLAIN = (pa.ArrowException, KeyError, ValueError)


def parser(file: RawFile, wanted=frozenset()) -> Callable[[Any], Any]:
    """What makes a record of how it is written in such a file; it raises `Unusable`.

    wanted: ids of items. Python literals are slow to parse: those of all other items give nothing but the id.
    """
    return {
        "json": json_record,
        "literal": partial(_literal_record, file.fields["item"], wanted),
        "delimited": partial(_delimited_record, file),
        "csv": partial(_csv_record, file.columns),
        "parquet": dict,
    }[file.form]


def blocks(file: RawFile, columns: dict[str, pa.DataType], name: str) -> Iterator[Block]:
    """Yield a file as `Block`s.

    columns: those that are needed, with their types in published files. name: of the progress bar.
    Raises `GlossError` where the file is damaged.
    """
    if file.form == "parquet":
        yield from _parquet_blocks(file.path, list(columns), name)
        return
    table = _json_table if file.form == "json" else _delimited_table
    with opened(file.path, file.member, name) as source:
        number = first_line(source)[1] + 1 if file.form == "csv" else 1
        if file.spans:
            records = _csv_records(each_line(source), number, file.columns)
            while some := list(islice(records, ROWS)):
                yield Block(partial(iter, some))
            return
        for first, block in line_blocks(source, number):
            yield Block(partial(lines, first, block), partial(table, file, columns, block))


# ---- JSON lines and Python literals


def _one_row_per_line(table: pa.Table, block: bytes) -> pa.Table:
    if len(table) != block.count(b"\n") + (not block.endswith(b"\n")):
        raise ValueError("a row is not a line")
    return table


def _json_table(file: RawFile, columns: dict[str, pa.DataType], block: bytes) -> pa.Table:
    options = pa.json.ParseOptions(
        explicit_schema=pa.schema(columns) if file.typed else None,
        unexpected_field_behavior="ignore" if file.typed else "infer",
    )
    reading = pa.json.ReadOptions(use_threads=False, block_size=len(block) + 1)
    table = pa.json.read_json(pa.BufferReader(block), reading, options)
    there = set(table.column_names)  # all of a schema's; a column without any value counts as absent
    table = table.select([name for name in columns if name in there and table[name].null_count < len(table)])
    table.validate(full=True)
    return _one_row_per_line(table, block)


def json_record(line: bytes):
    """What a line of JSON says. Raises `Unusable`."""
    try:
        return json.loads(line.decode("utf-8", errors="replace"))
    except (ValueError, RecursionError):
        raise Unusable("it is not JSON") from None


def _literal_record(key: str, wanted, line: bytes):
    """A Python literal; nothing but the id where it starts with that of an item that is not wanted."""
    start = f"{{'{key}': '".encode()
    if line.startswith(start):
        found, quote, _ = line[len(start) : len(start) + 100].partition(b"'")
        item = found.decode("utf-8", errors="replace")
        if quote and b"\\" not in found and item not in wanted:
            return {key: item}
    if len(line) > LITERAL:
        raise Unusable(f"it is longer than {LITERAL:,} bytes")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # a lone backslash in a title
            return ast.literal_eval(line.decode("utf-8", errors="replace").strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise Unusable("it is not a Python literal") from None


# ---- delimited text and CSV


def _delimited_table(file: RawFile, columns: dict[str, pa.DataType], block: bytes) -> pa.Table:
    """A table of delimited text, or of CSV without quotes, which is the same."""
    if (file.form == "csv" and b'"' in block) or block.count(b"\r") != block.count(b"\r\n"):
        raise ValueError("Arrow would see other lines than we do")
    separator = file.separator
    if len(separator) > 1:  # Arrow takes no such separator
        block, separator = block.replace(separator.encode(), b"\t"), "\t"
    table = pa.csv.read_csv(
        pa.BufferReader(block),
        pa.csv.ReadOptions(
            use_threads=False, column_names=file.columns, block_size=len(block) + 1, encoding=file.encoding
        ),
        pa.csv.ParseOptions(delimiter=separator, quote_char=False),
        pa.csv.ConvertOptions(column_types=dict.fromkeys(columns, pa.string()), include_columns=list(columns)),
    )
    return _one_row_per_line(table, block)


def _delimited_record(file: RawFile, line: bytes) -> dict:
    """A record of delimited text, which may have more columns than we name."""
    values = line.decode(file.encoding, errors="replace").rstrip("\r").split(file.separator)
    return _with_names(file.columns, values[: len(file.columns)])


def _csv_record(columns: tuple[str, ...], text: bytes) -> dict:
    try:
        return _with_names(columns, _csv_values([text]))
    except csv.Error as error:
        unclosed = "unexpected end" in str(error)
        raise Unusable("a quote in it is not closed" if unclosed else f"it is not CSV ({error})") from None


def _csv_values(lines: Iterable[bytes]) -> list[str]:
    """The values of the first record. Raises `csv.Error`, also where a quote in it is never closed."""
    return next(csv.reader((line.decode("utf-8", errors="replace") for line in lines), strict=True), [])


def _with_names(columns: tuple[str, ...], values: list[str]) -> dict:
    if len(values) != len(columns):
        raise Unusable(f"it has {len(values)} columns, not {len(columns)}")
    return dict(zip(columns, values, strict=True))


def _csv_records(source: Iterator[bytes], number: int, columns: tuple[str, ...]) -> Iterator[tuple[str, bytes]]:
    """Records whose quoted values may go over lines, from the line of this number on.

    A stray quote would swallow the lines after it. So, where a record cannot be read, only its first line is given up,
    and the lines after that are read again.
    """
    again: deque[bytes] = deque()

    def more(taken: list[bytes]) -> Iterator[bytes]:
        while len(taken) < SPAN and (line := again.popleft() if again else next(source, b"")):
            taken.append(line)
            yield line

    while True:
        taken, values = [], []
        with suppress(csv.Error):
            values = _csv_values(more(taken))
        if not taken:
            return
        if len(values) != len(columns):
            again.extendleft(reversed(taken[1:]))
            del taken[1:]
        record = b"".join(taken)
        if record.strip():
            yield f"line {number}", record
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
                yield Block(partial(_rows, batch, done + 1), partial(pa.Table.from_batches, [batch]))
                done += len(batch)
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise GlossError(f"{path} is damaged and cannot be read as Parquet ({reason}); make it again") from None


def _rows(batch: pa.RecordBatch, number: int) -> Iterator[tuple[str, dict]]:
    for place, row in enumerate(zip(*batch.columns, strict=True), number):
        yield f"row {place}", dict(zip(batch.column_names, map(_value, row), strict=True))


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
            source = gzip.GzipFile(fileobj=raw) if is_gzip(raw) else raw
            if form == "csv":
                names = _csv_values([first_line(source)[0].removeprefix(codecs.BOM_UTF8)])
            else:
                names = _json_names(islice(each_line(source), HEAD))
        if not names:
            raise ValueError("no column is named in it")
    except (pa.ArrowException, ValueError, csv.Error, OSError, EOFError, zlib.error) as error:
        raise GlossError(f"{path} cannot be read as {form} ({' '.join(str(error).split())})") from None
    return names


def _json_names(lines: Iterable[bytes]) -> list[str]:
    names = {}
    for line in lines:
        with suppress(Unusable):
            record = json_record(line)
            names |= dict.fromkeys(record) if isinstance(record, dict) else {}
    return list(names)
