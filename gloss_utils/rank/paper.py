"""The paper's rule (METHOD, 5): items are ranked by the similarity of the text that names them."""

import hashlib

import pandas as pd

from gloss_utils.rank.candidates import Histories, as_ranking

TOP_K = 1  # items of each text that are candidates


def paper_rule(
    candidates: pd.DataFrame, histories: Histories, seed: int, depth: int = 10, exclude_seen: bool = False
) -> pd.DataFrame:
    """Rank by the paper's rule: an item's score is that of the last text that names it; equal scores are ordered by a
    hash of seed, user and item.

    candidates: see `candidates.nearest_items`; the paper takes one item per text. histories: the users, in the order in
    which they are ranked, and their items. A ranking is as long as the texts name items, at most `depth`.
    exclude_seen: leave out what the user already has (the paper does not).
    """
    last = candidates.drop_duplicates(["user", "item"], keep="last")
    tie = [_hash(seed, user, item) for user, item in zip(last["user"], last["item"], strict=True)]
    ordered = last.assign(tie=tie).sort_values(["score", "tie"], ascending=[False, True])
    return as_ranking(ordered, histories, depth, exclude_seen)


def _hash(seed: int, user: str, item: str) -> str:
    return hashlib.blake2b(f"{seed}\0{user}\0{item}".encode(), digest_size=8).hexdigest()
