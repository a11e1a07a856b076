"""Ids as numbers: of each text its place among all, without a text in Python."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

NONE = pa.array([], pa.large_string())


def as_texts(column) -> pa.Array:
    """A column of texts, of pandas, Arrow or Python, as one array of large strings."""
    found = column if isinstance(column, pa.Array | pa.ChunkedArray) else pa.array(column, pa.large_string())
    return (found.combine_chunks() if isinstance(found, pa.ChunkedArray) else found).cast(pa.large_string())


def places_of(texts, known: pa.Array) -> np.ndarray:
    """Where each text is among the known ones, which differ; -1 where it is not. texts: see `as_texts`."""
    coded = as_texts(texts).dictionary_encode()
    return _places(coded.dictionary, known)[coded.indices]


def numbered(texts, known: pa.Array) -> tuple[np.ndarray, pa.Array]:
    """Where each text is among the known ones, and these: those that are new have come to their end, in order."""
    coded = as_texts(texts).dictionary_encode()
    places = _places(coded.dictionary, known)
    new = places < 0
    places[new] = len(known) + np.arange(np.count_nonzero(new))
    return places[coded.indices], pa.concat_arrays([known, coded.dictionary.filter(pa.array(new))])


def _places(texts: pa.Array, known: pa.Array) -> np.ndarray:
    found = pc.index_in(known, value_set=texts)  # this way round, the table of hashes is not one of all known ones
    places = np.full(len(texts), -1)
    places[found.drop_null()] = np.flatnonzero(found.is_valid())
    return places
