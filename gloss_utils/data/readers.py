"""Raw files to interactions and a frame of items.

A block of interactions is taken as a whole where all its values are as they should be. Else its records are looked at
one by one, as items always are, and those that cannot be used are rejected with a reason. Blocks are read apart, here
or by other processes (`each`); what follows from all before, as the numbers of ids, is done here, in the file's order.
"""

import math
from collections.abc import Callable, Collection
from contextlib import suppress
from datetime import UTC, date, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from gloss_utils.base.errors import GlossError
from gloss_utils.data import templates
from gloss_utils.data.ids import as_texts, places_of
from gloss_utils.data.interactions import SCHEMA, Interactions
from gloss_utils.data.raw_files import NOT_PLAIN, Block, RawFile, blocks, parser
from gloss_utils.data.rejects import Rejects, Unusable

ENCODED = 2**19  # items whose texts are in Python at one time
INTERACTIONS, ITEMS = "interactions", "items"  # the kinds of records

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


def _usable(block: Block, parse: Callable, read: Callable) -> tuple[list, list[tuple[str, str, Any]]]:
    """What `read` makes of a block's records; and those that it calls unusable: place, reason, how it is written."""
    good, bad = [], []
    for place, shown in block.records():
        try:
            record = parse(shown)
            if not isinstance(record, dict):
                raise Unusable("it is not an object with named values")
            good.append(read(record))
        except Unusable as error:
            bad.append((place, str(error), shown))
    return good, bad


# ---- interactions


def read_interactions(
    file: RawFile, rejects: Rejects, max_rejected: float, folder: Path | None = None, each: Callable = map
) -> Interactions:
    """The interactions of a file.

    folder: for the rows on the disk (see `Interactions`). each: calls a function for each of many things, and yields
    what it returns, in order. Raises `GlossError` where more than `max_rejected` (a share of the records) cannot be
    used, or none can.
    """
    columns, found = {key: SCHEMA.field(name).type for name, key in file.fields.items()}, Interactions(folder)
    for table, bad in each(partial(_interactions, file.fields, parser(file)), blocks(file, columns, INTERACTIONS)):
        found.append(table)
        rejects.add_all(file.path, bad, INTERACTIONS)
    found.read_to_the_end()
    rejects.stop_above(max_rejected, file.path, len(found), ", ".join(columns), INTERACTIONS)
    return found


def _interactions(fields: dict[str, str], parse: Callable, block: Block) -> tuple[pa.Table, list]:
    """A block's usable records, and the others (see `_usable`)."""
    try:
        return _plain_interactions(block.table(), fields), []
    except NOT_PLAIN:
        good, bad = _usable(block, parse, partial(_interaction, fields=fields))
        return pa.Table.from_pylist(good, SCHEMA), bad


def _interaction(record: dict, fields: dict[str, str]) -> dict:
    user, item = _id(record, fields["user"]), _id(record, fields["item"])
    if fields["time"] not in record:
        raise Unusable(f"it has no {fields['time']}")
    rating = _rating(record, fields.get("rating"))
    time, part = seconds(record[fields["time"]])
    return {"user": user, "item": item, "time": time, "rating": rating, "part": part}


def _plain_interactions(table: pa.Table, fields: dict[str, str]) -> pa.Table:
    """The block with our names and types. Raises one of `NOT_PLAIN` where a value in it needs a closer look."""
    user, item, (time, part) = _ids(table[fields["user"]]), _ids(table[fields["item"]]), _times(table[fields["time"]])
    rated = fields.get("rating") in table.column_names
    rating = table[fields["rating"]].cast(pa.float64()) if rated else pa.nulls(len(table), pa.float64())
    return pa.table([user, item, time, rating, part], SCHEMA)


def _texts(column: pa.ChunkedArray, pattern: str) -> tuple[pa.ChunkedArray, bool]:
    """Texts, or whole numbers as texts, and whether each of them matches. Raises where there are others."""
    kinds = (pa.types.is_string, pa.types.is_binary, pa.types.is_large_string, pa.types.is_integer)
    if column.null_count or not any(is_kind(column.type) for is_kind in kinds):
        raise ValueError("neither texts nor whole numbers")
    texts = column.cast(pa.string())
    return texts, pc.all(pc.match_substring_regex(texts, pattern)).as_py()


def _ids(column: pa.ChunkedArray) -> pa.ChunkedArray:
    texts, plain = _texts(column, r"^[!-~]+$")
    if not plain and not all(map(is_id, pc.unique(texts).to_pylist())):
        raise ValueError("not an id")
    return texts


def _times(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """What `seconds` says of each value: of timestamps, and of whole numbers, which may be texts."""
    if pa.types.is_timestamp(column.type) and not column.null_count:
        nanoseconds = column.cast(pa.timestamp("ns")).cast(pa.int64()).to_numpy()
        whole, rest = np.divmod(nanoseconds, 10**9)
        return whole, (rest / 10**9).astype(np.float32)
    texts, plain = _texts(column, r"^-?[0-9]+$")  # Arrow would take 0x10 for a number, too
    whole = texts.cast(pa.int64()).to_numpy()
    if not plain or not np.all((whole > -(2**62)) & (whole < 2**62)):
        raise ValueError("not a time")
    return whole, np.zeros(len(whole), np.float32)


# ---- items


def read_items(
    file: RawFile, wanted: Collection[str] | pa.Array, rejects: Rejects, max_rejected: float, each: Callable = map
) -> pd.DataFrame:
    """The `wanted` items in the file's order: columns item, title (the file's text; null where there is none).

    Of Python literals, which are slow to parse and describe twenty times what is kept, the others are not parsed.
    each: see `read_interactions`. Raises `GlossError` where more than `max_rejected` (a share of the records read)
    cannot be used, or none can, or none has a column of the template.
    """
    key, texts = file.fields["item"], templates.columns(file.text)
    columns = dict.fromkeys((key, *texts), pa.string())
    known = wanted if isinstance(wanted, pa.Array) else as_texts(sorted(wanted))
    by_name = set(known.to_pylist()) if file.form == "literal" else frozenset()
    parts, rows, seen, missing = [], [], 0, set(texts)
    for good, bad, absent in each(partial(_items, file, parser(file, by_name), texts), blocks(file, columns, ITEMS)):
        rejects.add_all(file.path, bad, ITEMS)
        rows += good
        seen += len(good)
        missing &= absent
        if len(rows) >= ENCODED:
            parts, rows = [*parts, _wanted(rows, known)], []
    rejects.stop_above(max_rejected, file.path, seen, ", ".join(columns), ITEMS)
    if missing:
        name = min(missing)
        raise GlossError(f"no record of {file.path} has {name!r}, which item_text names; name columns of the file")
    return pa.concat_tables([*parts, _wanted(rows, known)]).to_pandas().astype({"item": str, "title": str})


def _items(file: RawFile, parse: Callable, texts: list[str], block: Block) -> tuple[list, list, set[str]]:
    """A block's items with their texts, its other records (see `_usable`), and the columns of `texts` that none has."""
    absent = set(texts)

    def item(record: dict) -> tuple[str, str | None]:
        absent.difference_update(record)
        return _id(record, file.fields["item"]), templates.fill(record, file.text, texts)

    return *_usable(block, parse, item), absent


def _wanted(rows: list[tuple[str, str | None]], wanted: pa.Array) -> pa.Table:
    items, titles = (as_texts([row[place] for row in rows]) for place in (0, 1))
    return pa.table({"item": items, "title": titles}).filter(pa.array(places_of(items, wanted) >= 0))
