"""From generated texts to items: titles' vectors used again and each text encoded once, against encoding every text.

    python -m benchmarks.retrieval [--data-dir DIR] [--full]

22,363 users with 5 texts each, as many as Beauty's test users; the catalogue is Beauty's, or without DIR one made up of
the same size. In the published generations one text in ten is no title; 6 % are distinct non-titles, and so they are
here. There, 40 % of 1,118 users' texts are distinct; of all users' texts that cannot be: there are fewer titles.

The rival encodes and searches every text, as the paper's code does, in large batches sorted by length. It is timed on
3,000 texts drawn from all, and scaled. --full runs it on all texts instead, and compares items and similarities.
"""

import argparse
import json
import time

import numpy as np
import pandas as pd

from benchmarks import timing
from benchmarks.baselines import load
from gloss_utils.data.prompts import item_text
from gloss_utils.rank import nearest_items
from gloss_utils.search import DEFAULT_ENCODER, DenseIndex, encode_texts, load_encoder
from gloss_utils.search.order import DECIMALS

USERS, TEXTS, ITEMS, TITLES = 22_363, 5, 12_094, 12_065
NO_TITLE, DISTINCT_NO_TITLE = 0.10, 0.06
SAMPLE, SEED = 3_000, 3407


def made_up_titles() -> list[str]:
    """As many titles as Beauty has, of about as many words, some of them twice."""
    rng = np.random.default_rng(SEED)
    syllables = [
        a + b for a in ("ba", "co", "du", "fe", "gli", "ho", "ka", "lu") for b in ("ra", "nto", "lis", "m", "ve")
    ]
    words = np.array([a + b for a in syllables for b in syllables])
    titles = [f"{' '.join(rng.choice(words, rng.integers(4, 14)))} {number}" for number in range(TITLES)]
    return titles + titles[: ITEMS - TITLES]


def made_up_queries(titles: list[str], users: int) -> pd.DataFrame:
    """Users' texts: mostly titles, the rest titles with words changed; columns user, texts."""
    rng = np.random.default_rng(SEED)
    texts = np.array([item_text(title) for title in titles], dtype=object)
    total = users * TEXTS
    invented = [
        f"{text.rsplit(' ', 2)[0]} {rng.integers(10**6)}" for text in rng.choice(texts, int(DISTINCT_NO_TITLE * total))
    ]
    written = rng.choice(texts, total)
    places = rng.permutation(total)[: int(NO_TITLE * total)]
    written[places] = np.resize(np.array(invented, dtype=object), len(places))
    return pd.DataFrame(
        {"user": [f"u{number}" for number in range(users)], "texts": written.reshape(users, TEXTS).tolist()}
    )


def plainly(index: DenseIndex, encoder, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """The rival: encode and search every text."""
    return index.faiss.search(encode_texts(encoder, texts), 1)


def differences(index: DenseIndex, encoder, queries: pd.DataFrame) -> dict:
    """All texts both ways: how many give another item, or a similarity that differs by more than rounding may."""
    found = nearest_items(queries, index, pd.Series(range(len(index))))
    texts = queries["texts"].explode().tolist()
    ids, scores = index.nearest(encode_texts(encoder, texts), 1)
    apart = np.abs(found["score"].to_numpy() - scores[:, 0])
    return {
        "texts": len(texts),
        "other_items": int((found["item"].to_numpy() != ids[:, 0]).sum()),
        "similarities_apart": int((apart > 1.5 * 10**-DECIMALS).sum()),
        "similarities_equal": round(float((apart < 0.5 * 10**-DECIMALS).mean()), 4),
    }


def main(arguments: list[str] | None = None) -> dict:
    """Print and return what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", help="a folder with the raw files of Beauty")
    parser.add_argument("--users", type=int, default=USERS)
    parser.add_argument("--sample", type=int, default=SAMPLE, help="texts that the rival is timed on")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--full", action="store_true", help="compare what both find for all texts instead")
    options = parser.parse_args(arguments)
    titles = load("beauty", options.data_dir).items["title"].tolist() if options.data_dir else made_up_titles()
    queries = made_up_queries(titles, options.users)
    texts, encoder = queries["texts"].explode().to_numpy(), load_encoder(DEFAULT_ENCODER)
    index = DenseIndex.build([item_text(title) for title in titles], DEFAULT_ENCODER)
    if options.full:
        result = differences(index, encoder, queries)
        print(json.dumps(result))
        return result
    items = pd.Series(range(len(titles)))
    samples = np.random.default_rng(SEED).choice(texts, (options.runs, min(options.sample, len(texts))))
    seconds = {"ours": [], "every text": []}
    for sample in samples:  # taking turns; the models are warm from building the index
        begun = time.perf_counter()
        plainly(index, encoder, sample.tolist())
        seconds["every text"].append((time.perf_counter() - begun) * len(texts) / len(sample))
        begun = time.perf_counter()
        nearest_items(queries, index, items)
        seconds["ours"].append(time.perf_counter() - begun)
    known = set(index.texts)
    distinct = set(texts)
    result = {
        "device": timing.device(),
        "texts": len(texts),
        "distinct": round(len(distinct) / len(texts), 3),
        "distinct_non_titles": round(len(distinct - known) / len(texts), 3),
        "seconds": {name: round(float(np.median(values)), 1) for name, values in seconds.items()},
        "every_text_scaled_from": samples.shape[1],
        "speedup": round(timing.ratio(seconds, "ours", "every text"), 1),
    }
    print(json.dumps(result))
    return result


if __name__ == "__main__":
    main()
