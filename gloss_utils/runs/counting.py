"""Co-occurrence as an artefact of a run: counted in parts that a run which was cut off does not count again."""

from functools import partial

from scipy.sparse import csr_matrix, save_npz

from gloss_utils.data.dataset import Dataset
from gloss_utils.data.sequences import Sequences
from gloss_utils.rank import cooccurrence
from gloss_utils.rank.cooccurrence import Pairs
from gloss_utils.rank.weights import HybridSettings
from gloss_utils.runs.parameters import RETRIEVE
from gloss_utils.runs.resumed import in_parts
from gloss_utils.runs.run import Run


def following(run: Run, data: Dataset, sequences: Sequences, settings: HybridSettings) -> csr_matrix | None:
    """The artefact `cooccurrence`, memory-mapped, whatever the rule: item-knn and the added item need it, too. Stage 4
    makes it, block by block. Null where later stages ask for other sequences or counts than it has."""
    lists, name = sequences.values(), "cooccurrence"
    run.known["learnable"] = lists.sha256()
    if run.stage == RETRIEVE and not run.keeps(name):
        load = partial(Pairs, lists, lists.items, **settings.counting())
        blocks, save = cooccurrence.blocks(lists, lists.items, settings.window), partial(save_npz, compressed=False)
        parts = in_parts(run, name, blocks, load, Pairs.following, save, "counting", "item")
        with run.writing(name) as part:
            cooccurrence.save(part, parts)
    found = run.artefacts.get(name) or run.folder.record(name)
    is_same = found and found["made_from"] == run.made_from(name)
    return cooccurrence.load(run.open(name), len(data.items)) if is_same else None
