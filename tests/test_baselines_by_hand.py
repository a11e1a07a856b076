"""The baselines EASE and STAR against their papers' formulas in plain loops, and seen items under every method."""

import numpy as np
import pandas as pd
import pytest
from helpers import dense

from gloss_utils.rank import Ease, HybridSettings, Ranker, Star, as_run, baselines, popularity
from gloss_utils.rank.baselines import NAMES
from gloss_utils.rank.scores import best
from gloss_utils.rank.weights import FEATURES
from gloss_utils.runs.parameters import ROOT
from gloss_utils.search.bm25 import BM25Index

ITEMS = list("abcdef")
SEQUENCES = {"p": list("abc"), "q": list("abd"), "r": list("bcb"), "s": list("acd"), "t": ["d"]}
HISTORIES = {"u": list("ab"), "v": list("dca"), "w": ["x"], "y": []}
SETTINGS = HybridSettings.read(ROOT / "params/ranking/weights.yaml")


def shown(ranked: pd.DataFrame) -> dict[str, str]:
    assert list(ranked.columns) == ["user", "rank", "item", "score"]
    return {user: "".join(rows["item"]) for user, rows in ranked.groupby("user", sort=False)}


def scores_of(ranked: pd.DataFrame) -> dict[tuple[str, str], float]:
    return {(user, item): score for user, _, item, score in ranked.itertuples(index=False)}


def test_ease_solves_its_problem():
    """B minimises |X - XB|² + penalty |B|² with a diagonal of 0: column by column, that is a ridge without the item."""
    x = np.array([[item in sequence for item in "abcd"] for sequence in SEQUENCES.values()], dtype=float)
    penalty, expected = 2.0, np.zeros((4, 4))
    for item in range(4):
        others = [other for other in range(4) if other != item]
        left = x[:, others]
        expected[others, item] = np.linalg.solve(left.T @ left + penalty * np.eye(3), left.T @ x[:, item])
    model = Ease(SEQUENCES, ITEMS, penalty)
    np.testing.assert_allclose(model.weights, expected, atol=1e-12)
    found = scores_of(model.rank(HISTORIES, 9, exclude_seen=False))
    for user, history in HISTORIES.items():
        has = np.array([item in history for item in "abcd"], dtype=float)
        for place, item in enumerate("abcd"):
            assert found[user, item] == pytest.approx(has @ expected[:, place], abs=1e-7)
    assert {item for _, item in found} == set("abcd")  # e and f do not occur


def test_ease_knows_no_order():
    model = Ease(SEQUENCES, ITEMS)
    one, other = ({"u": list(history)} for history in ("abd", "dba"))
    pd.testing.assert_frame_equal(model.rank(one), model.rank(other))


def test_ease_and_star_say_when_a_catalogue_is_too_large(monkeypatch, capsys):
    monkeypatch.setattr("gloss_utils.rank.ease.MOST_ITEMS", 3)
    found = baselines.by_name(ranker())
    assert "ease" not in found and "star" in found
    assert capsys.readouterr().out == "EASE inverts a matrix of 4 × 4 items: it is left out\n"
    monkeypatch.setattr("gloss_utils.rank.star.MOST_ITEMS", 5)
    assert "star" not in baselines.by_name(ranker())
    assert capsys.readouterr().out.startswith("STAR scores each of 6 items for every user: it is left out\n")


def test_star_by_its_formula():
    vectors = np.random.default_rng(1).standard_normal((6, 3))
    model, found = Star(SEQUENCES, ITEMS, vectors), {}
    have = {item: {user for user, sequence in SEQUENCES.items() if item in sequence} for item in ITEMS}
    histories = HISTORIES | {"long": list("fdxcab")}
    found = scores_of(model.rank(histories, 9, exclude_seen=False))
    for user, history in histories.items():
        latest = [item for item in history if item in ITEMS][-3:][::-1]
        for c, candidate in enumerate(ITEMS):
            expected = 0.0
            for t, item in enumerate(latest):
                j = ITEMS.index(item)
                semantic = vectors[j] @ vectors[c] / np.linalg.norm(vectors[j]) / np.linalg.norm(vectors[c])
                both, root = len(have[item] & have[candidate]), (len(have[item]) * len(have[candidate])) ** 0.5
                expected += 0.7**t * (0.5 * semantic + 0.5 * (both / root if root else 0.0))
            if latest:
                assert found[user, candidate] == pytest.approx(expected, abs=1e-7)
            else:
                assert (user, candidate) not in found
    assert set(shown(model.rank(histories, 2))) == {"u", "v", "long"}


def test_equal_scores_keep_the_catalogues_order():
    ranked = Star({}, ITEMS, np.ones((6, 2))).rank({"u": ["c"]}, 9)
    assert shown(ranked) == {"u": "abdef"}


