"""The forms of text in which records are published: JSON lines, Python literals, delimited text and CSV.

Each form has two ways of reading: Arrow makes a table of a whole block of lines, or Python makes a record of each line.
A Python literal is parsed, never executed.
"""

import ast
import csv
import json
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import pyarrow as pa
import pyarrow.csv
import pyarrow.json

from gloss_utils.data.rejects import Unusable

LONGEST = 2**24  # bytes of a line that are read
SPAN = 100  # lines that one value of a CSV file may go over
LITERAL = 2**20  # bytes of a Python literal: parsing takes some 500 times as much memory

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


def parsers(layout: Layout, columns: dict[str, pa.DataType], wanted) -> tuple[Callable, Callable]:
    """Two functions: one makes a table of a block of lines, or None where it cannot; one makes a record of a line, or
    raises `Unusable`."""
    if layout.form == "json":
        return partial(_json_table, layout, columns), json_record
    if layout.form == "literal":
        start = f"{{'{layout.fields['item']}': '".encode()
        return lambda block: None, partial(_literal_record, start, wanted)
    return partial(_csv_table, layout, list(columns)), partial(_csv_record, layout)


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


def json_record(line: bytes):
    """What a line of JSON says. Raises `Unusable`."""
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


def csv_records(source: Iterator[bytes], number: int, layout: Layout) -> Iterator[tuple[str, bytes, Callable]]:
    """Records whose quoted values may go over lines, from the line of this number on.

    Where quotes do not fit, only the record's first line is given up: what its stray quote swallowed is read again.
    """
    again: deque[bytes] = deque()

    def lines(taken: list[bytes]) -> Iterator[str]:
        while len(taken) < SPAN and (line := again.popleft() if again else next(source, b"")):
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
