"""How the weights of `hybrid` were fitted, and what the rankings give on users that they were not fitted on.

    python -m benchmarks.ranking DATA_DIR NAME=FILE... [--counted] [--write [DIR]] [--results FILE]

DATA_DIR holds raw Amazon files; FILE holds generated texts of validation users of the dataset NAME (beauty, toys or
sports): released ones, or `queries.jsonl` of a run with `split: validation`.

1. How co-occurrence is counted (decay, backward, damping, recency) is chosen on training histories alone: which
   counts predict best, by mean NDCG@5 over the datasets, the last training item of users drawn for this.
2. Weights are fitted by conditional logit: the probability of the target among the user's candidates. Users are put
   into 5 folds by a hash of their id, the same over all files; those of a fold are ranked for with weights from the
   other four. Three ways of folding are averaged. Each dataset counts alike, however many files it has.
3. `learned` is fitted on training users as in a run, with and without the texts, whose weights are out-of-fold.
4. Beside them: the paper's rule (mean over tie orders of its NDCG), fused, the fusions of ranx on the same candidates,
   and hybrid fitted without each of its parts.

--counted leaves out step 1, which takes an hour, and counts as `params/ranking/weights.yaml` says.
--write puts weights fitted on all users into params/ranking/ (or DIR) as weights.yaml, for `ranking_weights`; --results
puts the table into a file for notebook 7. In-sample numbers are not printed.
"""

import argparse
import hashlib
import itertools
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from scipy.optimize import minimize
from tqdm import tqdm

from benchmarks.baselines import load
from gloss_utils.base.files import fingerprint, write_whole
from gloss_utils.data import queries, splits
from gloss_utils.data.dataset import Dataset
from gloss_utils.data.prompts import item_text
from gloss_utils.rank import HybridSettings, Ranker, as_run, hybrid
from gloss_utils.rank.evidence import without_part
from gloss_utils.rank.ranker import FUSED, LEARNED
from gloss_utils.rank.weights import FEATURES, PARTS, VOTES
from gloss_utils.report import significance
from gloss_utils.report.metrics import means, per_user_metrics, rounded, targets_of
from gloss_utils.runs import results
from gloss_utils.runs.parameters import ROOT
from gloss_utils.search.bm25 import BM25Index
from gloss_utils.search.dense import DenseIndex
from gloss_utils.search.encoder import DEFAULT_ENCODER

WEIGHTS = ROOT / "params/ranking/weights.yaml"
NOTE = "# Weights of `ranking: hybrid`. Fitted by `python -m benchmarks.ranking`, which says how.\n"
GRID = {
    "decay": (0.7, 0.8, 0.9),
    "backward": (0.0, 0.1, 0.3),
    "damping": (0.2, 0.4, 0.7),
    "recency": (0.4, 0.55, 0.7),
}
TUNED_ON = 10_000  # users a dataset
RANX = {"rrf": None, "isr": None, "bordafuse": None, "max": None, "sum": "min-max", "mnz": "min-max"}  # and their norms
FOLDS, FOLDINGS, PENALTY = 5, 3, 0.03
SEED, DEPTH, METRICS = 3407, 10, ["recall@5", "ndcg@5"]
START = HybridSettings(
    top_k=20,
    neighbours=100,
    temperature_dense=0.12,
    temperature_bm25=0.3,
    window=20,
    decay=0.8,
    backward=0.1,
    damping=0.4,
    recency=0.55,
    weights=dict.fromkeys(FEATURES, 1.0),
    fitted_on={},
)


@dataclass
class Texts:
    """One file of texts: its ranker, and every user's candidates in one piece."""

    name: str
    dataset: str
    ranker: Ranker
    candidates: pd.DataFrame
    target: np.ndarray  # place in the catalogue, [users]


def choose_counting(datasets: dict[str, Dataset]) -> HybridSettings:
    """The settings of co-occurrence that predict last training items best."""
    score = {}
    worlds = [_training_world(data) for data in datasets.values()]
    for values in tqdm(list(itertools.product(*GRID.values())), desc="co-occurrence", mininterval=5):
        settings = START.model_copy(update=dict(zip(GRID, values, strict=True)))
        score[settings.decay, settings.backward, settings.damping, settings.recency] = np.mean(
            [_predicts(settings, *world) for world in worlds]
        )
    best = max(score, key=score.get)
    spread = f"{min(score.values()):.4f} to {score[best]:.4f}"
    print(f"co-occurrence: {dict(zip(GRID, best, strict=True))}; mean NDCG@5 over the grid is {spread}")
    return START.model_copy(update=dict(zip(GRID, best, strict=True)))


def _training_world(data: Dataset):
    sequences = splits.training_sequences(data, pd.DataFrame(columns=splits.COLUMNS))
    users = [user for user, sequence in sequences.items() if len(sequence) >= 2]
    drawn = np.random.default_rng(SEED).choice(users, min(TUNED_ON, len(users)), replace=False)
    targets = {user: sequences[user][-1] for user in drawn}
    known = {user: sequence[:-1] if user in targets else sequence for user, sequence in sequences.items()}
    return {user: known[user] for user in targets}, known, targets, data.items["item"]


