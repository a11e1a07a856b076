"""Records that cannot be used: they are counted and kept with the reason, and too many of them are an error."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gloss_utils.base.errors import GlossError
from gloss_utils.base.files import write_whole

KEPT, SHOWN = 10_000, 500  # records kept of each file, characters of each


class Unusable(Exception):
    """Why a record cannot be used, in words."""


class Rejects:
    """The records of some files that were rejected. path: where `write` writes them; None: nowhere."""

    def __init__(self, path: Path | None = None):
        self.path, self.records = path, []
        # One file may hold two kinds of records: MovieLens is one archive.
        self._counts: dict[tuple[Path, str], Counter] = defaultdict(Counter)

    def add(self, file: Path, place: str, reason: str, record, kind: str = "queries"):
        """Note a record of `file`. place: as "line 7". record: the line (text or bytes), or what was read from it.

        kind: what the record should have been: interactions, items or queries.
        """
        counts = self._counts[file, kind]
        counts[reason] += 1
        if counts.total() <= KEPT:
            text = record.decode("utf-8", errors="replace") if isinstance(record, bytes) else record
            text = text if isinstance(text, str) else json.dumps(text, ensure_ascii=False, default=str)
            kept = {"file": file.name, "kind": kind, "place": place, "reason": reason, "record": text[:SHOWN]}
            self.records.append(kept)

    def add_all(self, file: Path, records: Iterable[tuple[str, str, Any]], kind: str):
        """`add` for each of some records: place, reason, record."""
        for place, reason, record in records:
            self.add(file, place, reason, record, kind)

    def reasons(self, file: Path, kind: str) -> Counter:
        """How many records of this kind were rejected of `file`, by reason."""
        return self._counts[file, kind]

    def stop_above(self, share: float, file: Path, good: int, needed: str, kind: str = "queries"):
        """Raise `GlossError` where more than this share of a file's records of a kind was rejected, or none was usable.

        good: the number of usable records. needed: what a usable record has, in words.
        """
        bad = self._counts[file, kind].total()
        first = next((kept for kept in self.records if (kept["file"], kept["kind"]) == (file.name, kind)), None)
        example = f" (the first is {first['place']}: {first['reason']})" if first else ""
        if good and bad <= share * (good + bad):
            return
        self.write()
        where = f"; they are in {self.path}" if self.path and bad else ""
        if not good:
            raise GlossError(f"{file} holds no usable record: {bad:,} read{example}; each needs {needed}{where}")
        raise GlossError(
            f"{file}: {bad:,} of {good + bad:,} records cannot be used{example}, more than max_rejected = {share:g} "
            f"allows; mend the file or raise max_rejected{where}"
        )

    def write(self, path: Path | None = None):
        """Write the records kept as JSON lines, whole or not at all, to `path`, or by default to their own place."""
        if path := path or self.path:
            with write_whole(path) as part, open(part, "w", encoding="utf-8", errors="replace") as out:
                out.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in self.records)
