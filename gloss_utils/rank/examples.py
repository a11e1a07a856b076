"""What the trees of `learned` are fitted on: candidates of training users whose last items were taken away.

Where the catalogue has many new items, others are hidden, too, so that trees learn what to think of new ones.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import sparse

from gloss_utils.data.sequences import Sequences
from gloss_utils.rank import cooccurrence
from gloss_utils.rank.candidates import Histories
from gloss_utils.rank.choices import FEATURES, MANY_NEW, candidates
from gloss_utils.rank.cooccurrence import as_arrays
from gloss_utils.rank.signals import Signals

USERS = 12000
WORLDS = 4  # where many items are new: in each others are hidden, for in one alone few labels are new
TAKEN = ("is_label", "weight")  # of rows: what `Labelled` has apart


@dataclass
class Labelled:
    """Candidates of training users (see `choices.candidates`) who have the label among them, which one it is, and how
    much each row counts."""

    candidates: pd.DataFrame
    is_label: np.ndarray
    weight: np.ndarray


def hold_back(
    sequences: Histories, users: int, seed: int, held: int = 0
) -> tuple[Sequences, Sequences, dict[str, str]]:
    """Draw training users and take their last items away: all sequences without them, the drawn users' histories, and
    their labels. sequences: user -> items; users with fewer than two have no label, nor have so many `held` at the end.
    """
    known = as_arrays(sequences)
    lists, cut = known.lists, known.lists.lengths
    able = np.flatnonzero(cut[: len(cut) - held] >= 2)
    drawn = able[np.sort(np.random.default_rng(seed).permutation(len(able))[:users])]
    names, last = known.users[drawn], lists.items[lists.places[lists.offsets[drawn + 1] - 1]]
    cut[drawn] -= 1
    left = lists.first(cut)
    return Sequences(known.users, left), Sequences(names, left.take(drawn)), dict(zip(names, last, strict=True))


def hide(sequences: Histories, items: Sequence[str], seed: int, draw: int = 1) -> Sequences:
    """The sequences without a draw of their items, as large a share of these as of the catalogue is new.

    So trees are fitted in a world in which some labels are new items; where no item is new, none is hidden. draw: its
    number.
    """
    items, found = cooccurrence.index_of(items), as_arrays(sequences)
    known = np.flatnonzero(cooccurrence.counts(found.values(), items))
    drawn = np.random.default_rng([seed, draw]).permutation(len(known))
    hidden = items[known[drawn[: len(known) * (len(items) - len(known)) // len(items)]]]
    if not len(hidden):
        return found
    return Sequences(found.users, found.lists.where(~found.lists.items.isin(hidden)[found.lists.places]))


def cut_back(sequences: Histories, held: Histories | None) -> Histories:
    """The sequences, of which those of `held` users are no longer than their histories; these users come last."""
    if not held:
        return sequences
    return {user: list(items) for user, items in sequences.items() if user not in held} | dict(held)


def labelled(
    sequences: Histories,
    items: Sequence[str],
    near: Mapping[str, sparse.csr_matrix],
    seed: int,
    users: int = USERS,
    held: Histories | None = None,
) -> Labelled:
    """The labelled candidates of up to so many training users, in a world that has not seen their labels.

    Where many items are new, users whose label is hidden in one of `WORLDS` are taken from each of them, with as much
    less weight, so that new labels weigh together what they do in one world.

    held: histories of users who give no label, and of whom the world has seen no more than that. Items that no sequence
    holds are left out. They can be no label, so trees would think too little of new items.
    """
    items = cooccurrence.index_of(items)
    sequences = cut_back(sequences, held)
    known, histories, labels = hold_back(sequences, users, seed, len(held or ()))
    target, lists = items.get_indexer(list(labels.values())), histories.values()
    occurs, kept = cooccurrence.counts(sequences.values(), items) > 0, []
    worlds = WORLDS if (cooccurrence.counts(known.values(), items) == 0).mean() > MANY_NEW else 1
    for draw in range(1, worlds + 1):
        world = Signals(hide(known, items, seed, draw).values(), items, near)
        taken = np.arange(len(lists)) if draw == 1 else np.flatnonzero(world.new[target])
        for some in candidates(world, lists.take(taken)):
            user, item = taken[some["user"]], some["item"].to_numpy()
            rows = some.assign(user=user + draw * len(lists), is_label=item == target[user])
            rows["weight"] = np.where(world.new[target[user]], 1 / worlds, 1.0)
            kept.append(rows[occurs[item] & np.isin(user, user[rows["is_label"] & occurs[item]])])
    found = pd.concat(kept, ignore_index=True) if kept else pd.DataFrame(columns=["user", "item", *FEATURES, *TAKEN])
    return Labelled(found, *(found.pop(name).to_numpy() for name in TAKEN))
