"""Groups of users by how much they bought, and metrics against the length of the history."""

import numpy as np
import pandas as pd

from gloss_utils.report.significance import intervals, owners_of

COLD_START, REGULAR, POWER, NEW_ITEMS = "cold-start", "regular", "power", "new-items"
SEGMENTS = ("all", COLD_START, REGULAR, POWER)  # and NEW_ITEMS, where items are held out as new
POWER_PERCENTILE = 90
BINS = 8  # of users, by the length of their history


def assign(interactions: pd.Series, cold_start_max: int, power_min: int | None, everyone: pd.Series) -> pd.Series:
    """The segment of each user, by the number of interactions in the dataset.

    power_min: None takes users above the 90th percentile of `everyone`, the counts of all users of the dataset.
    """
    power = interactions >= power_min if power_min else interactions > np.percentile(everyone, POWER_PERCENTILE)
    segment = pd.Series(REGULAR, index=interactions.index).mask(power, POWER)
    return segment.mask(interactions <= cold_start_max, COLD_START)


def members(per_user: pd.DataFrame) -> dict[str, pd.Series]:
    """Which rows of `per_user` (columns segment, new_item) are in which segment.

    All users are in "all". Users whose target is a new item are in "new-items" as well as in their own segment;
    "new-items" is there only where it has users.
    """
    found = {segment: per_user["segment"] == segment for segment in SEGMENTS} | {"all": per_user["segment"].notna()}
    return found | ({NEW_ITEMS: per_user["new_item"]} if per_user["new_item"].any() else {})


def by_history_length(per_user: pd.DataFrame, metric: str, seed: int) -> pd.DataFrame:
    """A metric's mean and 95 % interval, by method and bin of about equally many users by number of interactions.

    Columns method, interactions (mean of the bin), mean, low, high.
    """
    wide = per_user.pivot(index="user", columns="method", values=metric)[per_user["method"].unique()]
    counts = per_user.drop_duplicates("user").set_index("user")["interactions"].reindex(wide.index)
    groups = pd.qcut(counts, BINS, duplicates="drop") if counts.nunique() > 1 else counts
    found = []
    for _, users in counts.groupby(groups, observed=True):
        values = wide.loc[users.index]
        low, high = intervals(values.to_numpy(), seed, owners_of(values.index))
        means = values.mean().rename("mean").reset_index()
        found.append(means.assign(interactions=users.mean(), low=low, high=high))
    return pd.concat(found, ignore_index=True)[["method", "interactions", "mean", "low", "high"]]
