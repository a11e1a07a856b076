"""The splits (METHOD, "Data rules"; or by time): which item is predicted from which, and what may be learnt from."""

from collections.abc import Collection, Iterable
from typing import NamedTuple

import numpy as np
import pandas as pd

from gloss_utils.base.errors import GlossError
from gloss_utils.data.dataset import Dataset

COLUMNS = ["user", "history", "target"]
FURTHER = "@target"  # a user's second target has the user "NAME@target2"


def owner(user: str) -> str:
    """Whose example this is: the user, without the number of a further target (see `Rules.time_target`)."""
    name, mark, number = user.rpartition(FURTHER)
    return name if mark and number.isdigit() else user


class Cut(NamedTuple):
    """A user's items, oldest first, and where they are cut.

    known: those that training may read: the first ones, without new ones. validation, test: the positions of the
    targets among `items`; several only under a time split that takes all.
    """

    items: list[str]
    known: list[str]
    validation: list[int]
    test: list[int]


CHOSEN = {"first": slice(1), "last": slice(-1, None), "all": slice(None)}  # of a user's items in a period


def cuts(data: Dataset) -> dict[str, Cut]:
    """Each user's cut, by leave-one-out or by the periods of a time split (see `dataset.Rules`).

    Leave-one-out: the last item is the test target. Of validation users, the last item before it that is not new is the
    validation target, and training ends before that. Time: training ends where the validation period begins, and reads
    nothing of users with fewer than `min_history` items before. A target is a user's first item in the period, or the
    last, or each (`time_target`), but new items are no validation targets.
    """
    new, found = data.new_items(), {}
    validated = dict(zip(data.users["user"], data.users["validation"], strict=True))
    begin = data.statistics.get("periods")
    times = data.interactions.groupby("user", sort=True)["time"].agg(list).to_dict() if begin else {}
    for user, items in data.sequences().items():
        if begin:
            end, later = map(int, np.searchsorted(times[user], begin))
            chosen = CHOSEN[data.statistics.get("time_target", "first")]
            validation = [place for place in range(end, later) if items[place] not in new][chosen]
            test = list(range(later, len(items)))[chosen]
            train = end if end >= data.statistics.get("min_history", 0) else 0
        else:
            train, validation, test = len(items) - 1, [], [len(items) - 1]
            if validated[user]:
                validation = [place for place in range(len(items) - 1) if items[place] not in new][-1:]
                train = validation[0] if validation else 0
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


def training_examples(data: Dataset, without: Collection[str] = ()) -> pd.DataFrame:
    """Training examples of the drawn users: columns user, history (list of items), target (item).

    The target is the last item that training may read; users with only one such item are left out. without: users
    whose last item is in no example, because it is to teach the ranking (see `ranking_examples`).
    """
    known = [(user, cut.known[:-1] if user in without else cut.known) for user, cut in _of_drawn_users(data)]
    rows = [(user, items[:-1], items[-1]) for user, items in known if len(items) >= 2]
    return pd.DataFrame(rows, columns=COLUMNS)


def ranking_examples(data: Dataset, share: float, seed: int) -> pd.DataFrame:
    """Examples that teach the ranking how far to trust the language model, which has not read their targets: columns
    as of `training_examples`.

    share: of the training users (drawn, no validation users, with three items or more that training may read), drawn
    with the seed. The target is the last item that training may read.
    """
    validated = set(data.users.loc[data.users["validation"], "user"])
    able = [(user, cut.known) for user, cut in _of_drawn_users(data) if user not in validated and len(cut.known) >= 3]
    places = np.random.default_rng([seed, 2]).permutation(len(able))[: round(len(able) * share)]
    rows = [(user, items[:-1], items[-1]) for user, items in (able[place] for place in sorted(places))]
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
    `max_history` cuts each history. Of a user with several targets (`time_target`: all), each history holds the targets
    before, and the second target has the user "NAME@target2" (see `owner`).
    """
    new, rows = data.new_items(), []
    for user, cut in _of_drawn_users(data):
        if split == "next":
            rows.append((user, _latest(data, cut.items), None))
            continue
        places = cut.test if split == "test" else cut.validation
        found = [(_before(data, cut.items, place, split, new), cut.items[place]) for place in places]
        found = [(history, target) for history, target in found if history]
        for number, (history, target) in enumerate(found, 1):
            rows.append((user if number == 1 else f"{user}{FURTHER}{number}", history, target))
    return pd.DataFrame(rows, columns=COLUMNS)


def _before(data: Dataset, items: list[str], place: int, split: str, new: set[str]) -> list[str]:
    """The history from which the item at a place is predicted."""
    return _latest(data, _without(items[:place], new) if split == "validation" else items[:place])


def training_sequences(data: Dataset, evaluated: pd.DataFrame | Iterable[pd.DataFrame]) -> dict[str, list[str]]:
    """The sequences that a method may learn from: all that training may read, but of evaluated users only what came
    before their target.

    All users of the data set are in it, drawn or not. evaluated: columns user, history, target (None: only the training
    rule applies), in one frame or in several.
    Where a history is the beginning of its user's sequence, with new items or without, nothing after it
    may be learnt, whatever the target is. Else nothing from the target's first occurrence on may be learnt, and nothing
    of that user where the target is not in the sequence.
    """
    new, at, begin = data.new_items(), cuts(data), data.statistics.get("periods")
    sequences = {user: cut.known if len(cut.known) >= 2 else [] for user, cut in at.items()}
    frames = [evaluated] if isinstance(evaluated, pd.DataFrame) else evaluated
    for user, history, target in (row for frame in frames for row in frame[COLUMNS].itertuples(index=False)):
        if target is None or user not in sequences:
            continue
        (items, _, validation, test), history = at[user], list(history)
        before = _without(items[: test[0] if test else None], new)
        offered = [_before(data, items, place, "test", new) for place in test]
        offered += [_before(data, items, place, "validation", new) for place in validation]
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
