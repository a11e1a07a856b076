"""The baselines that a run is compared with, and SASRec, which is trained for the run once."""

from functools import partial

import pandas as pd

from gloss_utils.base.errors import GlossError
from gloss_utils.data.dataset import Dataset
from gloss_utils.rank import baselines
from gloss_utils.rank.baselines import Baseline
from gloss_utils.rank.cooccurrence import lists_of
from gloss_utils.rank.ranker import Ranker
from gloss_utils.runs.run import Run

SASREC = "sasrec"


def baselines_of(
    run: Run, data: Dataset, ranker: Ranker, evaluated: pd.DataFrame
) -> tuple[dict[str, Baseline], dict[int, Baseline], dict]:
    """What ranks by each baseline's method, trained where it has to be; by SASRec's further seeds; and what was tried
    for SASRec (see `sasrec_search.train`)."""
    counted = baselines.by_name(ranker)
    if not run["sasrec_epochs"]:
        return counted, {}, {}
    from gloss_utils.rank import sasrec, sasrec_search  # load torch and transformers, which others do not need

    sequences = lists_of(ranker.training_sequences)
    validation = sasrec.validation_users(data, evaluated, run["split"])
    if run["sasrec_search"] and validation.empty:
        raise GlossError(
            f"parameter sasrec_search is {run['sasrec_search']}, but split {run['split']} leaves no validation user to "
            "search on; set it to 0, or split to test"
        )
    if not run.keeps("sasrec"):
        to_learn = sasrec_search.TrainingData(sequences, validation, ranker.items)
        given = sasrec.Settings(run["sasrec_epochs"], run["sasrec_width"], run["seed"], run["sasrec_loss"])
        budget = run["sasrec_search"], run["sasrec_seeds"]
        trained = sasrec_search.train(to_learn, given, *budget, run.unfinished("sasrec"))
        with run.writing("sasrec") as part:
            sasrec_search.save(*trained, part)
    models, about = sasrec_search.load(run.open("sasrec"))
    known = {"sequences": sequences, "items": ranker.items, "depth": ranker.depth}
    by_seed = {seed: partial(sasrec.rank, model, **known) for seed, model in models.items()}
    return counted | {SASREC: by_seed.pop(about["seeds"][0])}, by_seed, about
