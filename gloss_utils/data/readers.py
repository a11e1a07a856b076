"""Raw files to two frames, interactions and items: a block of records at once where all in it is as it should be, else
one by one, and those that cannot be used are rejected with a reason."""

import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, date, datetime
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from gloss_utils.base.errors import GlossError
from gloss_utils.data import templates
from gloss_utils.data.blocks import Layout, blocks
from gloss_utils.data.rejects import Rejects, Unusable

ENCODED = 2**20  # interactions after which ids become numbers
INTERACTIONS, ITEMS = "interactions", "items"  # the kinds of records
PYTHON_DATES = -62_135_596_800, 253_402_300_800  # seconds: the years 1 to 9999

_PLAIN_IDS = r"^[!-~]+$"
_PLAIN_TIMES = r"^-?[0-9]+$"  # Arrow would take 0x10 for a number, too

# ---- values


def is_id(value) -> bool:
    """Whether a value can name a user or an item: a text without spaces, which separate the columns of TREC files."""
    return isinstance(value, str) and value != "" and value.isprintable() and " " not in value


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
    for table, one_by_one in blocks(path, layout, columns, INTERACTIONS):
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
    key, texts = layout.fields["item"], templates.columns(layout.text)
    columns = dict.fromkeys((key, *texts), pa.string())
    rows, seen, lacking = [], 0, set(texts)
    ids = pa.array(wanted, pa.string())

    def usable(record):
        if record is not None and not isinstance(record, dict):
            raise Unusable("it is not an object with named values")
        lacking.difference_update(record or ())
        return None if record is None else (_id(record, key), templates.fill(record, layout.text, texts))

    for table, one_by_one in blocks(path, layout, columns, ITEMS, wanted):
        plain = _plain_items(table, key, texts, ids) if table is not None else None
        if plain is not None:
            seen += len(table)
            lacking.difference_update(table.column_names)
            rows += [(record[key], templates.fill(record, layout.text, texts)) for record in plain.to_pylist()]
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
