"""Raw files to two frames, block by block: JSON lines, Python literals, delimited text, CSV and Parquet.

Arrow parses a block of lines at once; where anything in it is not as it should be, its records are read one by one, and
those that cannot be used are rejected with a reason. A literal is parsed, never executed.
"""

import ast
import csv
import gzip
import json
import math
import re
import warnings
import zipfile
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from string import Formatter
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet
from tqdm import tqdm

from gloss_utils.errors import GlossError
from gloss_utils.rejects import Rejects, Unusable

BLOCK = 2**22  # bytes parsed at once
LONGEST = 2**24  # bytes of a line that are read
SPAN = 100  # lines that one value of a CSV file may go over
LITERAL = 2**20  # bytes of a Python literal: parsing takes some 500 times as much memory
ENCODED = 2**20  # interactions after which ids become numbers
HEAD = 1000  # lines of JSON that are looked at for the names of columns

csv.field_size_limit(LONGEST)  # Python's own limit is 128 KiB

INTERACTIONS, ITEMS = "interactions", "items"  # the kinds of records

PYTHON_DATES = -62_135_596_800, 253_402_300_800  # seconds: the years 1 to 9999

_PLAIN_IDS = r"^[!-~]+$"
_PLAIN_TIMES = r"^-?[0-9]+$"  # Arrow would take 0x10 for a number, too


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


# ---- values


def is_id(value) -> bool:
    """Whether a value can name a user or an item: a text without spaces, which separate the columns of TREC files."""
    return isinstance(value, str) and value != "" and value.isprintable() and " " not in value


def whole_characters(text: str) -> str:
    """The text with what no file can hold (half of a surrogate pair, as escapes may spell it) replaced."""
    return text.encode("utf-8", errors="replace").decode("utf-8")


