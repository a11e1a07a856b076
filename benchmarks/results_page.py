"""docs/results.md: all tables of figures/results/ as Markdown, by `python -m benchmarks.results_page`."""

from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from gloss_utils.base.files import write_whole
from gloss_utils.report.metrics import GLOSS_PAPER, KEPT_IN, LEFT_OUT
from gloss_utils.report.tables import LABELS, with_interval
from gloss_utils.runs import results
from gloss_utils.runs.parameters import ROOT

PAGE, TABLES = ROOT / "docs/results.md", ROOT / "figures/results"
METRICS = tuple(LABELS)  # Recall@5 and NDCG@5
SEEN = {GLOSS_PAPER: KEPT_IN}  # as in the paper; of the others, the rows with seen items left out are shown
INTRODUCTION = """# Results

All tables that were measured here, written by `python -m benchmarks.results_page` from the files in
`figures/results/`. Each file also says which command made it, at which commit, from which input files. The data
are Amazon 2014 5-core, with seed 3407. Metrics are means over all users of the split unless a number is given,
with their [95 % bootstrap interval over users]. The counts of the datasets equal the published ones exactly:
22,363 users, 12,094 items and 198,371 interactions (Beauty); 19,395 users, 11,865 items and 166,757 interactions
(Toys)."""
BASELINES = """## Rivals, and histories alone, test split

`lis` is last-item search: the title of the last item is the query. EASE and STAR (arXiv 2410.16458) are counted, not
trained. SASRec was trained with full cross-entropy for 24 epochs (17 minutes on one core for Beauty; 25 for Toys,
beside other work). `gloss-histories` is `ranking: learned` without any language model. Seen items are those that the
user already has; every method is measured with them left out and kept in.

For comparison, not from this table, published Recall@5: `lis-bm25` 0.0433 (Beauty) and 0.0521 (Toys); SASRec with
one negative per item 0.0387 and 0.0463. Item-kNN alone scores above every published number (see
`figures/comparison.png`)."""
REPLAY = """## Released texts under each ranking, validation split

The paper's authors generated the texts (five per user); they were ranked and evaluated here. Hybrid is
out-of-fold: the weights for a user were fitted on other users. Learned is fitted on training users, and only how much
the texts count is out-of-fold. The NDCG@5 of the paper's rule is the mean over 100 orders of its ties."""
GAINS = """Compared with the paper's rule, averaged over the three files, learned gains {learned}, hybrid {hybrid},
fused {fused}, and the best of six fusions of ranx on the same candidates (`{best}`) {ranx}. Without the generated
texts hybrid still gains {without}, and learned {learned_without}: on these users most of the gain comes from
co-occurrence. What the texts add to hybrid (Recall@5 {texts}) is within the intervals."""
PROTOCOL = """## The whole protocol on a laptop, test split

Each run trains the tiny language model (`base_model: tiny`, 2 million parameters), lets it write for all users,
and ranks, on one core beside other work. Training took 39 minutes for Beauty (68 beside three other jobs) and 25
to 45 for Toys; the index 1.5; all texts and rankings 3 to 11; evaluation 2 to 5, without SASRec. "Without the
texts" is the hybrid ranking of `gloss` with the generated texts left out. In the runs with `decoding: catalogue`,
`gloss-paper` still took all items of a title that several items share; it takes the first now.

A model that has read nothing but titles and histories for half an hour knows brands and kinds of products (two to
three times the Recall@5 of popularity), but hardly which item comes next (a third of last-item search): on Toys, 1
% of its texts are distinct. The default weights of hybrid were fitted on texts by Llama and trust these texts too
much: without them, hybrid is significantly better. With weights fitted on what this model writes for validation
users (*own weights*, see [the guide](guide.md#ranking)), hybrid almost ignores the texts and reaches what the
histories give alone. So the strength of the paper's texts comes from the pre-trained model, and the histories
alone, ranked by hybrid, are the bar that it has to pass."""
NEW_ITEMS = """## Items that nobody has bought yet, test split

Toys as above, with `new_item_fraction: 0.05`: a twentieth of the items is held out of all training. Rivals that
count ids cannot recommend them. Search can, and so can hybrid, because it also searches with the text of the last
item. The tiny model never names one first."""


