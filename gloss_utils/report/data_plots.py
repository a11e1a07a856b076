"""Figures of what comes before the results: the data set, the training, the catalogue."""

from html import unescape

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import seaborn.objects as so

from gloss_utils.data.dataset import Dataset
from gloss_utils.report import plots

MAP_ITEMS, MAP_GROUPS = 2000, 8


def dataset_overview(data: Dataset) -> plt.Figure:
    """History lengths, item popularity and title lengths."""
    with plt.rc_context(plots.THEME):
        figure, (left, middle, right) = plt.subplots(1, 3, figsize=(plots.PAGE, 2), dpi=150, layout="constrained")
        lengths, words = data.users["interactions"].to_numpy(), data.items["title"].str.count(" ").to_numpy() + 1
        _histogram(lengths[lengths <= max(np.percentile(lengths, 99), 8)], left)
        left.set(xlabel="interactions per user (up to the 99th percentile)", ylabel="users")
        counts = np.sort(data.popularity())[::-1]
        # The ends of each level draw the same line as all of its points.
        ends = np.flatnonzero((counts > 0) & ((np.diff(counts, prepend=-1) != 0) | (np.diff(counts, append=0) != 0)))
        sns.lineplot(x=ends + 1, y=counts[ends], ax=middle)
        middle.set(xlabel="item, by popularity rank", ylabel="interactions", xscale="log", yscale="log")
        _histogram(words[words <= 25], right)
        right.set(xlabel="words in a title (cut at 25)", ylabel="items")
    return figure


def _histogram(values: np.ndarray, axes: plt.Axes):
    """How many are of each whole number; seaborn is given the counts, since it would copy the values several times."""
    numbers, counts = np.unique(values, return_counts=True)
    sns.histplot(x=numbers, weights=counts, discrete=True, ax=axes)


def loss_curves(training: dict) -> plt.Figure:
    """Training and validation loss by step, and beside them Recall@5 by the minutes that steps took, where it is known.

    training: holds `history`, a list of dicts with step, and loss, eval_loss, recall@5, seconds as far as known.
    """
    history = pd.DataFrame(training["history"], columns=["step", "loss", "eval_loss", "seconds", "recall@5"])
    lines, recall = ["training", "validation users"], history.dropna(subset="recall@5")
    losses = history[["step", "loss", "eval_loss"]].astype(float).set_axis(["step", *lines], axis=1)
    known = losses.melt("step").dropna()  # a short training may have logged neither
    plot = so.Plot(known, x="step", y="value", color="variable", marker="variable").add(plots.LINES[0])
    colours, markers = dict(zip(lines, plots.SHADES[2:0:-1], strict=True)), dict(zip(lines, ("", "o"), strict=True))
    plot = plot.scale(color=colours, marker=markers).label(x="optimiser step", y="loss per token (nats)")
    if recall.empty:
        return plots.draw(plot, (plots.COLUMN, 2.2), ncols=2)
    beside = so.Plot(recall.assign(minutes=recall["seconds"] / 60), x="minutes", y="recall@5").limit(y=(0, None))
    beside = beside.add(so.Line(color=plots.SHADES[1], marker="o"))
    beside = beside.label(x="minutes of training", y="Recall@5, the paper's rule")
    return plots.draw_beside([plot, beside], (plots.PAGE, 2.2), ncols=2)


def catalogue_map(vectors: np.ndarray, titles: pd.Series, seed: int) -> plt.Figure:
    """The catalogue in two dimensions (t-SNE of at most 2,000 items), in groups named by their typical words.

    vectors: [items, dimensions], in the order of `titles`.
    """
    from sklearn.cluster import KMeans  # takes a second to import, and only the map needs it
    from sklearn.manifold import TSNE

    chosen = np.sort(np.random.default_rng(seed).permutation(len(titles))[:MAP_ITEMS])
    vectors, titles = vectors[chosen], titles.iloc[chosen]
    places, different = np.zeros((len(titles), 2)), len(np.unique(vectors, axis=0))
    if different > 1:  # t-SNE cannot place points that are all the same
        places = TSNE(perplexity=min(30, (len(titles) - 1) / 3), init="pca", random_state=seed).fit_transform(vectors)
    groups = KMeans(min(MAP_GROUPS, different), random_state=seed, n_init=3).fit_predict(vectors)
    frame = (
        pd.DataFrame(places, columns=["t-SNE 1", "t-SNE 2"]).assign(group=_named(titles, groups)).sort_values("group")
    )
    plot = so.Plot(frame, x="t-SNE 1", y="t-SNE 2", color="group", marker="group").scale(**plots.looks(frame["group"]))
    plot = plot.add(so.Dot(pointsize=2.5, edgewidth=0), legend=bool(frame["group"].any()))
    figure = plots.draw(plot, (plots.PAGE, 3.6), "outside right center", markerscale=2, title="typical words")
    figure.axes[0].set(xticks=[], yticks=[])
    return figure


def _named(titles: pd.Series, groups: np.ndarray) -> np.ndarray:
    """The group of each item by its three most typical words; "" where no title has a word."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    words = TfidfVectorizer(stop_words="english", token_pattern=r"[^\W\d_]{3,}")
    try:
        weights = words.fit_transform(titles.map(unescape)).toarray()
    except ValueError:  # no title has such a word
        return np.full(len(titles), "")
    names = np.empty(len(titles), dtype=object)
    for group in np.unique(groups):
        typical = (weights[groups == group].mean(axis=0) - weights.mean(axis=0)).argsort()[::-1][:3]
        names[groups == group] = ", ".join(words.get_feature_names_out()[typical])
    return names