def _predicts(settings: HybridSettings, histories: dict, known: dict, targets: dict, items: pd.Series) -> float:
    ranked = hybrid({}, histories, known, items, settings, 5, weights={"cooccurrence": 1.0})
    return per_user_metrics(as_run(ranked), targets)["ndcg@5"].mean()


def gather(dataset: str, file: str, data: Dataset, indexes: dict, settings: HybridSettings) -> Texts:
    """A file's candidates under these settings."""
    read = queries.read(file, 5, 0)
    known = splits.training_sequences(data, read)
    ranker = Ranker(read, data.titles(), indexes, known, settings, depth=DEPTH, seed=SEED)
    found = {feature: ranker.candidates(feature) for feature in VOTES}
    candidates = pd.concat(ranker.evidence.candidates(found, DEPTH), ignore_index=True)
    return Texts(file, dataset, ranker, candidates, pd.Index(data.items["item"]).get_indexer(read["target"]))


def fit(texts: list[Texts], users: list[np.ndarray], features: list[str]) -> dict[str, float]:
    """Weights (none below 0) of some features by conditional logit on some users of each file: bool, [users]."""
    datasets = [text.dataset for text in texts]
    sets = [_choices(text, some, features) for text, some in zip(texts, users, strict=True)]
    spread = np.mean([x.std(axis=0) for x, *_ in sets], axis=0)
    spread[spread == 0] = 1

    def loss(weights: np.ndarray):
        total, slope = PENALTY * weights @ weights, 2 * PENALTY * weights
        for dataset, (x, starts, chosen) in zip(datasets, sets, strict=True):
            share = 1 / (len(chosen) * len(set(datasets)) * datasets.count(dataset))
            score = x / spread @ weights
            sizes = np.diff(np.append(starts, len(score)))
            score -= np.repeat(np.maximum.reduceat(score, starts), sizes)
            sums = np.add.reduceat(np.exp(score), starts)
            total -= share * (score[chosen] - np.log(sums)).sum()
            slope -= share * (x[chosen].sum(axis=0) - np.exp(score) / np.repeat(sums, sizes) @ x) / spread
        return total, slope

    found = minimize(loss, np.zeros(len(features)), jac=True, method="L-BFGS-B", bounds=[(0, None)] * len(features))
    return dict(zip(features, (found.x / spread).tolist(), strict=True))


def _choices(text: Texts, users: np.ndarray, features: list[str]):
    """Of users whose target is among their candidates: these' features, where each user's begin, the targets' rows."""
    user, item, values = (text.candidates[column].to_numpy() for column in ("user", "item", features))
    hit = item == text.target[user]
    kept = (users & np.isin(np.arange(len(users)), user[hit]))[user]
    user = user[kept]
    return values[kept], np.flatnonzero(np.diff(user, prepend=-1)), np.flatnonzero(hit[kept])


def by_ranker(text: Texts, weights: dict[str, float]) -> np.ndarray:
    """Metrics by user of what notebook 4 would rank with these weights."""
    return metrics_of(text, text.ranker.weighted({"": weights})[""])


def out_of_fold(texts: list[Texts], features: list[str]) -> list[np.ndarray]:
    """Each file's metrics by user, [users, METRICS], with weights from other folds; mean over foldings."""
    found = [np.zeros((len(text.target), len(METRICS))) for text in texts]
    for folding in range(FOLDINGS):
        folds = [_folds(text.ranker.queries["user"], folding) for text in texts]
        for fold in range(FOLDS):
            weights = fit(texts, [of_file != fold for of_file in folds], features)
            for text, of_file, metrics in zip(texts, folds, found, strict=True):
                metrics[of_file == fold] += by_ranker(text, weights)[of_file == fold] / FOLDINGS
    return found


def _folds(users: pd.Series, folding: int) -> np.ndarray:
    digests = (hashlib.sha256(f"{folding} {user}".encode()).hexdigest() for user in users)
    return np.array([int(digest, 16) % FOLDS for digest in digests])


def metrics_of(text: Texts, ranked: pd.DataFrame) -> np.ndarray:
    """`METRICS` by user, [users, METRICS]."""
    targets = targets_of(text.ranker.queries)
    return per_user_metrics(as_run(ranked), targets)[METRICS].to_numpy(copy=True)


def paper(text: Texts) -> np.ndarray:
    """By the paper's rule; NDCG scaled to its mean over tie orders."""
    metrics = metrics_of(text, text.ranker.paper("dense"))
    orders = significance.tie_orders(text.ranker.paper_candidates("dense"), targets_of(text.ranker.queries), SEED)
    metrics[:, 1] *= orders.mean() / metrics[:, 1].mean()
    return metrics


def fused(text: Texts) -> np.ndarray:
    """By `ranking: fused`."""
    return metrics_of(text, replace(text.ranker, rule=FUSED).rank())


