"""Interactions as they are read: numbers in the place of ids, in rows on the disk.

Memory holds each user's and each item's id once, whatever the number of interactions is.
"""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from gloss_utils.data.ids import NONE, numbered

AT_ONCE = 2**22  # rows that are in memory at one time while all are gone through
ENCODED = 2**20  # interactions after which ids become numbers; more where many ids are known, which each time costs
SCHEMA = pa.schema(
    {"user": pa.string(), "item": pa.string(), "time": pa.int64(), "rating": pa.float64(), "part": pa.float32()}
)
RECORD = np.dtype([("user", "i4"), ("item", "i4"), ("time", "i8"), ("rating", "f8"), ("part", "f4")])


class Rows:
    """Rows in a temporary file without a name: nothing is left of it after the end, an error or a kill.

    dtype: of a row. folder: where the file is (None: where the system has such files).
    """

    def __init__(self, dtype: np.dtype | str, folder: Path | None = None):
        self.dtype, self.count = np.dtype(dtype), 0
        self.file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - it is closed when nobody has it any more

    def __len__(self) -> int:
        return self.count

    def append(self, rows: np.ndarray):
        """Add rows at the end."""
        self.file.seek(0, os.SEEK_END)
        self.file.write(np.ascontiguousarray(rows, self.dtype).data.cast("B") if len(rows) else b"")
        self.count += len(rows)

    def blocks(self) -> Iterator[np.ndarray]:
        """All rows, `AT_ONCE` of them at a time."""
        for start in range(0, self.count, AT_ONCE):
            self.file.seek(start * self.dtype.itemsize)
            yield np.frombuffer(self.file.read(AT_ONCE * self.dtype.itemsize), self.dtype)

    def whole(self) -> np.ndarray:
        """All rows, memory-mapped."""
        self.file.flush()
        return np.memmap(self.file, self.dtype, mode="r", shape=len(self)) if len(self) else np.empty(0, self.dtype)


class Interactions:
    """Interactions in the file's order.

    users, items: the ids, in the order in which they came (Arrow's large strings). records: rows of `RECORD`, in which
    user and item are places among these; time is rounded down, part is what was cut off, rating may be nan.
    """

    def __init__(self, folder: Path | None = None):
        self.folder, self.users, self.items, self.records = folder, NONE, NONE, Rows(RECORD, folder)
        self._waiting: list[pa.Table] = []

    @classmethod
    def of(cls, frame: pd.DataFrame) -> "Interactions":
        """The interactions of a table: user, item, time, rating."""
        found = cls()
        found.append(pa.Table.from_pandas(frame.assign(part=0.0), SCHEMA, preserve_index=False))
        return found.read_to_the_end()

    def append(self, table: pa.Table):
        """Add interactions at the end. table: of `SCHEMA`."""
        self._waiting.append(table)
        if sum(map(len, self._waiting)) >= max(ENCODED, (len(self.users) + len(self.items)) // 4):
            self._number()

    def read_to_the_end(self) -> "Interactions":
        """Itself, once no more will be added."""
        self._number()
        return self

    def _number(self):
        whole, self._waiting = pa.concat_tables([SCHEMA.empty_table(), *self._waiting]), []
        rows = np.empty(len(whole), RECORD)
        rows["user"], self.users = numbered(whole["user"], self.users)
        rows["item"], self.items = numbered(whole["item"], self.items)
        for name in ("time", "rating", "part"):
            rows[name] = whole[name].to_numpy()
        self.records.append(rows)

    def __len__(self) -> int:
        return len(self.records)

    def by_user(self, ranks: np.ndarray) -> Iterator[np.ndarray]:
        """All records, those of the users of the lowest ranks first, about `AT_ONCE` at a time; of each user all at
        once. In the place of the user's number they have the rank; ranks: of each user, int [users]."""
        number = -(-len(self) // AT_ONCE)
        parts = [Rows(RECORD, self.folder) for _ in range(number)]
        for block in self.records.blocks():
            block = block.copy()
            block["user"] = ranks[block["user"]]
            part = block["user"].astype(np.int64) * number // len(ranks)
            ends = np.bincount(part, minlength=number).cumsum()
            ordered = np.split(block[np.argsort(part, kind="stable")], ends[:-1])
            for rows, some in zip(parts, ordered, strict=True):
                rows.append(some)
        for rows in parts:
            yield rows.whole()
