"""Notebook 5: metrics of GLoSS and of its rivals, from the TREC files of the run, and how sure they are."""

from collections.abc import Callable
from functools import partial

import matplotlib.pyplot as plt
import pandas as pd
from pandas.io.formats.style import Styler

from gloss_utils import retrieve
from gloss_utils.base.files import write_json, write_whole
from gloss_utils.data import queries as query_files
from gloss_utils.data.dataset import Dataset
from gloss_utils.rank.baselines import rank_all
from gloss_utils.rank.evidence import without_part
from gloss_utils.rank.ranker import FUSED, HYBRID, LEARNED, PAPER, Ranker
from gloss_utils.rank.trec import read_trec, write_trec
from gloss_utils.rank.weights import PARTS
from gloss_utils.report import metrics, published, result_plots, segments, significance, tables
from gloss_utils.report.metrics import COMPARED, GLOSS, GLOSS_HYBRID, METRICS, targets_of
from gloss_utils.runs import results
from gloss_utils.runs.parameters import EVALUATE, RETRIEVE
from gloss_utils.runs.run import Run, open_run

COLUMNS = ["user", "method", "segment", "new_item", "interactions", *METRICS]
FOUND = ("rows", "comparisons", "ablation", "parts", "importances", "text_weights", "ties")  # the lists in metrics.json
FIGURES = {
    "05_methods": partial(result_plots.methods, metrics=COMPARED),
    "05_parts": result_plots.parts,
    "05_ties": result_plots.tie_orders,
    "05_number_of_queries": result_plots.number_of_queries,
}
TABLES = {
    "rows": tables.methods,
    "comparisons": tables.comparisons,
    "parts": tables.parts,
    "importances": tables.importances,
    "text_weights": tables.text_weights,
}


def start(notebook: dict) -> Run:
    """Start the stage from its notebook's `globals()`."""
    return open_run(EVALUATE, notebook)


def prepare(run: Run) -> dict:
    """Rank with the rivals, compute all metrics, write `per_user.parquet` and `metrics.json`.

    Returns the run's result table (see `report.tables`); its lists are empty under split next, which has no targets.
    """
    if run["split"] == "next":
        print("Split next has no targets: there is nothing to evaluate.")
        found, per_user = {name: [] for name in FOUND}, pd.DataFrame(columns=COLUMNS)
    else:
        data = Dataset.load(run.open("data"))
        queries = query_files.read(run.folder.queries, run["num_beams"], 0)
        ranker = retrieve.ranker(run, queries, data)
        per_user = _per_user(run, data, queries, (*_rank_rivals(run, data, ranker), *run.folder.ranked(RETRIEVE)))
        found = _found(run, ranker, per_user, targets_of(queries))
    with write_whole(run.folder.per_user) as part:
        per_user.to_parquet(part, index=False)
    write_json(run.folder.metrics, found)
    run.outputs += [run.folder.per_user, run.folder.metrics]
    return table(run, found)


def _rank_rivals(run: Run, data: Dataset, ranker: Ranker) -> list[str]:
    """Write the rankings of all rivals; returns their names."""
    rivals = rank_all(ranker)
    if run["sasrec_epochs"]:
        rivals["sasrec"] = _by_sasrec(run, data, ranker)
    for method, ranked in rivals.items():
        write_trec(run.folder.ranking(method), ranked, method)
        run.outputs.append(run.folder.ranking(method))
    return list(rivals)


def _by_sasrec(run: Run, data: Dataset, ranker: Ranker) -> pd.DataFrame:
    """The ranking by the run's SASRec, which is trained where it is not yet."""
    from gloss_utils.rank import sasrec  # loads torch and transformers, which a run without SASRec does not need

    sequences = list(ranker.training_sequences.values())
    validation = sasrec.validation_sequences(data, ranker.queries, run["split"])
    settings = sasrec.Settings(run["sasrec_epochs"], run["sasrec_width"], run["seed"])
    if not run.keeps("sasrec"):
        model = sasrec.train(sequences, validation, ranker.items, settings, run.unfinished("sasrec"))
        with run.writing("sasrec") as part:
            model.save_pretrained(part)
    model = sasrec.load(run.open("sasrec"))
    return sasrec.rank(model, ranker.histories, sequences, ranker.items, run["ranking_depth"])


def _per_user(run: Run, data: Dataset, queries: pd.DataFrame, methods: tuple[str, ...]) -> pd.DataFrame:
    """The metrics of each user and method, from the TREC files in the run folder; columns `COLUMNS`."""
    targets, interactions = targets_of(queries), interactions_of(data, queries, run["split"])
    bounds = run["cold_start_max"], run["power_min"], data.users["interactions"]
    about = pd.DataFrame({"segment": segments.assign(interactions, *bounds), "interactions": interactions})
    about["new_item"] = pd.Series(targets).isin(data.new_items())
    trec = {method: read_trec(run.folder.ranking(method)) for method in methods}
    frames = [metrics.per_user_metrics(trec[method], targets).join(about).assign(method=method) for method in methods]
    return pd.concat([frame.rename_axis("user").reset_index() for frame in frames], ignore_index=True)[COLUMNS]


