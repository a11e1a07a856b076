"""The order of what is found: similarities are rounded, and ties are in the catalogue's order (METHOD, 5)."""

import numpy as np

DECIMALS = 5
Found = tuple[np.ndarray, np.ndarray]  # places in the catalogue, int64, and similarities, float64, both [texts, k]


def rounded(scores: np.ndarray) -> np.ndarray:
    """Similarities without the noise of their last digits, float64."""
    return np.round(scores.astype(np.float64), DECIMALS)


def top_k(ids: np.ndarray, scores: np.ndarray, k: int) -> Found:
    """Rows of places and scores, sorted by falling score, then by rising place, cut to k columns."""
    order = np.lexsort((ids, -scores), axis=1)[:, :k]
    return np.take_along_axis(ids, order, 1), np.take_along_axis(scores, order, 1)


def distinct(texts: list[str]) -> tuple[list[str], np.ndarray]:
    """The distinct texts, and where among them each text is."""
    found, places = np.unique(np.asarray(texts, dtype=object), return_inverse=True)
    return list(found), places
