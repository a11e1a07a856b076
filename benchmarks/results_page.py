"""docs/results.md: all tables of figures/results/ as Markdown, by `python -m benchmarks.results_page`.

Those in figures/results/beams/, seeds/ and new/ stand on this page alone, not in the figures: the same model, searched
more widely; what is trained, with several seeds; and runs that hold items out as new.
"""

from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from gloss_utils.base.files import write_whole
from gloss_utils.report.metrics import GLOSS_PAPER, KEPT_IN, LEFT_OUT
from gloss_utils.report.segments import NEW_ITEMS
from gloss_utils.report.tables import LABELS, with_interval
from gloss_utils.runs import results
from gloss_utils.runs.parameters import ROOT

PAGE, TABLES = ROOT / "docs/results.md", ROOT / "figures/results"
METRICS = tuple(LABELS)  # Recall@5 and NDCG@5
TEN = {"recall@10": "Recall@10", "ndcg@10": "NDCG@10"}
NUMBERS = LABELS | {"recall@10": "Recall@10"}
INTRODUCTION = """# Results

All tables that were measured here, written by `python -m benchmarks.results_page` from the files in
`figures/results/`. Each file also says which command made it, at which commit, from which input files. The data
are Amazon 2014 5-core, with seed 3407. Metrics are means over all users of the split unless a number is given,
with their [95 % bootstrap interval over users]. The counts of the datasets equal the published ones exactly:
22,363 users, 12,094 items and 198,371 interactions (Beauty); 19,395 users, 11,865 items and 166,757 interactions
(Toys)."""
BASELINES = """## Baselines, and histories alone, test split

`lis` is last-item search: the title of the last item is the query. EASE and STAR (arXiv 2410.16458) are counted, not
trained. SASRec was trained with full cross-entropy for 24 epochs, of which the best by NDCG@10 of the validation users
is kept (37 minutes on one thread for Beauty and 21 for Toys, beside other work). `gloss-histories` is `ranking:
learned` without any language model. Seen items are those that the user already has; every method is measured with them
left out and kept in.

For comparison, not from this table, published Recall@5 (Beauty, Toys), seen items kept in: GLoSS with Llama-3.2-1B
0.0456 and 0.0677, 3B 0.0653 and 0.0728, 8B 0.0681 and 0.0796; `lis-bm25` 0.0433 and 0.0521. SASRec with one negative
per item (whether seen items are kept in is not said): 0.0387 and 0.0463. Item-kNN alone scores above every published
number (see `figures/comparison.png`)."""
SEEDS = """## Several seeds, test split

Seen items left out. A seed of `gloss-histories` draws the training users that trees are fitted on, and grows the
trees. Its rows of the table above come from another processor, whose sums end in other last bits, so that other trees
grow: with the same seed and the same rules Recall@5 is 0.0947 there on Beauty and 0.1128 on Toys. SASRec's settings
are the best of two trials by NDCG@10 of the validation users, seen items left out; the first trial has those of the
table above, and both datasets keep them: cross-entropy over all items, width 128, dropout 0.5, learning rate 0.001.
For comparison, published for eSASRec (sampled softmax, seen items left out): Recall@10 0.0921 and NDCG@10 0.0531 on
Beauty, 0.0970 and 0.0580 on Toys."""
REPLAY = """## Released texts under each ranking, validation split

The paper's authors generated the texts (five per user); they were ranked and evaluated here. Hybrid is
out-of-fold: the weights for a user were fitted on other users. Learned is fitted on training users, and only how much
the texts count is out-of-fold. The NDCG@5 of the paper's rule is the mean over 100 orders of its ties."""
GAINS = """Compared with the paper's rule, averaged over the three files, learned gains {learned}, hybrid {hybrid},
fused {fused}, and the best of six fusions of ranx on the same candidates (`{best}`) {ranx}. Without the generated
texts hybrid still gains {without}, and learned {learned_without}: on these users most of the gain comes from
co-occurrence. What the texts add to hybrid (Recall@5 {texts}) is within the intervals. The paper's rule keeps seen
items in, the others leave them out. Leaving them out changes the Recall@5 of the paper's rule hardly, and raises its
NDCG@5 by about a tenth (see the last table)."""
ASKED = """## What the language model adds to histories, test split

A Llama of 1.3 million parameters for each dataset, all of whose weights are trained, at the tokens where titles of the
catalogue differ (`loss: catalogue`, seven epochs: 86 minutes for Beauty and 75 for Toys, on one thread beside other
work). A quarter of the training users' last items is kept from it. It writes five titles for each user, the best of 20
beams, and is asked for the probability of the 20 items that histories propose (`ask`, see
[the guide](guide.md#ranking)). *Histories alone* is `learned` without the model; it is a little below
`gloss-histories` above, because a quarter of the last items is kept from it, too. Each other row is fitted again on
the users that were kept apart. What is gained is paired over users; intervals are not corrected for the number of
groups.

The probabilities help the first ten places a little: over all users Recall@10 and NDCG@10 grow on both datasets, beyond
their intervals. Of the first five, Toys gains NDCG@5, and Beauty loses as much. The texts add nothing to them. The
ranking moves from rare targets to frequent ones: those that occur 20 times or more in training gain, those that occur
fewer than 5 times lose. A model that saw the same histories knows what counts know, and of rare items less. That does
not say what a Llama, which has read of the world, would add. How far the model is heeded is chosen by NDCG@10 of the
users that were kept apart, and not at its likeliest ([measured](measurements.md))."""

