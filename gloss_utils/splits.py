"""Leave-one-out splits (METHOD, "Data rules"): who is predicted from what, and what a method may learn from."""

import pandas as pd

from gloss_utils.errors import GlossError
from gloss_utils.explore_data import Dataset

COLUMNS = ["user", "history", "target"]


def trained(data: Dataset) -> dict[str, list[str]]:
    """What stands before each user's test target, new items (see `explore_data.draw_new_items`) left out."""
    new = data.new_items()
    return {user: _without(sequence[:-1], new) for user, sequence in data.sequences().items()}


def _without(sequence: list[str], new: set[str]) -> list[str]:
    return [item for item in sequence if item not in new] if new else sequence


def training_examples(data: Dataset) -> pd.DataFrame:
    """Training examples of the drawn users: columns user, history (list of items), target (item).

    Item n-1 from 1…n-2; of validation users item n-2 from 1…n-3, none where that history is empty. New items are left
    out before this is cut.
    """
    rows, sequences = [], trained(data)
    for user, validation in _drawn(data)[["user", "validation"]].itertuples(index=False):
        known = sequences[user][: -1 if validation else None]
        if len(known) >= 2:
            rows.append((user, known[:-1], known[-1]))
    return pd.DataFrame(rows, columns=COLUMNS)


def evaluation_examples(data: Dataset, split: str) -> pd.DataFrame:
    """`held_out_examples`; raises `GlossError` where there are none."""
    examples = held_out_examples(data, split)
    if examples.empty:
        raise GlossError(f"split {split!r} holds no user; raise max_users, or leave it null to take all users")
    return examples


def held_out_examples(data: Dataset, split: str) -> pd.DataFrame:
    """Evaluation examples of the drawn users: columns user, history, target.

    test: item n from 1…n-1; validation: item n-1 from 1…n-2, validation users only, new items left out before this is
    cut, and users of whom less than two items are left; next: no target (null), the history is whole.
    """
    users = _drawn(data)
    if split == "validation":
        users = users[users["validation"]]
    sequences, rows = trained(data) if split == "validation" else data.sequences(), []
    for user in users["user"]:
        sequence = sequences[user]
        if split == "next":
            rows.append((user, sequence, None))
        elif len(sequence) >= 2:
            rows.append((user, sequence[:-1], sequence[-1]))
    return pd.DataFrame(rows, columns=COLUMNS)


def learnable_sequences(data: Dataset, evaluated: pd.DataFrame) -> dict[str, list[str]]:
    """What a method may learn from: each user's items in the training texts, and of evaluated users only those before
    the target.

    All users of the dataset count, drawn or not. evaluated: columns user, history, target (null: nothing is held out
    beyond the training rule). A history that starts the user's sequence, with new items or without, ends what may be
    learnt, whatever the target; else the target's first occurrence does; where that is not in it either, nothing of
    that user may.
    """
    validation, new = dict(zip(data.users["user"], data.users["validation"], strict=True)), data.new_items()
    whole, before, sequences = data.sequences(), trained(data), {}
    for user, sequence in before.items():
        known = sequence[: -1 if validation[user] else None]
        sequences[user] = known if len(known) >= 2 else []
    for user, history, target in evaluated[COLUMNS].itertuples(index=False):
        if target is None or user not in sequences:
            continue
        sequence, history = whole[user], list(history)
        if sequence[: len(history)] == history:
            end = len(_without(history, new))
        elif before[user][: len(history)] == history:
            end = len(history)
        else:
            end = len(_without(sequence[: sequence.index(target)], new)) if target in sequence else 0
        sequences[user] = sequences[user][:end]
    return sequences


def _drawn(data: Dataset) -> pd.DataFrame:
    return data.users[data.users["drawn"]]
