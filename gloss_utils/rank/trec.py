"""Rankings as TREC files, which all evaluation tools read."""

from collections.abc import Mapping
from pathlib import Path

import ir_measures
import numpy as np
import pandas as pd

from gloss_utils.base.files import write_whole

COLUMNS = ["query_id", "doc_id", "score"]


def falling(ranking: pd.DataFrame) -> pd.DataFrame:
    """The ranking with scores, float32, that fall strictly with the rank, so that tools which break ties in their own
    way all see the same order. A score changes only where it would not fall, to the next smaller number."""
    scores = ranking["score"].to_numpy(dtype=np.float32).copy()
    rank = ranking["rank"].to_numpy()
    for at in range(2, int(rank.max(initial=1)) + 1):
        here = np.flatnonzero(rank == at)
        below = np.nextafter(scores[here - 1], np.float32(-np.inf), dtype=np.float32)
        scores[here] = np.minimum(scores[here], below)
    return ranking.assign(score=scores)


def as_run(ranking: pd.DataFrame) -> pd.DataFrame:
    """A ranking as metrics are computed from it, and as `read_trec` reads it back: columns query_id, doc_id, score."""
    return falling(ranking)[["user", "item", "score"]].set_axis(COLUMNS, axis=1)


def write_trec(path: Path, ranking: pd.DataFrame, method: str):
    """Write a ranking as a TREC run, whole or not at all."""
    rows = falling(ranking)[["user", "item", "rank", "score"]].itertuples(index=False)
    lines = (f"{user} Q0 {item} {rank} {score:.9g} {method}\n" for user, item, rank, score in rows)
    with write_whole(path) as part, open(part, "w", encoding="utf-8") as file:
        file.writelines(lines)


def write_qrels(path: Path, targets: Mapping[str, str]):
    """Write each user's target as TREC relevance judgements."""
    with write_whole(path) as part, open(part, "w", encoding="utf-8") as file:
        file.writelines(f"{user} 0 {item} 1\n" for user, item in targets.items())


def read_trec(path: Path) -> pd.DataFrame:
    """Read a TREC run: columns query_id, doc_id, score."""
    return pd.DataFrame(ir_measures.read_trec_run(str(path)), columns=COLUMNS)
