"""The embedded demo: a made-up shop for beauty products, as raw files in the layout that Amazon 2014 is published in.

It is like Amazon's Beauty in what decides how well recommenders do: few items are bought often and many a handful of
times, most histories are short, and the next purchase depends a little on what the titles say (brand, line, step of
use) and a little on what other customers did. It says nothing about how good recommendations of real shops are. Like
real data, it has a few faults.
"""

import gzip
import json
from pathlib import Path

import numpy as np

from gloss_utils.base.files import write_whole

SEED = 20140723  # the demo is one data set: the run's seed does not change it
ITEMS, USERS = 2200, 2000

# Why the next item is bought; what is left is by popularity among the routines that the user cares for. The shares are
# set so that neighbours in a history share words as often as in Amazon's Beauty, and are bought together as often.
CROWD = 0.22  # it is one that many take after the last item, whatever the titles say
LINE = 0.15  # it is of the last item's brand and line: the next step of use, or another one
STEP = 0.12  # it is for the last item's next step of use, of any brand
SAME_DAY = 0.03  # share of purchases on the day of the one before

ROUTINES = {  # steps of use, in order
    "hair": ("Shampoo", "Conditioner", "Hair Mask", "Leave-In Treatment", "Heat Protectant Spray", "Hair Serum"),
    "face": ("Foaming Cleanser", "Toner", "Facial Serum", "Eye Cream", "Day Moisturizer", "Night Cream", "Sunscreen"),
    "nails": ("Cuticle Softener", "Ridge Filler", "Nail Strengthener", "Base Coat", "Nail Lacquer", "Top Coat"),
    "eyes": ("Eye Primer", "Eyeshadow", "Gel Eyeliner", "Lash Primer", "Mascara", "Brow Pencil", "Brow Gel"),
    "lips": ("Lip Scrub", "Lip Balm", "Lip Liner", "Lipstick", "Lip Gloss"),
    "body": ("Sugar Scrub", "Body Wash", "Body Butter", "Hand Lotion", "Foot Cream", "Deodorant"),
    "shave": ("Pre-Shave Oil", "Shaving Soap", "Shaving Cream", "Alum Gel", "Aftershave Balm", "Beard Oil"),
    "scent": ("Perfume Oil", "Eau de Toilette Spray", "Body Mist", "Scented Candle", "Bath Salts"),
}
SHADED = ("nails", "eyes", "lips")  # routines whose items come in shades, the others' in sizes
# fmt: off
SHADES = (
    "Coral", "Nude", "Ruby", "Plum", "Black", "Bronze", "Rose Gold", "Taupe", "Berry", "Ivory", "Teal", "Mocha"
)
SIZES = (
    "1 oz", "2 Ounce", "3.4 oz", "6 fl. oz.", "8 Ounce", "12 oz (Pack of 2)", "16-Ounce", "Travel Size", "250ml"
)
CARE = (
    "Argan Oil", "Lavender", "Tea Tree", "Rose Water", "Coconut Milk", "Vitamin C", "Charcoal", "Shea", "Aloe Vera",
    "Green Tea", "Honey", "Jasmine", "Keratin", "Hyaluronic Acid", "Cucumber", "Oatmeal", "Peppermint", "Sandalwood"
)
FINISHES = (
    "Velvet", "Diamond", "Satin", "Ultra Matte", "24 Hour", "Sensitive", "Mineral", "Pearl", "Waterproof",
    "Glitter", "Silk Touch", "Wild Orchid", "Neon", "Pure Color", "Midnight", "Mirror Shine", "Soft Focus",
    "Perfect Stay"
)
NAMES = (
    "Alder", "Bright", "Cassia", "Dove", "Elm", "Fern", "Gala", "Hazel", "Iris", "Juno", "Kestrel", "Linden",
    "Marlow", "Nettle", "Opal", "Perrin", "Quill", "Rowan", "Sorrel", "Thistle", "Umber", "Verity", "Wren",
    "Yarrow", "Zinnia"
)
# fmt: on
BRANDS = ("{} &amp; Vale", "{}water", "{} Lane Naturals", "Dr. {}", "{}&reg; Beauty")
TITLES = {  # how often each form of title is used
    "{brand} {line} {kind}, {variant}": 0.55,
    "{brand} {kind} with {line}, {variant}": 0.2,
    "{line} {kind} by {brand} - {variant}": 0.15,
    "{line} {kind}, {variant}": 0.1,
}
UNTITLED = "B99999"


def catalogue(count: int = ITEMS) -> list[dict]:
    """The demo's items in metadata order: `count` with asin, title, brand, line, routine, step; one without a title."""
    rng = np.random.default_rng(SEED)
    brands = [form.format(name) for form in BRANDS for name in NAMES]
    forms, items, seen = list(TITLES), [], set()
    while len(items) < count:
        brand, routine = str(rng.choice(brands)), str(rng.choice(list(ROUTINES)))
        lines, variants = (FINISHES, SHADES) if routine in SHADED else (CARE, SIZES)
        line = str(rng.choice(lines))
        for step, kind in enumerate(ROUTINES[routine]):
            offered = rng.geometric(0.5) if rng.random() < 0.7 else 0  # not every line has every step
            for variant in rng.permutation(variants)[:offered]:
                about = {"brand": brand, "line": line, "routine": routine, "step": step}
                title = str(rng.choice(forms, p=list(TITLES.values()))).format(kind=kind, variant=variant, **about)
                if title not in seen and len(items) < count:
                    seen.add(title)
                    items.append({"asin": f"B{len(items):05d}", **about, "title": title})
    return [*items, {"asin": UNTITLED, "routine": None}]


