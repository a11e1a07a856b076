"""Files of generated queries: released ones and our own, in one format.

A record: `reviewer_id`, `asin` (the target), `seen_asins` (the history, oldest first), `generated_sequences` (texts,
best first) as the paper's code publishes them; ours add `logprobs` (sum over a text's tokens, natural log) and
`lengths` (tokens), aligned with the texts, null where unknown.
"""

import gzip
import hashlib
import json
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, dropwhile, islice
from pathlib import Path
from typing import TextIO

import pandas as pd

from gloss_utils.base.errors import GlossError
from gloss_utils.base.files import digest, write_whole
from gloss_utils.data.readers import is_id
from gloss_utils.data.rejects import Rejects
from gloss_utils.data.templates import whole_characters

COLUMNS = ["user", "history", "target", "texts", "logprobs", "lengths"]


def read(
    path: str | Path, texts_per_user: int, max_rejected: float, targets: bool = True, rejects: Rejects | None = None
) -> pd.DataFrame:
    """Read a file of queries: a JSON list or JSON lines, gzipped or not.

    Returns a frame with one row per user: user, history, target, texts (at most `texts_per_user`), logprobs, lengths.
    targets: whether each record must name a target. rejects: notes the records that cannot be used.
    Raises `GlossError` where the file is missing or not in this format, or where a larger share of records than
    `max_rejected` cannot be used.
    """
    (frame,) = blocks(path, texts_per_user, max_rejected, targets, rejects)
    return frame


def blocks(
    path: str | Path,
    texts_per_user: int,
    max_rejected: float,
    targets: bool = True,
    rejects: Rejects | None = None,
    users_at_once: int | None = None,
) -> Iterator[pd.DataFrame]:
    """What `read` returns, so many users at a time (null: all). Of JSON lines no more is held than these and the names
    of all; whether too many records cannot be used is known, and raised, at the end."""
    path, rejects = Path(path), rejects or Rejects()
    rows, users = [], set()
    for place, record in _records(path):
        reason = _unusable(record, targets) or ("its user came before" if record["reviewer_id"] in users else None)
        if reason:
            rejects.add(path, place, reason, record)
            continue
        users.add(record["reviewer_id"])
        texts = [whole_characters(text) for text in record["generated_sequences"]]
        lists = [texts, *(record.get(key) or [None] * len(texts) for key in ("logprobs", "lengths"))]
        lists = [values[:texts_per_user] for values in lists]
        if len(rows) == users_at_once:
            yield pd.DataFrame(rows, columns=COLUMNS, dtype=object)
            rows = []
        rows.append((record["reviewer_id"], record["seen_asins"], record.get("asin"), *lists))
    rejects.stop_above(max_rejected, path, len(users), "reviewer_id, asin, seen_asins and generated_sequences")
    yield pd.DataFrame(rows, columns=COLUMNS, dtype=object)


def digest_of_histories(blocks: Callable[[], Iterator[pd.DataFrame]]) -> str:
    """`digest` of all users and their histories, sorted by user; where they come sorted, one block at a time is held.

    blocks: gives the users from the first on each time that it is called.
    """
    found, last = hashlib.sha256(b"["), None
    for frame in blocks():
        for user, history in zip(frame["user"], frame["history"], strict=True):
            if last is not None and user < last:
                every = pd.concat(blocks())
                return digest(sorted(zip(every["user"], every["history"], strict=True)))
            found.update((", " if last is not None else "").encode() + json.dumps([user, history]).encode())
            last = user
    found.update(b"]")
    return found.hexdigest()


def write(path: Path, queries: pd.DataFrame | Iterable[pd.DataFrame]) -> int:
    """Write queries, all at once or in blocks, as JSON lines, whole or not at all. Returns how many they are."""
    frames, count = [queries] if isinstance(queries, pd.DataFrame) else queries, 0
    with write_whole(path) as part, open(part, "w", encoding="utf-8") as out:
        for row in (row for frame in frames for row in frame[COLUMNS].itertuples(index=False)):
            record = {
                "reviewer_id": row.user,
                "asin": row.target,
                "seen_asins": list(row.history),
                "generated_sequences": list(row.texts),
                "logprobs": list(row.logprobs),
                "lengths": list(row.lengths),
            }
            out.write(json.dumps(record, ensure_ascii=False) + "\n")
            count += 1
    return count


def _records(path: Path):
    try:
        with open(path, "rb") as raw:
            zipped = raw.read(2) == b"\x1f\x8b"
        # Cut at line feeds only: a title may hold other characters that Python takes for line ends.
        with (gzip.open if zipped else open)(path, "rt", encoding="utf-8-sig", newline="\n") as text:
            yield from _records_of(text, path)
    except OSError as error:
        reason = error.strerror or "its gzip data is damaged"
        raise GlossError(f"queries_file {path} cannot be read ({reason}); give the path of a file of queries") from None
    except (EOFError, zlib.error, UnicodeDecodeError):
        raise GlossError(f"queries_file {path} is cut or damaged; get it again") from None


def _records_of(lines: TextIO, path: Path):
    first = list(islice(dropwhile(lambda line: not line[1].strip(), enumerate(lines, 1)), 1))
    if first and first[0][1].lstrip().startswith("["):
        try:
            for number, record in enumerate(json.loads(first[0][1] + lines.read()), 1):
                yield f"record {number}", record
        except (ValueError, RecursionError) as error:
            raise GlossError(
                f"queries_file {path} is not a JSON list ({error}); get it again, or give JSON lines"
            ) from None
        return
    for number, line in chain(first, enumerate(lines, first[0][0] + 1 if first else 1)):
        if line.strip():
            try:
                yield f"line {number}", json.loads(line)
            except (ValueError, RecursionError):
                yield f"line {number}", None


def _unusable(record, targets: bool) -> str | None:
    if not isinstance(record, dict):
        return "it is not a JSON object"
    if not is_id(record.get("reviewer_id")):
        return "reviewer_id is not an id (a text without spaces)"
    if targets and not is_id(record.get("asin")):
        return "asin is not an id (a text without spaces)"
    if not _list_of(record.get("seen_asins"), lambda item: isinstance(item, str) and whole_characters(item) == item):
        return "seen_asins is not a list of texts"
    texts = record.get("generated_sequences")
    if not _list_of(texts, lambda text: isinstance(text, str)) or not texts:
        return "generated_sequences is not a list of at least one text"
    for key, fits, kind in (("logprobs", _is_number, "number"), ("lengths", _is_length, "whole number from 1 up")):
        values = record.get(key)
        if values is not None and not (_list_of(values, fits) and len(values) == len(texts)):
            return f"{key} is not a list of one {kind} (or null) per text"
    return None


def _list_of(value, fits: Callable[[object], bool]) -> bool:
    return isinstance(value, list) and all(map(fits, value))


def _is_number(value) -> bool:
    if value is None:
        return True
    # JSON's whole numbers have no limit, but a mean has; Python's JSON also knows NaN and Infinity.
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _is_length(value) -> bool:
    return value is None or (isinstance(value, int) and _is_number(value) and value > 0)
