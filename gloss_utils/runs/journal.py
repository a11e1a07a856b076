"""A journal of finished batches, so that generation that was cut off goes on where it was.

The first line names the plan; each further line is a batch, with a checksum. Lines are appended and synced one by one.
"""

import json
import os
from pathlib import Path

from gloss_utils.base.errors import GlossError
from gloss_utils.base.files import digest, full_disk_in_one_line, write_whole


class Journal:
    """`done` holds the finished batches: number -> rows (JSON values, one per prompt); `notes` says what was dropped.

    Raises `GlossError` where the file belongs to another plan.
    """

    def __init__(self, path: Path, plan: str, sizes: list[int]):
        """plan: a digest of all that the batches depend on; sizes: prompts in each batch."""
        self.path, self.done, self.notes = path, {}, []
        if not path.exists():
            with write_whole(path) as part:
                part.write_text(json.dumps({"plan": plan}) + "\n", encoding="utf-8")
            return
        first, *lines = path.read_bytes().split(b"\n")
        if _value(first) != {"plan": plan}:
            raise GlossError(f"{path} is the journal of another plan, or damaged; delete it to generate anew")
        kept = [first]
        for line in filter(None, lines):
            batch = _value(line)
            if _is_batch(batch, sizes):
                self.done[batch["batch"]] = batch["rows"]
                kept.append(line)
            else:
                self.notes.append(f"a line of {path.name} is half-written or damaged; its batch is generated again")
        if self.notes:
            with write_whole(path) as part:
                part.write_bytes(b"\n".join(kept) + b"\n")

    def add(self, batch: int, rows: list):
        """Note a finished batch; it is on the disk when this returns."""
        line = json.dumps({"batch": batch, "sha256": digest(rows), "rows": rows}) + "\n"
        size = self.path.stat().st_size
        try:
            with full_disk_in_one_line(self.path), open(self.path, "a", encoding="utf-8") as out:
                out.write(line)
                out.flush()
                os.fsync(out.fileno())
        except BaseException:
            os.truncate(self.path, size)  # cutting off half a line later would take room on the disk
            raise
        self.done[batch] = rows


def _value(line: bytes):
    try:
        return json.loads(line)
    except ValueError:
        return None


def _is_batch(value, sizes: list[int]) -> bool:
    if not isinstance(value, dict) or set(value) != {"batch", "sha256", "rows"}:
        return False
    number, rows = value["batch"], value["rows"]
    known = isinstance(number, int) and 0 <= number < len(sizes) and isinstance(rows, list)
    return known and len(rows) == sizes[number] and value["sha256"] == digest(rows)
