"""Every picture, in one style. Each function takes data, returns a matplotlib figure; `save` writes PNG and PDF."""

import textwrap
from html import unescape
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.ticker import MaxNLocator
from pandas.io.formats.style import Styler
from sklearn.cluster import KMeans
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.manifold import TSNE

from gloss_utils.base.files import write_whole
from gloss_utils.data.dataset import Dataset
from gloss_utils.runs.run import Run

sns.set_theme(context="paper", style="whitegrid", palette="colorblind", rc={"figure.dpi": 110})

NAMES = {
    "popularity": "popularity",
    "lis-bm25": "last item, BM25",
    "lis-dense": "last item, dense",
    "lis-bm25-unseen": "last item, BM25, unseen",
    "lis-dense-unseen": "last item, dense, unseen",
    "item-knn": "item-kNN",
    "sasrec": "SASRec",
    "gloss-paper": "GLoSS, the paper's ranking",
    "gloss": "GLoSS, this run's ranking",
}
WHISKERS = {"elinewidth": 1, "capsize": 2}
MAP_ITEMS = 2000
MAP_GROUPS = 8


def save(run: Run, figure: plt.Figure, name: str) -> plt.Figure:
    """Write a figure to the run's `figures/`, and note it as an output of the stage."""
    run.outputs += write(figure, run.folder.figures, name, dpi=200, bbox_inches="tight")
    return figure


def write(figure: plt.Figure, folder: Path, name: str, **options) -> list[Path]:
    """Write a figure as PNG and PDF, the same bytes for the same figure; returns the paths."""
    paths = []
    for kind, metadata in (("png", {"Software": None}), ("pdf", {"CreationDate": None})):
        paths.append(folder / f"{name}.{kind}")
        with write_whole(paths[-1]) as part:
            figure.savefig(part, format=kind, metadata=metadata, **options)
    plt.close(figure)
    return paths


def dataset_overview(data: Dataset) -> plt.Figure:
    """History lengths, item popularity and title lengths."""
    figure, axes = plt.subplots(1, 3, figsize=(10, 2.8), layout="constrained")
    lengths = data.users["interactions"]
    axes[0].hist(lengths, bins=np.arange(2.5, max(np.percentile(lengths, 99), 8) + 1.5))
    axes[0].set(xlabel="interactions of a user (up to the 99th percentile)", ylabel="users")
    counts = data.interactions["item"].value_counts().to_numpy()
    axes[1].loglog(np.arange(1, len(counts) + 1), counts)
    axes[1].set(xlabel="item, by popularity rank", ylabel="interactions")
    words = data.items["title"].str.split().map(len)
    axes[2].hist(words, bins=np.arange(0.5, 26.5))
    axes[2].set(xlabel="words in a title (cut at 25)", ylabel="items")
    return figure


def loss_curves(result: dict) -> plt.Figure:
    """Training and validation loss by step."""
    history = pd.DataFrame(result["history"])
    figure, axis = plt.subplots(figsize=(5, 3), layout="constrained")
    for column, label, style in (("loss", "training", "-"), ("eval_loss", "validation users", "o--")):
        if column in history:
            known = history.dropna(subset=[column])
            axis.plot(known["step"], known[column], style, label=label)
    axis.set(xlabel="optimiser step", ylabel="loss per token (nats)")
    axis.legend()
    return figure