class _Shop:
    """What customers choose from: for each reason to buy, items by place in `items`, with their popularity."""

    def __init__(self, rng: np.random.Generator, items: list[dict]):
        brands = {item["brand"]: rng.lognormal(0, 0.5) for item in items}
        self.popularity = np.array([brands[item["brand"]] * rng.lognormal(0, 0.9) for item in items])
        places = list(range(len(items)))
        self.of_routine = _groups(places, [item["routine"] for item in items])
        self.of_step = _groups(places, [(item["routine"], item["step"]) for item in items])
        self.of_line = _groups(places, [(item["brand"], item["line"], item["routine"]) for item in items])
        self.items = items
        # What many take next: a few items, of the same routine or not, known to no title.
        self.after = [self._some(rng, item["routine"]) for item in items]

    def _some(self, rng: np.random.Generator, routine: str) -> np.ndarray:
        near = self.of_routine[routine]
        return np.array([self.draw(rng, near if rng.random() < 0.7 else range(len(self.items))) for _ in range(4)])

    def draw(self, rng: np.random.Generator, places) -> int:
        """One of these places, by popularity."""
        places = np.asarray(places)
        weights = np.cumsum(self.popularity[places])
        return int(places[np.searchsorted(weights, rng.random() * weights[-1])])

    def next(self, rng: np.random.Generator, last: int | None, routines: list[str]) -> int:
        """What a customer who cares for `routines` takes after the item `last` (none at first)."""
        reason = rng.random() if last is not None else 1.0
        if reason < CROWD:
            return int(self.after[last][min(rng.geometric(0.5), 4) - 1])
        item = self.items[last] if last is not None else {}
        if (reason := reason - CROWD) < LINE:
            line = self.of_line[item["brand"], item["line"], item["routine"]]
            ahead = [place for place in line if self.items[place]["step"] == item["step"] + 1]
            return self.draw(rng, ahead if ahead and rng.random() < 0.6 else line)
        if reason - LINE < STEP:
            step = (item["step"] + 1) % len(ROUTINES[item["routine"]])
            return self.draw(rng, self.of_step.get((item["routine"], step), self.of_routine[item["routine"]]))
        return self.draw(rng, self.of_routine[str(rng.choice(routines))])


def _groups(places: list[int], keys: list) -> dict:
    found = {}
    for place, key in zip(places, keys, strict=True):
        found.setdefault(key, []).append(place)
    return found


def histories(rng: np.random.Generator, items: list[dict], users: int = USERS) -> list[list[str]]:
    """Each user's items in order, none twice."""
    titled = items[:-1]
    shop, sequences = _Shop(rng, titled), []
    love = rng.dirichlet(np.full(len(ROUTINES), 5.0))
    for user in range(users):
        length = min(4 + int(np.ceil(rng.lognormal(0.6, 1.25))), 60)
        routines = [str(routine) for routine in rng.choice(list(ROUTINES), size=3, replace=False, p=love)]
        routines = [routine for routine, times in zip(routines, (6, 2, 1), strict=True) for _ in range(times)]
        sequence, last = [], None
        while len(sequence) < length:
            place = shop.next(rng, last, routines)
            if place not in sequence:
                sequence.append(place)
            last = place if rng.random() < 0.9 or last is None else int(rng.choice(sequence))
        named = [titled[place]["asin"] for place in sequence]
        if user % 50 == 0:
            named[1] = UNTITLED  # bought the item that has no title
        if user % 500 == 7:
            named = named[:2]  # too short for any split
        sequences.append(named)
    return sequences


def reviews(rng: np.random.Generator, sequences: list[list[str]]) -> list[dict]:
    """Review lines sorted by item, as published; some of a user's purchases fall on the same day."""
    lines = []
    for user, sequence in enumerate(sequences):
        day = 15000 + int(rng.integers(400))
        for position, asin in enumerate(sequence):
            # Items of the same day stay in the file's order, which is by item: such faults are rare.
            day += 0 if position and rng.random() < SAME_DAY else 1 + int(rng.integers(9))
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
            line |= {"title": item["title"], "price": 9.99, "brand": item["brand"]}
        lines.append(line | {"related": {"also_bought": []}, "categories": [["Demo"]]})
    return [*lines, lines[10], {"asin": "B88888", "title": "Nobody's Choice Soap", "categories": [["Demo"]]}]


def write(reviews_path: Path, metadata_path: Path, count: int = ITEMS, users: int = USERS):
    """Write the demo's two raw files, gzipped: reviews as JSON lines, metadata as Python literals.

    count, users: of a smaller shop, for tests.
    """
    rng = np.random.default_rng(SEED)
    items = catalogue(count)
    review_lines = [json.dumps(line) for line in reviews(rng, histories(rng, items, users))]
    metadata_lines = [repr(line) for line in metadata(items)]
    for path, lines in ((reviews_path, review_lines), (metadata_path, metadata_lines)):
        with write_whole(path) as part:
            part.write_bytes(gzip.compress(("\n".join(lines) + "\n").encode(), mtime=0))