ASKED = """## What the language model adds to histories

Two small models, all of whose weights are trained (`tuning: full`), on validation users. That of Toys has 5 million
parameters and the paper's loss (three epochs, 48 minutes on 2 cores beside other work; it was still learning fast).
That of Beauty has 1.3 million and learns what the catalogue leaves open (`loss: catalogue`; seven epochs, 86
minutes on one thread beside other work). A quarter of the training users' last items is kept from each, and it is
asked for the probability of the 20 items that histories propose to each user (`ask`, see [the
guide](guide.md#ranking)). *Histories alone* is `learned` without the model; each other row is fitted again on the
users that were kept apart, of whom a fifth have their target among the items proposed. What is gained is paired
over users.

By the paper's rule the model of Beauty is level with last-item search by meaning: on all test users it has 0.0369
[0.0345, 0.0394] Recall@5 (the table above), where that has 0.0376 and last-item search by words 0.0431; on the
validation users here, by whose loss its best epoch was chosen, 0.0501. Still neither its texts nor its probabilities
add anything to histories that can be measured. Its gain is above zero for targets that are frequent in training and
below for rare ones (NDCG@5; intervals are not corrected for the number of groups): a model that saw the same histories
knows what counts know, and of rare items less. That does not say what a Llama, which has read of the world, would add.

`params/tiny-full.yaml` had the settings of the run of Toys at the commit that its file names."""


def results_page(tables: list[dict]) -> str:
    """The page of these result tables, as Markdown."""
    new = [table for table in tables if table["parameters"].get("new_item_fraction")]
    asked = [table for table in tables if table.get("by_model")]
    runs = [table for table in tables if "ablation" in table and table not in [*new, *asked]]
    baselines = [table for table in tables if "dataset" in table and "ablation" not in table]
    [replay] = [table for table in tables if table["name"] == "replay"]
    sections = [
        (BASELINES, baselines, pd.DataFrame(row for table in baselines for row in _baselines(table))),
        (REPLAY, [replay], _replay(replay["rows"])),
        (PROTOCOL, runs, pd.DataFrame(row for table in runs for row in _run(table))),
        (NEW_ITEMS, new, pd.DataFrame(row for table in new for row in _new_items(table))),
    ]
    if asked:
        sections.append((ASKED, asked, pd.DataFrame(row for table in asked for row in _asked(table))))
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


def _shown(row: dict) -> dict[str, str]:
    frame = pd.DataFrame([row])
    return {LABELS[metric]: with_interval(frame, metric)[0] for metric in METRICS}


def _of(table: dict, segment: str) -> Iterator[dict]:
    return (row for row in table["rows"] if row["segment"] == segment)


def _baselines(table: dict) -> Iterator[dict]:
    for row in _of(table, "all"):
        about = {"dataset": table["dataset"].title(), "users": f"{row['users']:,}", "method": row["method"]}
        yield about | {"seen items": row["seen"]} | _shown(row)


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


def _run(table: dict) -> Iterator[dict]:
    parameters = table["parameters"]
    about = {"dataset": table["dataset"].title(), "decoding": parameters["decoding"]}
    own = "" if parameters["ranking_weights"].startswith("params/") else ", own weights"
    methods = {row["method"]: row for row in _of(table, "all") if row["seen"] == SEEN.get(row["method"], LEFT_OUT)}
    if parameters["ranking"] == "paper":
        yield about | {"method": f"gloss-paper, loss: {parameters['loss']}"} | _shown(methods["gloss-paper"])
        return
    without = next(row for row in table["parts"] if row["left_out"] == "generated texts")
    if not own:
        yield about | {"method": "gloss-paper"} | _shown(methods["gloss-paper"])
    yield about | {"method": f"gloss{own}"} | _shown(methods["gloss"])
    yield about | {"method": f"… without the texts{own}"} | _shown(without)
    if own:
        yield about | {"decoding": None, "method": f"item-knn, counted as for{own[1:]}"} | _shown(methods["item-knn"])


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
    shown = [(name, row["users"], _shown(row)) for name, row in rows.items()]
    for row in table["by_model"]:
        gained = {LABELS[name]: with_interval(pd.DataFrame([row]), f"{name}_gained", "+")[0] for name in METRICS}
        shown.append((f"the model's gain: {row['group']}", row["users"], gained))
    for name, users, numbers in shown:
        about = {"dataset": table["dataset"].title(), "split": paper["split"], "users": f"{users:,}"}
        yield about | {"ranking": name} | numbers


def _new_items(table: dict) -> Iterator[dict]:
    new = {(row["method"], row["seen"]): row for row in _of(table, "new-items")}
    for row in _of(table, "all"):
        everyone = {f"all {row['users']:,} users: {metric}": value for metric, value in _shown(row).items()}
        target = new[row["method"], row["seen"]]
        few = {f"{target['users']:,} users with a new target: Recall@5": _shown(target)["Recall@5"]}
        yield {"method": row["method"], "seen items": row["seen"]} | everyone | few


def write(path: Path = PAGE):
    """Write the page of the committed tables."""
    with write_whole(path) as part:
        part.write_text(results_page(results.read_all([], TABLES)), encoding="utf-8")


if __name__ == "__main__":
    write()
