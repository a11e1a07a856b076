"""The one way in which an artefact is known to be whole, unchanged, and made from what is asked for: a seal beside it.

The seal of `model/adapter` is `model/adapter.seal`, a JSON file: `made_from`, what the artefact was made from, and
`sha256`, what it held then. It works for files and for folders.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gloss_utils.base.errors import GlossError
from gloss_utils.base.files import digest, fingerprint, read_json, remove, sync, write_json, write_whole


def seal_of(path: Path) -> Path:
    """Where the seal of an artefact is."""
    return path.with_name(f"{path.name}.seal")


def read_seal(path: Path) -> dict | None:
    """The seal of an artefact; None where there is none, or only a damaged one."""
    try:
        found = read_json(seal_of(path))
    except (OSError, GlossError):
        return None
    sound = (
        isinstance(found, dict) and isinstance(found.get("made_from"), dict) and isinstance(found.get("sha256"), str)
    )
    return found if sound else None


def seal(path: Path, made_from: dict | None = None):
    """Seal an artefact that is finished. made_from: JSON values that say what it was made from."""
    sync(path)
    write_json(seal_of(path), {"made_from": made_from or {}, "sha256": fingerprint(path)})


def is_sealed(path: Path, made_from: dict | None = None) -> bool:
    """Whether an artefact was sealed as made from just this (None: from anything) and has not changed since."""
    found = read_seal(path)
    if found is None or not path.exists():
        return False
    same = made_from is None or found["made_from"] == as_json(made_from)
    return same and found["sha256"] == fingerprint(path)


def as_json(value):
    """A value as it is after it was written to a JSON file and read again."""
    return json.loads(json.dumps(value))


@contextmanager
def write_sealed(
    path: Path, made_from: dict | None = None, content: str = "", more: dict | None = None
) -> Iterator[Path]:
    """Like `write_whole`, and seal the result.

    content: a pattern for the files in a folder whose sha256 the seal also has, as `content` ("": that of all of it).
    more: further values for the seal, read at the end. The seal is written before the artefact takes its place; where
    a kill comes between, `sweep` puts it there.
    """
    with write_whole(path) as part:
        yield part
        sync(part)
        found = {"made_from": made_from or {}, "sha256": fingerprint(part)}
        if content:
            files = [fingerprint(file) for file in sorted(part.glob(content))]
            found["content"] = files[0] if len(files) == 1 else digest(files)
        write_json(seal_of(path), found | (more or {}))


def sweep(root: Path, *alive: int) -> bool:
    """Remove what processes that were killed left of their writing; returns whether there was anything.

    A folder that was being replaced comes back, and an artefact that was sealed already takes its place. alive:
    processes at work in the folder.
    """
    found = False
    for path in sorted(root.rglob(".*")):
        left = re.fullmatch(r"\.(.+)\.(\d+)\.(partial|old)", path.name)
        if left is None or int(left[2]) in alive or not path.exists():
            continue
        found, place = True, path.with_name(left[1])
        record = read_seal(place) if left[3] == "partial" else None
        if record and record["sha256"] == fingerprint(path) and not is_sealed(place):
            remove(place)
            path.rename(place)
        elif left[3] == "old" and not place.exists():
            path.rename(place)
        else:
            remove(path)
    return found
