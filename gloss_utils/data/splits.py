"""The splits (METHOD, "Data rules"; or by time): which item is predicted from which, and what may be learnt from."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from gloss_utils.base.errors import GlossError
from gloss_utils.data.dataset import Dataset

COLUMNS = ["user", "history", "target"]


@dataclass(frozen=True)
class Cut:
    """Where a user's sequence is cut. train: the number of first items that training may read. validation, test: the
    positions of the targets, None where there is none."""

    train: int
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
    validation = dict(zip(data.users["user"], data.users["validation"], strict=True))
    begin = data.statistics.get("periods")
    times = data.interactions.groupby("user", sort=True)["time"].agg(list).to_dict() if begin else {}
    for user, sequence in data.sequences().items():
        if begin:
            end, test = map(int, np.searchsorted(times[user], begin))
            seen = [place for place in range(end, test) if sequence[place] not in new]
            train = end if end >= data.statistics.get("min_history", 0) else 0
            found[user] = Cut(train, min(seen, default=None), test if test < len(sequence) else None)
            continue
        test = len(sequence) - 1
        seen = [place for place in range(test) if sequence[place] not in new] if validation[user] else []
        found[user] = Cut(max(seen, default=0) if validation[user] else test, max(seen, default=None), test)
    return found


def _known(data: Dataset) -> dict[str, list[str]]:
    """What training may read of each user's sequence: the first items (see `Cut`), without new ones."""
    new, at = data.new_items(), cuts(data)
    return {user: _without(sequence[: at[user].train], new) for user, sequence in data.sequences().items()}


def _without(sequence: list[str], new: set[str]) -> list[str]:
    return [item for item in sequence if item not in new] if new else sequence


def _latest(data: Dataset, history: list[str]) -> list[str]:
    """A history cut to `max_history` under a time split; under leave-one-out, `build` has cut the whole sequences."""
    longest = data.statistics.get("max_history")
    return history[-longest:] if longest else history


def training_examples(data: Dataset) -> pd.DataFrame:
    """Training examples of the drawn users: columns user, history (list of items), target (item).

    The target is the last item that training may read; users with only one such item are left out.
    """
    known = _known(data)
    rows = [(user, known[user][:-1], known[user][-1]) for user in _drawn(data) if len(known[user]) >= 2]
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
    new, at, sequences, rows = data.new_items(), cuts(data), data.sequences(), []
    for user in _drawn(data):
        sequence = sequences[user]
        if split == "next":
            rows.append((user, _latest(data, sequence), None))
            continue
        place = at[user].test if split == "test" else at[user].validation
        history = sequence[: place or 0]
        history = _without(history, new) if split == "validation" else history
        if history:
            rows.append((user, _latest(data, history), sequence[place]))
    return pd.DataFrame(rows, columns=COLUMNS)


def training_sequences(data: Dataset, evaluated: pd.DataFrame) -> dict[str, list[str]]:
    """The sequences that a method may learn from: all that training may read, but of evaluated users only what came
    before their target.

    All users of the data set are in it, drawn or not. evaluated: columns user, history, target (None: only the training
    rule applies). Where a history is the beginning of its user's sequence, with new items or without, nothing after it
    may be learnt, whatever the target is. Else nothing from the target's first occurrence on may be learnt, and nothing
    of that user where the target is not in the sequence.
    """
    whole, new, at, begin = data.sequences(), data.new_items(), cuts(data), data.statistics.get("periods")
    sequences = {user: known if len(known) >= 2 else [] for user, known in _known(data).items()}
    for user, history, target in evaluated[COLUMNS].itertuples(index=False):
        if target is None or user not in sequences:
            continue
        sequence, history = whole[user], list(history)
        before = _without(sequence[: at[user].test], new)
        if begin:
            validated = _without(sequence[: at[user].validation], new)
            if history in (_latest(data, sequence[: at[user].test]), _latest(data, validated)):
                continue  # the target came after all that is learnt
        if sequence[: len(history)] == history:
            end = len(_without(history, new))
        elif before[: len(history)] == history:
            end = len(history)
        else:
            end = len(_without(sequence[: sequence.index(target)], new)) if target in sequence else 0
        sequences[user] = sequences[user][:end]
    return sequences


def _drawn(data: Dataset) -> pd.Series:
    return data.users.loc[data.users["drawn"], "user"]