BEAMS = """## A wider search, test split

The same models by the paper's rule, whose search keeps 5 or 20 beams (`num_beams`) to find its five titles. With five
beams the search loses many of the titles that the model finds likeliest. The aim was to reach last-item search by
words with seen items kept in (0.0431 on Beauty, 0.0517 on Toys). With 20 beams both models stay below it, by less than
half of their interval. With all last items and eight epochs in place of seven, Beauty's model finds more targets than
that search, and Toys' exactly as many. This took 117 minutes on Beauty and 91 on Toys, on one thread of a machine that
was busy with other work, and the loss on the validation users was still falling."""

NEW = """## New items, test split

A tenth of Toys' items is held out of all training (`new_item_fraction: 0.1`): they stand in no history that anything
learns from, and neither the language model nor its tokenizer has read their titles. The target of 2,032 test users is
such an item. The model is trained as above, for five epochs, and writes with five beams. Seen items left out.

Histories alone (`gloss-histories`: `learned` with the default `new_item_favour` of 0.5) find as many of these targets
as last-item search, or more; item-kNN and EASE, which know counts alone, find none. With the language model the ranking
finds fewer: it has never seen a new item follow another, and no user on whom its weights are fitted has a new target.
So where new items matter, do not ask a small model of this kind."""


def results_page(tables: list[dict], wide: list[dict], seeds: list[dict], new: list[dict]) -> str:
    """The page of these result tables, as Markdown. wide: of runs with 5 and 20 beams. seeds: with several of them.
    new: of runs that hold items out as new, and ask the model."""
    asked = [table for table in tables if table.get("by_model")]
    baselines = [table for table in tables if "dataset" in table and "ablation" not in table]
    [replay] = [table for table in tables if table["name"] == "replay"]
    sections = [
        (BASELINES, baselines, pd.DataFrame(row for table in baselines for row in _baselines(table))),
        (SEEDS, seeds, pd.DataFrame(row for table in seeds for row in _seeds(table))),
        (REPLAY, [replay], _replay(replay["rows"])),
        (ASKED, asked, pd.DataFrame(row for table in asked for row in _asked(table))),
        (NEW, new, pd.DataFrame(row for table in new for row in _new(table))),
        (BEAMS, wide, pd.DataFrame(row for table in sorted(wide, key=_width) for row in _beams(table))),
    ]
    parts = [INTRODUCTION]
    for text, found, frame in sections:
        commands = "\n".join(dict.fromkeys(table["command"] for table in found))
        parts += [text, f"```\n{commands}\n```", _markdown(frame)]
        if found == [replay]:
            parts.append(_gains(replay["rows"]))
    return "\n\n".join(parts) + "\n"


def _markdown(frame: pd.DataFrame) -> str:
    lines = [frame.columns, ["---"] * len(frame.columns), *frame.fillna("").to_numpy()]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def _shown(row: dict, labels: dict[str, str] = LABELS, what: str = "", sign: str = "") -> dict[str, str]:
    """Metrics with their intervals by label. what: "_gained" shows gains; sign: "+" always has one."""
    frame = pd.DataFrame([row])
    return {label: with_interval(frame, f"{metric}{what}", sign)[0] for metric, label in labels.items()}


def _of(table: dict, segment: str) -> Iterator[dict]:
    return (row for row in table["rows"] if row["segment"] == segment)


def _baselines(table: dict) -> Iterator[dict]:
    for row in _of(table, "all"):
        about = {"dataset": table["dataset"].title(), "users": f"{row['users']:,}", "method": row["method"]}
        yield about | {"seen items": row["seen"]} | _shown(row)


def _seeds(table: dict) -> Iterator[dict]:
    """Each seed's metrics, seen items left out, and how far the seeds are apart."""
    rows = [row for row in _of(table, "all") if row["seen"] == LEFT_OUT]
    about = {"dataset": table["dataset"].title(), "method": rows[0]["method"]}
    for row in rows:
        yield about | {"seed": row["seed"]} | _shown(row, LABELS | TEN)
    spread = pd.DataFrame(rows)[[*LABELS, *TEN]].std()
    shown = {label: f"{spread[metric]:.4f}" for metric, label in (LABELS | TEN).items()}
    yield about | {"seed": "standard deviation"} | shown


