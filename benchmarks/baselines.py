"""Every baseline on all test users of Beauty and Toys, by the code that notebook 5 runs; or `ranking: learned` on them.

    python -m benchmarks.baselines DATA_DIR [--datasets beauty toys] [--sasrec-epochs 24] [--work DIR] [--results DIR]
    python -m benchmarks.baselines DATA_DIR --learned [SEEDS] [--datasets beauty toys] [--results DIR]
    python -m benchmarks.baselines DATA_DIR --sasrec-search TRIALS [--sasrec-seeds 3] [--datasets beauty toys] …

DATA_DIR holds the raw Amazon files. SASRec is trained in DIR/NAME, where a training that was cut off goes on; 0 epochs
leave it out. --learned ranks by histories alone, with trees that are fitted on training users, as a run does; with so
many seeds, each of which draws other training users and grows other trees. --sasrec-search tries so many settings of
SASRec on the validation users, and trains the best one with several seeds. Prints the table; --results writes
DIR/NAME-baselines.json, NAME-learned.json (with seeds NAME-histories.json) or NAME-sasrec.json, for notebook 7.
"""

import argparse
import itertools
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd

from gloss_utils.base.files import fingerprint
from gloss_utils.data import sources, splits
from gloss_utils.data.dataset import Dataset
from gloss_utils.data.prompts import item_text
from gloss_utils.data.rejects import Rejects
from gloss_utils.data.rules import build
from gloss_utils.rank import HybridSettings, Ranker, as_run, baselines, sasrec, sasrec_search
from gloss_utils.report import metrics
from gloss_utils.report.metrics import GLOSS_HISTORIES, LEFT_OUT, SEEN
from gloss_utils.runs import results
from gloss_utils.runs.parameters import ROOT
from gloss_utils.search.bm25 import BM25Index
from gloss_utils.search.dense import DenseIndex
from gloss_utils.search.encoder import DEFAULT_ENCODER

DEPTH, SEED, WIDTH = 10, 3407, 128


def load(name: str, data_dir) -> Dataset:
    """Read a dataset from its raw files."""
    return build(*sources.read(sources.find(name, data_dir), Rejects(), 0), None, SEED)


def measure(data: Dataset, epochs: int, folder: Path, learned: int = 0) -> tuple[list[dict], dict[str, float]]:
    """Rows of metrics of every baseline, for all test users; and the seconds that ranking, or training, took.

    epochs: of SASRec, which is trained in `folder`; 0 leaves it out. learned: `ranking: learned` in place of them all,
    with so many seeds.
    """
    titles = data.titles()
    texts = [item_text(title) for title in titles.values()]
    indexes = {"dense": DenseIndex.build(texts, DEFAULT_ENCODER), "bm25": BM25Index.build(texts)}
    examples, begun = splits.evaluation_examples(data, "test"), time.time()
    settings = HybridSettings.read(ROOT / "params/ranking/weights.yaml")
    known = splits.training_sequences(data, examples)
    ranker = Ranker(examples, titles, indexes, known, settings, depth=DEPTH)
    if learned:
        rows = []
        for seed in range(SEED, SEED + learned):
            by_seed = replace(ranker, seed=seed)
            rankings = {(GLOSS_HISTORIES, seen): by_seed.by_learned(0, seen == LEFT_OUT) for seen in SEEN}
            rows += [row | ({"seed": seed} if learned > 1 else {}) for row in _rows(rankings, examples)]
        return rows, {"learned": round(time.time() - begun, 1)}
    rankings = {
        (method, seen): rank(ranker.histories, exclude_seen=seen == LEFT_OUT)
        for method, rank in baselines.by_name(ranker).items()
        for seen in SEEN
    }
    seconds = {"all but SASRec": time.time() - begun}
    if epochs:
        sequences, validation = list(known.values()), sasrec.validation_users(data, examples, "test")
        how = sasrec.Settings(epochs, WIDTH, SEED)
        model = sasrec.train(sequences, validation, list(titles), how, folder / "checkpoints")
        for seen in SEEN:
            ranked = sasrec.rank(model, ranker.histories, sequences, list(titles), DEPTH, seen == LEFT_OUT)
            rankings["sasrec", seen] = ranked
        seconds["SASRec"] = time.time() - begun - seconds["all but SASRec"]
    rows = _rows(rankings, examples)
    rows = [row | {"loss": sasrec.CROSS_ENTROPY} if row["method"] == "sasrec" else row for row in rows]
    return rows, {name: round(value, 1) for name, value in seconds.items()}


