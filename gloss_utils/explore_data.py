"""Stage 1: from raw files to the tables that every later stage reads, by the method's data rules."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from gloss_utils import sources
from gloss_utils.errors import GlossError
from gloss_utils.run_folder import Run, RunFolder, read_json, write_json, write_whole

MAX_TITLE_WORDS = 25
MIN_INTERACTIONS = 3
VALIDATION_SHARE = 0.05


@dataclass
class Dataset:
    """What a run works on.

    items: item, title, new (bool: held out of all training, see `draw_new_items`); in the metadata's order, which
    breaks ties between equally similar items.
    interactions: user, item, time; by user, then time; users with fewer than 3 interactions left out.
    users: user, interactions (count), validation (bool), drawn (bool: among the `max_users`), sorted by user.
    statistics: counts of the whole dataset, and of what was rejected on the way.
    """

    items: pd.DataFrame
    interactions: pd.DataFrame
    users: pd.DataFrame
    statistics: dict

    @classmethod
    def load(cls, folder: RunFolder) -> "Dataset":
        """Read stage 1's tables from a run folder."""
        frames = (pd.read_parquet(path) for path in (folder.items, folder.interactions, folder.users))
        return cls(*frames, read_json(folder.statistics))

    def titles(self) -> dict[str, str]:
        """Each item's title."""
        return dict(zip(self.items["item"], self.items["title"], strict=True))

    def sequences(self) -> dict[str, list[str]]:
        """Each user's items, oldest first."""
        return self.interactions.groupby("user", sort=True)["item"].agg(list).to_dict()

    def new_items(self) -> set[str]:
        """The items that are held out of all training."""
        return set(self.items.loc[self.items["new"], "item"])

    def trained_titles(self) -> list[str]:
        """The titles that a tokenizer or a model may learn from: those that no new item has."""
        new = set(self.items.loc[self.items["new"], "title"])
        return [title for title in self.items["title"] if title not in new]


def apply_rules(reviews: pd.DataFrame, metadata: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame, dict]:
    """Apply the data rules (METHOD: "Data rules") to what was read.

    Returns items (item, title), interactions (user, item, time) of all users, and what was dropped, by reason.
    """
    once = metadata.drop_duplicates()
    titled = once[once["title"].fillna("").str.strip() != ""]
    items = titled.drop_duplicates("item").reset_index(drop=True)
    items["title"] = items["title"].map(cut_title)

    unique = reviews.drop_duplicates(["user", "item", "time", "rating"])
    known = unique[unique["item"].isin(items["item"])]
    # Stable: interactions at the same time keep the file's order.
    interactions = known.sort_values(["user", "time"], kind="stable")[["user", "item", "time"]]
    items = items[items["item"].isin(interactions["item"])].reset_index(drop=True)
    dropped = {
        "duplicate_reviews": len(reviews) - len(unique),
        "reviews_of_items_without_title": len(unique) - len(known),
        "items_without_title": len(set(reviews["item"]) - set(titled["item"])),
        "items_listed_again_with_other_values": len(titled) - titled["item"].nunique(),
    }
    return items, interactions.reset_index(drop=True), dropped


def cut_title(title: str) -> str:
    """A title's first 25 words, with single spaces; HTML entities stay as they are."""
    return " ".join(title.split()[:MAX_TITLE_WORDS])


def draw_users(counts: pd.Series, max_users: int | None, seed: int) -> pd.DataFrame:
    """Draw the validation users, floor(5 %), and the `max_users` that are trained and evaluated on (null: all).

    counts: interactions by user, at least 3 each. The two draws are independent, so that a run on fewer users keeps
    the split of the whole.
    """
    users = counts.sort_index().rename_axis("user").rename("interactions").reset_index()
    size = len(users)
    rng = np.random.default_rng(seed)
    validation, drawn = rng.permutation(size), rng.permutation(size)
    users["validation"] = np.isin(np.arange(size), validation[: int(size * VALIDATION_SHARE)])
    users["drawn"] = np.isin(np.arange(size), drawn[: size if max_users is None else max_users])
    return users


def draw_new_items(items: pd.DataFrame, fraction: float, seed: int) -> np.ndarray:
    """Which items are held out of every training and validation history, as if they came after training, [items].

    They stay in the catalogue and in test prompts. floor(fraction · items) are drawn.
    """
    drawn = np.random.default_rng([seed, 1]).permutation(len(items))[: int(len(items) * fraction)]
    return np.isin(np.arange(len(items)), drawn)


def build(
    reviews: pd.DataFrame, metadata: pd.DataFrame, max_users: int | None, seed: int, new_item_fraction: float = 0.0
) -> Dataset:
    """Turn what was read into a `Dataset`. Raises `GlossError` where nothing is left of it."""
    items, interactions, dropped = apply_rules(reviews, metadata)
    counts = interactions["user"].value_counts()
    kept = counts[counts >= MIN_INTERACTIONS]
    if kept.empty:
        raise GlossError(
            "no user with at least 3 interactions with titled items is left; "
            "do the review and the metadata file belong together?"
        )
    items["new"] = draw_new_items(items, new_item_fraction, seed)
    statistics = {
        "users": len(kept),
        "users_with_any": len(counts),
        "items": len(items),
        "new_items": int(items["new"].sum()),
        "interactions": len(interactions),
        "mean_history": round(float(counts.mean()), 2),
        "std_history": round(float(counts.std()), 2),
        "dropped": dropped,
    }
    interactions = interactions[interactions["user"].isin(kept.index)].reset_index(drop=True)
    return Dataset(items, interactions, draw_users(kept, max_users, seed), statistics)


def prepare(run: Run) -> Dataset:
    """Stage 1's work: find or get the raw files, read them, write `data/`."""
    paths = sources.locate(run["dataset"], run["data_dir"])
    for path in paths:
        run.read_from_outside(path)
    _same_raw_files(run)
    reviews, bad_reviews = sources.read_reviews(paths[0], run["max_rejected"])
    metadata, bad_metadata = sources.read_metadata(paths[1], set(reviews["item"]), run["max_rejected"])
    data = build(reviews, metadata, run["max_users"], run["seed"], run["new_item_fraction"])
    data.statistics["rejected"] = {"review_lines": bad_reviews, "metadata_lines": bad_metadata}
    folder = run.folder
    for path, frame in (
        (folder.items, data.items),
        (folder.interactions, data.interactions),
        (folder.users, data.users),
    ):
        with write_whole(path) as part:
            frame.to_parquet(part, index=False)
    write_json(folder.statistics, data.statistics)
    run.outputs += [folder.items, folder.interactions, folder.users, folder.statistics]
    return data


def _same_raw_files(run: Run):
    entry = run.folder.stages().get(run.stage)
    if entry is not None and sorted(entry["inputs"].values()) != sorted(run.inputs.values()):
        names = ", ".join(Path(path).name for path in run.inputs)
        raise GlossError(
            f"{run.folder.root} was made from other raw files than {names} in {run['data_dir']}; "
            "choose another run_dir, or delete that folder"
        )
