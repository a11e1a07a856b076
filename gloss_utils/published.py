"""Numbers that others published, each with its source. Shown beside what a run measured, never mixed in."""

import json
from pathlib import Path

import pandas as pd

NUMBERS = json.loads(Path(__file__).with_name("published.json").read_text(encoding="utf-8"))
SOURCE = NUMBERS["source"]["paper"]


def statistics(dataset: str) -> dict | None:
    """The published counts of a dataset, or None."""
    return NUMBERS["dataset_statistics"].get(dataset)


def statistics_beside(dataset: str, ours: dict) -> pd.DataFrame:
    """The counts of a run's dataset, and beside them the published ones where there are any."""
    names = {
        "users": "users",
        "users_with_any": "users with any interaction",
        "items": "items",
        "interactions": "interactions",
        "mean_history": "mean length of a history",
        "std_history": "its standard deviation",
    }
    columns, theirs = {"this run": ours}, statistics(dataset)
    if theirs:
        columns["published"] = theirs
    shown = {
        column: {shown: f"{counts[name]:,}" if name in counts else "not published" for name, shown in names.items()}
        for column, counts in columns.items()
    }
    return pd.DataFrame(shown)


def results(dataset: str, split: str, holdout: str = "leave_one_out") -> pd.DataFrame | None:
    """Published Recall@5 and NDCG@5 on a dataset with their source, or None: they are all of leave-one-out tests."""
    if split != "test" or holdout != "leave_one_out" or dataset not in NUMBERS["dataset_statistics"]:
        return None
    rows = []
    for group, source in (("table1", "table1"), ("table2", "table2"), ("gloss", "paper"), ("lis", "lis")):
        for method, by_dataset in NUMBERS[group].items():
            if by_dataset.get(dataset):
                name = f"last-item search, {method}" if group == "lis" else method
                rows.append((name, *by_dataset[dataset], NUMBERS["source"][source].removeprefix("Acharya, Petrov, ")))
    return pd.DataFrame(rows, columns=["published method", "recall@5", "ndcg@5", "source"]).set_index(
        "published method"
    )


def segment_results(dataset: str, split: str, holdout: str = "leave_one_out") -> pd.DataFrame | None:
    """Published Recall@5 of GLoSS by user segment (rows: model and encoder), or None (see `results`)."""
    if split != "test" or holdout != "leave_one_out" or dataset not in NUMBERS["segments"]:
        return None
    rows = {
        (model, encoder): {segment: values["recall@5"] for segment, values in by_segment.items()}
        for model, encoders in NUMBERS["segments"][dataset].items()
        for encoder, by_segment in encoders.items()
    }
    return pd.DataFrame(rows).T.rename_axis(["published model", "retriever"])