def searched(data: Dataset, epochs: int, trials: int, seeds: int, folder: Path) -> tuple[list[dict], dict]:
    """Rows of metrics of SASRec with the best of so many settings, by seed and protocol; and what was tried."""
    examples, items = splits.evaluation_examples(data, "test"), data.items["item"].tolist()
    known = list(splits.training_sequences(data, examples).values())
    to_learn = sasrec_search.TrainingData(known, sasrec.validation_users(data, examples, "test"), items)
    models, about = sasrec_search.train(to_learn, sasrec.Settings(epochs, WIDTH, SEED), trials, seeds, folder)
    histories, rows = dict(zip(examples["user"], examples["history"], strict=True)), []
    for seed, seen in itertools.product(models, SEEN):
        ranked = sasrec.rank(models[seed], histories, known, items, DEPTH, seen == LEFT_OUT)
        rows += [row | {"seed": seed} for row in _rows({("sasrec", seen): ranked}, examples)]
    return [row | {"loss": about["chosen"]["loss"]} for row in rows], about


def _rows(rankings: dict[tuple[str, str], pd.DataFrame], examples: pd.DataFrame) -> list[dict]:
    """Metrics of all users by method and protocol."""
    frames = [
        metrics.per_user_metrics(as_run(ranked), metrics.targets_of(examples))
        .rename_axis("user")
        .reset_index()
        .assign(method=method, seen=seen, segment="", new_item=False)
        for (method, seen), ranked in rankings.items()
    ]
    return [row for row in metrics.summarise(pd.concat(frames), "test", SEED) if row["segment"] == "all"]


def main():
    """Print one Markdown row a dataset and method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data_dir", type=Path)
    parser.add_argument("--datasets", nargs="+", default=["beauty", "toys"])
    parser.add_argument("--sasrec-epochs", type=int, default=24)
    parser.add_argument("--learned", type=int, nargs="?", const=1, default=0, metavar="SEEDS")
    parser.add_argument("--sasrec-search", type=int, default=0)
    parser.add_argument("--sasrec-seeds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=ROOT / "runs/baselines")
    parser.add_argument("--results", type=Path)
    options = parser.parse_args()
    for name in options.datasets:
        parameters = {"seed": SEED, "split": "test"}
        parameters |= {} if options.learned else {"sasrec_epochs": options.sasrec_epochs, "sasrec_width": WIDTH}
        data, folder = load(name, options.data_dir), options.work / name
        kind = ("baselines", "learned", "histories")[min(options.learned, 2)]
        more, begun = {}, time.process_time()
        if options.sasrec_search:
            budget = options.sasrec_epochs, options.sasrec_search, options.sasrec_seeds
            rows, more["sasrec"] = searched(data, *budget, folder / "search")
            kind, seconds = "sasrec", {"of the processor": round(time.process_time() - begun)}
        else:
            rows, seconds = measure(data, options.sasrec_epochs, folder, options.learned)
        for row in rows:
            cells = (f"{row[m]:.4f} [{row[f'{m}_low']:.4f}, {row[f'{m}_high']:.4f}]" for m in ("recall@5", "ndcg@5"))
            print(f"| {name} | {row['users']:,} | {row['method']} | {row['seen']} | {' | '.join(cells)} |", flush=True)
        print(f"seconds: {seconds}", flush=True)
        if options.results:
            inputs = {fingerprint(path): path.name for path in sources.find(name, options.data_dir).paths}
            command = f"python -m benchmarks.baselines DATA_DIR --datasets {name}"
            learned = f" --learned {options.learned}".removesuffix(" 1")
            command += learned if options.learned else f" --sasrec-epochs {options.sasrec_epochs}"
            if kind == "sasrec":
                command += f" --sasrec-search {options.sasrec_search} --sasrec-seeds {options.sasrec_seeds}"
            file, more = options.results / f"{name}-{kind}.json", more | {"dataset": name, "seconds": seconds}
            results.write(file, f"{name}, {kind}", command, inputs, parameters, rows, **more)


if __name__ == "__main__":
    main()
