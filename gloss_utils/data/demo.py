"""The embedded demo: made-up raw files in the layout that Amazon 2014 is published in.

It shows that the code works, and says nothing about how good recommendations are. Its users follow routines: after the
shampoo of one brand they mostly take a certain conditioner of another brand. So the next item can be learnt from
histories, but cannot be read from the words of the last title. Like real data, it has a few faults.
"""

import gzip
import json
from itertools import product
from pathlib import Path

import numpy as np

from gloss_utils.base.files import write_whole

SEED = 20140723  # the demo is one data set: the run's seed does not change it
USERS = 1500
NOISE = 0.2  # share of interactions that follow no routine

BRANDS = ("Alder &amp; Vale", "Brightwater", "Cassia Lane", "Dove Hollow", "Elmroot")
ROUTINES = {
    "hair": ("Volumizing Shampoo", "Silk Conditioner", "Repair Hair Mask", "Argan Hair Oil", "Heat Shield Spray"),
    "face": ("Foaming Cleanser", "Rose Toner", "Vitamin C Serum", "Day Cream", "Mineral Sunscreen"),
    "nails": ("Nail Polish Remover", "Cuticle Softener", "Base Coat", "Glossy Nail Lacquer", "Quick Dry Top Coat"),
    "eyes": ("Makeup Primer", "Cream Eyeshadow", "Liquid Eyeliner", "Lash Mascara", "Brow Pencil"),
    "body": ("Sugar Scrub", "Shower Gel", "Body Butter", "Hand Lotion", "Foot Balm"),
    "shave": ("Pre-Shave Oil", "Shaving Soap", "Safety Razor Blades", "Alum Block", "Aftershave Lotion"),
}
SIZES = ("Travel Size", "Family Size")


def catalogue() -> list[dict]:
    """The demo's 301 items in metadata order: 6 routines x 5 steps x 5 brands x 2 sizes, and one without a title."""
    items, names = [], ("routine", "step", "brand", "size")
    for values in product(ROUTINES, range(5), range(len(BRANDS)), range(len(SIZES))):
        routine, step, brand, size = values
        title = f"{BRANDS[brand]} {ROUTINES[routine][step]}, {SIZES[size]}"
        items.append({"asin": f"B{len(items):05d}", **dict(zip(names, values, strict=True)), "title": title})
    return [*items, {"asin": "B99999", "routine": None}]


def histories(rng: np.random.Generator, items: list[dict]) -> list[list[str]]:
    """Each user's items in order. In a routine, the brand changes from step to step by a rule of that routine."""
    at = {(i["routine"], i["step"], i["brand"], i["size"]): i["asin"] for i in items if i["routine"]}
    partner = {routine: rng.permutation(len(BRANDS)) for routine in ROUTINES}
    titled = [item["asin"] for item in items[:-1]]
    routines = rng.dirichlet(np.full(len(ROUTINES), 3.0))
    sequences = []
    for user in range(USERS):
        length = 5 + min(rng.geometric(0.22) - 1, 30)
        routine, step, brand = rng.choice(list(ROUTINES), p=routines), int(rng.integers(5)), int(rng.integers(5))
        size, sequence = int(rng.random() < 0.3), []
        while len(sequence) < length:
            if rng.random() < NOISE:
                sequence.append(str(rng.choice(titled)))
                continue
            sequence.append(at[routine, step, brand, size])
            brand = int(partner[routine][brand])
            step += 1
            if step == 5:
                routine, step, brand = rng.choice(list(ROUTINES), p=routines), 0, int(rng.integers(5))
        if user % 50 == 0:
            sequence[1] = "B99999"  # bought the item that has no title
        if user % 500 == 7:
            sequence = sequence[:2]  # too short for any split
        sequences.append(sequence)
    return sequences


def reviews(rng: np.random.Generator, sequences: list[list[str]]) -> list[dict]:
    """Review lines sorted by item, as published; some of a user's purchases fall on the same day."""
    lines = []
    for user, sequence in enumerate(sequences):
        day = 15000 + int(rng.integers(400))
        for position, asin in enumerate(sequence):
            # Items of the same day stay in the file's order, which is by item: such faults are rare.
            day += 0 if position and rng.random() < 0.03 else 1 + int(rng.integers(9))
            lines.append(
                {
                    "reviewerID": f"A{user:04d}DEMO",
                    "asin": asin,
                    "reviewerName": "Someone",
                    "helpful": [0, 0],
                    "reviewText": "Made up for the demo.",
                    "overall": float(rng.integers(3, 6)),
                    "summary": "Demo",
                    "unixReviewTime": day * 86400,
                }
            )
    lines.sort(key=lambda line: line["asin"])
    lines.insert(100, dict(lines[99]))  # a duplicate review
    return lines


def metadata(items: list[dict]) -> list[dict]:
    """Metadata lines: every item, one of them twice, and one that nobody bought."""
    lines = []
    for item in items:
        line = {"asin": item["asin"]}
        if "title" in item:
            line |= {"title": item["title"], "price": 9.99, "brand": BRANDS[item["brand"]]}
        lines.append(line | {"related": {"also_bought": []}, "categories": [["Demo"]]})
    return [*lines, lines[10], {"asin": "B88888", "title": "Nobody's Choice Soap", "categories": [["Demo"]]}]


def write(reviews_path: Path, metadata_path: Path):
    """Write the demo's two raw files, gzipped: reviews as JSON lines, metadata as Python literals."""
    rng = np.random.default_rng(SEED)
    items = catalogue()
    review_lines = [json.dumps(line) for line in reviews(rng, histories(rng, items))]
    metadata_lines = [repr(line) for line in metadata(items)]
    for path, lines in ((reviews_path, review_lines), (metadata_path, metadata_lines)):
        with write_whole(path) as part:
            part.write_bytes(gzip.compress(("\n".join(lines) + "\n").encode(), mtime=0))
