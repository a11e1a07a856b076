"""Results: metrics, how sure they are, and how they are shown.

In: rankings (frames: user, rank, item, score) and each user's target, or result tables (dicts, see `tables`).
Out: frames of metrics, rows of result tables, matplotlib figures, tables for looking at, HTML pages.

`per_user_metrics` gives the metrics of each user, `intervals` those of their means, `compare` paired tests. The modules
`result_plots` and `data_plots` draw the figures, `tables` shows results as frames, `published` has others' numbers.
"""

from gloss_utils.report.metrics import METRICS, per_user_metrics, summarise, targets_of
from gloss_utils.report.significance import compare, intervals, tie_orders

__all__ = [
    "METRICS",
    "compare",
    "intervals",
    "per_user_metrics",
    "summarise",
    "targets_of",
    "tie_orders",
]
