"""From raw files to tables, splits and prompts.

In: the name of a published data set, or two tables of the user's own. `find` gets the files, `read` reads them, and
`build` makes a `Dataset` of them by the data rules.
Out: the `Dataset` (frames of items and users, arrays of interactions), examples of a split (frames: user, history,
target), the prompts of histories, and files of generated queries. Records that cannot be used end in `Rejects`.
"""

from gloss_utils.data.dataset import Dataset
from gloss_utils.data.prompts import encode_prompts, encode_training, item_text, prompt
from gloss_utils.data.queries import read as read_queries
from gloss_utils.data.queries import write as write_queries
from gloss_utils.data.rejects import Rejects
from gloss_utils.data.rules import Rules, build
from gloss_utils.data.sources import OwnTables, Source, find, read
from gloss_utils.data.splits import (
    evaluation_examples,
    example_blocks,
    held_out_examples,
    training_examples,
    training_sequences,
)

__all__ = [
    "Dataset",
    "OwnTables",
    "Rejects",
    "Rules",
    "Source",
    "build",
    "encode_prompts",
    "encode_training",
    "evaluation_examples",
    "example_blocks",
    "find",
    "held_out_examples",
    "item_text",
    "prompt",
    "read",
    "read_queries",
    "training_examples",
    "training_sequences",
    "write_queries",
]
