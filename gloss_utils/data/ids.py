"""Ids as numbers: of each text its place among all, without a text in Python."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

NONE = pa.array([], pa.large_string())


def places_of(texts: pa.Array | pa.ChunkedArray, known: pa.Array) -> np.ndarray:
    """Where each text is among the known ones, which differ; -1 where it is not. known: large strings."""
    coded = _coded(texts)
    return _places(coded.dictionary, known)[coded.indices]


def numbered(texts: pa.Array | pa.ChunkedArray, known: pa.Array) -> tuple[np.ndarray, pa.Array]:
    """Where each text is among the known ones, and these: those that are new have come to their end, in order."""
    coded = _coded(texts)
    places = _places(coded.dictionary, known)
    new = places < 0
    places[new] = len(known) + np.arange(np.count_nonzero(new))
    return places[coded.indices], pa.concat_arrays([known, coded.dictionary.filter(pa.array(new))])


def _coded(texts: pa.Array | pa.ChunkedArray) -> pa.DictionaryArray:
    whole = texts.combine_chunks() if isinstance(texts, pa.ChunkedArray) else texts
    return whole.cast(pa.large_string()).dictionary_encode()


def _places(texts: pa.Array, known: pa.Array) -> np.ndarray:
    found = pc.index_in(
        known, value_set=texts
    )  # so that the table of hashes is one of the texts, not of all known ones
    places = np.full(len(texts), -1)
    places[found.drop_null()] = np.flatnonzero(found.is_valid())
    return places
