"""What a run will write to disk, in bytes, estimated from plain numbers before it starts.

What is there at most, also of what is deleted at the end. The estimates are on the safe side: at least what is written,
and less than twice that for identifiers and titles like Amazon's. `language.memory` estimates what a model holds.
"""

from pathlib import Path

from gloss_utils.base.errors import GlossError
from gloss_utils.base.files import free_space
from gloss_utils.search import on_disk

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
    inner = round(width / 24) * 64  # as `tiny.new_model` has it
    parameters = width * (vocabulary + layers * (4 * width + 3 * inner + 2) + 1)
    return parameters, lora_rank * layers * (11 * width + 3 * inner)


def sasrec_parameters(items: int, width: int) -> int:
    """Those of the baseline SASRec."""
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
    """The index by words: a place and a pair's number for each word of an item, and words of its own with their ends,
    starts and highest counts."""
    return items * ((FLOAT + 2) * WORDS + 24) + 2 * 2**10


def cooccurrence(items: int, interactions: int, neighbours: int, window: int) -> int:
    """Co-occurrence, and its parts until it is whole: a place and a number of twice the size for each neighbour."""
    return 2 * 3 * FLOAT * min(items * neighbours, interactions * 2 * window) + 2 * FLOAT * items + NOTES


def texts(users: int, texts_per_user: int, max_new_tokens: int, history: float) -> int:
    """The generated texts: `queries.jsonl`, and the journal of generation. history: items of a user, on average."""
    written = texts_per_user * (4 * max_new_tokens + 32)  # about four characters a token, and a log-probability
    return int(users * (2 * written + 120 + USER + (history + 1) * (ITEM + 4))) + NOTES


def rankings(users: int, depth: int, methods: int) -> int:
    """The TREC files of all methods, and their blocks until they are joined."""
    return 2 * methods * users * depth * (USER + ITEM + 31)


# ---- is there room?


def check_disk(path: str | Path, needed: dict[str, int]) -> str:
    """A line on what a run will write in `path`, in bytes by part. Raises `GlossError` where less is free."""
    path = Path(path).absolute()
    free = free_space(path)
    parts = ", ".join(f"{name} {_shown(size)}" for name, size in needed.items())
    about = f"about {_shown(sum(needed.values()))} ({parts}) in {path}"
    if free < sum(needed.values()):
        raise GlossError(f"this run will write {about}, where {_shown(free)} are free; make room, or use another disk")
    return f"This run will write {about}, where {_shown(free)} are free."


def _shown(size: int) -> str:
    return f"{size / 2**30:,.1f} GiB" if size >= 2**30 else f"{size / 2**20:,.1f} MiB"
