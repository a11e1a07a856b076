"""How good `ranking: learned` is beside hybrid, what texts and each part add, and how long it takes.

    python -m benchmarks.learned DATA_DIR NAME=FILE... [--parts]
    python -m benchmarks.learned DATA_DIR --time NAME

DATA_DIR and FILE are as for `benchmarks.ranking`. Trees are fitted on training users; the weights of texts, and all of
hybrid's, are out-of-fold. Differences are paired over users, a mean over the files, with 95 % intervals; users of two
files of one dataset count once. --parts leaves out each part, too. --time fits and ranks for all test users; encoding
the catalogue is not in it.
"""

import argparse
import time
from dataclasses import replace

import numpy as np
import pandas as pd

from benchmarks import ranking
from benchmarks.baselines import SEED, load
from gloss_utils.base.files import digest
from gloss_utils.data import splits
from gloss_utils.data.dataset import Dataset
from gloss_utils.data.prompts import item_text
from gloss_utils.rank import HybridSettings, Ranker
from gloss_utils.rank.ranker import LEARNED
from gloss_utils.rank.signals import PARTS
from gloss_utils.rank.weights import FEATURES
from gloss_utils.report.metrics import means, targets_of
from gloss_utils.search.bm25 import BM25Index
from gloss_utils.search.dense import DenseIndex
from gloss_utils.search.encoder import DEFAULT_ENCODER

WITH, ALONE, HYBRID, PAPER = "learned", "learned without generated texts", "hybrid", "the paper's rule"


def indexes_of(data: Dataset) -> dict:
    """Both indexes of a dataset's titles."""
    texts = [item_text(title) for title in data.items["title"]]
    return {"dense": DenseIndex.build(texts, DEFAULT_ENCODER), "bm25": BM25Index.build(texts)}


def measure(texts: list[ranking.Texts], parts: bool) -> dict[str, list[np.ndarray]]:
    """Metrics by user of each file, [users, metrics], by method. parts: without each part of learned, too."""
    found, fitted = {}, {}
    for text in texts:
        by_learned = replace(text.ranker, rule=LEARNED, text_targets=targets_of(text.ranker.queries))
        world = digest([by_learned.histories, by_learned.training_sequences.values().sha256()])  # shared by its files
        by_learned.learned = fitted.setdefault(world, by_learned.learned)
        rankings = {WITH: by_learned.rank(), ALONE: by_learned.by_learned(0)}
        if parts:
            without = by_learned.learned.without_parts(ranking.DEPTH, texts=by_learned.weighed())
            rankings |= {f"learned without {part}": without[part] for part in PARTS}
        for method, ranked in rankings.items():
            found.setdefault(method, []).append(ranking.metrics_of(text, ranked))
    found[HYBRID] = ranking.out_of_fold(texts, list(FEATURES))
    return found | {PAPER: list(map(ranking.paper, texts))}


def mean_over_files(texts: list[ranking.Texts], values: list[np.ndarray]) -> list[tuple[float, float, float]]:
    """Of each metric the mean over files, and its interval over users."""
    names, parts = [text.dataset for text in texts], []
    for name in dict.fromkeys(names):
        of_dataset = [
            pd.DataFrame(each, index=text.ranker.queries["user"])
            for text, each in zip(texts, values, strict=True)
            if text.dataset == name
        ]
        by_user = pd.concat(of_dataset).groupby(level=0, sort=False).mean()
        parts.append(by_user.to_numpy() * names.count(name) / len(names) / len(by_user))
    every = np.concatenate(parts)
    return list(zip(*means(every * len(every), SEED), strict=True))


def seconds(data: Dataset, indexes: dict) -> dict[str, float]:
    """What fitting, and then ranking for all test users, takes."""
    examples, begun, worked = splits.evaluation_examples(data, "test"), time.time(), time.process_time()
    known = splits.training_sequences(data, examples)
    ranker = Ranker(examples.assign(texts=None), data.titles(), indexes, known, rule=LEARNED, seed=SEED)
    fitted_on = ranker.learned.examples.candidates["user"].nunique()
    labels = min(ranker.learned.users, sum(len(items) >= 2 for items in known.values()))
    ranker.learned.model.num_trees()
    fitted = time.time()
    ranked = ranker.rank()
    return {
        "fitting, s": fitted - begun,
        "ranking, s": time.time() - fitted,
        "processor time of both, s": time.process_time() - worked,
        "training users": labels,
        "of these with the label among their candidates": fitted_on,
        "users ranked for": ranked["user"].nunique(),
    }


def main():
    """Print the table of means and differences, or the seconds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data_dir")
    parser.add_argument("files", nargs="*", metavar="NAME=FILE")
    parser.add_argument("--parts", action="store_true")
    parser.add_argument("--time", metavar="NAME")
    options = parser.parse_args()
    if options.time:
        data = load(options.time, options.data_dir)
        for name, value in seconds(data, indexes_of(data)).items():
            print(f"{name}: {value:,.0f}")
        return
    settings, texts, files = HybridSettings.read(ranking.WEIGHTS), [], [pair.split("=", 1) for pair in options.files]
    for name in dict.fromkeys(name for name, _ in files):
        data = load(name, options.data_dir)
        indexes = indexes_of(data)
        texts += [ranking.gather(name, file, data, indexes, settings) for of, file in files if of == name]
    found = measure(texts, options.parts)
    for method, values in found.items():
        cells = [f"{each.mean(axis=0)[0]:.4f} / {each.mean(axis=0)[1]:.4f}" for each in values]
        cells += [f"{m:.4f} [{low:.4f}, {high:.4f}]" for m, low, high in mean_over_files(texts, values)]
        for base in (HYBRID, WITH, ALONE):
            lost = [one - other for one, other in zip(values, found[base], strict=True)]
            cells += [f"{m:+.4f} [{low:+.4f}, {high:+.4f}]" for m, low, high in mean_over_files(texts, lost)]
        print(f"| {method} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
