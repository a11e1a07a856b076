"""The data rules that make a dataset of raw records (METHOD: "Data rules").

All is done on numbers, for some millions of interactions at a time; a bit for each interaction and the ids of users and
items are what memory holds.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from gloss_utils.base.errors import GlossError
from gloss_utils.data.dataset import Dataset
from gloss_utils.data.ids import as_texts, places_of
from gloss_utils.data.interactions import AT_ONCE, Interactions, Rows

MAX_TITLE_WORDS = 25
VALIDATION_SHARE = 0.05
LEAVE_ONE_OUT, TIME = "leave_one_out", "time"


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


def apply_rules(reviews: Interactions, metadata: pd.DataFrame, rules: Rules = PAPER, each: Callable = map) -> Dataset:
    """Apply the data rules to the raw records.

    metadata: item, title. each: calls a function for each of many things, and yields what it returns, in order; users'
    records are grouped by it, some users' at a time. Returns the dataset of all users, however few interactions they
    have, before anything is drawn: items (item, title), users (user, interactions), and as statistics the counts of
    what was `dropped`, by reason, and the `periods` of a time split (None: leave-one-out).
    """
    listed, titles, again = _listed(metadata)
    places = places_of(reviews.items, as_texts(metadata["item"].iloc[listed]))
    order = pc.array_sort_indices(reviews.users).to_numpy()
    ranks = np.empty(len(order), dtype=np.int32)
    ranks[order] = np.arange(len(order))
    users, items, times, unique = _known(reviews, ranks, places, each)

    begin = periods(times, rules.holdout_share) if rules.holdout == TIME and len(times) else None
    core = np.asarray(times < begin[0]) if begin else np.ones(len(times), dtype=bool)
    later, sizes = ~core, (len(ranks), len(listed))
    if rules.k_core:
        k_core(core, users, items, sizes, rules.k_core)
        for codes, size in zip((users, items), sizes, strict=True):
            _keep(later, _counts(codes, core, size) > 0, codes)
    inside = np.count_nonzero(core)
    if rules.max_history is not None:
        _keep_latest(core, users, _counts(users, core, len(ranks)), rules.max_history)
    dropped = {
        "duplicate_reviews": len(reviews) - unique,
        "reviews_of_items_without_title": unique - len(times),
        "items_without_title": np.count_nonzero(places < 0),
        "items_listed_again_with_other_values": again,
    }
    if rules.k_core:
        dropped["interactions_outside_the_k_core"] = len(times) - inside - np.count_nonzero(later)
    if rules.max_history is not None:
        dropped["interactions_before_max_history"] = inside - np.count_nonzero(core)

    kept = core | later
    counts, taken = _counts(users, kept, len(ranks)), _counts(items, kept, len(listed)) > 0
    listed, some = listed[taken], counts > 0
    return Dataset(
        pd.DataFrame({"item": metadata["item"].iloc[listed].to_numpy(), "title": _column(titles.take(listed))}),
        pd.DataFrame({"user": _column(reviews.users.take(order[some])), "interactions": counts[some]}),
        _selected(items, kept, reviews.folder, np.cumsum(taken, dtype=np.int32) - 1),
        _selected(times, kept, reviews.folder),
        {"dropped": {name: int(count) for name, count in dropped.items()}, "periods": begin},
    )


def _column(texts: pa.Array | pa.ChunkedArray) -> pd.Series:
    return pd.Series(texts.to_pandas(), dtype=str)


def _listed(metadata: pd.DataFrame) -> tuple[np.ndarray, pa.ChunkedArray, int]:
    """Where each item with a title is listed first; all titles as we show them ("" where there is none); and how many
    of the further listings of these items have other values."""
    parts = [_titles(metadata["title"].iloc[some]) for some in _parts(len(metadata))]
    titles = pa.chunked_array(parts, pa.large_string())
    rows = np.flatnonzero(pc.not_equal(titles, ""))
    codes = as_texts(metadata["item"]).dictionary_encode().indices.to_numpy()[rows]
    listed = np.sort(rows[np.unique(codes, return_index=True)[1]])
    twice = np.bincount(codes, minlength=1)[codes] > 1
    others = metadata.iloc[rows[twice]].drop_duplicates()
    return listed, titles, len(others) - others["item"].nunique()


def _titles(titles: pd.Series) -> pa.Array:
    return pa.array([cut_title(title) if isinstance(title, str) else "" for title in titles], pa.large_string())


def _known(
    reviews: Interactions, ranks: np.ndarray, places: np.ndarray, each: Callable
) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Of each interaction with a titled item, once, the user's rank, the item's place and the time, by user, then by
    time, then in the file's order; and how many there were before, with other items."""
    users, items, times = (Rows(dtype, reviews.folder) for dtype in ("i4", "i4", "i8"))
    unique = 0
    for once, *found in each(partial(_grouped, places), reviews.by_user(ranks)):
        unique += once
        for rows, values in zip((users, items, times), found, strict=True):
            rows.append(values)
    return users.whole(), items.whole(), times.whole(), unique


def _grouped(places: np.ndarray, records: np.ndarray) -> tuple[int, np.ndarray, np.ndarray, np.ndarray]:
    """How many of some users' records differ; and of `_known`, what these have."""
    some = records[np.lexsort((records["part"], records["time"], records["user"]))]
    once = ~pd.DataFrame({name: some[name] for name in ("user", "item", "time", "rating")}).duplicated().to_numpy()
    some = some[once & (places[some["item"]] >= 0)]
    return np.count_nonzero(once), some["user"], places[some["item"]], some["time"]


