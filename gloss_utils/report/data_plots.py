"""Figures of what comes before the results: the data set, the training, the catalogue."""

from html import unescape

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from sklearn.cluster import KMeans
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.manifold import TSNE

from gloss_utils.data.dataset import Dataset
from gloss_utils.report.plots import COLUMN, PAGE, look, styled

MAP_ITEMS, MAP_GROUPS = 2000, 8


@styled
def dataset_overview(data: Dataset) -> plt.Figure:
    """History lengths, item popularity and title lengths."""
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(PAGE, 2))
    lengths = data.users["interactions"]
    left.hist(lengths, bins=np.arange(2.5, max(np.percentile(lengths, 99), 8) + 1.5))
    left.set(xlabel="interactions per user (up to the 99th percentile)", ylabel="users")
    counts = data.interactions["item"].value_counts().to_numpy()
    middle.loglog(np.arange(1, len(counts) + 1), counts)
    middle.set(xlabel="item, by popularity rank", ylabel="interactions")
    words = data.items["title"].str.split().map(len)
    right.hist(words, bins=np.arange(0.5, 26.5))
    right.set(xlabel="words in a title (cut at 25)", ylabel="items")
    return figure


@styled
def loss_curves(training: dict) -> plt.Figure:
    """Training and validation loss by step. training: holds `history`, a list of dicts with step, loss, eval_loss."""
    history = pd.DataFrame(training["history"])
    figure, axis = plt.subplots(figsize=(COLUMN, 2.2))
    for column, label, style in (("loss", "training", "-"), ("eval_loss", "validation users", "o--")):
        if column in history:
            known = history.dropna(subset=[column])
            axis.plot(known["step"], known[column], style, label=label)
    axis.set(xlabel="optimiser step", ylabel="loss per token (nats)")
    axis.legend()
    return figure


@styled
def catalogue_map(vectors: np.ndarray, titles: pd.Series, seed: int) -> plt.Figure:
    """The catalogue in two dimensions (t-SNE of at most 2,000 items), in groups named by their typical words.

    vectors: [items, dimensions], in the order of `titles`.
    """
    chosen = np.sort(np.random.default_rng(seed).permutation(len(titles))[:MAP_ITEMS])
    vectors, titles = vectors[chosen], titles.iloc[chosen]
    places, different = np.zeros((len(titles), 2)), len(np.unique(vectors, axis=0))
    if different > 1:  # t-SNE cannot place points that are all the same
        places = TSNE(perplexity=min(30, (len(titles) - 1) / 3), init="pca", random_state=seed).fit_transform(vectors)
    groups = KMeans(min(MAP_GROUPS, different), random_state=seed, n_init=3).fit_predict(vectors)
    names = _typical_words(titles, groups)
    figure, axis = plt.subplots(figsize=(PAGE, 3.6))
    for group in np.unique(groups):
        axis.scatter(*places[groups == group].T, s=7, linewidths=0, label=names.get(group), **look(group))
    axis.set(xticks=[], yticks=[], xlabel="t-SNE 1", ylabel="t-SNE 2")
    if names:
        figure.legend(loc="outside right center", markerscale=2, title="typical words")
    return figure


def _typical_words(titles: pd.Series, groups: np.ndarray) -> dict[int, str]:
    """The three most typical words of each group; none where no title has a word."""
    words = TfidfVectorizer(stop_words="english", token_pattern=r"[^\W\d_]{3,}")
    try:
        weights = words.fit_transform(titles.map(unescape)).toarray()
    except ValueError:  # no title has such a word
        return {}
    names = {}
    for group in np.unique(groups):
        typical = (weights[groups == group].mean(axis=0) - weights.mean(axis=0)).argsort()[::-1][:3]
        names[group] = ", ".join(words.get_feature_names_out()[typical])
    return names
