"""Which data sets there are: where their files lie, how they are laid out, and the tables of the user's own.

Addresses and layouts as published by McAuley (Amazon 2014, 2018, 2023) and GroupLens (MovieLens).
"""

import re
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from gloss_utils.base.errors import GlossError
from gloss_utils.data import blocks, demo, downloads, readers, templates
from gloss_utils.data.blocks import Layout
from gloss_utils.data.rejects import Rejects

NAMED = {"demo": "Demo", "beauty": "Beauty", "toys": "Toys_and_Games", "sports": "Sports_and_Outdoors"}
TABLE = "table"
DATASET = re.compile(r"demo|beauty|toys|sports|movielens-100k|movielens-1m|table|amazon(2018|2023)-(\w+)", re.ASCII)
DATASETS = (
    "demo, beauty, toys, sports, amazon2018-CATEGORY or amazon2023-CATEGORY (as All_Beauty), movielens-100k, "
    "movielens-1m, or table"
)
FORMS = {".csv": "csv", ".jsonl": "json", ".json": "json", ".parquet": "parquet"}

AMAZON_2014 = {"user": "reviewerID", "item": "asin", "time": "unixReviewTime", "rating": "overall"}
AMAZON_2023 = {"user": "user_id", "item": "parent_asin", "time": "timestamp", "rating": "rating"}
MOVIELENS = {"user": "user", "item": "item", "time": "time", "rating": "rating"}
RATINGS = ("user", "item", "rating", "time")


def is_dataset(name: str) -> bool:
    """Whether there is a data set of this name."""
    return DATASET.fullmatch(name) is not None


@dataclass(frozen=True)
class Source:
    """A data set's two files. address: where they are published; folder: of `data_dir`, that keeps them.

    interactions, items: their paths under the address, of which only the names are kept in the folder.
    """

    address: str
    folder: str
    interactions: str
    items: str
    interactions_layout: Layout
    items_layout: Layout


def describe(dataset: str) -> Source:
    """The files of a data set by its name, `table` excepted."""
    if dataset in NAMED:
        name = NAMED[dataset]
        return Source(
            "https://snap.stanford.edu/data/amazon/productGraph/categoryFiles/",
            "",
            f"reviews_{name}_5.json.gz",
            f"meta_{name}.json.gz",
            Layout("json", AMAZON_2014),
            Layout("literal", {"item": "asin"}),
        )
    if dataset == "movielens-100k":
        return Source(
            "https://files.grouplens.org/datasets/movielens/",
            "",
            "ml-100k.zip",
            "ml-100k.zip",
            Layout("delimited", MOVIELENS, member="ml-100k/u.data", columns=RATINGS),
            Layout(
                "delimited",
                {"item": "item"},
                member="ml-100k/u.item",
                separator="|",
                columns=("item", "title"),
                encoding="latin-1",
            ),
        )
    if dataset == "movielens-1m":
        return Source(
            "https://files.grouplens.org/datasets/movielens/",
            "",
            "ml-1m.zip",
            "ml-1m.zip",
            Layout("delimited", MOVIELENS, member="ml-1m/ratings.dat", separator="::", columns=RATINGS),
            Layout(
                "delimited",
                {"item": "item"},
                member="ml-1m/movies.dat",
                separator="::",
                columns=("item", "title", "genres"),
                encoding="latin-1",
            ),
        )
    year, category = DATASET.fullmatch(dataset).groups()
    if year == "2018":
        return Source(
            "https://jmcauley.ucsd.edu/data/amazon_v2/",
            "amazon2018",
            f"categoryFilesSmall/{category}_5.json.gz",
            f"metaFiles2/meta_{category}.json.gz",
            Layout("json", AMAZON_2014),
            Layout("json", {"item": "asin"}),
        )
    return Source(
        "https://mcauleylab.ucsd.edu/public_datasets/data/amazon_2023/",
        "amazon2023",
        f"raw/review_categories/{category}.jsonl.gz",
        f"raw/meta_categories/meta_{category}.jsonl.gz",
        Layout("json", AMAZON_2023),
        Layout("json", {"item": "parent_asin"}),
    )


def locate(dataset: str, data_dir: str | Path, address: str | None = None) -> tuple[Path, Path]:
    """The files of interactions and of items in `data_dir`, made (demo) or downloaded where they are lacking.

    address: takes the place of the published one. Raises `GlossError` where a file can neither be found nor
    downloaded, is not what was downloaded once, or the folder cannot be used.
    """
    source = describe(dataset)
    folder = Path(data_dir) / source.folder
    paths = [folder / Path(name).name for name in (source.interactions, source.items)]
    try:
        if dataset == "demo" and not all(_present(path) for path in paths):
            demo.write(*paths)
        for path, name in zip(paths, (source.interactions, source.items), strict=True):
            if not _present(path):
                downloads.fetch((address or source.address).rstrip("/") + "/" + name, path)
        return tuple(map(_present, paths))
    except OSError as error:  # as a name that is too long, or a folder that may not be read
        raise GlossError(
            f"{folder} cannot hold the files of {dataset[:50]} ({error.strerror}); choose another data_dir, or dataset"
        ) from error


def _present(path: Path) -> Path | None:
    for candidate in (path, path.with_suffix("") if path.suffix == ".gz" else path):
        if candidate.is_file():
            return downloads.checked(candidate)
    return None


def tables(values: dict) -> tuple[tuple[Path, Path], Source]:
    """The user's own two files, and their layout, from the parameters that name files and columns.

    Raises `GlossError` where a file is of no known kind, or a column is not in it.
    """
    fields = {"user": values["user_column"], "item": values["item_column"], "time": values["time_column"]}
    text = values["item_text"] or "{title}"
    paths, layouts = [], []
    for name, own in (("interactions_file", fields), ("items_file", {"item": values["item_id_column"]})):
        path = Path(values[name])
        form = FORMS.get(Path(path.name.removesuffix(".gz")).suffix.lower())
        if form is None or (form == "parquet" and path.suffix == ".gz"):
            raise GlossError(f"{name} is {path}; give a .csv, .jsonl or .parquet file, the first two gzipped or not")
        needed = [*own.values(), *(templates.columns(text) if name == "items_file" else ())]
        there = blocks.columns_of(path, form)
        # A line of JSON may leave out what is null: there, only what every record needs has to be among the first.
        missing = [column for column in (own.values() if form == "json" else needed) if column not in there]
        if missing:
            raise GlossError(f"{path} has no column {missing[0]!r}; it has {', '.join(there)}: name it as a parameter")
        twice = [column for column in needed if there.count(column) > 1]
        if twice:
            raise GlossError(f"{path} has more than one column {twice[0]!r}; give each a name of its own")
        paths.append(path)
        layouts.append(Layout(form, own, typed=False, text=text, columns=tuple(there), spans=name == "items_file"))
    return tuple(paths), Source("", "", "", "", *layouts)


def read(
    paths: tuple[Path, Path], source: Source, item_text: str | None, rejects: Rejects, max_rejected: float
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read both files of a data set: interactions (user, item, time, rating), and the items they name (item, title).

    item_text: a template over the item file's columns, in the place of the layout's own. Raises `GlossError` where
    more than `max_rejected` of a file's records cannot be used.
    """
    interactions = readers.read_interactions(paths[0], source.interactions_layout, rejects, max_rejected)
    layout = replace(source.items_layout, text=item_text) if item_text else source.items_layout
    wanted = set(interactions["item"].cat.categories)
    return interactions, readers.read_items(paths[1], layout, wanted, rejects, max_rejected)
