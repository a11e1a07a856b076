"""Stage 5: metrics of GLoSS and of the baselines, computed with ir-measures from the TREC files of the run."""

from dataclasses import dataclass, field
from functools import partial

import ir_measures
import numpy as np
import pandas as pd

from gloss_utils import retrieve
from gloss_utils.base.files import read_json, write_json, write_whole
from gloss_utils.data import queries as query_files
from gloss_utils.data.dataset import Dataset
from gloss_utils.rank import baselines, fusion, ranking
from gloss_utils.rank.ranker import FUSED, HYBRID, PAPER, Ranker
from gloss_utils.report import segments, significance
from gloss_utils.runs.parameters import RETRIEVE
from gloss_utils.runs.run import Run

MEASURES = {
    f"{name}@{k}": ir_measures.parse_measure(f"{measure}@{k}")
    for name, measure in (("recall", "R"), ("ndcg", "nDCG"))
    for k in (1, 5, 10)
}
MEASURES["mrr"] = ir_measures.RR
METRICS = list(MEASURES)
GLOSS, GLOSS_PAPER = "gloss", "gloss-paper"  # by the run's ranking, by the paper's rule
METHODS = (*baselines.METHODS, fusion.SASREC, GLOSS_PAPER, GLOSS)
RETRIEVERS = ("dense", "bm25")
COMPARED = ("recall@5", "ndcg@5")
COLUMNS = ["user", "method", "segment", "new_item", "interactions", *METRICS]


@dataclass
class Evaluation:
    """What stage 5 found.

    per_user: user, method, segment, new_item, interactions, metrics. The rest is lists of rows of `metrics.json`. rows:
    means by method and segment. comparisons: paired tests of `gloss` against every other method. ablation: by rule,
    retriever and number of queries. parts: of `hybrid` without each of its parts. ties: NDCG@5 of the paper's rule
    under random orders of equal scores.
    """

    split: str
    per_user: pd.DataFrame
    rows: list[dict] = field(default_factory=list)
    comparisons: list[dict] = field(default_factory=list)
    ablation: list[dict] = field(default_factory=list)
    parts: list[dict] = field(default_factory=list)
    ties: list[float] = field(default_factory=list)

    @classmethod
    def load(cls, run: Run) -> "Evaluation":
        """Read stage 5's results from a run folder."""
        return cls(run["split"], pd.read_parquet(run.folder.per_user), **read_json(run.folder.metrics))

    def write(self, run: Run):
        """Write `per_user.parquet` and `metrics.json`."""
        with write_whole(run.folder.per_user) as part:
            self.per_user.to_parquet(part, index=False)
        found = {name: value for name, value in vars(self).items() if name not in ("split", "per_user")}
        write_json(run.folder.metrics, found)
        run.outputs += [run.folder.per_user, run.folder.metrics]


def per_user_metrics(run: pd.DataFrame, targets: dict[str, str]) -> pd.DataFrame:
    """Each user's metrics, indexed by user in the order of `targets`; a user without a ranking scores 0.

    run: columns query_id, doc_id, score, as `ranking.read_trec` returns.
    """
    qrels = pd.DataFrame({"query_id": list(targets), "doc_id": list(targets.values()), "relevance": 1})
    names = {measure: name for name, measure in MEASURES.items()}
    found = pd.DataFrame(
        [(m.query_id, names[m.measure], m.value) for m in ir_measures.iter_calc(list(names), qrels, run)],
        columns=["user", "metric", "value"],
    )
    wide = found.pivot(index="user", columns="metric", values="value")
    return wide.reindex(index=list(targets), columns=METRICS).fillna(0.0)


def summarise(per_user: pd.DataFrame, split: str, seed: int) -> list[dict]:
    """Means by method and segment, with 95 % bootstrap intervals over users (`<metric>_low`, `<metric>_high`)."""
    methods, rows = list(per_user["method"].unique()), []
    for segment, inside in segments.members(per_user).items():
        wide = per_user[inside].pivot(index="user", columns="method", values=METRICS)
        wide = wide.reindex(columns=pd.MultiIndex.from_product([METRICS, methods]))
        found = means(wide.to_numpy(), seed)
        for place, method in enumerate(methods):
            row = {"method": method, "split": split, "segment": segment, "users": len(wide)}
            rows.append(row | rounded(METRICS, *(values[place :: len(methods)] for values in found)))
    return sorted(rows, key=lambda row: methods.index(row["method"]))


