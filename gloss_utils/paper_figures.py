"""Notebook 7: figures and tables for a paper, from finished runs or from files of results."""

import matplotlib.pyplot as plt
from pandas.io.formats.style import Styler

from gloss_utils.report import plots, result_plots, tables
from gloss_utils.runs import results
from gloss_utils.runs.parameters import ROOT

FIGURES = {
    "rankings": result_plots.rankings,
    "comparison": result_plots.methods,
    "coverage": result_plots.coverage,
    "number_of_queries": result_plots.number_of_queries,
    "retrievers": result_plots.retrievers,
    "segments": result_plots.segments,
    "cost": result_plots.cost,
}
OF_TEST_USERS = ("comparison", "cost")


def read(runs: list[str], figures_dir: str) -> list[dict]:
    """The result tables of these run folders and files; none takes those in the folder `results` of `figures_dir`."""
    return results.read_all([ROOT / run for run in runs], ROOT / figures_dir / "results")


def draw(found: list[dict], name: str, figures_dir: str) -> plt.Figure | None:
    """Draw one of `FIGURES` and write it; where no table has anything to draw in it, say so and return None."""
    if name in OF_TEST_USERS:  # and of runs that learnt from all items
        found = [table for table in found if table["rows"][0]["split"] == "test"]
        found = [table for table in found if not table["parameters"].get("new_item_fraction")]
    figure = FIGURES[name](found)
    if figure is None:
        only = " of the test split, on all items" if name in OF_TEST_USERS else ""
        print(f"The figure {name} is left out: no table has results{only} that it could show.")
        return None
    plots.write(figure, ROOT / figures_dir, name)
    return figure


def over_seeds(found: list[dict]) -> Styler | None:
    """The spread over seeds of runs that are the same otherwise; None where there are none."""
    shown = tables.seeds_of_runs(found)
    return None if shown.empty else tables.in_full(shown)


def provenance(found: list[dict]) -> Styler:
    """Where the numbers come from."""
    return tables.in_full(tables.provenance(found))


def all_methods(found: list[dict], figures_dir: str) -> Styler:
    """All numbers of all users, which are written as `methods.csv` and `methods.tex`, too."""
    shown = tables.all_methods(found)
    tables.save(shown, ROOT / figures_dir, "methods")
    return tables.in_full(shown)
