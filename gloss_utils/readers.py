"""Raw files to two frames, block by block: JSON lines, Python literals, delimited text, CSV and Parquet.

Arrow parses a block of lines at once; where anything in it is not as it should be, its records are read one by one, and
those that cannot be used are rejected with a reason. A literal is parsed, never executed.
"""

import ast
import gzip
import json
import math
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from string import Formatter
from typing import Any

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
ENCODED = 2**20  # interactions after which ids become numbers

_PLAIN_IDS = r"^[!-~]+$"


@dataclass(frozen=True)
class Layout:
    """How a file is written. fields: the column or key of what we need, by our name (user, item, time, rating).

    form: json, literal, delimited, csv or parquet. typed: whether published files hold texts as ids, a whole number as
    time and a number as rating, or anything may come. text: of an item, as a template over columns. member: the file
    inside a zip archive. separator, columns, encoding: of delimited text, which quotes nothing.
    """

    form: str
    fields: dict[str, str]
    typed: bool = True
    text: str = "{title}"
    member: str | None = None
    separator: str = "\t"
    columns: tuple[str, ...] = ()
    encoding: str = "utf-8"


# ---- values


def is_id(value) -> bool:
    """Whether a value can name a user or an item: a text without spaces, which separate the columns of TREC files."""
    return isinstance(value, str) and value != "" and value.isprintable() and " " not in value


def whole_characters(text: str) -> str:
    """The text with what no file can hold (half of a surrogate pair, as escapes may spell it) replaced."""
    return text.encode("utf-8", errors="replace").decode("utf-8")