def means(values: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Means of the columns of `values` [users, columns], and the two ends of their 95 % intervals."""
    mean = values.mean(axis=0) if len(values) else np.full(values.shape[1], np.nan)
    return mean, *significance.intervals(values, seed)


def rounded(names: list[str], mean: np.ndarray, low: np.ndarray, high: np.ndarray) -> dict:
    """Means and the ends of their intervals as a row of `metrics.json`: `<name>`, `<name>_low`, `<name>_high`."""
    keys = [f"{name}{end}" for end in ("", "_low", "_high") for name in names]
    values = np.concatenate([mean, low, high])
    return {key: None if np.isnan(value) else round(float(value), 6) for key, value in zip(keys, values, strict=True)}


def ablate(ranker: Ranker, split: str, seed: int) -> list[dict]:
    """The first 1…num_beams queries of each user, by the paper's rule under both retrievers and by the run's own."""
    queries = ranker.queries
    rows, targets = [], targets_of(queries)
    rules = {(PAPER, name): partial(ranker.paper, name) for name in RETRIEVERS}
    if ranker.rule != PAPER:
        rules[ranker.rule, ranker.parameters["retriever"] if ranker.rule == FUSED else "both"] = ranker.rank
    for (rule, retriever), rank in rules.items():
        for count in range(1, int(queries["texts"].map(len).max()) + 1):
            values = per_user_metrics(ranking.as_run(rank(count)), targets).to_numpy()
            row = {"ranking": rule, "retriever": retriever, "queries": count, "split": split, "users": len(queries)}
            rows.append(row | rounded(METRICS, *means(values, seed)))
    return rows


def leave_parts_out(ranker: Ranker, seed: int) -> list[dict]:
    """`hybrid` whole, and without each of its parts: metrics, and how much is lost (paired), with 95 % intervals.

    The weights of the other parts stay as they are. Empty under another rule.
    """
    if ranker.rule != HYBRID:
        return []
    weights = ranker.weights
    weightings = {"none": weights} | {part: fusion.leaving_out(part, weights) for part in fusion.parts(weights)}
    targets = targets_of(ranker.queries)
    found = {
        part: per_user_metrics(ranking.as_run(ranked), targets).to_numpy()
        for part, ranked in ranker.weighted(weightings).items()
    }
    lost = [f"{metric}_lost" for metric in METRICS]
    return [
        {"left_out": part, "users": len(targets)}
        | rounded(METRICS, *means(values, seed))
        | rounded(lost, *means(found["none"] - values, seed))
        for part, values in found.items()
    ]


def targets_of(queries: pd.DataFrame) -> dict[str, str]:
    """Each user's target."""
    return dict(zip(queries["user"], queries["target"], strict=True))


def interactions_of(data: Dataset, queries: pd.DataFrame, split: str) -> pd.Series:
    """Each evaluated user's number of interactions in the dataset; of users that it does not know, what the history
    and the split say."""
    known = data.users.set_index("user")["interactions"]
    ahead = {"test": 1, "validation": 2}[split]
    lengths = queries.set_index("user")["history"].map(len) + ahead
    return known.reindex(lengths.index).fillna(lengths).astype(int)


def prepare(run: Run, data: Dataset) -> Evaluation:
    """Stage 5's work: rank with the baselines, compute all metrics, write `per_user.parquet` and `metrics.json`."""
    folder, split, seed = run.folder, run["split"], run["seed"]
    evaluation = Evaluation(split, pd.DataFrame(columns=COLUMNS))
    if split != "next":
        queries = query_files.read(folder.queries, run["num_beams"], 0)
        ranker, targets = retrieve.ranker(run, queries, data), targets_of(queries)
        depth = run["ranking_depth"]
        rivals = baselines.rank(queries, data, ranker.indexes, ranker.settings, depth, ranker.learnable)
        if run["sasrec_epochs"]:
            ranked = ranker.found(fusion.SASREC)
            rivals[fusion.SASREC] = ranked[ranked["rank"] <= depth]
        for method, ranked in rivals.items():
            ranking.write_trec(folder.ranking(method), ranked, method)
            run.outputs.append(folder.ranking(method))
        evaluation.per_user = measure(run, data, queries, (*rivals, GLOSS_PAPER, GLOSS))
        inputs = folder.stages()[RETRIEVE]["inputs"]
        fitted = {GLOSS: retrieve.in_sample(folder, inputs, ranker) is not None}
        evaluation.rows = [
            row | {"in_sample": fitted.get(row["method"], False)} for row in summarise(evaluation.per_user, split, seed)
        ]
        evaluation.comparisons = significance.compare(evaluation.per_user, GLOSS, COMPARED, seed)
        evaluation.ablation = ablate(ranker, split, seed)
        evaluation.parts = leave_parts_out(ranker, seed)
        first = ranker.first(run["retriever"])
        evaluation.ties = significance.tie_orders(first, targets, seed).round(6).tolist()
    evaluation.write(run)
    return evaluation


def measure(run: Run, data: Dataset, queries: pd.DataFrame, methods: tuple[str, ...]) -> pd.DataFrame:
    """`per_user` of an `Evaluation`, from the methods' TREC files in the run folder."""
    targets, interactions = targets_of(queries), interactions_of(data, queries, run["split"])
    about = pd.DataFrame(
        {
            "segment": segments.assign(
                interactions, run["cold_start_max"], run["power_min"], data.users["interactions"]
            ),
            "new_item": pd.Series(targets).isin(data.new_items()),
            "interactions": interactions,
        }
    )
    frames = [
        per_user_metrics(ranking.read_trec(run.folder.ranking(method)), targets).join(about).assign(method=method)
        for method in methods
    ]
    return pd.concat([frame.rename_axis("user").reset_index() for frame in frames], ignore_index=True)[COLUMNS]


def table(rows: list[dict], metrics: tuple[str, ...] = ("recall@1", "recall@5", "ndcg@5", "mrr")):
    """All users' metrics by method, with 95 % intervals, for looking at."""
    frame = pd.DataFrame([row for row in rows if row["segment"] == "all"]).set_index("method")
    frame.index = frame.index + frame["in_sample"].map({True: " (in-sample)", False: ""})
    return pd.DataFrame({"users": frame["users"].map("{:,}".format)} | {m: with_interval(frame, m) for m in metrics})


def with_interval(frame: pd.DataFrame, metric: str, sign: str = "") -> pd.Series:
    """A metric and its interval as text."""
    shown = "{:%s.4f} [{:%s.4f}, {:%s.4f}]" % ((sign,) * 3)
    columns = frame[[metric, f"{metric}_low", f"{metric}_high"]]
    return pd.Series([shown.format(*row) for row in columns.to_numpy()], index=frame.index)


def comparisons_table(comparisons: list[dict]) -> pd.DataFrame:
    """Paired differences between `gloss` and every other method, for looking at."""
    frame = pd.DataFrame(comparisons)
    frame["shown"] = with_interval(frame, "difference", "+") + frame["p_corrected"].map(", p = {:.4f}".format)
    wide = frame.pivot(index="other", columns="metric", values="shown")
    return wide.loc[frame["other"].unique(), frame["metric"].unique()].rename_axis(index="gloss against", columns=None)


def parts_table(parts: list[dict], metrics: tuple[str, ...] = COMPARED) -> pd.DataFrame:
    """`hybrid` without each of its parts, for looking at."""
    frame = pd.DataFrame(parts).set_index("left_out").rename_axis("left out")
    lost = {f"{metric}, lost": with_interval(frame, f"{metric}_lost", "+") for metric in metrics}
    lost = {name: shown.where(shown.index != "none", "") for name, shown in lost.items()}
    return pd.DataFrame({metric: with_interval(frame, metric) for metric in metrics} | lost)
