"""Which items of a catalogue is a text about? Two indexes of the catalogue's texts, one by meaning and one by words.

In: lists of texts. Out: places in the catalogue (from 0) and similarities, both [texts, k], nearest first. Both
indexes have `search(texts, k)`, `strength(scores)`, `save(folder)` and `load(folder)`. Knows nothing of users.
"""

from gloss_utils.search.bm25 import BM25Index
from gloss_utils.search.dense import DenseIndex, build_dense
from gloss_utils.search.encoder import DEFAULT_ENCODER, Encoder, encode_texts, load_encoder

__all__ = ["DEFAULT_ENCODER", "BM25Index", "DenseIndex", "Encoder", "build_dense", "encode_texts", "load_encoder"]