def learned(text: Texts) -> dict[str, np.ndarray]:
    """By `ranking: learned`, by method: with texts and without (`benchmarks.learned` leaves out each part)."""
    ranker = replace(text.ranker, rule=LEARNED, text_targets=targets_of(text.ranker.queries))
    found = {"learned": ranker.rank(), "learned without generated texts": ranker.by_learned(0)}
    return {method: metrics_of(text, ranked) for method, ranked in found.items()}


def by_ranx(text: Texts, method: str, norm: str | None) -> np.ndarray:
    """By a fusion of ranx: each query's list is a run; what the user has is left out."""
    import ranx

    found, histories = text.ranker.candidates("texts_dense"), text.ranker.histories
    new = [item not in histories[user] for user, item in zip(found["user"], found["item"], strict=True)]
    users, runs = list(histories), []
    for _, rows in found[new].groupby("query"):
        by_user = rows.groupby("user").apply(lambda some: dict(zip(some["item"], some["score"], strict=True))).to_dict()
        runs.append(ranx.Run({user: by_user.get(user, {"none": 0.0}) for user in users}))
    joint = ranx.fuse(runs, method=method, norm=norm).to_dict()
    rows = [
        (user, item, score)
        for user in users
        for item, score in sorted(joint[user].items(), key=lambda pair: -pair[1])[:DEPTH]
    ]
    run = pd.DataFrame(rows, columns=["query_id", "doc_id", "score"])
    return per_user_metrics(run, targets_of(text.ranker.queries))[METRICS].to_numpy()


def report(name: str, found: list[np.ndarray], base: list[np.ndarray], texts: list[Texts]) -> list[dict]:
    """Print a row: each file's metrics with intervals and the gain over the paper's rule, and the mean gain. Returns a
    row of `results` for each file."""
    cells, gains, rows = [], [], []
    for text, metrics, paper in zip(texts, found, base, strict=True):
        mean, low, high = means(metrics, SEED)
        about = {"method": name, "texts": Path(text.name).name, "dataset": text.dataset, "split": "validation"}
        rows.append(about | {"users": len(metrics)} | rounded(METRICS, mean, low, high))
        gains.append(mean / paper.mean(axis=0) - 1)
        cells += [f"{m:.4f} [{a:.4f}, {b:.4f}] {g:+.0%}" for m, a, b, g in zip(mean, low, high, gains[-1], strict=True)]
    cells += [f"{gain:+.0%}" for gain in np.mean(gains, axis=0)]
    print(f"| {name} | {' | '.join(cells)} |", flush=True)
    return rows


def main():
    """Print the table; with --write, fit on everything and write the weights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data_dir")
    parser.add_argument("files", nargs="+", metavar="NAME=FILE")
    parser.add_argument("--counted", action="store_true")
    parser.add_argument("--write", type=Path, nargs="?", const=WEIGHTS.parent, metavar="DIR")
    parser.add_argument("--results", type=Path)
    options = parser.parse_args()
    files = [tuple(pair.split("=", 1)) for pair in options.files]
    datasets = {name: load(name, options.data_dir) for name in dict.fromkeys(name for name, _ in files)}
    settings = HybridSettings.read(WEIGHTS) if options.counted else choose_counting(datasets)
    texts = []
    for name, data in datasets.items():
        titles = [item_text(title) for title in data.items["title"]]
        indexes = {"dense": DenseIndex.build(titles, DEFAULT_ENCODER), "bm25": BM25Index.build(titles)}
        texts += [gather(name, file, data, indexes, settings) for of, file in files if of == name]
    for text in texts:
        print(f"{text.name}: {len(text.target):,} users; metrics are {', '.join(METRICS)}")
    base = [paper(text) for text in texts]
    rows = report("paper", base, base, texts)
    for method, norm in RANX.items():
        rows += report(f"ranx {method}", [by_ranx(text, method, norm) for text in texts], base, texts)
    rows += report("fused", [fused(text) for text in texts], base, texts)
    rows += report("hybrid", out_of_fold(texts, list(FEATURES)), base, texts)
    for part in PARTS:
        kept = list(without_part(part, settings.weights))
        rows += report(f"hybrid without {part}", out_of_fold(texts, kept), base, texts)
    of_learned = [learned(text) for text in texts]
    for method in of_learned[0]:
        rows += report(method, [found[method] for found in of_learned], base, texts)
    fitted_on = {fingerprint(text.name): Path(text.name).name for text in texts}
    if options.results:
        command = "python -m benchmarks.ranking DATA_DIR " + " ".join(
            f"{name}={Path(file).name}" for name, file in files
        )
        command += " --counted" * options.counted
        results.write(options.results, "replay", command, fitted_on, settings.model_dump(), rows)
    weights = fit(texts, [np.ones(len(text.target), dtype=bool) for text in texts], list(FEATURES))
    weights = {feature: round(weight, 3) for feature, weight in weights.items()}
    print(f"{WEIGHTS.name}, fitted on all users: {weights}")
    if options.write:
        values = settings.model_copy(update={"weights": weights, "fitted_on": fitted_on}).model_dump()
        with write_whole(options.write / WEIGHTS.name) as part:
            part.write_text(NOTE + yaml.safe_dump(values, sort_keys=False), encoding="utf-8")


if __name__ == "__main__":
    main()
