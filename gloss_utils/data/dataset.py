"""The tables that everything works on, and the data rules that make them from raw records."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from gloss_utils.base.errors import GlossError
from gloss_utils.base.files import read_json, write_json, write_whole
from gloss_utils.data.sequences import Lists, Sequences

MAX_TITLE_WORDS = 25
VALIDATION_SHARE = 0.05
TABLES, ARRAYS, STATISTICS = ("items", "users"), ("places", "times"), "statistics.json"
LEAVE_ONE_OUT, TIME = "leave_one_out", "time"


@dataclass
class Dataset:
    """The tables of a data set, and its interactions as arrays, which may be memory-mapped.

    items: item, title, new (bool: held out of all training, see `draw_new_items`); in the metadata's order, which
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

    def save(self, folder: str | Path) -> list[Path]:
        """Write the tables as Parquet, the arrays as NumPy files and the statistics as JSON; returns their paths."""
        names = (*(f"{table}.parquet" for table in TABLES), *(f"{array}.npy" for array in ARRAYS), STATISTICS)
        paths = [Path(folder) / name for name in names]
        for path in paths[:-1]:
            value = getattr(self, path.stem)
            with write_whole(path) as part, open(part, "wb") as file:
                value.to_parquet(file, index=False) if path.stem in TABLES else np.save(file, value)
        write_json(paths[-1], self.statistics)
        return paths

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


@dataclass(frozen=True)
class Rules:
    """The data rules that can be chosen; the defaults are the paper's.

    k_core: users and items with fewer interactions are left out, again and again until none remains (0: all stay).
    min_history: users with fewer interactions are counted and left out. max_history: only this many of each user's
    latest interactions stay (None: all). holdout: "leave_one_out", or "time": the last `holdout_share` of all
    interactions are the test period, and as many before them the validation period. time_target: which items of
    a user's period are predicted under a time split, each from all before it: the "first", the "last" or "all"
    (time-to-split, arXiv:2507.16289, says why results hang on that).
    new_item_fraction: share of items held out of all training.

    Under a time split, training must not depend on anything later. So the k-core is that of the training period, and
    other users and items are left out of all periods; `max_history` cuts the training period, and the history of each
    example; and nothing is learnt from users with fewer than `min_history` interactions in the training period (see
    `splits`).
    """

    k_core: int = 0
    min_history: int = 3
    max_history: int | None = None
    holdout: str = LEAVE_ONE_OUT
    holdout_share: float = 0.1
    time_target: str = "first"
    new_item_fraction: float = 0.0


PAPER = Rules()


def apply_rules(
    reviews: pd.DataFrame, metadata: pd.DataFrame, rules: Rules = PAPER
) -> tuple[pd.DataFrame, pd.DataFrame, dict, list[int] | None]:
    """Apply the data rules (METHOD: "Data rules") to the raw records.

    reviews: user, item, time, rating; users and items as texts or as categories, which take less memory.
    metadata: item, title. Returns items (item, title), interactions (user, item, time) of all users, counts of what was
    dropped, by reason, and the `periods` of a time split (None: leave-one-out).
    """
    once = metadata.drop_duplicates()
    titled = once[once["title"].fillna("").str.strip() != ""]
    items = titled.drop_duplicates("item").reset_index(drop=True)
    items["title"] = items["title"].map(cut_title)

    unique = reviews.drop_duplicates(["user", "item", "time", "rating"])
    known = unique[unique["item"].isin(set(items["item"]))][["user", "item", "time"]]
    known = known.assign(user=_in_order(known["user"]), item=_in_order(known["item"]))
    begin = periods(known["time"], rules.holdout_share) if rules.holdout == TIME and len(known) else None
    later = known[known["time"] >= begin[0]] if begin else known.iloc[:0]
    core = k_core(known[known["time"] < begin[0]] if begin else known, rules.k_core)
    if rules.k_core:
        later = later[later["user"].isin(core["user"].unique()) & later["item"].isin(core["item"].unique())]
    # Stable: interactions at the same time keep the file's order.
    latest = core.sort_values(["user", "time"], kind="stable")
    if rules.max_history is not None:
        before_the_last = latest.groupby("user", observed=True).cumcount(ascending=False)
        latest = latest[before_the_last < rules.max_history]
    interactions = pd.concat([latest, later]).sort_values(["user", "time"], kind="stable") if begin else latest
    interactions = interactions.astype({"user": str, "item": str})
    items = items[items["item"].isin(set(interactions["item"]))].reset_index(drop=True)
    dropped = {
        "duplicate_reviews": len(reviews) - len(unique),
        "reviews_of_items_without_title": len(unique) - len(known),
        "items_without_title": len(set(reviews["item"]) - set(titled["item"])),
        "items_listed_again_with_other_values": len(titled) - titled["item"].nunique(),
    }
    if rules.k_core:
        dropped["interactions_outside_the_k_core"] = len(known) - len(core) - len(later)
    if rules.max_history is not None:
        dropped["interactions_before_max_history"] = len(core) - len(latest)
    return items, interactions.reset_index(drop=True), dropped, begin


