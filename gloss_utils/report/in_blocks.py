"""Metrics of many users, some users at a time: they are put on the disk, and those of one kind in memory at once."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from gloss_utils.rank.trec import read_trec_blocks
from gloss_utils.report.beyond import BEYOND, Catalogue
from gloss_utils.report.metrics import METRICS, per_user_metrics


class Values:
    """Numbers of users by name, appended block by block to files in a folder, which has to be there."""

    def __init__(self, folder: Path):
        self.folder, self.columns = folder, {}

    def add(self, name: object, frame: pd.DataFrame):
        """Append the rows of more users; all frames of a name have the same columns."""
        place = list(self.columns).index(name) if name in self.columns else len(self.columns)
        self.columns[name] = list(frame.columns)
        with open(self.folder / f"{place}.float64", "ab") as file:
            file.write(np.ascontiguousarray(frame.to_numpy(dtype=np.float64)).tobytes())

    def read(self, name: object, columns: list[str] | None = None) -> np.ndarray:
        """The numbers of all users in the order in which they came, [users, columns]; some columns, or all."""
        known = self.columns[name]
        values = np.fromfile(self.folder / f"{list(self.columns).index(name)}.float64").reshape(-1, len(known))
        return values if columns is None else values[:, [known.index(column) for column in columns]]


def measured(
    trec: Path, about: pd.DataFrame, catalogue: Catalogue, size: int, reached: dict[str, np.ndarray], inside: dict
) -> Iterator[pd.DataFrame]:
    """Yields `METRICS` and `beyond.BEYOND` of so many users after the others, indexed by user, from a TREC file.

    about: user and target, in the order of the file. inside: by segment, which of these users are in it. reached: by
    segment, where the items that it is recommended are marked, [items].
    """
    parts = [about.iloc[start : start + size] for start in range(0, len(about), size)]
    for some, run in zip(parts, read_trec_blocks(trec, (part["user"] for part in parts)), strict=True):
        first = catalogue.first(run)
        for segment, members in inside.items():
            reached[segment][first.loc[first["user"].isin(some.loc[members[some.index], "user"]), "place"]] = True
        found = per_user_metrics(run, dict(zip(some["user"], some["target"], strict=True)))
        yield found.join(catalogue.of_lists(first, some["user"]))[[*METRICS, *BEYOND]]