def seconds(value) -> tuple[int, float]:
    """A time as a whole number, rounded down, and the fraction left: of a number, a date, or a text that is a number or
    an ISO 8601 date (of UTC, if no other).

    Raises `Unusable`.
    """
    try:
        if isinstance(value, str):
            value = _written_time(value.strip())
        if isinstance(value, date) and not isinstance(value, datetime):
            value = datetime(value.year, value.month, value.day)
        if isinstance(value, datetime):
            value = (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()
        if not isinstance(value, bool) and math.isfinite(value) and abs(value) < 2**62:
            return math.floor(value), float(value - math.floor(value))
    except (ValueError, TypeError, OverflowError):
        pass
    raise Unusable("time is neither a number nor an ISO 8601 date")


def _written_time(text: str) -> int | float | datetime:
    for read in (int, float, datetime.fromisoformat):
        with suppress(ValueError):
            return read(text)
    raise ValueError


def _id(record: dict, key: str) -> str:
    value = record.get(key)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not is_id(value):
        raise Unusable(f"{key} is not an id (a text without spaces)" if key in record else f"it has no {key}")
    return value


def _interaction(record, fields: dict[str, str]) -> tuple:
    if not isinstance(record, dict):
        raise Unusable("it is not an object with named values")
    user, item = _id(record, fields["user"]), _id(record, fields["item"])
    if fields["time"] not in record:
        raise Unusable(f"it has no {fields['time']}")
    rating = record.get(fields["rating"]) if "rating" in fields else None
    if isinstance(rating, str):
        try:
            rating = float(rating)
        except ValueError:
            raise Unusable(f"{fields['rating']} is not a number") from None
    if rating is not None and (isinstance(rating, bool) or not isinstance(rating, (int, float))):
        raise Unusable(f"{fields['rating']} is not a number")
    time, part = seconds(record[fields["time"]])
    return user, item, time, None if rating is None else float(rating), part


def template_columns(template: str) -> list[str]:
    """The columns that a template as "{title} by {brand}" names. Raises `GlossError` where it is no such template."""
    try:
        parts = list(Formatter().parse(template))
    except ValueError as error:
        raise GlossError(f"item_text is {template!r}, which is no template ({error}); write as {{title}}") from None
    columns = [name for _, name, form, conversion in parts if name and not form and not conversion]
    if not columns or len(columns) != sum(name is not None for _, name, *_ in parts):
        raise GlossError(f"item_text is {template!r}; name columns in braces and nothing else in them, as {{title}}")
    return columns


# Literal text of a template, without brackets; columns in it that are empty, with all such text around them.
_PLAIN = r"[^\0\1(\[“«)\]”»]*"
_GONE = rf"(?:{_PLAIN}\0)+{_PLAIN}"


@lru_cache
def _without(template: str, empty: frozenset[str]) -> tuple[tuple[str, str], ...]:
    """What a template is where some columns are empty: each other column after the literal text before it.

    Brackets around nothing go, and so does text between an empty column and an end, or a bracket; of the texts on both
    sides of an empty column one stays, rather one without words. The last column is "", after the last text.
    """
    parts = [(literal, column or "") for literal, column, *_ in Formatter().parse(template)]
    kept = [column for _, column in parts if column and column not in empty]
    text = "".join(literal + (column and ("\0" if column in empty else "\1")) for literal, column in parts)
    before = None
    while text != before:
        before, text = text, re.sub(rf"[(\[“«]{_GONE}[)\]”»]", "\0", text)
    text = re.sub(rf"(^|[(\[“«]){_GONE}", r"\1", text)
    text = re.sub(rf"{_GONE}($|[)\]”»])", r"\1", text)
    text = re.sub(_GONE, _between, text)
    if empty:
        text = re.sub(r"^[(\[“«]([^(\[“«)\]”»]*)[)\]”»]$", r"\1", text)
    return tuple(zip(text.split("\1"), [*kept, ""], strict=True))


def _between(gone: re.Match) -> str:
    texts = [text for text in gone[0].split("\0") if text]
    return next((text for text in reversed(texts) if not any(map(str.isalnum, text))), "".join(texts[-1:]))


def _text(record: dict, template: str, columns: list[str]) -> str | None:
    """The template filled in, without what belongs to empty columns (see `_without`); null where all are empty."""
    values = {column: _filling(record.get(column), column) for column in columns}
    empty = frozenset(column for column, value in values.items() if not value)
    if len(empty) == len(values):
        return None
    return whole_characters("".join(literal + values.get(column, "") for literal, column in _without(template, empty)))


def _filling(value, column: str) -> str:
    if isinstance(value, (int, float, Decimal)) and not isinstance(value, bool):
        return str(value) if isinstance(value, int) or math.isfinite(value) else ""
    if value is not None and not isinstance(value, str):
        raise Unusable(f"{column} is not a text")
    return value if value and value.strip() else ""


# ---- records, block by block

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


def _blocks(
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


# ---- frames


def read_interactions(path: Path, layout: Layout, rejects: Rejects, max_rejected: float) -> pd.DataFrame:
    """Interactions in the file's order: columns user, item (categories), time (int), rating (float, null if absent).

    Times are rounded down; where any has a fraction, all are in the order of exact time instead.
    Raises `GlossError` where more than `max_rejected` (a share of the records) cannot be used, or none can.
    """
    columns = {
        layout.fields["user"]: pa.string(),
        layout.fields["item"]: pa.string(),
        layout.fields["time"]: pa.int64(),
    }
    columns |= {layout.fields["rating"]: pa.float64()} if "rating" in layout.fields else {}
    parts, waiting = [], []
    for table, one_by_one in _blocks(path, layout, columns, INTERACTIONS):
        found = None if table is None else _plain_interactions(table, layout.fields)
        if found is None:
            rows = _usable(path, INTERACTIONS, one_by_one, partial(_interaction, fields=layout.fields), rejects)
            found = pa.Table.from_pylist([dict(zip(INTERACTION.names, row, strict=True)) for row in rows], INTERACTION)
        waiting.append(found)
        if sum(map(len, waiting)) >= ENCODED:
            parts, waiting = [*parts, _encoded(waiting)], []
    parts.append(_encoded([INTERACTION.empty_table(), *waiting]))
    whole = pa.concat_tables(parts).unify_dictionaries()
    rejects.stop_above(max_rejected, path, len(whole), ", ".join(columns), INTERACTIONS)
    frame = whole.to_pandas(self_destruct=True)
    part = frame.pop("part")
    return frame.iloc[np.lexsort((part, frame["time"]))].reset_index(drop=True) if part.any() else frame


INTERACTION = pa.schema(
    {"user": pa.string(), "item": pa.string(), "time": pa.int64(), "rating": pa.float64(), "part": pa.float32()}
)


def _encoded(tables: list[pa.Table]) -> pa.Table:
    """Tables as one, with numbers for ids."""
    whole = pa.concat_tables(tables).combine_chunks()
    for place, name in enumerate(("user", "item")):
        whole = whole.set_column(place, name, whole[name].dictionary_encode())
    return whole


def _usable(path: Path, kind: str, one_by_one: Callable, read: Callable, rejects: Rejects) -> Iterator[tuple]:
    for place, shown, record in one_by_one():
        try:
            yield read(record())
        except Unusable as error:
            rejects.add(path, place, str(error), shown, kind)


def _plain_interactions(table: pa.Table, fields: dict[str, str]) -> pa.Table | None:
    """The block with our names and types, or null where a value in it is not plainly usable."""
    if not all(fields[name] in table.column_names for name in ("user", "item", "time")):
        return None
    found = [_plain_ids(table[fields[name]]) for name in ("user", "item")]
    times = _plain_times(table[fields["time"]])
    rating = table[fields["rating"]] if fields.get("rating") in table.column_names else pa.nulls(len(table))
    try:
        rating = rating.cast(pa.float64())
    except pa.ArrowException:
        return None
    if times is None or any(column is None for column in found):
        return None
    return pa.table([*found, times[0], rating, times[1].cast(pa.float32())], INTERACTION)


def _plain_ids(column: pa.ChunkedArray) -> pa.ChunkedArray | None:
    column = _texts(column)
    if column is None or column.null_count:
        return None
    if pc.all(pc.match_substring_regex(column, _PLAIN_IDS)).as_py() or all(map(is_id, pc.unique(column).to_pylist())):
        return column
    return None


def _texts(column: pa.ChunkedArray) -> pa.ChunkedArray | None:
    """Texts, or whole numbers as texts; null where the column is neither."""
    kind = column.type
    if not (
        pa.types.is_string(kind)
        or pa.types.is_binary(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_integer(kind)
    ):
        return None
    try:
        return column.cast(pa.string())
    except pa.ArrowException:
        return None


def _plain_times(column: pa.ChunkedArray) -> tuple[pa.ChunkedArray, pa.Array | pa.ChunkedArray] | None:
    """What `seconds` says of each, or null where one is not plainly a time."""
    kind, part, low, high = column.type, pa.repeat(0.0, len(column)), 1 - 2**62, 2**62
    if pa.types.is_temporal(kind):
        low, high = PYTHON_DATES
    try:
        if pa.types.is_timestamp(kind):
            whole = pc.floor_temporal(column, unit="second").cast(pa.timestamp("s")).cast(pa.int64())
            per = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[kind.unit]
            part = pc.divide(pc.subtract(column.cast(pa.int64()), pc.multiply(whole, per)).cast(pa.float64()), per)
        elif pa.types.is_date(kind):
            whole = column.cast(pa.timestamp("s")).cast(pa.int64())
        elif pa.types.is_floating(kind):
            floor = pc.floor(column)
            whole, part = floor.cast(pa.int64()), pc.subtract(column, floor)
        elif pa.types.is_integer(kind):
            whole = column.cast(pa.int64())
        elif (texts := _texts(column)) is not None and pc.all(pc.match_substring_regex(texts, _PLAIN_TIMES)).as_py():
            whole = texts.cast(pa.int64())
        else:
            return None
    except pa.ArrowException:
        return None
    inside = pc.and_(pc.greater_equal(whole, low), pc.less(whole, high))
    return None if column.null_count or not pc.all(inside).as_py() else (whole, part)


def read_items(path: Path, layout: Layout, wanted: set[str], rejects: Rejects, max_rejected: float) -> pd.DataFrame:
    """The `wanted` items in the file's order: columns item, title (the layout's text; null where there is none).

    Of Python literals, which are slow to parse and describe twenty times what is kept, the others are not parsed.
    Raises `GlossError` where more than `max_rejected` (a share of the records read) cannot be used, or none can, or
    none has a column of the template.
    """
    key, texts = layout.fields["item"], template_columns(layout.text)
    columns = dict.fromkeys((key, *texts), pa.string())
    rows, seen, lacking = [], 0, set(texts)
    ids = pa.array(wanted, pa.string())

    def usable(record):
        if record is not None and not isinstance(record, dict):
            raise Unusable("it is not an object with named values")
        lacking.difference_update(record or ())
        return None if record is None else (_id(record, key), _text(record, layout.text, texts))

    for table, one_by_one in _blocks(path, layout, columns, ITEMS, wanted):
        plain = _plain_items(table, key, texts, ids) if table is not None else None
        if plain is not None:
            seen += len(table)
            lacking.difference_update(table.column_names)
            rows += [(record[key], _text(record, layout.text, texts)) for record in plain.to_pylist()]
            continue
        for row in _usable(path, ITEMS, one_by_one, usable, rejects):
            seen += 1
            if row is not None and row[0] in wanted:
                rows.append(row)
    rejects.stop_above(max_rejected, path, seen, ", ".join(columns), ITEMS)
    if lacking:
        raise GlossError(f"no record of {path} has {min(lacking)!r}, which item_text names; name columns of the file")
    return pd.DataFrame(rows, columns=["item", "title"])


def _plain_items(table: pa.Table, key: str, texts: list[str], wanted: pa.Array) -> pa.Table | None:
    """The wanted rows of a block, all texts; or null where a value in it is not plainly usable."""
    if key not in table.column_names:
        return None
    found = {name: _texts(table[name]) for name in table.column_names if name in (key, *texts)}
    if any(column is None for column in found.values()) or _plain_ids(found[key]) is None:
        return None
    return pa.table(found).filter(pc.is_in(found[key], wanted))
