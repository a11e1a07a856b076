"""Records that cannot be used: counted, kept with the reason, and too many of them stop a stage."""

import json
from collections import Counter
from pathlib import Path

from gloss_utils.errors import GlossError
from gloss_utils.run_folder import write_whole

KEPT, SHOWN = 10_000, 500  # records kept of each file, characters of each


class Unusable(Exception):
    """Why a record cannot be used, in words."""


class Rejects:
    """What was rejected of the files that a stage reads. path: where `write` keeps it; null: nowhere."""

    def __init__(self, path: Path | None = None):
        self.path, self.records, self._counts, self._seen = path, [], Counter(), Counter()

    def add(self, file: Path, place: str, reason: str, record):
        """Note a record of `file`; place: as "line 7"; record: the line (text or bytes), or what was read from it."""
        self._counts[str(file), reason] += 1
        self._seen[str(file)] += 1
        if self._seen[str(file)] <= KEPT:
            text = record.decode("utf-8", errors="replace") if isinstance(record, bytes) else record
            text = text if isinstance(text, str) else json.dumps(text, ensure_ascii=False, default=str)
            self.records.append({"file": file.name, "place": place, "reason": reason, "record": text[:SHOWN]})

    def reasons(self, file: Path) -> Counter:
        """How many records of `file` were rejected, by reason."""
        return Counter({reason: count for (name, reason), count in self._counts.items() if name == str(file)})

    def stop_above(self, share: float, file: Path, good: int, needed: str):
        """Raise `GlossError` where more than this share of `file` was rejected, or nothing of it is good.

        good: how many records were usable; needed: what a usable one has, in words.
        """
        bad = self._seen[str(file)]
        first = next((kept for kept in self.records if kept["file"] == file.name), None)
        told = f" (the first is {first['place']}: {first['reason']})" if first else ""
        if good and bad <= share * (good + bad):
            return
        self.write()
        where = f"; they are in {self.path}" if self.path and bad else ""
        if not good:
            raise GlossError(f"{file} holds no usable record: {bad:,} read{told}; each needs {needed}{where}")
        raise GlossError(
            f"{file}: {bad:,} of {good + bad:,} records cannot be used{told}, more than max_rejected = {share:g} "
            f"allows; mend the file or raise max_rejected{where}"
        )

    def write(self):
        """Write the records kept as JSON lines, whole or not at all."""
        if self.path:
            with write_whole(self.path) as part, open(part, "w", encoding="utf-8", errors="replace") as out:
                out.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in self.records)
