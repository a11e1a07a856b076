"""How sure a number is: intervals, paired tests, the noise of ties."""

import numpy as np
import pandas as pd
import pytest
from helpers import compared

from gloss_utils.rank import paper_rule
from gloss_utils.report import significance


def test_intervals():
    values = np.random.default_rng(1).random((900, 2)) * [1, 10]
    low, high = significance.intervals(values, 7)
    assert low.shape == high.shape == (2,)
    assert (low < values.mean(axis=0)).all() and (values.mean(axis=0) < high).all()
    # A mean of n uniform values has the standard error 0.2887 / sqrt(n); 95 % are 3.92 of them.
    np.testing.assert_allclose(high - low, np.array([1, 10]) * 3.92 * 0.2887 / 30, rtol=0.1)
    few_low, few_high = significance.intervals(values[:100], 7)
    assert (few_high - few_low > 2 * (high - low)).all()  # a third of the root: about three times as wide


def test_intervals_depend_on_the_seed():
    values = np.random.default_rng(1).random((50, 1))
    assert significance.intervals(values, 7) == significance.intervals(values, 7)
    assert significance.intervals(values, 7) != significance.intervals(values, 8)


def test_intervals_of_constants_and_of_nobody():
    low, high = significance.intervals(np.full((5, 2), 0.25), 1)
    assert low.tolist() == high.tolist() == [0.25, 0.25]
    low, high = significance.intervals(np.empty((0, 3)), 1)
    assert low.shape == high.shape == (3,) and np.isnan(low).all() and np.isnan(high).all()


def per_user(**values: list[float]) -> pd.DataFrame:
    rows = [(f"u{n}", method, v) for method, found in values.items() for n, v in enumerate(found)]
    return pd.DataFrame(rows, columns=["user", "method", "recall@5"])


def test_a_difference_that_every_user_shows_is_real_and_noise_is_not():
    rng = np.random.default_rng(1)
    base, noise = (rng.random(400) < 0.2) * 1.0, (rng.random(400) < 0.2) * 1.0
    better = np.where(rng.random(400) < 0.2, 1.0, base)
    rows = compared(per_user(gloss=better, base=base, noise=noise), "gloss", ("recall@5",), 7)
    assert [(row["method"], row["other"], row["metric"]) for row in rows] == [
        ("gloss", "base", "recall@5"),
        ("gloss", "noise", "recall@5"),
    ]
    assert rows[0]["difference"] == pytest.approx((better - base).mean(), abs=1e-6)
    assert 0 < rows[0]["difference_low"] < rows[0]["difference"] < rows[0]["difference_high"]
    assert rows[0]["p"] < 0.001 and rows[0]["p_corrected"] <= 2 * rows[0]["p"]
    same = compared(per_user(gloss=noise, base=base), "gloss", ("recall@5",), 7)[0]
    assert same["p"] > 0.05 and same["difference_low"] < 0 < same["difference_high"]
    assert rows == compared(per_user(gloss=better, base=base, noise=noise), "gloss", ("recall@5",), 7)


def test_the_comparison_is_paired():
    # 30 users of 300 gain and none loses: sure, though the two means' own intervals overlap.
    base = np.repeat([1.0, 0.0], 150)
    better = base.copy()
    better[150:165] = 1
    row = compared(per_user(gloss=better, base=base), "gloss", ("recall@5",), 1)[0]
    assert row["p"] < 0.001
    shuffled = np.random.default_rng(1).permutation(better)
    assert compared(per_user(gloss=shuffled, base=base), "gloss", ("recall@5",), 1)[0]["p"] > 0.05


@pytest.mark.parametrize(("differences", "p"), [([], 1), ([0, 0], 1), ([1], 1), ([1, 1, 1], 0.25), ([1, -1, 1], 1)])
def test_p_of_few_users_is_exact(differences, p):
    # Of the 8 signs that three equal differences may have, two are as far from 0.
    assert significance.paired_p(np.array(differences, dtype=float), 1) == pytest.approx(p)


def test_holm():
    # By hand: 0.01 · 4, max(0.04, 0.02 · 3), max(0.06, 0.03 · 2), max(0.06, 0.04 · 1).
    assert significance.holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert significance.holm([0.9, 0.8]) == [1, 1] and significance.holm([]) == []


def found(*rows: tuple) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["user", "query", "item", "score"])


def test_tie_orders_of_two_and_of_none():
    rows = found(("u", 1, "a", 1.0), ("u", 2, "b", 1.0), ("v", 1, "c", 1.0), ("v", 2, "d", 0.5))
    orders = significance.tie_orders(rows, {"u": "a", "v": "d", "w": "a"}, 3)
    second = 1 / np.log2(3)
    assert len(orders) == 100
    assert set(orders.round(6)) == {round((1 + second) / 3, 6), round(2 * second / 3, 6)}  # only u's order is chance
    assert 30 < (orders > orders.mean()).sum() < 70
    assert (significance.tie_orders(rows, {"u": "z"}, 3) == 0).all()


def test_tie_orders_are_what_other_seeds_give():
    rng = np.random.default_rng(2)
    rows = found(
        *((f"u{u}", q, rng.choice(list("abcdefgh")), rng.choice([1.0, 0.9])) for u in range(200) for q in range(6))
    )
    targets = {f"u{u}": "a" for u in range(200)}
    by_seed = []
    for seed in range(40):
        ranked = paper_rule(rows, dict.fromkeys(targets, ()), seed, 10)
        place = ranked[ranked["item"] == "a"]["rank"]
        by_seed.append((1 / np.log2(place[place <= 5] + 1)).sum() / 200)
    orders = significance.tie_orders(rows, targets, 1)
    assert orders.mean() == pytest.approx(np.mean(by_seed), abs=3 * orders.std() / 6)
    assert orders.std() == pytest.approx(np.std(by_seed), rel=0.5)


@pytest.mark.parametrize("shift", [0.0, 0.02, -0.03])
def test_many_users_are_tested_as_few_are(monkeypatch, shift):
    rng = np.random.default_rng(4)
    differences = rng.choice([0, 1, -1, 0.5, -0.5, 0.6309, -0.4307], size=2000)
    differences[rng.random(2000) < abs(shift)] = np.sign(shift)
    exact = significance.paired_p(differences, 1)
    monkeypatch.setattr(significance, "MANY", 10)
    assert significance.paired_p(differences, 1) == pytest.approx(exact, abs=0.04) and exact > 0
