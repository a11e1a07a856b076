"""The tables and arrays that everything works on."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from gloss_utils.base.files import read_json, write_json, write_whole
from gloss_utils.data.sequences import Lists, Sequences

TABLES, ARRAYS, STATISTICS = ("items", "users"), ("places", "times"), "statistics.json"


@dataclass
class Dataset:
    """The tables of a data set, and its interactions as arrays, which may be memory-mapped.

    items: item, title, new (bool: held out of all training, see `rules.draw_new_items`); in the metadata's order, which
    breaks ties between equally similar items.
    users: user, interactions (count), validation (bool), drawn (bool: among the `max_users`); sorted by user; without
    those of fewer than `min_history` interactions.
    places, times: the item of each interaction, by its place in `items` (int32), and when it was (int64); first all of
    the first user, by time, then all of the second.
    statistics: counts of the whole data set and of what was left out; the `periods` of a time split (when validation
    and test begin; null: leave-one-out), with its `min_history`, `max_history` and `time_target`.
    """

    items: pd.DataFrame
    users: pd.DataFrame
    places: np.ndarray
    times: np.ndarray
    statistics: dict

    @classmethod
    def of(cls, items: pd.DataFrame, interactions: pd.DataFrame, users: pd.DataFrame, statistics: dict) -> "Dataset":
        """A dataset of a table of interactions (user, item, time; sorted by user, then time)."""
        places = pd.Index(items["item"]).get_indexer(interactions["item"]).astype(np.int32)
        return cls(items, users, places, interactions["time"].to_numpy(np.int64), statistics)

    @classmethod
    def load(cls, folder: str | Path) -> "Dataset":
        """Read the tables from the folder in which `save` wrote them; the arrays stay on the disk."""
        tables = {name: pd.read_parquet(Path(folder) / f"{name}.parquet") for name in TABLES}
        arrays = {name: np.load(Path(folder) / f"{name}.npy", mmap_mode="r") for name in ARRAYS}
        return cls(**tables, **arrays, statistics=read_json(Path(folder) / STATISTICS))

    def save(self, folder: str | Path):
        """Write the tables as Parquet, the arrays as NumPy files and the statistics as JSON."""
        for name in (*(f"{table}.parquet" for table in TABLES), *(f"{array}.npy" for array in ARRAYS)):
            path = Path(folder) / name
            value = getattr(self, path.stem)
            with write_whole(path) as part, open(part, "wb") as file:
                value.to_parquet(file, index=False) if path.stem in TABLES else np.save(file, value)
        write_json(Path(folder) / STATISTICS, self.statistics)

    @property
    def interactions(self) -> pd.DataFrame:
        """The interactions as a table (user, item, time), made anew each time; for small data only."""
        users = self.users["user"].repeat(self.users["interactions"]).reset_index(drop=True)
        items = self.items["item"].iloc[self.places].reset_index(drop=True)
        return pd.DataFrame({"user": users, "item": items, "time": self.times})

    def sequences(self) -> Sequences:
        """Each user's items, oldest first."""
        offsets = np.concatenate([[0], self.users["interactions"].to_numpy(np.int64).cumsum()])
        return Sequences(pd.Index(self.users["user"]), Lists(pd.Index(self.items["item"]), offsets, self.places))

    def popularity(self) -> np.ndarray:
        """How often each item was taken, int64 [items]."""
        return np.bincount(self.places, minlength=len(self.items))

    def titles(self) -> dict[str, str]:
        """Each item's title."""
        return dict(zip(self.items["item"], self.items["title"], strict=True))

    def new_items(self) -> set[str]:
        """The items that are held out of all training."""
        return set(self.items.loc[self.items["new"], "item"])

    def trained_titles(self) -> list[str]:
        """The titles that a tokenizer or a model may learn from: those of no new item."""
        new = set(self.items.loc[self.items["new"], "title"])
        return [title for title in self.items["title"] if title not in new]
