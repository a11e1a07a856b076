"""What a run will write to disk, and hold in memory, in bytes, estimated from plain numbers before it starts.

Disk: what is there at most, also of what is deleted at the end. The estimates are on the safe side: at least what is
written, and less than twice that for identifiers and titles like Amazon's. Memory: the model's part, roughly.
"""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from gloss_utils.base.errors import GlossError
from gloss_utils.search import on_disk

if TYPE_CHECKING:
    from gloss_utils.language.sizes import Sizes

FLOAT = 4  # bytes
NOTES = 16 * 2**10  # configs, logs and cards of a model's folder
TOKENIZER = 140  # per token of the vocabulary, as in Llama-3's file
CHECKPOINTS = 4  # the two latest, the best, and the one that is being written
TITLE, WORDS, USER, ITEM = 100, 12, 14, 10  # characters of an item's text, its words, characters of identifiers


# ---- on disk


def weights(parameters: int, vocabulary: int = 0) -> int:
    """A folder with a model, or an adapter, in float32, and with a tokenizer where a vocabulary is given."""
    return FLOAT * parameters + TOKENIZER * vocabulary + NOTES


def checkpoints(parameters: int) -> int:
    """All checkpoints of a training of so many parameters, each with two moments. AdamW in 8 bits writes less."""
    return CHECKPOINTS * (3 * FLOAT * parameters + 4 * NOTES)


def tiny_base(vocabulary: int, layers: int, width: int, lora_rank: int) -> tuple[int, int]:
    """The parameters of the tiny base model, and of adapters on all its linear layers."""
    return width * (vocabulary + 12 * layers * width + 2 * layers + 1), 19 * lora_rank * layers * width


def sasrec_parameters(items: int, width: int) -> int:
    """Those of the rival SASRec."""
    from gloss_utils.rank import sasrec  # takes seconds to import

    return (items + 1 + sasrec.LENGTH) * width + sasrec.LAYERS * (12 * width + 13) * width + 2 * width


def dense_index(items: int, dimensions: int, kind: str) -> int:
    """The index by meaning; kinds other than flat have the vectors and an SQLite file of texts beside them."""
    index = items * (on_disk.bytes_per_item(kind, dimensions) + TITLE) + NOTES
    if kind == on_disk.FLAT:
        return index
    lists = 4 * items**0.5 if kind == on_disk.IVFPQ else 0
    codebooks = FLOAT * dimensions * (256 + int(lists))
    return index + items * (FLOAT * dimensions + 16) + codebooks


def bm25_index(items: int) -> int:
    """The index by words: a place and a score for each word of an item, and the vocabulary."""
    return items * (2 * FLOAT * WORDS + 20) + 2**10


def texts(users: int, num_beams: int, max_new_tokens: int, history: float) -> int:
    """The generated texts: `queries.jsonl`, and the journal of generation. history: items of a user, on average."""
    written = num_beams * (4 * max_new_tokens + 32)  # about four characters a token, and a log-probability
    return int(users * (2 * written + 120 + USER + (history + 1) * (ITEM + 4))) + NOTES


def rankings(users: int, depth: int, methods: int) -> int:
    """The TREC files of all methods."""
    return methods * users * depth * (USER + ITEM + 31)


# ---- in memory


def base(model: "Sizes", load_in_4bit: bool, weight: int = 2) -> int:
    """A base model's weights. weight: bytes of one that is not in 4 bits, as those of the embeddings are not."""
    inner = model.parameters - model.embeddings
    return int(inner * (0.55 if load_in_4bit else weight)) + weight * model.embeddings


def training(model: "Sizes", lora: int, tokens: int, checkpointing: bool, moment: int = FLOAT, weight: int = 2) -> int:
    """What training adapters of `lora` parameters takes beside the base model.

    tokens: of all texts of a batch, padding included. moment: bytes of each of the optimiser's two (1 in 8 bits).
    Activations: 17 values per layer, token and width (Korthikanti et al., arXiv:2205.05198, with fused attention), or
    one, and 17 of a single layer, with gradient checkpointing; and the logits, in float32, with their gradients.
    """
    kept = (model.layers + 17) if checkpointing else 17 * model.layers
    activations = tokens * (kept * model.width * weight + 2 * FLOAT * model.vocabulary)
    return lora * (2 * FLOAT + 2 * moment) + activations


def generation(model: "Sizes", sequences: int, tokens: int, weight: int = 2) -> int:
    """The keys and values of sequences (users × beams) of so many tokens (prompt and new ones)."""
    return 2 * model.layers * model.keys * weight * sequences * tokens


# ---- is there room?


def check_disk(path: str | Path, needed: dict[str, int]) -> str:
    """A line on what a run will write in `path`, in bytes by part. Raises `GlossError` where less is free."""
    path = Path(path).absolute()
    free = shutil.disk_usage(next(folder for folder in (path, *path.parents) if folder.exists())).free
    parts = ", ".join(f"{name} {_shown(size)}" for name, size in needed.items())
    about = f"about {_shown(sum(needed.values()))} ({parts}) in {path}"
    if free < sum(needed.values()):
        raise GlossError(f"this run will write {about}, where {_shown(free)} are free; make room, or use another disk")
    return f"This run will write {about}, where {_shown(free)} are free."


def _shown(size: int) -> str:
    return f"{size / 2**30:,.1f} GiB" if size >= 2**30 else f"{size / 2**20:,.1f} MiB"
