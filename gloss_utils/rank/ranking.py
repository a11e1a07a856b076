"""From queries to rankings: the paper's rule, and the TREC files that metrics are computed from.

A ranking is a frame with columns user, rank (from 1), item, score, sorted by user (in the order given) and rank.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path

import ir_measures
import numpy as np
import pandas as pd

from gloss_utils.base.files import write_whole
from gloss_utils.data.dataset import Dataset
from gloss_utils.data.prompts import item_text
from gloss_utils.search.bm25 import BM25Index
from gloss_utils.search.dense import DenseIndex

COLUMNS = ["user", "rank", "item", "score"]
CANDIDATES = ["user", "query", "item", "score", "strength"]


def candidates(queries: pd.DataFrame, index: DenseIndex | BM25Index, items: pd.Series, k: int = 1) -> pd.DataFrame:
    """The k nearest items of every query text: columns user, query (from 1, in the order generated), item, score,
    strength (the score against what the retriever gives at best: 1 for a perfect match, 0 or less for none).

    queries: columns user, texts. items: item ids in the catalogue's order. Blank texts name no item.
    """
    texts = queries[["user", "texts"]].explode("texts", ignore_index=True)
    texts["query"] = texts.groupby("user", sort=False).cumcount() + 1
    texts = texts[texts["texts"].fillna("").str.strip().astype(bool)]
    if texts.empty:
        return pd.DataFrame({column: [] for column in CANDIDATES})
    ids, scores = index.search(texts["texts"].tolist(), k)
    width = ids.shape[1]
    return pd.DataFrame(
        {
            "user": np.repeat(texts["user"].to_numpy(), width),
            "query": np.repeat(texts["query"].to_numpy(), width),
            "item": items.to_numpy()[ids.ravel()],
            "score": scores.ravel(),
            "strength": index.strength(scores).ravel(),
        }
    )


def named(queries: pd.DataFrame, items: pd.DataFrame) -> pd.DataFrame:
    """What `candidates` returns, for texts that are items' exact texts: all items of a text, at similarity 1.

    queries: columns user, texts. items: columns item, title.
    """
    texts = queries[["user", "texts"]].explode("texts", ignore_index=True)
    texts["query"] = texts.groupby("user", sort=False).cumcount() + 1
    known = items.assign(texts=items["title"].map(item_text))[["item", "texts"]]
    return texts.merge(known, on="texts").assign(score=1.0, strength=1.0)[CANDIDATES]


def paper(
    found: pd.DataFrame, histories: dict[str, Iterable[str]], seed: int, depth: int, exclude_seen: bool = False
) -> pd.DataFrame:
    """The paper's rule (METHOD, 5): an item's score is that of the last query that names it; ranked by score, equal
    scores ordered by a hash of seed, user and item.

    found: what `candidates` returns. A ranking is as long as the queries name items, at most `depth`. exclude_seen:
    leave out what the user already has (the paper does not).
    """
    last = found.drop_duplicates(["user", "item"], keep="last")
    if exclude_seen:
        last = without(last, histories)
    order = {user: place for place, user in enumerate(histories)}
    last = last.assign(
        place=last["user"].map(order),
        tie=[_hash(seed, user, item) for user, item in zip(last["user"], last["item"], strict=True)],
    )
    return ranked(last.sort_values(["place", "score", "tie"], ascending=[True, False, True]), depth)


def _hash(seed: int, user: str, item: str) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed}\0{user}\0{item}".encode(), digest_size=8).digest())


def without(found: pd.DataFrame, histories: dict[str, Iterable[str]]) -> pd.DataFrame:
    """The candidates that are not in their user's history."""
    seen = {user: set(history) for user, history in histories.items()}
    new = [item not in seen[user] for user, item in zip(found["user"], found["item"], strict=True)]
    return found[np.array(new, dtype=bool)]


def ranked(frame: pd.DataFrame, depth: int) -> pd.DataFrame:
    """The first `depth` rows of each user as a ranking, in the order given."""
    rank = frame.groupby("user", sort=False).cumcount() + 1
    return frame.assign(rank=rank)[rank <= depth][COLUMNS].reset_index(drop=True)


def last_items(histories: dict[str, list[str]], data: Dataset) -> pd.DataFrame:
    """The text of the last item that the catalogue knows, as the only query of each user who has one: user, texts."""
    titles = data.titles()
    known = ((user, [item for item in history if item in titles]) for user, history in histories.items())
    rows = [(user, [item_text(titles[history[-1]])]) for user, history in known if history]
    return pd.DataFrame(rows, columns=["user", "texts"])


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
    """A ranking as `read_trec` returns it: columns query_id, doc_id, score."""
    run = falling(ranking).rename(columns={"user": "query_id", "item": "doc_id"})
    return run[["query_id", "doc_id", "score"]]


def write_trec(path: Path, ranking: pd.DataFrame, method: str):
    """Write a ranking as a TREC run, whole or not at all."""
    rows = falling(ranking)[["user", "item", "rank", "score"]].itertuples(index=False)
    with write_whole(path) as part:
        part.write_text(
            "".join(f"{user} Q0 {item} {rank} {score:.9g} {method}\n" for user, item, rank, score in rows),
            encoding="utf-8",
        )


def write_qrels(path: Path, targets: dict[str, str]):
    """Write each user's target as TREC relevance judgements."""
    with write_whole(path) as part:
        part.write_text("".join(f"{user} 0 {item} 1\n" for user, item in targets.items()), encoding="utf-8")


def read_trec(path: Path) -> pd.DataFrame:
    """Read a TREC run: columns query_id, doc_id, score."""
    return pd.DataFrame(ir_measures.read_trec_run(str(path)), columns=["query_id", "doc_id", "score"])
