"""Coverage, novelty, diversity and popularity against their definitions in plain loops."""

from itertools import combinations
from math import log2

import numpy as np
import pandas as pd
import pytest

from gloss_utils.rank import as_run
from gloss_utils.report import beyond

ITEMS = list("abcdefgh")
SEQUENCES = {"p": list("aab"), "q": list("ab"), "r": list("acd"), "s": []}
RANKED = {"u": "abcdefg", "v": "hx", "w": "a", "n": ""}
HISTORIES = {"w": ["a", "c"], "u": ["h"], "v": ["x"], "n": [], "z": ["b"]}
VECTORS = np.random.default_rng(2).standard_normal((8, 4)).astype(np.float32)
TAKERS = {"a": 3, "b": 2, "c": 1, "d": 1}


@pytest.fixture
def catalogue():
    return beyond.Catalogue(ITEMS, SEQUENCES, VECTORS)


@pytest.fixture
def first(catalogue):
    rows = [(user, rank, item, -rank) for user, items in RANKED.items() for rank, item in enumerate(items, 1)]
    return catalogue.first(as_run(pd.DataFrame(rows, columns=["user", "rank", "item", "score"])))


def cosine(one: str, other: str) -> float:
    x, y = (VECTORS[ITEMS.index(item)].astype(float) for item in (one, other))
    return x @ y / np.linalg.norm(x) / np.linalg.norm(y)


def covered(first: pd.DataFrame, users: list[str]) -> float:
    return beyond.coverage(first.loc[first["user"].isin(users), "place"].to_numpy(float), len(ITEMS))


def test_metrics_of_each_user_by_their_definitions(catalogue, first):
    found = catalogue.of_lists(first, list(HISTORIES)).assign(taken=catalogue.taken(HISTORIES))
    assert found.index.tolist() == list(HISTORIES) and list(found.columns) == [*beyond.BEYOND, "taken"]
    for user, items in {"u": "abcde", "v": "h", "w": "a"}.items():  # x is not in the catalogue; five places count
        novelty = sum(-log2((TAKERS.get(item, 0) + 1) / 4) for item in items) / len(items)
        popularity = sum(TAKERS.get(item, 0) / 3 for item in items) / len(items)
        assert found.loc[user, "novelty@5"] == pytest.approx(novelty)
        assert found.loc[user, "popularity@5"] == pytest.approx(popularity)
        apart = [1 - cosine(*pair) for pair in combinations(items, 2)]
        assert found.loc[user, "diversity@5"] == pytest.approx(np.mean(apart) if apart else np.nan, nan_ok=True)
    assert found.loc[["n", "z"], beyond.BEYOND].isna().all(axis=None)  # nothing is recommended to them
    assert found["taken"].tolist() == pytest.approx([4 / 6, 0, np.nan, np.nan, 2 / 3], nan_ok=True)


def test_coverage_is_of_a_group(catalogue, first):
    assert covered(first, ["u", "v", "w", "n"]) == 6 / 8  # a to e, and h
    assert covered(first, ["v", "w"]) == 2 / 8
    assert covered(first, []) == 0


def test_popularity_bias_is_beside_what_was_taken():
    row = {"popularity@5": 0.3, "popularity@5_low": 0.2, "popularity@5_high": 0.4}
    assert beyond.bias(row, 0.2) == {
        "popularity_bias": 0.5,
        "popularity_bias_low": 0.0,
        "popularity_bias_high": 1.0,
    }
    assert (
        set(beyond.bias(row, None).values()) == set(beyond.bias(row | {"popularity@5": None}, 0.2).values()) == {None}
    )


def test_who_recommends_best_sellers_is_less_novel_and_covers_less(catalogue):
    def measured(by_user: dict[str, str]) -> tuple[float, float]:
        rows = [(user, rank, item, -rank) for user, items in by_user.items() for rank, item in enumerate(items, 1)]
        found = catalogue.first(as_run(pd.DataFrame(rows, columns=["user", "rank", "item", "score"])))
        users = {user: ["a"] for user in by_user}
        return catalogue.of_lists(found, users)["novelty@5"].mean(), covered(found, list(users))

    popular, personal = measured({"u": "ab", "v": "ab"}), measured({"u": "ef", "v": "gh"})
    assert popular[0] < personal[0] and popular[1] < personal[1]


def test_no_ranking_at_all(catalogue):
    first = catalogue.first(as_run(pd.DataFrame(columns=["user", "rank", "item", "score"])))
    assert catalogue.of_lists(first, HISTORIES).isna().all(axis=None)
    assert covered(first, ["u"]) == 0
