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
        header = json.dumps({"plan": plan}).encode()
        if not path.exists():
            with write_whole(path) as part:
                part.write_bytes(header + b"\n")
            return
        first, *lines = path.read_bytes().split(b"\n")
        if first != header:
            raise GlossError(f"{path} is the journal of another plan, or damaged; delete it to generate anew")
        kept = [first]
        for line in filter(None, lines):
            batch = _read(line, sizes)
            if batch:
                self.done[batch[0]] = batch[1]
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


def _read(line: bytes, sizes: list[int]) -> tuple[int, list] | None:
    """A line's batch and its rows; None where it is damaged, or the plan has no such batch."""
    try:
        batch = json.loads(line)
        number, rows = batch["batch"], batch["rows"]
        sound = batch["sha256"] == digest(rows) and number in range(len(sizes)) and len(rows) == sizes[number]
    except (ValueError, LookupError, TypeError):
        return None
    return (number, rows) if sound else None
