"""Downloads: go on where a transfer broke off, check what came, and keep only whole files."""

import gzip
import os
import time
import zipfile
import zlib
from pathlib import Path

import requests
import urllib3
from filelock import FileLock
from tqdm import tqdm

from gloss_utils.base.errors import GlossError
from gloss_utils.base.files import full_disk_in_one_line
from gloss_utils.base.seals import is_sealed, seal_of, write_sealed

ATTEMPTS = 5
PAUSE = 1.0  # seconds before the second attempt, twice as many before each later one
TIMEOUT = 30  # seconds without a byte
CHUNK = 2**18


class _Again(Exception):
    """The transfer failed, but may work at the next attempt."""


def checked(path: Path) -> Path:
    """A file that is there already. Raises `GlossError` where it was downloaded and has changed since."""
    if seal_of(path).exists() and not is_sealed(path):
        raise GlossError(
            f"{path} is not what was downloaded ({seal_of(path).name} differs); delete both to download it again"
        )
    return path


def fetch(address: str, path: Path):
    """Download `address` to `path`, and seal it.

    What came before a connection broke stays in a hidden `.part` file, from which this call or a later one goes on if
    the server's file is still the same. A file of another length than announced, or with damaged gzip or zip data,
    counts as broken. Waits where another process is downloading the same file. Raises `GlossError` after `ATTEMPTS`
    attempts, or sooner where nobody answers or the server refuses, and where the folder cannot be written.
    """
    part = path.with_name(f".{path.name}.part")
    with full_disk_in_one_line(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        part.touch()
    guard = part.with_name(part.name + ".lock")
    with FileLock(guard):
        if path.exists():  # another process was first
            part.unlink(missing_ok=True)
        else:
            _fetch(address, path, part)
        guard.unlink(missing_ok=True)


def _fetch(address: str, path: Path, part: Path):
    reason = ""
    for attempt in range(ATTEMPTS):
        time.sleep(PAUSE * 2 ** (attempt - 1) if attempt else 0)
        try:
            with full_disk_in_one_line(path):
                _transfer(address, part)
            _check(path, part)
        except (_Again, requests.ConnectionError, requests.Timeout, urllib3.exceptions.HTTPError) as error:
            reason = str(error) if isinstance(error, _Again) else type(error).__name__
            if attempt and isinstance(error, requests.ConnectionError):
                break  # nobody answers
            continue
        except (requests.RequestException, ValueError) as error:  # no such address can be, or the server refuses
            reason = type(error).__name__ if isinstance(error, requests.RequestException) else str(error)
            break
        with write_sealed(path, {"address": address}) as whole:
            os.replace(part, whole)
        _version_of(part).unlink(missing_ok=True)
        return
    raise GlossError(
        f"{path.parent} holds no {path.name}, and it could not be downloaded from {address} ({reason}); "
        "run again to go on, or put the file there, or set data_dir to the folder that has it"
    )


def _version_of(part: Path) -> Path:
    return part.with_name(part.name + ".version")


def _transfer(address: str, part: Path):
    """Add to `part` what is missing of it, or start again where the server's file has changed."""
    kept_version = _version_of(part)
    have = part.stat().st_size if part.exists() and kept_version.exists() else 0
    # Identity: a length announced for compressed transfer would be another.
    headers = {"Accept-Encoding": "identity"}
    if have:
        headers |= {"Range": f"bytes={have}-", "If-Range": kept_version.read_text()}
    with requests.get(address, headers=headers, stream=True, timeout=TIMEOUT) as answer:
        if answer.status_code == 416:  # more is here than there: it was another file
            part.unlink()
            raise _Again("the server's file has changed")
        if answer.status_code >= 500 or answer.status_code == 429:
            raise _Again(f"HTTP status {answer.status_code}")
        if answer.status_code >= 400:
            raise ValueError(f"HTTP status {answer.status_code}")
        going_on = answer.status_code == 206 and answer.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        if answer.status_code == 206 and not going_on:
            part.unlink()
            raise _Again("the server answered with another range than asked for")
        have = have if going_on else 0
        tag = answer.headers.get("ETag", "W/")
        version = answer.headers.get("Last-Modified") if tag.startswith("W/") else tag
        if version:
            kept_version.write_text(version)
        else:
            kept_version.unlink(missing_ok=True)
        length = answer.headers.get("Content-Length")
        total = have + int(length) if length and length.isascii() and length.isdigit() else None
        with (
            open(part, "ab" if going_on else "wb") as out,
            tqdm(total=total, initial=have, unit="B", unit_scale=True, desc=part.name[1:-5], mininterval=1) as bar,
        ):
            # Raw: a server may label a .gz file as compressed for the transfer, and it must stay as it is.
            for chunk in answer.raw.stream(CHUNK, decode_content=False):
                bar.update(out.write(chunk))
    size = part.stat().st_size
    if not size:
        raise _Again("nothing came")
    if total is not None and size != total:
        raise _Again(f"{size:,} of {total:,} bytes came")


def _check(path: Path, part: Path):
    try:
        if path.suffix == ".gz":
            with gzip.open(part) as source:
                while source.read(2**22):
                    pass
        elif path.suffix == ".zip":
            with zipfile.ZipFile(part) as archive:
                if archive.testzip():
                    raise zipfile.BadZipFile
    except (EOFError, gzip.BadGzipFile, zlib.error, zipfile.BadZipFile):
        part.unlink()
        raise _Again(f"what came is no sound {path.suffix} file") from None