# ---- seen items


def ranker(rule: str = "hybrid", **more) -> Ranker:
    titles = {item: f"{item * 2} soap" for item in ITEMS}
    texts = [f"Title: {title}" for title in titles.values()]
    indexes = {"dense": dense(texts, np.eye(6) + 0.1), "bm25": BM25Index.build(texts)}
    queries = pd.DataFrame({"user": list(HISTORIES), "history": list(HISTORIES.values())})
    queries["texts"] = [["Title: aa soap", "Title: bb soap"]] * len(queries)
    return Ranker(queries, titles, indexes, SEQUENCES, SETTINGS, rule, **more)


@pytest.mark.parametrize("method", NAMES)
def test_each_baseline_leaves_seen_items_out_or_in(method):
    rank = baselines.by_name(ranker())[method]
    left_out, kept_in = shown(rank(HISTORIES, exclude_seen=True)), shown(rank(HISTORIES, exclude_seen=False))
    for user, history in HISTORIES.items():
        assert not set(left_out.get(user, "")) & set(history)
        # Without what was seen, the order of the others is the same.
        others = [item for item in kept_in.get(user, "") if item not in history]
        assert list(left_out.get(user, ""))[: len(others)] == others
    assert set(kept_in["v"]) & set(HISTORIES["v"])


@pytest.mark.parametrize("rule", ["paper", "fused", "hybrid", "learned"])
def test_each_rule_leaves_seen_items_out_or_in(rule):
    one = ranker(rule)
    assert not set(shown(one.rank(exclude_seen=True)).get("u", "")) & set("ab")
    assert set(shown(one.rank(exclude_seen=False))["u"]) & set("ab")
    own = one.rank(exclude_seen=rule != "paper")  # as by default
    pd.testing.assert_frame_equal(one.rank(), own)


def test_popularity_looks_past_a_long_history():
    sequences = {str(place): [f"i{item}" for item in range(40 - place)] for place in range(40)}
    items = [f"i{item}" for item in range(40)]
    ranked = popularity({"u": items[:35], "v": []}, sequences, items, 3, exclude_seen=True)
    assert ranked["item"].tolist() == ["i35", "i36", "i37", "i0", "i1", "i2"]


# ---- shuffled histories


def test_shuffled_histories_hold_the_same_in_another_order():
    long = {"u": list("abcdef") * 3, "v": list("abc")}
    one = ranker()
    one = Ranker(one.queries.head(2).assign(user=["u", "v"], history=list(long.values())), one.titles, one.indexes, {})
    other = one.shuffled(7)
    assert {user: sorted(history) for user, history in other.histories.items()} == {
        user: sorted(history) for user, history in long.items()
    }
    assert other.histories["u"] != long["u"] and one.histories == long
    assert other.histories == one.shuffled(7).histories != one.shuffled(8).histories
    assert other.queries["texts"].equals(one.queries["texts"])


def test_features_of_texts_alone_do_not_hang_on_the_order():
    weights = dict.fromkeys(FEATURES, 0.0) | {"texts_dense": 1.0}
    one = ranker()
    same = [as_run(some.weighted({"": weights})[""]).to_csv() for some in (one, one.shuffled(3))]
    assert same[0] == same[1]


def test_without_texts_the_last_items_votes_stay():
    one, without = ranker(), dict.fromkeys(FEATURES, 0.0) | {"last_bm25": 1.0}
    weights = without | {"texts_dense": 1.0}
    assert one.weighted({"": weights}, 0)[""].equals(one.weighted({"": without})[""])
    assert not one.weighted({"": weights})[""].equals(one.weighted({"": without})[""])


def test_the_best_items_by_a_plain_sort():
    rng = np.random.default_rng(5)
    items, histories = [f"i{number}" for number in range(30)], {f"u{n}": [f"i{n}", "i3"] for n in range(20)}
    scores = rng.integers(0, 4, (20, 30)).astype(float)  # full of ties
    scores[:, 7], scores[2] = -np.inf, -np.inf
    at = {user: place for place, user in enumerate(histories)}

    def score(rows):
        return np.stack([scores[int(history[0][1:])] for history in rows])

    for depth, exclude_seen in ((5, True), (5, False), (99, True)):
        ranked = shown_list(best(score, histories, pd.Index(items), depth, exclude_seen))
        for user, history in histories.items():
            row = scores[at[user]]
            seen = set(history) if exclude_seen else ()
            left = [place for place in range(30) if row[place] > -np.inf and items[place] not in seen]
            expected = sorted(left, key=lambda place: (-row[place], place))[:depth]
            assert ranked.get(user, []) == [items[place] for place in expected]


def shown_list(ranked: pd.DataFrame) -> dict[str, list[str]]:
    return {user: rows["item"].tolist() for user, rows in ranked.groupby("user", sort=False)}