# ---- steps on parts of long arrays


def _parts(length: int) -> Iterator[slice]:
    return (slice(start, start + AT_ONCE) for start in range(0, length, AT_ONCE))


def _counts(codes: np.ndarray, kept: np.ndarray, size: int) -> np.ndarray:
    """How often each of the numbers below `size` is kept."""
    counts = np.zeros(size, dtype=np.int64)
    for some in _parts(len(codes)):
        counts += np.bincount(codes[some][kept[some]], minlength=size)
    return counts


def _keep(kept: np.ndarray, which: np.ndarray, codes: np.ndarray):
    """Keep only interactions with these users or items. which: bool by number."""
    for some in _parts(len(codes)):
        kept[some] &= which[codes[some]]


def _keep_latest(kept: np.ndarray, users: np.ndarray, counts: np.ndarray, most: int):
    """Keep only so many interactions of each user, up to the last. counts: of those kept now, by user."""
    ends, before = counts.cumsum(), 0
    for some in _parts(len(users)):
        number = before + np.cumsum(kept[some])
        kept[some] &= number > ends[users[some]] - most
        before = number[-1]


def _selected(rows: np.ndarray, kept: np.ndarray, folder: Path | None, numbers: np.ndarray | None = None) -> np.ndarray:
    """The kept ones, memory-mapped. numbers: what each is called from now on."""
    found = Rows(rows.dtype, folder)
    for some in _parts(len(rows)):
        chosen = rows[some][kept[some]]
        found.append(chosen if numbers is None else numbers[chosen])
    return found.whole()


def k_core(kept: np.ndarray, users: np.ndarray, items: np.ndarray, sizes: tuple[int, int], k: int):
    """Keep the largest part of the interactions in which each user and each item has k or more. sizes: the numbers of
    users and items."""
    left = -1
    while left != (left := np.count_nonzero(kept)):
        for codes, size in zip((users, items), sizes, strict=True):
            _keep(kept, _counts(codes, kept, size) >= k, codes)


# ---- what the rules say


def cut_title(title: str) -> str:
    """A title's first 25 words, with single spaces; HTML entities stay as they are."""
    return " ".join(title.split()[:MAX_TITLE_WORDS])


def draw_users(counts: pd.Series, max_users: int | None, seed: int) -> pd.DataFrame:
    """Draw the validation users, floor(5 %), and the `max_users` for training and evaluation (None: all).

    counts: interactions per user, `min_history` or more each. The two draws are independent: with fewer `max_users`,
    those who remain are in the same split as before.
    """
    users = counts.rename_axis("user").rename("interactions").reset_index().sort_values("user", ignore_index=True)
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


def periods(times: np.ndarray, share: float) -> list[int]:
    """When validation and test begin: the last `share` of interactions is for test, as many before for validation.

    Raises `GlossError` where times do not tell the periods apart.
    """
    ordered = np.sort(times)
    begin = [int(ordered[len(ordered) - max(1, round(part * share * len(ordered)))]) for part in (2, 1)]
    if not ordered[0] < begin[0] < begin[1]:
        raise GlossError(
            f"the interactions cannot be split by time: with holdout_share = {share:g}, validation would begin at "
            f"{begin[0]} and test at {begin[1]}, and the first interaction is at {ordered[0]}; "
            "change holdout_share, or set holdout to leave_one_out"
        )
    return begin


def build(
    reviews: Interactions,
    metadata: pd.DataFrame,
    max_users: int | None = None,
    seed: int = 0,
    rules: Rules = PAPER,
    each: Callable = map,
) -> Dataset:
    """Make a `Dataset` of raw records (see `apply_rules`). Raises `GlossError` where nothing is left of them.

    Under a time split, all users are validation users, and items that nobody took before the validation period are new.
    """
    found = apply_rules(reviews, metadata, rules, each)
    items, users, begin = found.items, found.users, found.statistics["periods"]
    counts = users["interactions"]
    early = np.asarray(found.times < begin[0]) if begin else None
    learnt = found.sequences().lists.counts(early) if begin else counts
    if not (learnt >= rules.min_history).any():
        low = ", and is k_core low enough" if rules.k_core else ""
        when = " before the validation period" if begin else ""
        raise GlossError(
            f"no user with at least {rules.min_history} interactions with titled items{when} is left; do the file of "
            f"interactions and the file of items belong together{low}?"
        )
    items["new"] = draw_new_items(items, rules.new_item_fraction, seed)
    if begin:
        items["new"] |= _counts(found.places, early, len(items)) == 0
    enough = (counts >= rules.min_history).to_numpy()
    statistics = {
        "users": int(np.count_nonzero(enough)),
        "users_with_any": len(counts),
        "items": len(items),
        "new_items": int(items["new"].sum()),
        "interactions": len(found.places),
        "mean_history": round(float(counts.mean()), 2),
        "std_history": round(float(counts.std()), 2),
        **found.statistics,
    } | ({name: getattr(rules, name) for name in ("min_history", "max_history", "time_target")} if begin else {})
    kept = np.repeat(enough, counts)
    places, times = (_selected(rows, kept, reviews.folder) for rows in (found.places, found.times))
    drawn = draw_users(users[enough].set_index("user")["interactions"], max_users, seed)
    return Dataset(items, drawn.assign(validation=True) if begin else drawn, places, times, statistics)
