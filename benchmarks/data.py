"""Reading raw files: block by block against the plain way, on a made-up Beauty of the published size.

    python -m benchmarks.data [--scale 1] [--repeats 3] [--folder DIR]

The plain way keeps every record as Python has it: `json.loads` and `ast.literal_eval` of every line, pandas frames of
them, and the data rules on these. Each reading is a process of its own; the two alternate. Prints one JSON object:
`speedup` and `peak_memory_ratio` (medians), whether the tables are equal, and, read by ours alone, ten times as many
lines of metadata with the same reviews (`metadata_x10`) and ten times as many of both (`x10`): seconds and MiB.
Sizes at scale 1: 259,204 lines of metadata of about 1.5 kB and 198,502 reviews.
"""

import argparse
import ast
import gzip
import json
import re
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

from gloss_utils.data import sources
from gloss_utils.data.interactions import Interactions
from gloss_utils.data.rules import build

METADATA_LINES, REVIEWS, USERS, ITEMS = 259_204, 198_502, 22_363, 12_101
SEED = 3407
WORDS = (
    "rose",
    "silk",
    "mist",
    "balm",
    "soap",
    "argan",
    "repair",
    "night",
    "gentle",
    "vitamin",
    "lotion",
    "brush",
    "oil",
)


def write_files(folder: Path, reviews: int, metadata: int, users: int, items: int):
    """Write both raw files in the layout of Amazon 2014: the first `items` of the metadata are reviewed."""
    rng = np.random.default_rng(5)
    folder.mkdir(parents=True, exist_ok=True)
    with gzip.open(folder / "reviews_Beauty_5.json.gz", "wt", compresslevel=1) as out:
        text = " ".join(rng.choice(WORDS, 90))
        for start in range(0, reviews, 2**16):
            size = min(2**16, reviews - start)
            who, what = rng.integers(users, size=size), rng.integers(items, size=size)
            days = rng.integers(12_000, 16_000, size=size) * 86_400
            for user, item, day in zip(who.tolist(), what.tolist(), days.tolist(), strict=True):
                line = {
                    "reviewerID": f"A{user:012d}",
                    "asin": f"B{item:09d}",
                    "reviewerName": "Someone",
                    "helpful": [0, 0],
                }
                line |= {"reviewText": text, "overall": float(1 + day % 5), "summary": "Fine", "unixReviewTime": day}
                out.write(json.dumps(line) + "\n")
    order = rng.permutation(metadata)
    with gzip.open(folder / "meta_Beauty.json.gz", "wt", compresslevel=1) as out:
        related = [f"B{number:09d}" for number in rng.integers(metadata, size=80).tolist()]
        for item in order.tolist():
            title = (
                " ".join(WORDS[(item * step) % len(WORDS)] for step in (1, 3, 5, 7, 11, 13, 17)) + f" &amp; No. {item}"
            )
            line = {"asin": f"B{item:09d}", "title": title, "price": 9.99, "imUrl": "http://made.up/" + "x" * 60}
            line |= {"related": {"also_bought": related}, "brand": "Alder's", "categories": [["Beauty", "Skin Care"]]}
            out.write(repr(line) + "\n")


def ours(folder: Path):
    """The dataset by the code that notebook 1 runs."""
    return build(*sources.read(sources.find("beauty", folder), max_rejected=0), None, SEED)


def plain(folder: Path):
    """The same dataset, read as one would at first."""
    with gzip.open(folder / "reviews_Beauty_5.json.gz", "rt") as lines:
        records = [json.loads(line) for line in lines]
    frame = pd.DataFrame(records)
    with gzip.open(folder / "meta_Beauty.json.gz", "rt") as lines:
        described = pd.DataFrame([ast.literal_eval(line) for line in lines])
    reviews, metadata = [], []
    for _, row in frame.iterrows():
        reviews.append((row["reviewerID"], row["asin"], row["unixReviewTime"], row["overall"]))
    wanted = set(frame["asin"])
    for _, row in described.iterrows():
        if row["asin"] in wanted:
            metadata.append((row["asin"], row["title"]))
    reviews = pd.DataFrame(reviews, columns=["user", "item", "time", "rating"])
    return build(Interactions.of(reviews), pd.DataFrame(metadata, columns=["item", "title"]), None, SEED)


def measure(way: str, folder: Path) -> dict:
    """Seconds, peak memory in MiB and a digest of the tables, of a reading in this process."""
    begun = time.perf_counter()
    data = {"ours": ours, "plain": plain}[way](folder)
    seconds = time.perf_counter() - begun
    # Not `models.peak_memory`, which would count PyTorch, of which reading has no need. Linux only.
    peak = int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 2**10
    digest = [
        int(pd.util.hash_pandas_object(frame).sum() % 2**63) for frame in (data.items, data.interactions, data.users)
    ]
    return {"seconds": seconds, "mebibytes": peak, "digest": digest}


def compare(folder: Path, scale: float, repeats: int) -> dict:
    """The benchmark's report."""
    from benchmarks import timing  # loads PyTorch, which the processes that read shall not hold

    sizes = {"reviews": int(REVIEWS * scale), "users": int(USERS * scale), "items": int(ITEMS * scale)}
    metadata = int(METADATA_LINES * scale)
    write_files(folder / "x1", **sizes, metadata=metadata)
    runs = {"ours": [], "plain": []}
    for _ in range(repeats):
        for way, found in runs.items():
            found.append(timing.in_fresh_process("benchmarks.data", "--measure", way, "--folder", str(folder / "x1")))
    middle = {
        way: {key: statistics.median(one[key] for one in found) for key in ("seconds", "mebibytes")}
        for way, found in runs.items()
    }
    report = {
        "reviews": sizes["reviews"],
        "metadata_lines": metadata,
        "speedup": round(middle["plain"]["seconds"] / middle["ours"]["seconds"], 2),
        "peak_memory_ratio": round(middle["ours"]["mebibytes"] / middle["plain"]["mebibytes"], 3),
        "equal": all(one["digest"] == runs["ours"][0]["digest"] for found in runs.values() for one in found),
        **{way: {key: round(value, 2) for key, value in found.items()} for way, found in middle.items()},
    }
    write_files(folder / "metadata_x10", **sizes, metadata=10 * metadata)
    write_files(folder / "x10", **{name: 10 * size for name, size in sizes.items()}, metadata=10 * metadata)
    for name in ("metadata_x10", "x10"):
        found = timing.in_fresh_process("benchmarks.data", "--measure", "ours", "--folder", str(folder / name))
        report[name] = {key: round(found[key], 2) for key in ("seconds", "mebibytes")}
    return report


def main():
    """Print the report, or what one reading took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where the files are written (default: a temporary folder)")
    parser.add_argument("--measure", choices=["ours", "plain"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure, options.folder)))
        return
    with tempfile.TemporaryDirectory() as made:
        print(json.dumps(compare(options.folder or Path(made), options.scale, options.repeats), indent=1))


if __name__ == "__main__":
    main()
