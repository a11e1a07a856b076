"""Which data sets there are, where their files are published and how they are written; and the user's own tables.

Addresses and layouts as published by McAuley (Amazon 2014, 2018, 2023) and GroupLens (MovieLens).
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pandas as pd

from gloss_utils.base.errors import GlossError
from gloss_utils.data import demo, downloads, readers, templates
from gloss_utils.data.interactions import Interactions
from gloss_utils.data.raw_files import RawFile, columns_of
from gloss_utils.data.rejects import Rejects

TABLE = "table"  # the user's own two tables
FORMS = {".csv": "csv", ".jsonl": "json", ".json": "json", ".parquet": "parquet"}


@dataclass(frozen=True)
class Source:
    """The two raw files of a data set: who took what when, and what there is."""

    interactions: RawFile
    items: RawFile

    @property
    def paths(self) -> tuple:
        """The path of the interactions' file, and that of the items'."""
        return self.interactions.path, self.items.path


@dataclass(frozen=True)
class Collection(Source):
    """Data sets that are published alike; each `{}` in a path stands for one's name.

    folder: of `data_dir`, for the downloaded files.
    """

    address: str
    folder: str = ""


AMAZON = {"user": "reviewerID", "item": "asin", "time": "unixReviewTime", "rating": "overall"}
AMAZON_2023 = {"user": "user_id", "item": "parent_asin", "time": "timestamp", "rating": "rating"}
RATINGS = ("user", "item", "rating", "time")
MOVIELENS = partial(RawFile, form="delimited", fields={name: name for name in RATINGS}, columns=RATINGS)
MOVIES = partial(RawFile, form="delimited", fields={"item": "item"}, encoding="latin-1")

COLLECTIONS = {
    "amazon2014": Collection(
        RawFile("reviews_{}_5.json.gz", "json", AMAZON),
        RawFile("meta_{}.json.gz", "literal", {"item": "asin"}),
        "https://snap.stanford.edu/data/amazon/productGraph/categoryFiles/",
    ),
    "amazon2018": Collection(
        RawFile("categoryFilesSmall/{}_5.json.gz", "json", AMAZON),
        RawFile("metaFiles2/meta_{}.json.gz", "json", {"item": "asin"}),
        "https://jmcauley.ucsd.edu/data/amazon_v2/",
        "amazon2018",
    ),
    "amazon2023": Collection(
        RawFile("raw/review_categories/{}.jsonl.gz", "json", AMAZON_2023),
        RawFile("raw/meta_categories/meta_{}.jsonl.gz", "json", {"item": "parent_asin"}),
        "https://mcauleylab.ucsd.edu/public_datasets/data/amazon_2023/",
        "amazon2023",
    ),
    "movielens-100k": Collection(
        MOVIELENS("ml-100k.zip", member="ml-100k/u.data", separator="\t"),
        MOVIES("ml-100k.zip", member="ml-100k/u.item", separator="|", columns=("item", "title")),
        "https://files.grouplens.org/datasets/movielens/",
    ),
    "movielens-1m": Collection(
        MOVIELENS("ml-1m.zip", member="ml-1m/ratings.dat", separator="::"),
        MOVIES("ml-1m.zip", member="ml-1m/movies.dat", separator="::", columns=("item", "title", "genres")),
        "https://files.grouplens.org/datasets/movielens/",
    ),
}
# Data sets that have a name of their own: the collection, and the name in it.
NAMED = {
    "demo": ("amazon2014", "Demo"),
    "beauty": ("amazon2014", "Beauty"),
    "toys": ("amazon2014", "Toys_and_Games"),
    "sports": ("amazon2014", "Sports_and_Outdoors"),
    "movielens-100k": ("movielens-100k", ""),
    "movielens-1m": ("movielens-1m", ""),
}
CATEGORY = re.compile(r"(amazon2018|amazon2023)-(\w+)", re.ASCII)
DATASETS = (
    "demo, beauty, toys, sports, amazon2018-CATEGORY or amazon2023-CATEGORY (as All_Beauty), movielens-100k, "
    f"movielens-1m, or {TABLE}"
)


@dataclass(frozen=True)
class OwnTables:
    """The user's own two files (.csv, .jsonl or .parquet) and the columns of them that we need."""

    interactions_file: str | Path
    items_file: str | Path
    user_column: str = "user"
    item_column: str = "item"
    time_column: str = "time"
    item_id_column: str = "item"


def is_dataset(name: str) -> bool:
    """Whether a data set has this name. No such name leads out of its folder."""
    return name in NAMED or name == TABLE or bool(CATEGORY.fullmatch(name))


