"""Raw files to two frames, interactions and items.

A block of records is taken as a whole where all its values are as they should be. Else its records are looked at one by
one, and those that cannot be used are rejected with a reason.
"""

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
from gloss_utils.data.blocks import Block, blocks
from gloss_utils.data.formats import Layout
from gloss_utils.data.rejects import Rejects, Unusable

ENCODED = 2**20  # interactions after which ids become numbers, which take less memory
INTERACTIONS, ITEMS = "interactions", "items"  # the kinds of records
INTERACTION = pa.schema(
    {"user": pa.string(), "item": pa.string(), "time": pa.int64(), "rating": pa.float64(), "part": pa.float32()}
)

_PLAIN_IDS = r"^[!-~]+$"
_PLAIN_TIMES = r"^-?[0-9]+$"  # Arrow would take 0x10 for a number, too

# ---- single values


def is_id(value) -> bool:
    """Whether a value can name a user or an item: a text without spaces, which separate the columns of TREC files."""
    return isinstance(value, str) and value != "" and value.isprintable() and " " not in value


def seconds(value) -> tuple[int, float]:
    """A time as a whole number, rounded down, and the fraction that is left.

    value: a number, a date, or a text that is a number or an ISO 8601 date (in UTC where it names no time zone).
    Raises `Unusable`.
    """
    try:
        if isinstance(value, str):
            value = _time_of_text(value.strip())
        if isinstance(value, date) and not isinstance(value, datetime):
            value = datetime(value.year, value.month, value.day)
        if isinstance(value, datetime):
            value = (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()
        if not isinstance(value, bool) and math.isfinite(value) and abs(value) < 2**62:
            return math.floor(value), float(value - math.floor(value))
    except (ValueError, TypeError, OverflowError):
        pass
    raise Unusable("time is neither a number nor an ISO 8601 date")


def _time_of_text(text: str) -> int | float | datetime:
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


def _rating(record: dict, key: str | None) -> float | None:
    value = record.get(key)
    with suppress(ValueError, TypeError, OverflowError):
        if not isinstance(value, bool):
            return None if value is None else float(value)
    raise Unusable(f"{key} is not a number")


def _interaction(record, fields: dict[str, str]) -> tuple:
    if not isinstance(record, dict):
        raise Unusable("it is not an object with named values")
    user, item = _id(record, fields["user"]), _id(record, fields["item"])
    if fields["time"] not in record:
        raise Unusable(f"it has no {fields['time']}")
    rating = _rating(record, fields.get("rating"))
    time, part = seconds(record[fields["time"]])
    return user, item, time, rating, part


def _usable(path: Path, kind: str, block: Block, read: Callable, rejects: Rejects) -> Iterator[tuple]:
    """What `read` makes of a block's records, without those that it calls unusable, which are noted."""
    for place, shown, parse in block.records():
        try:
            yield read(parse())
        except Unusable as error:
            rejects.add(path, place, str(error), shown, kind)


# ---- interactions


def read_interactions(path: Path, layout: Layout, rejects: Rejects, max_rejected: float) -> pd.DataFrame:
    """Interactions in the file's order: columns user, item (categories), time (int), rating (float, null if absent).

    Times are rounded down; where any has a fraction, all are in the order of exact time instead.
    Raises `GlossError` where more than `max_rejected` (a share of the records) cannot be used, or none can.
    """
    fields = layout.fields
    columns = {
        fields[name]: INTERACTION.field(name).type for name in ("user", "item", "time", "rating") if name in fields
    }
    parts, waiting = [], []
    for block in blocks(path, layout, columns, INTERACTIONS):
        found = None if block.table is None else _plain_interactions(block.table, fields)
        if found is None:
            rows = _usable(path, INTERACTIONS, block, partial(_interaction, fields=fields), rejects)
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


def _encoded(tables: list[pa.Table]) -> pa.Table:
    """Tables as one, with numbers for ids."""
    whole = pa.concat_tables(tables).combine_chunks()
    for place, name in enumerate(("user", "item")):
        whole = whole.set_column(place, name, whole[name].dictionary_encode())
    return whole


def _plain_interactions(table: pa.Table, fields: dict[str, str]) -> pa.Table | None:
    """The block with our names and types, or None where a value in it needs a closer look."""
    found = {name: table[key] for name, key in fields.items() if key in table.column_names}
    if not {"user", "item", "time"} <= set(found):
        return None
    user, item, times = _plain_ids(found["user"]), _plain_ids(found["item"]), _plain_times(found["time"])
    if user is None or item is None or times is None:
        return None
    try:
        rating = found["rating"].cast(pa.float64()) if "rating" in found else pa.nulls(len(table), pa.float64())
    except pa.ArrowException:
        return None
    return pa.table([user, item, times[0], rating, times[1].astype(np.float32)], INTERACTION)


def _plain_ids(column: pa.ChunkedArray) -> pa.ChunkedArray | None:
    column = _texts(column)
    if column is None or column.null_count:
        return None
    if pc.all(pc.match_substring_regex(column, _PLAIN_IDS)).as_py() or all(map(is_id, pc.unique(column).to_pylist())):
        return column
    return None


def _texts(column: pa.ChunkedArray) -> pa.ChunkedArray | None:
    """Texts, or whole numbers as texts; None where the column is neither."""
    kinds = (pa.types.is_string, pa.types.is_binary, pa.types.is_large_string, pa.types.is_integer)
    try:
        return column.cast(pa.string()) if any(is_kind(column.type) for is_kind in kinds) else None
    except pa.ArrowException:
        return None


def _plain_times(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray] | None:
    """What `seconds` says of each value, or None where it may not be a time."""
    kind, per_second, texts = column.type, 1, _texts(column)
    try:
        if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
            column, per_second = column.cast(pa.timestamp("ns")).cast(pa.int64()), 10**9
        elif texts is not None and pc.all(pc.match_substring_regex(texts, _PLAIN_TIMES)).as_py():
            column = texts.cast(pa.int64())
        elif not pa.types.is_floating(kind):
            return None
    except pa.ArrowException:
        return None
    values = column.to_numpy(zero_copy_only=False)
    if column.null_count or not np.all(np.abs(values / per_second) < 2**62):
        return None
    whole, rest = np.divmod(values, per_second)
    return whole.astype(np.int64), rest / per_second


# ---- items


def read_items(path: Path, layout: Layout, wanted: set[str], rejects: Rejects, max_rejected: float) -> pd.DataFrame:
    """The `wanted` items in the file's order: columns item, title (the layout's text; null where there is none).

    Of Python literals, which are slow to parse and describe twenty times what is kept, the others are not parsed.
    Raises `GlossError` where more than `max_rejected` (a share of the records read) cannot be used, or none can, or
    none has a column of the template.
    """
    key, texts = layout.fields["item"], templates.columns(layout.text)
    columns = dict.fromkeys((key, *texts), pa.string())
    rows, seen, missing = [], 0, set(texts)
    ids = pa.array(wanted, pa.string())

    def item(record) -> tuple | None:
        if record is None:  # it was not parsed
            return None
        if not isinstance(record, dict):
            raise Unusable("it is not an object with named values")
        missing.difference_update(record)
        return _id(record, key), templates.fill(record, layout.text, texts)

    for block in blocks(path, layout, columns, ITEMS, wanted):
        plain = None if block.table is None else _plain_items(block.table, key, texts, ids)
        if plain is not None:
            seen += len(block.table)
            missing.difference_update(block.table.column_names)
            rows += [(record[key], templates.fill(record, layout.text, texts)) for record in plain.to_pylist()]
            continue
        found = list(_usable(path, ITEMS, block, item, rejects))
        seen += len(found)
        rows += [row for row in found if row is not None and row[0] in wanted]
    rejects.stop_above(max_rejected, path, seen, ", ".join(columns), ITEMS)
    if missing:
        raise GlossError(f"no record of {path} has {min(missing)!r}, which item_text names; name columns of the file")
    return pd.DataFrame(rows, columns=["item", "title"])


def _plain_items(table: pa.Table, key: str, texts: list[str], wanted: pa.Array) -> pa.Table | None:
    """The wanted rows of a block, all texts, or None where a value in it needs a closer look."""
    if key not in table.column_names:
        return None
    found = {name: _texts(table[name]) for name in table.column_names if name in (key, *texts)}
    if any(column is None for column in found.values()) or _plain_ids(found[key]) is None:
        return None
    return pa.table(found).filter(pc.is_in(found[key], wanted))
