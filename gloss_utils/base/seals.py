"""The one way in which an artefact is known to be whole, unchanged, and made from what is asked for: a seal beside it.

The seal of `model/adapter` is `model/adapter.seal`, a JSON file with two values: `made_from`, what the artefact was
made from, and `sha256`, what it held then. It works for files and for folders.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gloss_utils.base.errors import GlossError
from gloss_utils.base.files import fingerprint, read_json, sync, write_json, write_whole


def seal_of(path: Path) -> Path:
    """Where the seal of an artefact is."""
    return path.with_name(f"{path.name}.seal")


def seal(path: Path, made_from: dict | None = None):
    """Seal an artefact that is finished. made_from: JSON values that say what it was made from."""
    sync(path)
    _write_seal(path, path, made_from)


def is_sealed(path: Path, made_from: dict | None = None) -> bool:
    """Whether an artefact was sealed as made from just this (null: from anything) and has not changed since."""
    try:
        found = read_json(seal_of(path))
        same = made_from is None or found["made_from"] == json.loads(json.dumps(made_from))
        return same and path.exists() and found["sha256"] == fingerprint(path)
    except (OSError, GlossError, KeyError, TypeError):
        return False


@contextmanager
def write_sealed(path: Path, made_from: dict | None = None) -> Iterator[Path]:
    """Like `write_whole`, and seal the result. A kill at any moment leaves an artefact that is sealed, or one that is
    not sealed and has to be made again."""
    with write_whole(path) as part:
        yield part
        sync(part)
        _write_seal(path, part, made_from)


def _write_seal(path: Path, content: Path, made_from: dict | None):
    write_json(seal_of(path), {"made_from": made_from or {}, "sha256": fingerprint(content)})
