"""The splits (METHOD, "Data rules"; or by time): which item is predicted from which, and what may be learnt from.

Where sequences are cut is worked out on arrays, for all users at once; texts are made only of the users asked for.
"""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from gloss_utils.base.errors import GlossError
from gloss_utils.data.dataset import Dataset
from gloss_utils.data.sequences import Lists, Sequences

COLUMNS = ["user", "history", "target"]
FURTHER = "@target"  # a user's second target has the user "NAME@target2"


def owner(user: str) -> str:
    """Whose example this is: the user, without the number of a further target (see `Rules.time_target`)."""
    name, mark, number = user.rpartition(FURTHER)
    return name if mark and number.isdigit() else user


# ---- where sequences are cut


@dataclass(frozen=True)
class Targets:
    """Items that are predicted, by user. users: the place of each one's user, ascending. at: its own in their list."""

    users: np.ndarray
    at: np.ndarray

    @classmethod
    def among(cls, lists: Lists, allowed: np.ndarray, which: str) -> "Targets":
        """Each user's "first" or "last" allowed interaction, or "all" of them. allowed: bool [interactions]."""
        at = np.flatnonzero(allowed)
        users = np.searchsorted(lists.offsets, at, side="right") - 1
        if which != "all":
            chosen = np.diff(users, prepend=-1) if which == "first" else np.diff(users, append=-1)
            at, users = at[chosen != 0], users[chosen != 0]
        return cls(users, at - lists.offsets[users])

    def of(self, user: int) -> np.ndarray:
        """Where the targets of the user at a place are in their list."""
        return self.at[slice(*np.searchsorted(self.users, [user, user + 1]))]


@dataclass(frozen=True)
class Cuts:
    """Users' sequences, and where they are cut.

    lists: their items, oldest first. new: whether each is held out of training, bool [interactions]. train: where
    training ends in each list. validation, test: the targets; several of one user only where a time split takes all.
    """

    lists: Lists
    new: np.ndarray
    train: np.ndarray
    validation: Targets
    test: Targets

    def known(self) -> Lists:
        """What training may read: the first items, without new ones."""
        return self.lists.where(self.lists.within(self.train) & ~self.new)


def cuts(data: Dataset, users: np.ndarray | None = None) -> Cuts:
    """The cuts of all users, or of those at these places, by leave-one-out or by the periods of a time split (see
    `rules.Rules`).

    Leave-one-out: the last item is the test target. Of validation users, the last item before it that is not new is the
    validation target, and training ends before that. Time: training ends where the validation period begins, and reads
    nothing of users with fewer than `min_history` items before. A target is a user's first item in the period, or the
    last, or each (`time_target`), but new items are no validation targets.
    """
    lists, times, validated = data.sequences().lists, data.times, data.users["validation"].to_numpy()
    if users is not None:
        times, validated = times[lists.interactions_of(users)], validated[users]
        lists = lists.take(users)
    new, begin = data.items["new"].to_numpy()[lists.places], data.statistics.get("periods")
    if begin:
        which, early = data.statistics.get("time_target", "first"), times < begin[0]
        validation = Targets.among(lists, ~new & ~early & (times < begin[1]), which)
        end = lists.counts(early)
        train = np.where(end >= data.statistics.get("min_history", 0), end, 0)
        return Cuts(lists, new, train, validation, Targets.among(lists, times >= begin[1], which))
    train, last = lists.lengths - 1, np.zeros(len(new), dtype=bool)
    last[lists.offsets[1:] - 1] = True
    validation = Targets.among(lists, np.repeat(validated, lists.lengths) & ~new & ~last, "last")
    train[validated] = 0
    train[validation.users] = validation.at
    return Cuts(lists, new, train, validation, Targets.among(lists, last, "all"))


def _drawn(data: Dataset) -> np.ndarray:
    """The places of the drawn users."""
    return np.flatnonzero(data.users["drawn"])


def _names(data: Dataset, places: np.ndarray) -> list[str]:
    return data.users["user"].iloc[places].tolist()


def _latest(data: Dataset, histories: Lists) -> Lists:
    """Histories cut to `max_history` under a time split; under leave-one-out, `build` has cut the whole sequences."""
    longest = data.statistics.get("max_history")
    return histories.last(longest) if longest else histories


# ---- examples


def training_examples(data: Dataset, without: Collection[str] = ()) -> pd.DataFrame:
    """Training examples of the drawn users: columns user, history (list of items), target (item).

    The target is the last item that training may read; users with only one such item are left out. without: users
    whose last item is in no example, because it is to teach the ranking (see `ranking_examples`).
    """
    drawn = _drawn(data)
    known = zip(_names(data, drawn), cuts(data, drawn).known(), strict=True)
    read = ((user, items[:-1] if user in without else items) for user, items in known)
    return pd.DataFrame([(user, items[:-1], items[-1]) for user, items in read if len(items) >= 2], columns=COLUMNS)


