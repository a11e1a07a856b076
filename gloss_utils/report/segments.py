"""Stage 6, and what stage 5 needs of it: groups of users, intervals, and metrics against history length."""

import numpy as np
import pandas as pd

from gloss_utils.report.significance import intervals

COLD_START, REGULAR, POWER, NEW_ITEMS = "cold-start", "regular", "power", "new-items"
SEGMENTS = ("all", COLD_START, REGULAR, POWER)  # and NEW_ITEMS, where items are held out as new
POWER_PERCENTILE = 90


def assign(interactions: pd.Series, cold_start_max: int, power_min: int | None, everyone: pd.Series) -> pd.Series:
    """Each user's segment by the number of interactions in the dataset (METHOD, "Data rules").

    power_min: null takes users above the 90th percentile of `everyone`, the counts of all users of the dataset.
    """
    power = interactions >= power_min if power_min else interactions > np.percentile(everyone, POWER_PERCENTILE)
    segment = pd.Series(REGULAR, index=interactions.index).mask(power, POWER)
    return segment.mask(interactions <= cold_start_max, COLD_START)


def members(per_user: pd.DataFrame) -> dict[str, pd.Series]:
    """Which rows of `per_user` (columns segment, new_item) are in which segment. All users are in "all", and those
    whose target is a new item in "new-items" besides their own; that segment is there only where it has users."""
    found = {segment: per_user["segment"] == segment for segment in SEGMENTS} | {"all": per_user["segment"].notna()}
    return found | ({NEW_ITEMS: per_user["new_item"]} if per_user["new_item"].any() else {})


def by_history_length(per_user: pd.DataFrame, metric: str, seed: int, bins: int = 8) -> pd.DataFrame:
    """A metric's mean and 95 % interval, by method and bin of about equally many users by number of interactions.

    Columns method, interactions (mean of the bin), range, users, mean, low, high.
    """
    wide = per_user.pivot(index="user", columns="method", values=metric)
    counts = per_user.drop_duplicates("user").set_index("user")["interactions"].reindex(wide.index)
    groups = pd.qcut(counts, bins, duplicates="drop") if counts.nunique() > 1 else counts
    rows = []
    for _, users in counts.groupby(groups, observed=True):
        values = wide.loc[users.index]
        low, high = intervals(values.to_numpy(), seed)
        for place, method in enumerate(wide.columns):
            rows.append(
                (
                    method,
                    users.mean(),
                    f"{users.min()}–{users.max()}",
                    len(users),
                    values[method].mean(),
                    low[place],
                    high[place],
                )
            )
    return pd.DataFrame(rows, columns=["method", "interactions", "range", "users", "mean", "low", "high"])


def table(rows: list[dict], metric: str) -> pd.DataFrame:
    """A metric by method and segment, with its interval, from the rows of `metrics.json`."""
    frame = pd.DataFrame(rows)
    frame["shown"] = [
        "no users" if not users else f"{mean:.4f} [{low:.4f}, {high:.4f}]"
        for users, mean, low, high in frame[["users", metric, f"{metric}_low", f"{metric}_high"]].itertuples(
            index=False
        )
    ]
    shown = frame.pivot(index="method", columns="segment", values="shown")
    users = frame.drop_duplicates("segment").set_index("segment")["users"]
    return shown.loc[frame["method"].unique(), list(frame["segment"].unique())].rename(
        columns={segment: f"{segment} ({count:,} users)" for segment, count in users.items()}
    )
