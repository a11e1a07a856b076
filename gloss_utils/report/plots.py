"""What all figures share: one style, sized for a two-column page and readable in grey; PNG and PDF files."""

from collections.abc import Callable
from functools import wraps
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from gloss_utils.base.files import write_whole

COLUMN, PAGE = 3.35, 6.9  # inches: the width of one column, of both
# Of different lightness, so that grey tells most apart; markers and hatches tell the others.
SHADES = ("#56B4E9", "#E69F00", "#0072B2", "#999999", "#000000")
MARKERS = "os^Dv<>P"
STYLE = Path(__file__).with_name("paper.mplstyle")
INTERVAL = {"elinewidth": 0.8, "capsize": 1.5}


def styled(draw: Callable) -> Callable:
    """Make a function draw in this style; figures drawn by others keep theirs."""

    @wraps(draw)
    def drawn(*args, **options):
        with plt.style.context(["default", STYLE]):
            return draw(*args, **options)

    return drawn


def write(figure: plt.Figure, folder: Path, name: str, **options) -> list[Path]:
    """Write a figure as PNG and PDF, the same bytes for the same figure; returns the paths.

    options: given to matplotlib's `savefig`; 300 dots per inch where they do not say otherwise.
    """
    paths = []
    for kind, metadata in (("png", {"Software": None}), ("pdf", {"CreationDate": None})):
        paths.append(folder / f"{name}.{kind}")
        with write_whole(paths[-1]) as part:
            figure.savefig(part, format=kind, metadata=metadata, **{"dpi": 300} | options)
    plt.close(figure)
    return paths


def look(number: int) -> dict:
    """Colour and marker of the number-th thing in a figure."""
    return {"color": SHADES[number % len(SHADES)], "marker": MARKERS[number % len(MARKERS)]}


def panels(number: int, columns: int = 3, height: float = 1.7, **shared) -> tuple[plt.Figure, list[plt.Axes]]:
    """A figure of so many panels of the same size, row by row."""
    columns = min(number, columns)
    rows = -(-number // columns)
    size = (COLUMN if columns == 1 else PAGE, 0.4 + height * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, **shared)
    for axis in axes.flat[number:]:
        axis.remove()
    return figure, list(axes.flat[:number])


def spread(frame: pd.DataFrame, metric: str) -> np.ndarray:
    """How far a metric's interval reaches below and above its mean, [2, rows], as matplotlib takes it."""
    mean, low, high = (frame[name].astype(float) for name in (metric, f"{metric}_low", f"{metric}_high"))
    return np.abs(np.stack([mean - low, high - mean]))


def points(axis: plt.Axes, places, frame: pd.DataFrame, metric: str, across: bool = False, **options):
    """A metric's means with their intervals, on the y axis, or, with `across`, on the x axis."""
    where = (frame[metric], places) if across else (places, frame[metric])
    error = {"xerr" if across else "yerr": spread(frame, metric)}
    axis.errorbar(*where, **error, linestyle="", clip_on=False, zorder=3, **INTERVAL, **options)


def dots(axis: plt.Axes, frame: pd.DataFrame, metric: str, labels: list[str], across: bool = False):
    """A metric with its intervals by `tick` and `label`, which are columns of the frame.

    A label looks the same in all panels that are given the same `labels`, also where some have nothing to draw.
    """
    ticks = pd.Index(frame["tick"].unique())
    for number, label in enumerate(labels):
        some = frame[frame["label"] == label]
        places = ticks.get_indexer(some["tick"]) + 0.7 * ((number + 0.5) / len(labels) - 0.5)
        if len(some):
            points(axis, places, some, metric, across, label=label, **look(number))
    if across:
        axis.set_yticks(range(len(ticks)), ticks)
        axis.set(xlim=(0, None), ylim=(len(ticks) - 0.5, -0.5))
    else:
        axis.set_xticks(range(len(ticks)), ticks)
        axis.set(ylim=(0, None))
        axis.grid(visible=False, axis="x")


def band(axis: plt.Axes, places, mean, low, high, number: int, label: str):
    """A line with its interval as a band."""
    size = 5 if number == 0 else 3  # so that the first is seen around a second one on the same place
    axis.plot(places, mean, label=label, markersize=size, clip_on=False, zorder=3, **look(number))
    axis.fill_between(places, low, high, alpha=0.15, linewidth=0, color=look(number)["color"])


def legend(figure: plt.Figure, columns: int):
    """One legend above all panels, with each label once."""
    found = [axis.get_legend_handles_labels() for axis in figure.axes]
    marks = {label: mark for handles, labels in found for mark, label in zip(handles, labels, strict=True)}
    figure.legend(marks.values(), marks.keys(), loc="outside upper center", ncols=columns)