def _file(row: dict) -> str:
    return f"{row['dataset'].title()}, {row['texts'].split('.')[0].split('-')[-1].upper()}"


def _replay(rows: list[dict]) -> pd.DataFrame:
    lines = {}
    for row in rows:
        name = row["method"].replace("hybrid without", "… without").replace("paper", "paper's rule")
        name = name.replace("learned without", "… learned without")
        shown = {f"{_file(row)}: {metric}": value for metric, value in _shown(row).items()}
        lines.setdefault(name, {"ranking": name}).update(shown)
    return pd.DataFrame(lines.values())


def _gains(rows: list[dict]) -> str:
    """What the rankings gain on average over the files, as a paragraph."""
    frame = pd.DataFrame(rows).pivot(index="method", columns="texts", values=list(METRICS))
    mean = (frame / frame.loc["paper"] - 1).T.groupby(level=0).mean()[frame.index]
    best = mean.filter(like="ranx").loc["recall@5"].idxmax()
    texts = frame["recall@5"].loc["hybrid"] / frame["recall@5"].loc["hybrid without generated texts"] - 1

    def gain(method: str) -> str:
        return " and ".join(f"{100 * mean.loc[metric, method]:.0f} % {LABELS[metric]}" for metric in METRICS)

    return GAINS.format(
        learned=gain("learned"),
        learned_without=gain("learned without generated texts"),
        hybrid=gain("hybrid"),
        fused=gain("fused"),
        best=best.removeprefix("ranx "),
        ranx=gain(best),
        without=gain("hybrid without generated texts"),
        texts=", ".join(f"{100 * change:+.0f} %" for change in texts).replace("-", "−"),
    )


def _width(table: dict) -> tuple[str, int, int]:
    """The dataset, how many beams its texts come from, and how long the model was trained."""
    return table["dataset"], table["parameters"]["num_beams"], table["parameters"]["epochs"]


def _beams(table: dict) -> Iterator[dict]:
    """What a run's texts find by the paper's rule, under both protocols."""
    how = table["parameters"]
    about = {"dataset": table["dataset"].title(), "beams": how["num_beams"], "epochs": how["epochs"]}
    about |= {"of the last items": f"{100 * (1 - how['ranking_share']):.0f} %"}
    for row in (row for row in _of(table, "all") if row["method"] == GLOSS_PAPER):
        yield about | {"users": f"{row['users']:,}", "seen items": row["seen"]} | _shown(row)


def _asked(table: dict) -> Iterator[dict]:
    """Each way of ranking, and the model's gain by group of users."""
    names = {
        "probabilities and generated texts": "histories alone",
        "probabilities": "histories and texts",
        "generated texts": "histories and probabilities",
        "none": "histories, texts and probabilities",
    }
    parts = {row["left_out"]: row for row in table["parts"]}
    paper = next(row for row in _of(table, "all") if row["method"] == GLOSS_PAPER and row["seen"] == KEPT_IN)
    rows = {"the paper's rule on its texts": paper} | {name: parts[part] for part, name in names.items()}
    shown = [(name, row["users"], _shown(row, LABELS | TEN)) for name, row in rows.items()]
    for row in table["by_model"]:
        gained = _shown(row, LABELS | TEN, "_gained", "+")
        shown.append((f"the model's gain: {row['group']}", row["users"], gained))
    for name, users, numbers in shown:
        about = {"dataset": table["dataset"].title(), "split": paper["split"], "users": f"{users:,}"}
        yield about | {"ranking": name} | numbers


def _new(table: dict) -> Iterator[dict]:
    """Each method's metrics of all users and of those whose target is a new item, and what the model gains."""
    about = {"dataset": table["dataset"].title()}
    for segment, named in (("all", "any"), (NEW_ITEMS, "a new item")):
        for row in (row for row in _of(table, segment) if row["seen"] == LEFT_OUT):
            yield (
                about | {"target": named, "users": f"{row['users']:,}", "method": row["method"]} | _shown(row, NUMBERS)
            )
        for row in (row for row in table["by_model"] if row["group"] == segment):
            line = about | {"target": named, "users": f"{row['users']:,}", "method": "the model's gain"}
            yield line | _shown(row, NUMBERS, "_gained", "+")


def write(path: Path = PAGE):
    """Write the page of the committed tables."""
    with write_whole(path) as part:
        folders = TABLES, TABLES / "beams", TABLES / "seeds", TABLES / "new"
        page = results_page(*(results.read_all([], folder) for folder in folders))
        part.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    write()