def catalogue_map(vectors: np.ndarray, titles: pd.Series, seed: int) -> plt.Figure:
    """The catalogue in two dimensions (t-SNE of at most 2,000 items), in groups named by their telling words."""
    chosen = np.sort(np.random.default_rng(seed).permutation(len(titles))[:MAP_ITEMS])
    vectors, titles = vectors[chosen], titles.iloc[chosen]
    places, different = np.zeros((len(titles), 2)), len(np.unique(vectors, axis=0))
    if different > 1:  # t-SNE has no place for what is all the same
        places = TSNE(perplexity=min(30, (len(titles) - 1) / 3), init="pca", random_state=seed).fit_transform(vectors)
    groups = KMeans(min(MAP_GROUPS, different), random_state=seed, n_init=3).fit_predict(vectors)
    named = _telling_words(titles, groups)
    figure, axis = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for group in np.unique(groups):
        axis.scatter(*places[groups == group].T, s=6, label=named.get(group))
    axis.set(xticks=[], yticks=[], xlabel="t-SNE 1", ylabel="t-SNE 2")
    if named:
        axis.legend(loc="center left", bbox_to_anchor=(1, 0.5), markerscale=3, title="telling words")
    return figure


def _telling_words(titles: pd.Series, groups: np.ndarray) -> dict[int, str]:
    words = TfidfVectorizer(stop_words="english", token_pattern=r"[^\W\d_]{3,}")
    try:
        weights = words.fit_transform(titles.map(unescape)).toarray()
    except ValueError:  # no title holds such a word
        return {}
    named = {}
    for group in np.unique(groups):
        telling = (weights[groups == group].mean(axis=0) - weights.mean(axis=0)).argsort()[::-1][:3]
        named[group] = ", ".join(words.get_feature_names_out()[telling])
    return named


def methods(rows: list[dict], metrics: tuple[str, ...] = ("recall@5", "ndcg@5")) -> plt.Figure:
    """Metrics of all users by method, with 95 % intervals."""
    frame = pd.DataFrame([row for row in rows if row["segment"] == "all"])
    figure, axes = plt.subplots(1, len(metrics), figsize=(8, 2.8), sharey=True, layout="constrained", squeeze=False)
    colours = [{"gloss": "C1", "gloss-paper": "C4"}.get(method, "C0") for method in frame["method"]]
    for axis, metric in zip(axes[0], metrics, strict=True):
        names = [NAMES[method] for method in frame["method"]]
        axis.barh(names, frame[metric].astype(float), xerr=spread(frame, metric), error_kw=WHISKERS, color=colours)
        axis.set(xlabel=metric)
        axis.grid(visible=False, axis="y")
    axes[0, 0].invert_yaxis()
    figure.supxlabel(f"{frame['split'].iloc[0]}, {frame['users'].iloc[0]:,} users, 95 % intervals", fontsize="small")
    return figure


def spread(frame: pd.DataFrame, metric: str) -> np.ndarray:
    """How far a metric's interval reaches below and above its mean, [2, rows], as matplotlib's bars take it."""
    mean, low, high = (frame[name].astype(float) for name in (metric, f"{metric}_low", f"{metric}_high"))
    return np.abs(np.stack([mean - low, high - mean]))


