"""What `ranking: learned` finds of new items, and what that costs for the others, by how much new items are favoured.

    python -m benchmarks.new_items DATA_DIR [--datasets beauty toys] [--favours -100 -1 -0.5 0 0.5 1] [--seed N]

DATA_DIR holds the raw Amazon files. No validation or test target is used: a tenth of the items is taken out of all
training sequences, and of users drawn for this the last item that may be learnt from is the target; of the other users
some give the labels that trees are fitted on. A favour of -100 never offers a new item. Beside it: last-item search.
Another seed draws other items and users: the default favour was chosen on another than it is reported on.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.baselines import SEED, load
from gloss_utils.data import splits
from gloss_utils.data.dataset import Dataset
from gloss_utils.data.prompts import item_text
from gloss_utils.rank import Learned, as_run, last_item_search, text_neighbours
from gloss_utils.rank.examples import hold_back
from gloss_utils.report.metrics import COMPARED, means, per_user_metrics
from gloss_utils.search.bm25 import BM25Index
from gloss_utils.search.dense import DenseIndex
from gloss_utils.search.encoder import DEFAULT_ENCODER

USERS, NEW_SHARE, DEPTH = 4000, 0.1, 10


def measure(data: Dataset, indexes: dict, favours: list[float], users: int = USERS, seed: int = SEED) -> list[dict]:
    """A row for each method: metrics of users whose target is new and of the others, and what the others lose against
    the first of `favours`, with 95 % intervals (paired over users)."""
    titles = data.titles()
    sequences = splits.training_sequences(data, pd.DataFrame(columns=splits.COLUMNS))
    drawn = np.random.default_rng([seed, 2]).permutation(list(titles))
    new = set(drawn[: int(len(titles) * NEW_SHARE)])
    known, histories, targets = hold_back(sequences, users, seed + 1)
    known = {user: [item for item in sequence if item not in new] for user, sequence in known.items()}
    is_new = np.array([target in new for target in targets.values()])
    rankings = {
        f"last item, {name}": last_item_search(histories, index, titles, DEPTH, exclude_seen=True)
        for name, index in indexes.items()
    }
    ranker = Learned(histories, known, list(titles), text_neighbours(titles, indexes), seed=seed)
    for favour, ranked in ranker.favouring(favours, DEPTH).items():
        rankings[f"learned, favour {favour:g}"] = ranked
    found = {
        method: per_user_metrics(as_run(ranked), targets)[list(COMPARED)].to_numpy()
        for method, ranked in rankings.items()
    }
    base = found[f"learned, favour {favours[0]:g}"]
    return [
        {"method": method, "new": values[is_new].mean(axis=0), "others": values[~is_new].mean(axis=0)}
        | {"all": values.mean(axis=0)}
        | {"new_users": int(is_new.sum()), "lost": means((base - values)[~is_new], SEED)}
        for method, values in found.items()
    ]


def main():
    """Print one Markdown row a dataset and method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data_dir", type=Path)
    parser.add_argument("--datasets", nargs="+", default=["beauty", "toys"])
    parser.add_argument("--favours", nargs="+", type=float, default=[-100, -1, -0.5, 0, 0.5, 1])
    parser.add_argument("--seed", type=int, default=SEED)
    options = parser.parse_args()
    for name in options.datasets:
        data = load(name, options.data_dir)
        texts = [item_text(title) for title in data.items["title"]]
        indexes = {"dense": DenseIndex.build(texts, DEFAULT_ENCODER), "bm25": BM25Index.build(texts)}
        for row in measure(data, indexes, options.favours, seed=options.seed):
            cells = [" / ".join(f"{value:.4f}" for value in row[of]) for of in ("new", "others", "all")]
            lost = " / ".join(f"{m:+.4f} [{a:+.4f}, {b:+.4f}]" for m, a, b in zip(*row["lost"], strict=True))
            print(f"| {name} | {row['new_users']} | {row['method']} | {' | '.join(cells)} | {lost} |", flush=True)


if __name__ == "__main__":
    main()
