"""The best items of a catalogue for one text by BM25, most of it never looked at: the one loop that numba compiles.

The words of a text come by rising number of postings. Once k items are known, an item that has only the last, common
words can be among the best only if these words may give it as much as the k-th best has (MaxScore: Turtle and Flood,
1995). So few of the common words' postings bring in an item; they only add to those that rarer words have brought in.
This goes through the catalogue in windows, whose sums fit into the processor's cache.

Compiled code is kept in `__pycache__` beside this file, or in the user's own cache (elsewhere: NUMBA_CACHE_DIR); where
neither can be written, each process compiles for itself. It is made again when this file changes, but not when another
one does: what others decide is an argument.
"""

import heapq
from collections.abc import Callable

import numpy as np
from numba import njit

FIRST = 2**6  # items: the first window. As all of it is looked at, it is small, and each is twice the one before


def _compiled(function: Callable) -> Callable:
    try:
        return njit(cache=True, nogil=True)(function)
    except RuntimeError:  # numba finds no folder that it can write
        return njit(nogil=True)(function)


@_compiled
def best(places, codes, spans, gain, gains, alone, rest, words, least, slack, k, unit, window, fewer):
    """Places, int64 [k], and scores, float64 [k], of the k best items, in no order; where a score is 0, there is none.

    places, codes: of all postings (see `Postings`). By words and pairs, float32: gain: what a word gives once; gains:
    as often as the text has it; alone: what an item may have at most that has this word and none before; rest (with a
    row more than there are words): what the words from this one on may give at most. spans, int64 [words, 2]: from
    where to where a word's postings are. words: the text's words, in its order, as rows of these arrays. least: what an
    item has to be able to reach. slack: how far a bound may be wrong. unit: scores are rounded to 1 / unit. window:
    items looked at together, at most. fewer: as many postings per item are gone through rather than items looked up.
    """
    heap = [(0.0, 0)] * k  # the best until now: score in units, and -place
    sums, pair, brought = np.zeros(window, np.float32), np.zeros(window, codes.dtype), np.zeros(window, np.int32)
    start, stop = spans[:, 0].copy(), spans[:, 0].copy()  # of each word's postings in the window
    bringing, width = len(spans), min(FIRST, window)
    while True:
        while bringing and alone[bringing - 1].max() < least:
            bringing -= 1
        base = _next(places, stop, spans, bringing)
        if base < 0:
            break
        count = 0  # of the items that were brought in
        for word in range(len(spans)):
            if word >= bringing:
                count = _able(brought, count, sums, pair, rest[word], least)
                if not count:
                    break
            start[word] = _seek(places, stop[word], spans[word, 1], base)
            stop[word] = _seek(places, start[word], spans[word, 1], base + width)
            if word < bringing or stop[word] - start[word] < fewer * count:
                for at in range(start[word], stop[word]):
                    item, code = places[at] - base, codes[at]
                    if sums[item] == 0:
                        if alone[word, code] < least:
                            continue
                        brought[count], pair[item] = item, code
                        count += 1
                    sums[item] += gains[word, code]
            else:
                for item in brought[:count]:
                    at = _seek(places, start[word], stop[word], base + item)
                    if at < stop[word] and places[at] == base + item:
                        sums[item] += gains[word, codes[at]]
        for item in brought[:count]:
            reached, sums[item], score = sums[item], 0, np.float32(0)
            if reached < least:
                continue
            for word in words:  # bm25s adds in this order, which decides the last digit
                at = _seek(places, start[word], stop[word], base + item)
                if at < stop[word] and places[at] == base + item:
                    score += gain[word, codes[at]]
            found = (np.rint(np.float64(score) * unit), -(base + item))
            if found > heap[0]:
                heapq.heapreplace(heap, found)
                least = max(least, heap[0][0] / unit - slack)
        width = min(2 * width, window)
    found, scores = np.empty(k, np.int64), np.empty(k)
    for at in range(k):
        scores[at], found[at] = heap[at]
    return -found, scores / unit


@njit
def _next(places, stop, spans, words):
    """The first place that one of the first words has from `stop` on; -1: none."""
    first = -1
    for word in range(words):
        if stop[word] < spans[word, 1] and (first < 0 or places[stop[word]] < first):
            first = np.int64(places[stop[word]])
    return first


@njit
def _able(brought, count, sums, pair, rest, least):
    """Keep the items that can reach enough with what is left, set the others' sums to 0, and say how many are kept."""
    able = 0
    for item in brought[:count]:
        if sums[item] + rest[pair[item]] >= least:
            brought[able] = item
            able += 1
        else:
            sums[item] = 0
    return able


@njit
def _seek(places, start, stop, place):
    """Where the first posting from start on is that has this place or a later one; stop: there is none before it.

    Steps are doubled, then halved, so that what is near is found soon.
    """
    step = 1
    while start + step < stop and places[start + step] < place:
        start += step
        step *= 2
    stop = min(start + step, stop)
    while start < stop:
        middle = (start + stop) // 2
        if places[middle] < place:
            start = middle + 1
        else:
            stop = middle
    return start