def published(dataset: str) -> Collection:
    """How a data set is published. Raises `GlossError` where none has this name."""
    if not is_dataset(dataset) or dataset == TABLE:
        raise GlossError(f"there is no published data set {dataset[:50]!r}; choose {DATASETS}")
    name, category = NAMED.get(dataset) or CATEGORY.fullmatch(dataset).groups()
    found = COLLECTIONS[name]
    interactions, items = (replace(file, path=file.path.format(category)) for file in (found.interactions, found.items))
    return replace(found, interactions=interactions, items=items)


def find(
    dataset: str,
    data_dir: str | Path = "data",
    data_address: str | None = None,
    item_text: str | None = None,
    own: OwnTables | None = None,
) -> Source:
    """The files of a data set, which are made (demo) or downloaded into `data_dir` where they are missing.

    data_address: takes the place of the published one. item_text: a template over the item file's columns, as
    "{title} by {brand}"; None takes the title. own: for the data set `table`.
    Raises `GlossError` where there is no such data set, where a file can neither be found nor downloaded or is not what
    was once downloaded, where the folder cannot be used, and where the user's own files lack a column.
    """
    text = item_text or "{title}"
    if dataset == TABLE:
        if own is None:
            raise GlossError(f"the data set {TABLE} needs own: two files, and which of their columns are which")
        return _own(own, text)
    found = published(dataset)
    folder, address = Path(data_dir) / found.folder, (data_address or found.address).rstrip("/")
    paths = [folder / Path(name).name for name in found.paths]
    try:
        if dataset == "demo" and not all(map(_present, paths)):
            demo.write(*paths)
        for path, name in zip(paths, found.paths, strict=True):
            if not _present(path):
                downloads.fetch(f"{address}/{name}", path)
        interactions, items = map(_present, paths)
    except OSError as error:  # as a name that is too long, or a folder that may not be read
        raise GlossError(
            f"{folder} cannot hold the files of {dataset[:50]} ({error.strerror}); choose another data_dir, or dataset"
        ) from error
    return Source(replace(found.interactions, path=interactions), replace(found.items, path=items, text=text))


def _present(path: Path) -> Path | None:
    for candidate in (path, path.with_suffix("") if path.suffix == ".gz" else path):
        if candidate.is_file():
            return downloads.checked(candidate)
    return None


def _own(own: OwnTables, text: str) -> Source:
    fields = {"user": own.user_column, "item": own.item_column, "time": own.time_column}
    items = _own_file("items_file", own.items_file, {"item": own.item_id_column}, templates.columns(text))
    return Source(
        _own_file("interactions_file", own.interactions_file, fields, ()), replace(items, text=text, spans=True)
    )


def _own_file(name: str, path: str | Path, fields: dict[str, str], texts: list[str]) -> RawFile:
    """A file of the user's own, which has to have the columns of `fields` and those that its `texts` name."""
    path = Path(path)
    form = FORMS.get(Path(path.name.removesuffix(".gz")).suffix.lower())
    if form is None or (form == "parquet" and path.suffix == ".gz"):
        raise GlossError(f"{name} is {path}; give a .csv, .jsonl or .parquet file, the first two gzipped or not")
    needed, there = [*fields.values(), *texts], columns_of(path, form)
    # A line of JSON may leave out what is null: there, only what every record needs has to be among the first.
    missing = [column for column in (fields.values() if form == "json" else needed) if column not in there]
    if missing:
        raise GlossError(f"{path} has no column {missing[0]!r}; it has {', '.join(there)}: name it as a parameter")
    twice = [column for column in needed if there.count(column) > 1]
    if twice:
        raise GlossError(f"{path} has more than one column {twice[0]!r}; give each a name of its own")
    return RawFile(path, form, fields, typed=False, columns=tuple(there))


def read(
    source: Source,
    rejects: Rejects | None = None,
    max_rejected: float = 0.01,
    folder: Path | None = None,
    each: Callable = map,
) -> tuple[Interactions, pd.DataFrame]:
    """Read both files: interactions, and the items that they name (item, title).

    rejects: notes the records that cannot be used. folder: for what lies on the disk meanwhile (None: where the system
    has temporary files). each: calls a function for each block of a file, and yields what it returns, in order; other
    processes may do it. Raises `GlossError` where records that cannot be used are a larger share of a file's records
    than `max_rejected`.
    """
    rejects = rejects or Rejects()
    interactions = readers.read_interactions(source.interactions, rejects, max_rejected, folder, each)
    return interactions, readers.read_items(source.items, interactions.items, rejects, max_rejected, each)
