"""The splits (METHOD, "Data rules"; or by time): who is predicted from what, and what a method may learn from."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from gloss_utils.base.errors import GlossError
from gloss_utils.data.dataset import Dataset

COLUMNS = ["user", "history", "target"]


@dataclass(frozen=True)
class Cut:
    """Where a user's sequence is cut. train: how many of its first items training may read; validation, test: the
    places of the targets, null where there is none."""

    train: int
    validation: int | None
    test: int | None


def cuts(data: Dataset) -> dict[str, Cut]:
    """Each user's cut: leave-one-out, or by the periods of a time split (see `dataset.Rules`).

    Leave-one-out: the last item is the test target; of validation users, the last before it that is not new is the
    validation target, and training ends before it. Time: training ends where the validation period begins (and reads
    nothing of a user with fewer than `min_history` items before that), and a target is a user's first item in its
    period; new items are no validation targets.
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
    """What training may read of each user's sequence: new items (see `dataset.draw_new_items`) left out."""
    new, at = data.new_items(), cuts(data)
    return {user: _without(sequence[: at[user].train], new) for user, sequence in data.sequences().items()}


def _without(sequence: list[str], new: set[str]) -> list[str]:
    return [item for item in sequence if item not in new] if new else sequence


def _latest(data: Dataset, history: list[str]) -> list[str]:
    """What `max_history` leaves of a history under a time split; leave-one-out cuts whole sequences instead."""
    longest = data.statistics.get("max_history")
    return history[-longest:] if longest else history


def training_examples(data: Dataset) -> pd.DataFrame:
    """Training examples of the drawn users: columns user, history (list of items), target (item).

    The last item that training may read from those before it, of users of whom it may read two at least.
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

    test, validation: the target from all that came before it, new items left out of validation histories, and users
    with nothing before it; next: no target (null), the history is whole. `max_history` cuts each.
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
    """What a method may learn from: each user's items in the training texts, and of evaluated users only those before
    the target.

    All users of the dataset count, drawn or not. evaluated: columns user, history, target (null: nothing is held out
    beyond the training rule). A history that starts the user's sequence, with new items or without, ends what may be
    learnt, whatever the target; else the target's first occurrence does; where that is not in it either, nothing of
    that user may.
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