def interactions_of(data: Dataset, queries: pd.DataFrame, split: str) -> pd.Series:
    """The number of interactions in the dataset of each evaluated user; where the dataset does not know a user, what
    the history and the split say."""
    known = data.users.set_index("user")["interactions"]
    ahead = {"test": 1, "validation": 2}[split]
    lengths = queries.set_index("user")["history"].map(len) + ahead
    return known.reindex(lengths.index).fillna(lengths).astype(int)


def _found(run: Run, ranker: Ranker, per_user: pd.DataFrame, targets: dict[str, str]) -> dict:
    """What goes into `metrics.json`.

    rows: means by method and segment. comparisons: paired tests of `gloss` against every other method. ablation: by
    rule, retriever and number of texts. parts: `hybrid` or `learned` without each of its parts. importances: what
    `learned` gains by each signal. text_weights: of its texts, where they count. ties: NDCG@5 of the paper's rule under
    random orders of equal scores.
    """
    split, seed = run["split"], run["seed"]
    inputs = run.folder.stages()[RETRIEVE]["inputs"]
    by_hybrid = GLOSS if ranker.rule == HYBRID else GLOSS_HYBRID
    fitted = {by_hybrid: retrieve.in_sample(run.folder, inputs, ranker) is not None}
    most = int(ranker.queries["texts"].map(len).max())
    return {
        "rows": [
            row | {"in_sample": fitted.get(row["method"], False)} for row in metrics.summarise(per_user, split, seed)
        ],
        "comparisons": significance.compare(per_user, GLOSS, COMPARED, seed),
        "ablation": [
            {"ranking": rule, "retriever": retriever} | row
            for (rule, retriever), rank in _rules(run, ranker).items()
            for row in metrics.ablate(rank, most, targets, split, seed)
        ],
        "parts": metrics.leave_parts_out(_without_parts(ranker), targets, seed),
        "importances": ranker.learned.importances().to_dict("records") if ranker.rule == LEARNED else [],
        "text_weights": _text_weights(ranker),
        "ties": significance.tie_orders(ranker.paper_candidates(run["retriever"]), targets, seed).round(6).tolist(),
    }


def _rules(run: Run, ranker: Ranker) -> dict:
    """What ranks from a number of texts, by rule and retriever: the paper's rule by both, and the run's own rule where
    texts count."""
    rules = {(PAPER, retriever): partial(ranker.paper, retriever) for retriever in ("dense", "bm25")}
    if ranker.rule != PAPER and (ranker.rule != LEARNED or ranker.text_targets):
        rules[ranker.rule, run["retriever"] if ranker.rule == FUSED else "both"] = ranker.rank
    return rules


def _without_parts(ranker: Ranker) -> dict[str, pd.DataFrame]:
    """The rankings whole ("none") and without each part: of `hybrid`, whose other weights stay, or of `learned`, which
    is fitted again; none of other rules."""
    if ranker.rule == LEARNED:
        return ranker.learned.without_parts(ranker.depth, ranker.exclude_seen is not False, ranker.weighed())
    if ranker.rule != HYBRID:
        return {}
    weights = ranker.settings.weights
    return ranker.weighted({"none": weights} | {part: without_part(part, weights) for part in PARTS})


def _text_weights(ranker: Ranker) -> list[dict]:
    texts = ranker.weighed() if ranker.rule == LEARNED else None
    return ranker.learned.text_weights(texts).to_dict("records") if texts else []


def table(run: Run, found: dict) -> dict:
    """The result table of a run, from what is in its `metrics.json`."""
    parameters = results.parameters_of(run.folder.stages() | {"this": {"parameters": run.parameters}})
    return {"name": run.folder.root.name, "dataset": run["dataset"], "parameters": parameters} | found


# ---- what the notebook shows


def show(table: dict, name: str) -> pd.DataFrame | None:
    """One of the lists of a result table (see `TABLES`) for looking at; None where it is empty."""
    return TABLES[name](table[name]) if table[name] else None


def draw(run: Run, table: dict, name: str) -> plt.Figure | None:
    """Draw one of `FIGURES` and write it to the run's `figures/`; None where there is nothing to draw."""
    figure = FIGURES[name]([table])
    return run.save_figure(figure, name) if figure else None


def published_numbers(run: Run, find: Callable = published.results) -> Styler | None:
    """What others published for the run's dataset and split; where they did not, a line says so."""
    theirs = find(run["dataset"], run["split"], run["holdout"])
    if theirs is None:
        print(f"No published numbers for {run['dataset']}, split {run['split']}.")
        return None
    numbers = theirs.select_dtypes("number").columns
    return theirs.style.format("{:.4f}", subset=numbers, na_rep="not published").set_caption(published.SOURCE)
