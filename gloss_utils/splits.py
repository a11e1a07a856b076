"""Leave-one-out splits (METHOD, "Data rules"): who is predicted from what, and what a method may learn from."""

import pandas as pd

from gloss_utils.errors import GlossError
from gloss_utils.explore_data import Dataset

COLUMNS = ["user", "history", "target"]


def training_examples(data: Dataset) -> pd.DataFrame:
    """Training examples of the drawn users: columns user, history (list of items), target (item).

    Item n-1 from 1…n-2; of validation users item n-2 from 1…n-3, none where that history is empty.
    """
    rows, sequences = [], data.sequences()
    for user, validation in _drawn(data)[["user", "validation"]].itertuples(index=False):
        known = sequences[user][: -2 if validation else -1]
        if len(known) >= 2:
            rows.append((user, known[:-1], known[-1]))
    return pd.DataFrame(rows, columns=COLUMNS)


def evaluation_examples(data: Dataset, split: str) -> pd.DataFrame:
    """Evaluation examples of the drawn users: columns user, history, target.

    test: item n from 1…n-1; validation: item n-1 from 1…n-2, validation users only; next: no target (null), the
    history is whole. Raises `GlossError` where the split holds no user.
    """
    users = _drawn(data)
    if split == "validation":
        users = users[users["validation"]]
    if users.empty:
        raise GlossError(f"split {split!r} holds no user; raise max_users, or leave it null to take all users")
    sequences, rows = data.sequences(), []
    for user in users["user"]:
        sequence = sequences[user]
        if split == "next":
            rows.append((user, sequence, None))
        else:
            at = len(sequence) - (1 if split == "test" else 2)
            rows.append((user, sequence[:at], sequence[at]))
    return pd.DataFrame(rows, columns=COLUMNS)


def learnable_sequences(data: Dataset, evaluated: pd.DataFrame) -> dict[str, list[str]]:
    """What a method may learn from: each user's items in the training texts, and of evaluated users only those before
    the target.

    All users of the dataset count, drawn or not. evaluated: columns user, history, target (null: nothing is held out
    beyond the training rule). Where a history does not start the user's sequence, the target's first occurrence ends
    what may be learnt; where the target is not in it either, nothing of that user may.
    """
    validation = dict(zip(data.users["user"], data.users["validation"], strict=True))
    whole, sequences = data.sequences(), {}
    for user, sequence in whole.items():
        known = sequence[: -2 if validation[user] else -1]
        sequences[user] = known if len(known) >= 2 else []
    for user, history, target in evaluated[COLUMNS].itertuples(index=False):
        if target is None or user not in sequences:
            continue
        sequence, history = whole[user], list(history)
        if sequence[: len(history) + 1] == [*history, target]:
            end = len(history)
        else:
            end = sequence.index(target) if target in sequence else 0
        sequences[user] = sequences[user][:end]
    return sequences


def _drawn(data: Dataset) -> pd.DataFrame:
    return data.users[data.users["drawn"]]
