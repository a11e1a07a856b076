"""What all figures share: seaborn in one theme, sized for a two-column page and readable in grey; PNG and PDF files."""

from collections.abc import Sequence
from itertools import chain, cycle, repeat
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
import seaborn.objects as so

from gloss_utils.base.files import write_whole

COLUMN, PAGE = 3.35, 6.9  # inches: the width of one column, of both
# From seaborn's "colorblind", with a grey and black: no two are equally light, so that grey tells them apart, too.
SHADES = ("#56B4E9", "#D55E00", "#0173B2", "#BFBFBF", "#000000")
MARKERS = "os^Dv<>P"
THEME = {
    **sns.axes_style("whitegrid", {"grid.color": "0.88", "axes.edgecolor": "0.6"}),
    **sns.plotting_context("paper", font_scale=0.75),
    "font.family": "DejaVu Sans",  # comes with matplotlib, so that every machine draws the same
    "legend.frameon": False,
    "grid.linewidth": 0.5,
    "axes.linewidth": 0.6,
    **dict.fromkeys(("xtick.major.size", "xtick.minor.size", "ytick.major.size", "ytick.minor.size"), 0),
    "axes.prop_cycle": plt.cycler(color=[SHADES[2], SHADES[1]]),
}
WHOLE = {"clip_on": False, "zorder": 3}  # what lies on the edge of a panel is shown whole
DOTS = (so.Dot(pointsize=3.4, artist_kws=WHOLE), so.Range(linewidth=1, artist_kws=dict(WHOLE)))
LINES = (so.Line(linewidth=1, artist_kws=WHOLE), so.Band(alpha=0.15))


class SideBySide(so.Dodge):
    """The labels of a group side by side, with room between the groups."""

    def __call__(self, data: pd.DataFrame, *about) -> pd.DataFrame:
        """Move the marks (see seaborn's `Dodge`)."""
        return super().__call__(data.assign(width=0.6), *about)


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


def by_metric(frame: pd.DataFrame, metrics: dict[str, str]) -> pd.DataFrame:
    """The rows of a result table once for each metric, which they have as mean, low and high.

    metrics: each one's name in the columns of `frame`, and in the column `metric` of what is returned.
    """
    ends = {"": "mean", "_low": "low", "_high": "high"}
    frames = [
        frame.assign(metric=name, **{end: frame[f"{metric}{suffix}"].astype(float) for suffix, end in ends.items()})
        for metric, name in metrics.items()
    ]
    return pd.concat(frames, ignore_index=True)


def with_intervals(frame: pd.DataFrame, marks: tuple, *moves: so.Move, along: str = "y", **variables: str) -> so.Plot:
    """Means with their intervals (columns mean, low, high) along an axis; each `label` looks the same in all panels.

    marks: `DOTS` or `LINES`. moves and variables: seaborn's.
    """
    ends = {along: "mean", f"{along}min": "low", f"{along}max": "high"}
    plot = so.Plot(frame, **ends, **variables, color="label", marker="label", pointsize="label")
    for mark in marks:
        plot = plot.add(mark, *moves, orient="y" if along == "x" else "x")
    return plot.scale(**looks(frame["label"]))


def looks(labels: pd.Series) -> dict[str, dict]:
    """Colour, marker and size of each label, as scales of seaborn; the first is seen around one on the same place."""
    each = list(zip(labels.unique(), cycle(SHADES), cycle(MARKERS), chain([5], repeat(3)), strict=False))
    return {
        name: {one[0]: one[place] for one in each} for place, name in enumerate(("color", "marker", "pointsize"), 1)
    }


def draw(plot: so.Plot, size: tuple[float, float], loc: str = "outside upper center", **legend) -> plt.Figure:
    """Draw a plot of seaborn in this theme. size: inches. loc and legend: where its legend goes, and how it looks."""
    return draw_beside([plot], size, loc, **legend)


def draw_beside(
    panels: Sequence[so.Plot], size: tuple[float, float], loc: str = "outside upper center", **legend
) -> plt.Figure:
    """Draw plots of seaborn side by side. size, loc, legend: as for `draw`."""
    figure = plt.figure(figsize=size, dpi=150, layout="constrained")
    if len(panels) == 1:
        panels[0].theme(THEME).on(figure).plot()
    else:
        for plot, place in zip(panels, figure.subplots(1, len(panels)), strict=True):
            plot.theme(THEME).on(place).plot()
    with plt.rc_context(THEME):
        for found in [figure.legends.pop() for _ in figure.legends]:  # which seaborn puts over the panels
            labels = [text.get_text() for text in found.get_texts()]
            figure.legend(found.legend_handles, labels, loc=loc, **legend)
    return figure
