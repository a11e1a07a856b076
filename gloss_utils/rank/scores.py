"""From scores of all items to rankings, for the baselines that score the whole catalogue."""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from gloss_utils.rank import cooccurrence
from gloss_utils.rank.candidates import RANKING_COLUMNS, Histories, as_ranking

SCORES_AT_A_TIME = 2**23  # 64 MiB
DECIMALS = 8  # below them, the last bits of sums differ between processors


def best(
    score: Callable[[Sequence[Sequence[str]]], np.ndarray],
    histories: Histories,
    items: pd.Index,
    depth: int,
    exclude_seen: bool,
) -> pd.DataFrame:
    """The `depth` best items of each user as a ranking; of equal scores, the first in the catalogue's order.

    score: gives the scores [users, items] of some histories; -inf is not ranked. exclude_seen: leave out what is in the
    user's history.
    """
    users, found = list(histories), [pd.DataFrame(columns=RANKING_COLUMNS)]
    step = max(1, SCORES_AT_A_TIME // max(1, len(items)))
    for start in range(0, len(users), step):
        some = users[start : start + step]
        rows = [histories[user] for user in some]
        scores = np.round(score(rows), DECIMALS)
        if exclude_seen:
            scores[cooccurrence.encode(rows, items)] = -np.inf
        last = max(0, len(items) - depth)  # only those as good as the user's last one are sorted: most are not
        enough = np.partition(scores, last, axis=1)[:, last, None] if len(items) else scores
        user, item = np.nonzero((scores >= enough) & (scores > -np.inf))
        order = np.lexsort((item, -scores[user, item], user))
        user, item = user[order], item[order]
        found.append(pd.DataFrame({"user": np.array(some)[user], "item": items[item], "score": scores[user, item]}))
    found = found[1:] or found
    return as_ranking(pd.concat(found, ignore_index=True), histories, depth)