def ranking_examples(data: Dataset, share: float, seed: int) -> pd.DataFrame:
    """Examples that teach the ranking how far to trust the language model, which has not read their targets: columns
    as of `training_examples`.

    share: of the training users (drawn, no validation users, with three items or more that training may read), drawn
    with the seed. The target is the last item that training may read.
    """
    drawn = np.flatnonzero(data.users["drawn"] & ~data.users["validation"])
    known = cuts(data, drawn).known()
    able = np.flatnonzero(known.lengths >= 3)
    chosen = able[np.sort(np.random.default_rng([seed, 2]).permutation(len(able))[: round(len(able) * share)])]
    rows = zip(_names(data, drawn[chosen]), known.take(chosen), strict=True)
    return pd.DataFrame([(user, items[:-1], items[-1]) for user, items in rows], columns=COLUMNS)


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
    return _held_out(data, split, _drawn(data))


def example_blocks(data: Dataset, split: str, users_at_once: int) -> Iterator[pd.DataFrame]:
    """`held_out_examples` in parts, each of so many drawn users; a part may be empty."""
    drawn = _drawn(data)
    for start in range(0, len(drawn), users_at_once):
        yield _held_out(data, split, drawn[start : start + users_at_once])


def _held_out(data: Dataset, split: str, places: np.ndarray) -> pd.DataFrame:
    names, cut = _names(data, places), cuts(data, places)
    if split == "next":
        whole = zip(names, _latest(data, cut.lists), strict=True)
        return pd.DataFrame([(user, items, None) for user, items in whole], columns=COLUMNS)
    targets, lists = cut.test if split == "test" else cut.validation, cut.lists
    items = lists.items[lists.places[lists.offsets[targets.users] + targets.at]]
    histories = _before(data, cut, targets, split)
    rows, number, before = [], 0, None
    for user, history, item in zip(targets.users.tolist(), histories, items, strict=True):
        if history:
            number, before = number + 1 if user == before else 1, user
            rows.append((names[user] if number == 1 else f"{names[user]}{FURTHER}{number}", history, item))
    return pd.DataFrame(rows, columns=COLUMNS)


def _before(data: Dataset, cut: Cuts, targets: Targets, split: str) -> Lists:
    """The histories from which these targets are predicted."""
    lists = cut.lists.take(targets.users)
    kept = lists.within(targets.at)
    if split == "validation":
        kept &= ~cut.new[cut.lists.interactions_of(targets.users)]
    return _latest(data, lists.where(kept))


# ---- what may be learnt from


def training_sequences(data: Dataset, evaluated: pd.DataFrame | Iterable[pd.DataFrame]) -> Sequences:
    """The sequences that a method may learn from: all that training may read, but of evaluated users only what came
    before their target.

    All users of the data set are in it, drawn or not. evaluated: columns user, history, target (None: only the training
    rule applies), in one frame or in several.
    Where a history is the beginning of its user's sequence, with new items or without, nothing after it
    may be learnt, whatever the target is. Else nothing from the target's first occurrence on may be learnt, and nothing
    of that user where the target is not in the sequence.
    """
    cut, users = cuts(data), data.sequences()
    known = cut.known()
    lengths = np.where(known.lengths >= 2, known.lengths, 0)
    for some in [evaluated] if isinstance(evaluated, pd.DataFrame) else evaluated:
        for place, history, target in zip(users.places(some["user"]), some["history"], some["target"], strict=True):
            if target is not None and place >= 0:
                lengths[place] = min(lengths[place], _learnable(data, cut, place, list(history), target))
    return Sequences(users.users, known.first(lengths))


def _learnable(data: Dataset, cut: Cuts, user: int, history: list[str], target: str) -> int:
    """How many of the items that training may read came before an evaluated user's target."""
    items, new = cut.lists[user], cut.new[slice(*cut.lists.offsets[user : user + 2])]
    old = [item for item, is_new in zip(items, new, strict=True) if not is_new]
    test, validation = cut.test.of(user), cut.validation.of(user)
    if data.statistics.get("periods"):
        longest = data.statistics.get("max_history") or len(items)
        offered = [items[:place][-longest:] for place in test]
        offered += [old[: np.sum(~new[:place])][-longest:] for place in validation]
        if history in offered:
            return len(items)  # the target came after all that is learnt
    before = old[: np.sum(~new[: test[0]])] if len(test) else old
    if items[: len(history)] == history:
        return int(np.sum(~new[: len(history)]))
    if before[: len(history)] == history:
        return len(history)
    return int(np.sum(~new[: items.index(target)])) if target in items else 0
