"""The splits (METHOD, "Data rules"; or by time): which item is predicted from which, and what may be learnt from."""

from typing import NamedTuple

import numpy as np
import pandas as pd

from gloss_utils.base.errors import GlossError
from gloss_utils.data.dataset import Dataset

COLUMNS = ["user", "history", "target"]


class Cut(NamedTuple):
    """A user's items, oldest first, and where they are cut.

    known: those that training may read: the first ones, without new ones. validation, test: the positions of the
    targets among `items`, None where there is none.
    """

    items: list[str]
    known: list[str]
    validation: int | None
    test: int | None


def cuts(data: Dataset) -> dict[str, Cut]:
    """Each user's cut, by leave-one-out or by the periods of a time split (see `dataset.Rules`).

    Leave-one-out: the last item is the test target. Of validation users, the last item before it that is not new is the
    validation target, and training ends before that. Time: training ends where the validation period begins, and reads
    nothing of users with fewer than `min_history` items before. A target is a user's first item in the period, but new
    items are no validation targets.
    """
    new, found = data.new_items(), {}
    validated = dict(zip(data.users["user"], data.users["validation"], strict=True))
    begin = data.statistics.get("periods")
    times = data.interactions.groupby("user", sort=True)["time"].agg(list).to_dict() if begin else {}
    for user, items in data.sequences().items():
        if begin:
            end, test = map(int, np.searchsorted(times[user], begin))
            validation = next((place for place in range(end, test) if items[place] not in new), None)
            train = end if end >= data.statistics.get("min_history", 0) else 0
            test = test if test < len(items) else None
        else:
            train, validation, test = len(items) - 1, None, len(items) - 1
            if validated[user]:
                validation = next((place for place in reversed(range(test)) if items[place] not in new), None)
                train = validation or 0
        found[user] = Cut(items, _without(items[:train], new), validation, test)
    return found


def _without(items: list[str], new: set[str]) -> list[str]:
    return [item for item in items if item not in new]


def _latest(data: Dataset, history: list[str]) -> list[str]:
    """A history cut to `max_history` under a time split; under leave-one-out, `build` has cut the whole sequences."""
    longest = data.statistics.get("max_history")
    return history[-longest:] if longest else history


def _of_drawn_users(data: Dataset) -> list[tuple[str, Cut]]:
    at = cuts(data)
    return [(user, at[user]) for user in data.users.loc[data.users["drawn"], "user"]]


def training_examples(data: Dataset) -> pd.DataFrame:
    """Training examples of the drawn users: columns user, history (list of items), target (item).

    The target is the last item that training may read; users with only one such item are left out.
    """
    drawn = _of_drawn_users(data)
    rows = [(user, cut.known[:-1], cut.known[-1]) for user, cut in drawn if len(cut.known) >= 2]
    return pd.DataFrame(rows, columns=COLUMNS)


def evaluation_examples(data: Dataset, split: str) -> pd.DataFrame:
    """`held_out_examples`; raises `GlossError` where there are none."""
    examples = held_out_examples(data, split)
    if examples.empty:
        raise GlossError(f"split {split!r} holds no user; raise max_users, or leave it null to take all users")
    return examples


def held_out_examples(data: Dataset, split: str) -> pd.DataFrame:
    """Evaluation examples of the drawn users: columns user, history, target.

    split: "test" or "validation", where the history is all that came before the target (validation: without new items),
    and users with an empty history are left out; or "next", where it is the whole sequence, and the target is None.
    `max_history` cuts each history.
    """
    new, rows = data.new_items(), []
    for user, cut in _of_drawn_users(data):
        if split == "next":
            rows.append((user, _latest(data, cut.items), None))
            continue
        place = cut.test if split == "test" else cut.validation
        history = cut.items[: place or 0]
        history = _without(history, new) if split == "validation" else history
        if history:
            rows.append((user, _latest(data, history), cut.items[place]))
    return pd.DataFrame(rows, columns=COLUMNS)


def training_sequences(data: Dataset, evaluated: pd.DataFrame) -> dict[str, list[str]]:
    """The sequences that a method may learn from: all that training may read, but of evaluated users only what came
    before their target.

    All users of the data set are in it, drawn or not. evaluated: columns user, history, target (None: only the training
    rule applies). Where a history is the beginning of its user's sequence, with new items or without, nothing after it
    may be learnt, whatever the target is. Else nothing from the target's first occurrence on may be learnt, and nothing
    of that user where the target is not in the sequence.
    """
    new, at, begin = data.new_items(), cuts(data), data.statistics.get("periods")
    sequences = {user: cut.known if len(cut.known) >= 2 else [] for user, cut in at.items()}
    for user, history, target in evaluated[COLUMNS].itertuples(index=False):
        if target is None or user not in sequences:
            continue
        (items, _, validation, test), history = at[user], list(history)
        before = _without(items[:test], new)
        offered = (_latest(data, items[:test]), _latest(data, _without(items[:validation], new)))
        if begin and history in offered:
            continue  # the target came after all that is learnt
        if items[: len(history)] == history:
            end = len(_without(history, new))
        elif before[: len(history)] == history:
            end = len(history)
        else:
            end = len(_without(items[: items.index(target)], new)) if target in items else 0
        sequences[user] = sequences[user][:end]
    return sequences
