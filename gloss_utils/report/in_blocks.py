"""Metrics of many users, some users at a time: they are put on the disk, and those of one kind in memory at once."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

from gloss_utils.rank.asked import PARTS as ASKED
from gloss_utils.rank.baselines import Baseline
from gloss_utils.rank.evidence import without_part
from gloss_utils.rank.ranker import FUSED, HYBRID, LEARNED, PAPER, Ranker
from gloss_utils.rank.trec import as_run, write_trec
from gloss_utils.rank.weights import PARTS
from gloss_utils.report.beyond import BEYOND, Catalogue, K
from gloss_utils.report.metrics import (
    GLOSS,
    GLOSS_HISTORIES,
    GLOSS_HYBRID,
    GLOSS_PAPER,
    LEFT_OUT,
    METRICS,
    SEEN,
    per_user_metrics,
    targets_of,
)
from gloss_utils.report.significance import beside_target

PLACES = [f"item {rank}" for rank in range(1, K + 1)]  # of the catalogue that were recommended, by their places
COLUMNS = [*METRICS, *BEYOND, *PLACES]
TEXTS, WITHOUT, SHUFFLED = "texts", "without", "shuffled"  # what is measured beside the methods
MEASURED, TIES = "measured.npz", ("above", "equal")  # of a block


def methods(found: Ranker) -> dict[str, Callable[..., pd.DataFrame]]:
    """What ranks from the generated texts, the run's own ranking last; each takes `exclude_seen`."""
    ranks = {GLOSS_PAPER: partial(found.paper, found.retriever)}
    if found.asked:
        ranks[GLOSS_HISTORIES] = partial(found.by_learned, 0)
    if found.rule == LEARNED:
        ranks[GLOSS_HYBRID] = found.hybrid
    return ranks | {GLOSS: found.rank}


class Values:
    """Numbers of users by name, appended block by block to files in a folder, which has to be there: `COLUMNS`, or the
    first of them."""

    def __init__(self, folder: Path):
        self.folder, self.width = folder, {}

    def add(self, name: object, values: np.ndarray):
        """Append the rows of more users; all of a name have as many columns."""
        self.width.setdefault(name, values.shape[1])
        with open(self._file(name), "ab") as file:
            file.write(np.ascontiguousarray(values, dtype=np.float64).tobytes())

    def read(self, name: object, columns: list[str] = METRICS) -> np.ndarray:
        """The numbers of all users in the order in which they came, [users, columns]."""
        values = np.memmap(self._file(name), np.float64, mode="r").reshape(-1, self.width[name])
        return values[:, [COLUMNS.index(column) for column in columns]]

    def _file(self, name: object) -> Path:
        return self.folder / f"{list(self.width).index(name)}.float64"


def measured(run: pd.DataFrame, targets: Mapping[str, str], catalogue: Catalogue) -> np.ndarray:
    """`COLUMNS` of the users of the targets, in their order, float64 [users, columns]; NaN where there is nothing to
    count. run: of `rank.as_run`."""
    first = catalogue.first(run)
    column = first.groupby("user").cumcount().map(dict(enumerate(PLACES)))
    places = first.assign(column=column).pivot(index="user", columns="column", values="place").reindex(columns=PLACES)
    found = per_user_metrics(run, dict(targets)).join(catalogue.of_lists(first, targets))
    return found.join(places)[COLUMNS].to_numpy(dtype=np.float64)


def trec_of(folder: Path, method: str, seen: str) -> Path:
    """Where a block's rankings by a method are."""
    return folder / f"{method} {seen}.trec"


@dataclass
class Measure:
    """What ranks for a block of users and measures that. world: a ranker that has counted and learnt. baselines: by
    method; of_seeds: those of further seeds. texts: of a user, at most. shuffled: the seed of shuffled histories; null:
    none are."""

    world: Ranker
    catalogue: Catalogue
    baselines: dict[str, Baseline]
    of_seeds: dict[str, Baseline]
    texts: int
    shuffled: int | None

    def __getstate__(self) -> dict:
        """For other processes, trees without parts are fitted here, once."""
        if self.world.rule == LEARNED and not self.world.asked:
            _ = self.world.learned.models
        return vars(self)

    def write(self, queries: pd.DataFrame, folder: Path):
        """Write the rankings of a block's users by all methods, with seen items left out and kept in, and what is
        measured of these and of what is not kept: rankings from fewer texts, without parts, from shuffled histories.

        What was learnt stays where histories are shuffled, and so do the generated texts: `gloss-paper`, which ranks by
        them alone, is not shuffled.
        """
        ranker, targets, found = self.world.of_block(queries), targets_of(queries), {}
        baselines = {
            method: partial(rank, ranker.histories) for method, rank in (self.baselines | self.of_seeds).items()
        }
        for seen, (method, rank) in product(SEEN, (baselines | methods(ranker)).items()):
            ranking = rank(exclude_seen=seen == LEFT_OUT)
            write_trec(trec_of(folder, method, seen), ranking, method)
            found[method, seen] = measured(as_run(ranking), targets, self.catalogue)
        for name, ranking in self._not_kept(ranker):
            found[name] = per_user_metrics(as_run(ranking), targets).to_numpy()
        ties = beside_target(ranker.paper_candidates(ranker.retriever), targets)
        arrays = dict(zip(TIES, ties, strict=True)) | {json.dumps(name): values for name, values in found.items()}
        np.savez(folder / MEASURED, **arrays)

    def _not_kept(self, ranker: Ranker) -> Iterator[tuple[tuple, pd.DataFrame]]:
        for (rule, retriever), rank in _rules(ranker).items():
            yield from (((TEXTS, rule, retriever, number), rank(number)) for number in range(1, self.texts + 1))
        yield from (((WITHOUT, part), ranking) for part, ranking in _without_parts(ranker).items())
        if self.shuffled is not None:
            other = ranker.shuffled(self.shuffled)
            for method, rank in self.baselines.items():
                yield (SHUFFLED, method), rank(other.histories, exclude_seen=True)
            yield (SHUFFLED, GLOSS), other.rank(exclude_seen=True)


def _rules(ranker: Ranker) -> dict:
    """What ranks from a number of texts, by rule and retriever: the paper's rule by both, and the run's own rule where
    texts count."""
    rules = {(PAPER, retriever): partial(ranker.paper, retriever) for retriever in ("dense", "bm25")}
    if ranker.rule != PAPER and (ranker.rule != LEARNED or ranker.text_targets or ranker.asked):
        rules[ranker.rule, ranker.retriever if ranker.rule == FUSED else "both"] = ranker.rank
    return rules


def _without_parts(ranker: Ranker) -> dict[str, pd.DataFrame]:
    """The rankings whole ("none") and without each part: of `hybrid`, whose other weights stay, or of `learned`, which
    is fitted again; none of other rules."""
    if ranker.asked:
        less = {"none": ASKED} | {out: [part for part in ASKED if part != out] for out in ASKED[1:]}
        found = {name: ranker.by_all(parts) for name, parts in less.items()}
        return found | {" and ".join(ASKED[1:]): ranker.by_learned(0)}
    if ranker.rule == LEARNED:
        return ranker.learned.without_parts(ranker.depth, ranker.exclude_seen is not False, ranker.weighed())
    if ranker.rule != HYBRID:
        return {}
    weights = ranker.settings.weights
    return ranker.weighted({"none": weights} | {part: without_part(part, weights) for part in PARTS})