def _in_order(ids: pd.Series) -> pd.Series:
    """Ids as categories in the order of their texts."""
    ids = ids.astype("category")
    return ids.cat.reorder_categories(sorted(ids.cat.categories))


def k_core(interactions: pd.DataFrame, k: int) -> pd.DataFrame:
    """The largest part of the interactions (user, item: categories) in which each user and each item has k or more."""
    while True:
        fewer = interactions
        for column in ("user", "item"):
            codes = fewer[column].cat.codes.to_numpy()
            fewer = fewer[np.bincount(codes)[codes] >= k] if len(codes) else fewer
        if len(fewer) == len(interactions):
            return interactions
        interactions = fewer


def cut_title(title: str) -> str:
    """A title's first 25 words, with single spaces; HTML entities stay as they are."""
    return " ".join(title.split()[:MAX_TITLE_WORDS])


def draw_users(counts: pd.Series, max_users: int | None, seed: int) -> pd.DataFrame:
    """Draw the validation users, floor(5 %), and the `max_users` for training and evaluation (None: all).

    counts: interactions per user, at least 3 each. The two draws are independent: with fewer `max_users`, those who
    remain are in the same split as before.
    """
    users = counts.sort_index().rename_axis("user").rename("interactions").reset_index()
    size = len(users)
    rng = np.random.default_rng(seed)
    validation, drawn = rng.permutation(size), rng.permutation(size)
    users["validation"] = np.isin(np.arange(size), validation[: int(size * VALIDATION_SHARE)])
    users["drawn"] = np.isin(np.arange(size), drawn[: size if max_users is None else max_users])
    return users


def draw_new_items(items: pd.DataFrame, fraction: float, seed: int) -> np.ndarray:
    """Draw floor(fraction · items) new items; returns a bool per item.

    New items are held out of every training and validation history, as if they came after training. They stay in the
    catalogue and in test prompts.
    """
    drawn = np.random.default_rng([seed, 1]).permutation(len(items))[: int(len(items) * fraction)]
    return np.isin(np.arange(len(items)), drawn)


def periods(times: pd.Series, share: float) -> list[int]:
    """When validation and test begin: the last `share` of interactions is for test, as many before for validation.

    Raises `GlossError` where times do not tell the periods apart.
    """
    ordered = np.sort(times.to_numpy())
    begin = [int(ordered[len(ordered) - max(1, round(part * share * len(ordered)))]) for part in (2, 1)]
    if not ordered[0] < begin[0] < begin[1]:
        raise GlossError(
            f"the interactions cannot be split by time: with holdout_share = {share:g}, validation would begin at "
            f"{begin[0]} and test at {begin[1]}, and the first interaction is at {ordered[0]}; "
            "change holdout_share, or set holdout to leave_one_out"
        )
    return begin


def build(
    reviews: pd.DataFrame, metadata: pd.DataFrame, max_users: int | None = None, seed: int = 0, rules: Rules = PAPER
) -> Dataset:
    """Make a `Dataset` of raw records (see `apply_rules`). Raises `GlossError` where nothing is left of them.

    Under a time split, all users are validation users, and items that nobody took before the validation period are new.
    """
    items, interactions, dropped, begin = apply_rules(reviews, metadata, rules)
    counts = interactions["user"].value_counts()
    kept = counts[counts >= rules.min_history]
    learnt = interactions.loc[interactions["time"] < begin[0], "user"].value_counts() if begin else counts
    if not (learnt >= rules.min_history).any():
        low = ", and is k_core low enough" if rules.k_core else ""
        when = " before the validation period" if begin else ""
        raise GlossError(
            f"no user with at least {rules.min_history} interactions with titled items{when} is left; do the file of "
            f"interactions and the file of items belong together{low}?"
        )
    items["new"] = draw_new_items(items, rules.new_item_fraction, seed)
    if begin:
        items["new"] |= ~items["item"].isin(interactions.loc[interactions["time"] < begin[0], "item"])
    statistics = {
        "users": len(kept),
        "users_with_any": len(counts),
        "items": len(items),
        "new_items": int(items["new"].sum()),
        "interactions": len(interactions),
        "mean_history": round(float(counts.mean()), 2),
        "std_history": round(float(counts.std()), 2),
        "dropped": dropped,
        "periods": begin,
    } | ({name: getattr(rules, name) for name in ("min_history", "max_history", "time_target")} if begin else {})
    interactions = interactions[interactions["user"].isin(kept.index)].reset_index(drop=True)
    users = draw_users(kept, max_users, seed)
    return Dataset.of(items, interactions, users.assign(validation=True) if begin else users, statistics)
