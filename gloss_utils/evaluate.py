"""Stage 5: metrics of GLoSS and of the baselines, computed with ir-measures from the TREC files of the run."""

from dataclasses import dataclass

import ir_measures
import numpy as np
import pandas as pd

from gloss_utils import queries as query_files
from gloss_utils import ranking, retrieve, segments, splits
from gloss_utils.explore_data import Dataset
from gloss_utils.run_folder import Run, read_json, write_json, write_whole

MEASURES = {
    f"{name}@{k}": ir_measures.parse_measure(f"{measure}@{k}")
    for name, measure in (("recall", "R"), ("ndcg", "nDCG"))
    for k in (1, 5, 10)
}
MEASURES["mrr"] = ir_measures.RR
METRICS = list(MEASURES)
METHODS = ("popularity", "lis-bm25", "lis-dense", "lis-bm25-unseen", "lis-dense-unseen", "gloss")
RETRIEVERS = ("dense", "bm25")


@dataclass
class Evaluation:
    """per_user: user, method, segment, interactions, metrics. rows: by method and segment. ablation: by retriever and
    number of queries."""

    split: str
    per_user: pd.DataFrame
    rows: list[dict]
    ablation: list[dict]

    @classmethod
    def load(cls, run: Run) -> "Evaluation":
        """Read stage 5's results from a run folder."""
        metrics = read_json(run.folder.metrics)
        return cls(run["split"], pd.read_parquet(run.folder.per_user), metrics["rows"], metrics["ablation"])


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
    rows = []
    for method in per_user["method"].unique():
        of_method = per_user[per_user["method"] == method]
        for segment in segments.SEGMENTS:
            some = of_method if segment == "all" else of_method[of_method["segment"] == segment]
            row = {"method": method, "split": split, "segment": segment, "users": len(some)}
            rows.append(row | _means(some[METRICS].to_numpy(), seed))
    return rows


def _means(values: np.ndarray, seed: int) -> dict:
    mean = values.mean(axis=0) if len(values) else np.full(len(METRICS), np.nan)
    low, high = segments.intervals(values, seed)
    return (
        _rounded(METRICS, mean)
        | _rounded([f"{metric}_low" for metric in METRICS], low)
        | _rounded([f"{metric}_high" for metric in METRICS], high)
    )


def _rounded(names: list[str], values: np.ndarray) -> dict:
    return {
        name: None if np.isnan(value) else round(float(value), 6) for name, value in zip(names, values, strict=True)
    }


def baselines(depth: int, data: Dataset, queries: pd.DataFrame, indexes: dict) -> dict[str, pd.DataFrame]:
    """The baselines' rankings for the users of `queries`, by method."""
    histories = retrieve.histories(queries)
    learnable = splits.learnable_sequences(data, queries)
    rankings = {"popularity": ranking.popularity(histories, learnable, data, depth)}
    for unseen in (False, True):
        for name in ("bm25", "dense"):
            method = f"lis-{name}" + ("-unseen" if unseen else "")
            rankings[method] = ranking.last_item_search(histories, indexes[name], data, depth, unseen)
    return rankings


def ablate(run: Run, data: Dataset, queries: pd.DataFrame, indexes: dict) -> list[dict]:
    """The ranking rule on the first 1…num_beams queries of each user, under both retrievers."""
    rows, targets = [], dict(zip(queries["user"], queries["target"], strict=True))
    for name in RETRIEVERS:
        found = retrieve.find(queries, indexes[name], data, run)
        for count in range(1, int(queries["texts"].map(len).max()) + 1):
            ranked = retrieve.rank(found[found["query"] <= count], queries, run)
            values = per_user_metrics(ranking.as_run(ranked), targets).to_numpy()
            row = {"retriever": name, "queries": count, "split": run["split"], "users": len(queries)}
            rows.append(row | _means(values, run["seed"]))
    return rows


def interactions_of(data: Dataset, queries: pd.DataFrame, split: str) -> pd.Series:
    """Each evaluated user's number of interactions in the dataset; of users that it does not know, what the history
    and the split say."""
    known = data.users.set_index("user")["interactions"]
    ahead = {"test": 1, "validation": 2}[split]
    lengths = queries.set_index("user")["history"].map(len) + ahead
    return known.reindex(lengths.index).fillna(lengths).astype(int)


def prepare(run: Run, data: Dataset) -> Evaluation:
    """Stage 5's work: rank with the baselines, compute all metrics, write `per_user.parquet` and `metrics.json`."""
    folder, split = run.folder, run["split"]
    if split == "next":
        evaluation = Evaluation(
            split, pd.DataFrame(columns=["user", "method", "segment", "interactions", *METRICS]), [], []
        )
    else:
        queries, _ = query_files.read(folder.queries, run["num_beams"], 0)
        indexes = {name: retrieve.load_index(run, name) for name in RETRIEVERS}
        for method, ranked in baselines(run["ranking_depth"], data, queries, indexes).items():
            ranking.write_trec(folder.ranking(method), ranked, method)
            run.outputs.append(folder.ranking(method))
        interactions = interactions_of(data, queries, split)
        segment = segments.assign(interactions, run["cold_start_max"], run["power_min"], data.users["interactions"])
        targets = dict(zip(queries["user"], queries["target"], strict=True))
        frames = []
        for method in METHODS:
            frame = per_user_metrics(ranking.read_trec(folder.ranking(method)), targets)
            frame = frame.assign(method=method, segment=segment, interactions=interactions)
            frames.append(frame.rename_axis("user").reset_index())
        per_user = pd.concat(frames, ignore_index=True)[["user", "method", "segment", "interactions", *METRICS]]
        evaluation = Evaluation(
            split, per_user, summarise(per_user, split, run["seed"]), ablate(run, data, queries, indexes)
        )
    with write_whole(folder.per_user) as part:
        evaluation.per_user.to_parquet(part, index=False)
    write_json(folder.metrics, {"rows": evaluation.rows, "ablation": evaluation.ablation})
    run.outputs += [folder.per_user, folder.metrics]
    return evaluation


def table(rows: list[dict], metrics: tuple[str, ...] = ("recall@1", "recall@5", "recall@10", "ndcg@5", "mrr")):
    """All users' metrics by method, for looking at."""
    frame = pd.DataFrame([row for row in rows if row["segment"] == "all"]).set_index("method")
    return frame[["users", *metrics]].style.format("{:.4f}", subset=list(metrics)).format("{:,}", subset=["users"])
