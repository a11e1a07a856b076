"""Raw files: where they are, where they come from, and reading them line by line.

Layout: Amazon 2014 (McAuley), `reviews_<Category>_5.json.gz` as JSON lines and `meta_<Category>.json.gz` as Python
literals. A literal is parsed, never executed.
"""

import ast
import gzip
import json
import re
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pooch
from tqdm import tqdm

from gloss_utils import demo
from gloss_utils.errors import GlossError
from gloss_utils.run_folder import fingerprint, write_whole

ADDRESS = "https://snap.stanford.edu/data/amazon/productGraph/categoryFiles/"
CATEGORIES = {"demo": "Demo", "beauty": "Beauty", "toys": "Toys_and_Games", "sports": "Sports_and_Outdoors"}

_ASIN = re.compile(r"\s*\{'asin': '([^'\\]*)'")
pooch.get_logger().setLevel("WARNING")


def locate(dataset: str, data_dir: str | Path) -> tuple[Path, Path]:
    """The review and metadata files of a dataset in `data_dir`, made (demo) or downloaded where they are lacking.

    Raises `GlossError` where a file can neither be found nor downloaded, or is not what was downloaded once.
    """
    category, data_dir = CATEGORIES[dataset], Path(data_dir)
    names = f"reviews_{category}_5.json.gz", f"meta_{category}.json.gz"
    if dataset == "demo" and not all(_present(data_dir, name) for name in names):
        demo.write(*(data_dir / name for name in names))
    reviews, metadata = (_present(data_dir, name) or _download(data_dir, name) for name in names)
    return reviews, metadata


def _present(data_dir: Path, name: str) -> Path | None:
    for path in (data_dir / name, data_dir / name.removesuffix(".gz")):
        if path.is_file():
            kept = path.with_name(path.name + ".sha256")
            if kept.exists() and kept.read_text().strip() != fingerprint(path):
                raise GlossError(
                    f"{path} is not what was downloaded ({kept.name} differs); delete both to download it again"
                )
            return path
    return None


def _download(data_dir: Path, name: str) -> Path:
    # pooch writes beside its place and renames; its checksum is kept so that later damage is seen.
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        path = Path(
            pooch.retrieve(
                ADDRESS + name,
                known_hash=None,
                fname=name,
                path=data_dir,
                downloader=pooch.HTTPDownloader(progressbar=True, timeout=30),
            )
        )
    except Exception as error:
        reason = type(error).__name__ + (f": {error.strerror}" if getattr(error, "strerror", None) else "")
        raise GlossError(
            f"{data_dir} holds no {name}, and it could not be downloaded from {ADDRESS} ({reason}); "
            "put the file there, or set data_dir to the folder that has it"
        ) from error
    with write_whole(path.with_name(name + ".sha256")) as part:
        part.write_text(fingerprint(path) + "\n")
    return path


def is_id(value) -> bool:
    """Whether a value can name a user or an item: a text without spaces, which separate the columns of TREC files."""
    return isinstance(value, str) and value != "" and value.isprintable() and " " not in value


def whole_characters(text: str) -> str:
    """The text with what no file can hold (half of a surrogate pair, as escapes may spell it) replaced."""
    return text.encode("utf-8", errors="replace").decode("utf-8")


def lines(path: Path, name: str) -> Iterator[tuple[int, str]]:
    """The lines of a text file that are not blank, and their numbers; gzipped or not, with a progress bar over bytes.

    Bytes that are not UTF-8 are replaced. Raises `GlossError` where a gzip file is cut or damaged.
    """
    with (
        open(path, "rb") as raw,
        tqdm(total=path.stat().st_size, unit="B", unit_scale=True, desc=name, mininterval=1) as bar,
    ):
        zipped = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        source = gzip.GzipFile(fileobj=raw) if zipped else raw
        try:
            for number, line in enumerate(source, 1):
                bar.update(raw.tell() - bar.n)
                if line.strip():
                    yield number, line.decode("utf-8", errors="replace")
        except (EOFError, gzip.BadGzipFile, zlib.error):
            raise GlossError(
                f"{path} is cut or damaged in the middle of its gzip data; delete it and get it again"
            ) from None


def _stop_above(path: Path, bad: list[int], good: int, max_rejected: float):
    total = good + len(bad)
    if not good:
        raise GlossError(f"{path} holds no usable line ({total} read); get the file again, in its published layout")
    if len(bad) > max_rejected * total:
        raise GlossError(
            f"{path}: {len(bad)} of {total} lines cannot be used (the first is line {bad[0]}), "
            f"more than max_rejected = {max_rejected:g} allows; mend the file or raise max_rejected"
        )


def read_reviews(path: Path, max_rejected: float) -> tuple[pd.DataFrame, int]:
    """Read reviews, in the file's order: columns user, item, time (seconds), rating (null where absent).

    Returns the frame and the number of malformed lines; above `max_rejected` (a share of the lines) it raises.
    """
    rows, bad = [], []
    for number, line in lines(path, "reviews"):
        try:
            record = json.loads(line)
            row = (record["reviewerID"], record["asin"], record["unixReviewTime"], record.get("overall"))
            good = (
                is_id(row[0])
                and is_id(row[1])
                and type(row[2]) is int
                and abs(row[2]) < 2**62
                and (row[3] is None or type(row[3]) in (int, float))
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            good = False
        if good:
            rows.append(row)
        else:
            bad.append(number)
    _stop_above(path, bad, len(rows), max_rejected)
    return pd.DataFrame(rows, columns=["user", "item", "time", "rating"]), len(bad)


def read_metadata(path: Path, wanted: set[str], max_rejected: float) -> tuple[pd.DataFrame, int]:
    """Read the titles of the `wanted` items, in the file's order: columns item, title (null where there is none).

    The file describes a whole category, twenty times what is kept: the other lines are not parsed.
    Returns the frame and the number of malformed lines; above `max_rejected` (a share of the lines parsed) it raises.
    """
    rows, bad = [], []
    for number, line in lines(path, "metadata"):
        match = _ASIN.match(line)
        if match and match[1] not in wanted:
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", SyntaxWarning)  # a lone backslash in a title
                record = ast.literal_eval(line.strip())
            item, title = record["asin"], record.get("title")
            good = isinstance(item, str) and (title is None or isinstance(title, str))
        except (ValueError, SyntaxError, KeyError, TypeError, AttributeError, MemoryError, RecursionError):
            good = False
        if not good:
            bad.append(number)
        elif item in wanted:
            rows.append((item, title and whole_characters(title)))
    _stop_above(path, bad, len(rows), max_rejected)
    return pd.DataFrame(rows, columns=["item", "title"]), len(bad)