def number_of_queries(ablation: list[dict], metric: str = "recall@5") -> plt.Figure:
    """A metric against the number of queries used, by ranking and retriever, with 95 % intervals."""
    frame = pd.DataFrame(ablation)
    figure, axis = plt.subplots(figsize=(6, 3), layout="constrained")
    for (names, part), marker in zip(frame.groupby(["ranking", "retriever"], sort=False), "os^", strict=False):
        axis.plot(part["queries"], part[metric], marker=marker, label=", ".join(names))
        axis.fill_between(part["queries"], part[f"{metric}_low"], part[f"{metric}_high"], alpha=0.15)
    axis.set(
        xlabel="generated queries used",
        ylabel=f"{metric} on {frame['split'].iloc[0]}",
        ylim=(0, None),
        xticks=sorted(frame["queries"].unique()),
    )
    axis.legend(title="ranking, retriever", loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def parts(rows: list[dict], metrics: tuple[str, ...] = ("recall@5", "ndcg@5")) -> plt.Figure:
    """What the hybrid ranking loses without each of its parts, with 95 % intervals of the paired differences."""
    frame = pd.DataFrame(rows)
    frame = frame[frame["left_out"] != "none"]
    figure, axes = plt.subplots(1, len(metrics), figsize=(8, 2), sharey=True, layout="constrained", squeeze=False)
    for axis, metric in zip(axes[0], metrics, strict=True):
        lost = f"{metric}_lost"
        axis.errorbar(frame[lost], frame["left_out"], xerr=spread(frame, lost), fmt="o", **WHISKERS)
        axis.axvline(0, color="0.4", linewidth=0.8)
        axis.set(xlabel=f"{metric} lost without it")
        axis.margins(y=0.2)
    axes[0, 0].invert_yaxis()
    return figure


def tie_orders(ties: list[float], rows: list[dict]) -> plt.Figure:
    """NDCG@5 of the paper's rule over random orders of equal scores, and that of this run's order."""
    ours = next(row["ndcg@5"] for row in rows if row["method"] == "gloss-paper" and row["segment"] == "all")
    figure, axis = plt.subplots(figsize=(5, 2.2), layout="constrained")
    axis.hist(ties, bins=20)
    axis.axvline(ours, color="C1", label="this run's order")
    axis.set(xlabel="NDCG@5 of the paper's rule", ylabel=f"orders, of {len(ties)}")
    axis.yaxis.set_major_locator(MaxNLocator(integer=True))
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def user_segments(rows: list[dict], metric: str = "recall@5") -> plt.Figure:
    """A metric by user segment and method, with 95 % intervals."""
    frame = pd.DataFrame(rows)
    found, width = list(frame["method"].unique()), 0.8 / frame["method"].nunique()
    names = list(frame["segment"].unique())
    figure, axis = plt.subplots(figsize=(8, 3.2), layout="constrained")
    for place, method in enumerate(found):
        part = frame[frame["method"] == method].set_index("segment").loc[names]
        places = np.arange(len(names)) + (place - len(found) / 2 + 0.5) * width
        axis.bar(
            places,
            part[metric].astype(float),
            yerr=spread(part, metric),
            error_kw=WHISKERS,
            width=width,
            label=NAMES[method],
        )
    users = frame.drop_duplicates("segment").set_index("segment")["users"]
    axis.set(xticks=range(len(names)), ylabel=f"{metric} on {frame['split'].iloc[0]} (95 % interval)")
    axis.set_xticklabels([f"{segment}\n{users[segment]:,} users" for segment in names])
    axis.grid(visible=False, axis="x")
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def history_length(binned: pd.DataFrame, metric: str, of: tuple[str, ...]) -> plt.Figure:
    """A metric against history length for some methods, with 95 % intervals."""
    figure, axis = plt.subplots(figsize=(6, 3.2), layout="constrained")
    for method, marker in zip(of, "os^vD", strict=False):
        part = binned[binned["method"] == method]
        axis.plot(part["interactions"], part["mean"], marker=marker, label=NAMES[method])
        axis.fill_between(part["interactions"], part["low"], part["high"], alpha=0.15)
    axis.set(
        xlabel="interactions of a user (mean of a bin of equally many users)",
        ylabel=metric,
        xscale="log",
        ylim=(0, None),
    )
    ticks = binned.drop_duplicates("interactions")["interactions"]
    axis.set_xticks(ticks, [f"{tick:.0f}" for tick in ticks], minor=False)
    axis.set_xticks([], minor=True)
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def wrapped(text: str) -> str:
    """Text with lines of at most 100 characters, for printing prompts in a notebook."""
    lines = [(line, " " * len("Title: ") * line.startswith("Title: ")) for line in text.split("\n")]
    return "\n".join(textwrap.fill(line, 100, subsequent_indent=indent) for line, indent in lines)


def in_full(table: pd.DataFrame) -> Styler:
    """A table for looking at whose rows and texts are not cut, and whose numbers have three decimals."""
    return table.style.format(precision=3, thousands=",", escape="html").format_index(escape="html")
