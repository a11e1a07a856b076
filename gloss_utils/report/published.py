"""Numbers that others published, each with its source. They are shown beside what a run measured, never mixed in."""

import json
from pathlib import Path

import pandas as pd

ID_BASED, LLM_BASED, SEARCH, OTHER = KINDS = ("ID-based", "LLM-based", "search by text", "other")
GROUPS = (
    ("table1", "table1", ID_BASED),
    ("esasrec", "esasrec", ID_BASED),
    ("table2", "table2", LLM_BASED),
    ("gloss", "paper", LLM_BASED),
    ("lis", "lis", SEARCH),
)
NUMBERS = json.loads(Path(__file__).with_name("published.json").read_text(encoding="utf-8"))
SOURCE = NUMBERS["source"]["paper"]


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
    counts = {"this run": ours, "published": NUMBERS["dataset_statistics"].get(dataset)}
    known = {column: pd.Series(numbers, dtype=object) for column, numbers in counts.items() if numbers}
    shown = pd.DataFrame(known).reindex(list(names)).map("{:,}".format, na_action="ignore")
    return shown.fillna("not published").rename(names)


def results(dataset: str, split: str, holdout: str = "leave_one_out") -> pd.DataFrame | None:
    """Published Recall and NDCG at 5 or 10 on a dataset, what was done with items that users already had (seen items),
    the kind of method (`KINDS`) and the source, or None: they are all of leave-one-out tests."""
    if split != "test" or holdout != "leave_one_out" or dataset not in NUMBERS["dataset_statistics"]:
        return None
    rows = []
    for group, source, kind in GROUPS:
        citation = NUMBERS["source"][source].removeprefix("Acharya, Petrov, ")
        names = NUMBERS.get(f"columns_of_{group}", NUMBERS["columns"])
        for method, by_dataset in NUMBERS[group].items():
            if by_dataset.get(dataset):
                name = f"last item, {method.replace('bm25', 'BM25')}" if kind == SEARCH else method
                about = {"published method": name, "kind": kind, "seen items": NUMBERS["seen"][source]}
                rows.append(about | dict(zip(names, by_dataset[dataset], strict=True)) | {"source": citation})
    columns = ["published method", "kind", "seen items", "recall@5", "ndcg@5", "recall@10", "ndcg@10", "source"]
    frame = pd.DataFrame(rows, columns=columns).astype(dict.fromkeys(columns[3:7], float))
    return frame.set_index("published method")


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