def seconds(value) -> int:
    """A time as a whole number: numbers are rounded down, texts are numbers or ISO 8601 dates (of UTC, if no other).

    Raises `Unusable`.
    """
    if isinstance(value, str):
        try:
            value = float(value) if not value.strip().lstrip("+-").isdigit() else int(value)
        except ValueError:
            try:
                value = datetime.fromisoformat(value.strip())
            except ValueError:
                raise Unusable("time is neither a number nor an ISO 8601 date") from None
    if isinstance(value, datetime):
        value = (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 2**62:
        raise Unusable("time is neither a number nor an ISO 8601 date")
    return math.floor(value)


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
    return user, item, seconds(record[fields["time"]]), None if rating is None else float(rating)


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


def _text(record: dict, template: str) -> str | None:
    """The template filled in, an empty column left out with the words before it; null where all columns are empty."""
    pieces, anything = [], False
    for literal, column, *_ in Formatter().parse(template):
        value = record.get(column) if column else ""
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            value = str(value)
        if value is not None and not isinstance(value, str):
            raise Unusable(f"{column} is not a text")
        if value or not column:
            pieces += [literal, value]
        anything = anything or bool(value)
    return whole_characters("".join(pieces)) if anything else None


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
            zipped = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            if member:
                with zipfile.ZipFile(counted) as archive, archive.open(member) as inner:
                    yield inner
            else:
                yield gzip.GzipFile(fileobj=counted) if zipped else counted
    except (EOFError, gzip.BadGzipFile, zlib.error):
        raise GlossError(
            f"{path} is cut or damaged in the middle of its packed data; delete it and get it again"
        ) from None
    except zipfile.BadZipFile as error:
        raise GlossError(f"{path} is no sound zip archive ({error}); delete it and get it again") from None
    except KeyError:
        raise GlossError(f"{path} has no {member} in it; get it again, as it is published") from None


def _line_blocks(source) -> Iterator[tuple[int, bytes]]:
    """Whole lines, about `BLOCK` bytes at once, and the number of the first; a longer line than `LONGEST` is cut."""
    number, rest = 1, b""
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
        for first, block in _line_blocks(source):

            def one_by_one(first=first, block=block):
                for number, line in enumerate(block.split(b"\n"), first):
                    if line.strip():
                        yield f"line {number}", line, partial(record, line)

            yield table(block), one_by_one


def _rows(batches: Iterator[pa.Table]) -> Iterator[Block]:
    """Blocks of a file that Arrow has cut into rows."""
    done = 0
    for batch in batches:

        def one_by_one(batch=batch, done=done):
            for number, record in enumerate(batch.to_pylist(), done + 1):
                record = {key: _decoded(value) for key, value in record.items()}
                yield f"row {number}", record, lambda record=record: record

        yield batch, one_by_one
        done += len(batch)


def _decoded(value):
    return value.decode("utf-8", errors="replace") if isinstance(value, bytes) else value


def _blocks(
    path: Path,
    layout: Layout,
    columns: dict[str, pa.DataType],
    name: str,
    rejects: Rejects,
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
    if layout.form == "csv":
        return _rows(_csv_batches(path, list(columns), name, rejects))
    return _rows(_parquet_batches(path, list(columns), name))


def _json_table(columns: dict[str, pa.DataType], typed: bool, block: bytes) -> pa.Table | None:
    options = pa.json.ParseOptions(
        explicit_schema=pa.schema(columns) if typed else None,
        unexpected_field_behavior="ignore" if typed else "infer",
    )
    reading = pa.json.ReadOptions(use_threads=False, block_size=len(block) + 1)
    try:
        table = pa.json.read_json(pa.BufferReader(block), reading, options)
        table = table.select([name for name in columns if name in table.column_names])
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


def _csv_batches(path: Path, columns: list[str], name: str, rejects: Rejects) -> Iterator[pa.Table]:
    def another_length(row):
        reason = f"it has {row.actual_columns} columns, not {row.expected_columns}"
        rejects.add(path, f"line {row.number}", reason, row.text)
        return "skip"

    with _opened(path, None, name) as source:
        yield from pa.csv.open_csv(
            pa.PythonFile(source, mode="r"),
            pa.csv.ReadOptions(use_threads=False, block_size=BLOCK),
            pa.csv.ParseOptions(newlines_in_values=True, invalid_row_handler=another_length),
            # Bytes: one that is not UTF-8 shall cost its row only.
            pa.csv.ConvertOptions(
                column_types=dict.fromkeys(columns, pa.binary()),
                include_columns=columns,
                strings_can_be_null=True,
                null_values=[""],
            ),
        )


def _parquet_batches(path: Path, columns: list[str], name: str) -> Iterator[pa.Table]:
    with pa.parquet.ParquetFile(path) as file, tqdm(total=file.metadata.num_rows, desc=name, unit="row") as bar:
        for batch in file.iter_batches(columns=columns, batch_size=2**16):
            bar.update(len(batch))
            yield batch


def columns_of(path: Path, form: str) -> list[str]:
    """The names of the columns of a CSV, JSON-lines (of its first line) or Parquet file.

    Raises `GlossError` where it is no such file.
    """
    try:
        if form == "parquet":
            return pa.parquet.read_schema(path).names
        with open(path, "rb") as raw:
            zipped = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            first = (gzip.GzipFile(fileobj=raw) if zipped else raw).readline(LONGEST)
        if form == "json":
            return list(json.loads(first))
        return pa.csv.read_csv(pa.BufferReader(first)).column_names
    except (pa.ArrowException, ValueError, RecursionError, TypeError, OSError, EOFError) as error:
        raise GlossError(f"{path} cannot be read as {form} ({' '.join(str(error).split())})") from None


# ---- frames


def read_interactions(path: Path, layout: Layout, rejects: Rejects, max_rejected: float) -> pd.DataFrame:
    """Interactions in the file's order: columns user, item (categories), time (int), rating (float, null if absent).

    Raises `GlossError` where more than `max_rejected` (a share of the records) cannot be used, or none can.
    """
    columns = {
        layout.fields["user"]: pa.string(),
        layout.fields["item"]: pa.string(),
        layout.fields["time"]: pa.int64(),
    }
    columns |= {layout.fields["rating"]: pa.float64()} if "rating" in layout.fields else {}
    parts, waiting = [], []
    for table, one_by_one in _blocks(path, layout, columns, "interactions", rejects):
        found = None if table is None else _plain_interactions(table, layout.fields)
        if found is None:
            rows = _usable(path, one_by_one, partial(_interaction, fields=layout.fields), rejects)
            found = pa.Table.from_pylist([dict(zip(INTERACTION.names, row, strict=True)) for row in rows], INTERACTION)
        waiting.append(found)
        if sum(map(len, waiting)) >= ENCODED:
            parts, waiting = [*parts, _encoded(waiting)], []
    parts.append(_encoded([INTERACTION.empty_table(), *waiting]))
    whole = pa.concat_tables(parts).unify_dictionaries()
    rejects.stop_above(max_rejected, path, len(whole), ", ".join(columns))
    return whole.to_pandas(self_destruct=True)


INTERACTION = pa.schema({"user": pa.string(), "item": pa.string(), "time": pa.int64(), "rating": pa.float64()})


def _encoded(tables: list[pa.Table]) -> pa.Table:
    """Tables as one, with numbers for ids."""
    whole = pa.concat_tables(tables).combine_chunks()
    for place, name in enumerate(("user", "item")):
        whole = whole.set_column(place, name, whole[name].dictionary_encode())
    return whole


def _usable(path: Path, one_by_one: Callable, read: Callable, rejects: Rejects) -> Iterator[tuple]:
    for place, shown, record in one_by_one():
        try:
            yield read(record())
        except Unusable as error:
            rejects.add(path, place, str(error), shown)


def _plain_interactions(table: pa.Table, fields: dict[str, str]) -> pa.Table | None:
    """The block with our names and types, or null where a value in it is not plainly usable."""
    if not all(fields[name] in table.column_names for name in ("user", "item", "time")):
        return None
    found = [_plain_ids(table[fields[name]]) for name in ("user", "item")]
    found.append(_plain_times(table[fields["time"]]))
    rating = table[fields["rating"]] if fields.get("rating") in table.column_names else pa.nulls(len(table))
    try:
        found.append(rating.cast(pa.float64()))
    except pa.ArrowException:
        return None
    return None if any(column is None for column in found) else pa.table(found, INTERACTION)


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


def _plain_times(column: pa.ChunkedArray) -> pa.ChunkedArray | None:
    kind = column.type
    try:
        if pa.types.is_binary(kind):
            column = column.cast(pa.string())
        if pa.types.is_timestamp(kind):
            column = pc.floor_temporal(column, unit="second").cast(pa.timestamp("s")).cast(pa.int64())
        elif pa.types.is_floating(kind):
            column = pc.floor(column).cast(pa.int64())
        elif pa.types.is_integer(kind) or pa.types.is_string(column.type):
            column = column.cast(pa.int64())
        else:
            return None
    except pa.ArrowException:
        return None
    if column.null_count or not pc.all(pc.less(pc.abs(column), 2**62)).as_py():
        return None
    return column


def read_items(path: Path, layout: Layout, wanted: set[str], rejects: Rejects, max_rejected: float) -> pd.DataFrame:
    """The `wanted` items in the file's order: columns item, title (the layout's text; null where there is none).

    Of Python literals, which are slow to parse and describe twenty times what is kept, the others are not parsed.
    Raises `GlossError` where more than `max_rejected` (a share of the records read) cannot be used, or none can.
    """
    key, texts = layout.fields["item"], template_columns(layout.text)
    columns = dict.fromkeys((key, *texts), pa.string())
    rows, seen = [], 0
    ids = pa.array(wanted, pa.string())

    def usable(record):
        if record is not None and not isinstance(record, dict):
            raise Unusable("it is not an object with named values")
        return None if record is None else (_id(record, key), _text(record, layout.text))

    for table, one_by_one in _blocks(path, layout, columns, "items", rejects, wanted):
        plain = _plain_items(table, key, texts, ids) if table is not None else None
        if plain is not None:
            seen += len(table)
            rows += [(record[key], _text(record, layout.text)) for record in plain.to_pylist()]
            continue
        for row in _usable(path, one_by_one, usable, rejects):
            seen += 1
            if row is not None and row[0] in wanted:
                rows.append(row)
    rejects.stop_above(max_rejected, path, seen, ", ".join(columns))
    return pd.DataFrame(rows, columns=["item", "title"])


def _plain_items(table: pa.Table, key: str, texts: list[str], wanted: pa.Array) -> pa.Table | None:
    """The wanted rows of a block, all texts; or null where a value in it is not plainly usable."""
    if key not in table.column_names:
        return None
    found = {name: _texts(table[name]) for name in table.column_names if name in (key, *texts)}
    if any(column is None for column in found.values()) or _plain_ids(found[key]) is None:
        return None
    return pa.table(found).filter(pc.is_in(found[key], wanted))
