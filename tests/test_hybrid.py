"""Rankings beyond the paper's rule: what each kind of evidence says, how it is added up, and where there is little."""

import math
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from helpers import dataset, dense, one_line_error

from gloss_utils.data import splits
from gloss_utils.data.dataset import Dataset
from gloss_utils.data.prompts import item_text
from gloss_utils.rank import Evidence, HybridSettings, Ranker, cooccurrence, evidence, hybrid
from gloss_utils.rank.weights import FEATURES, PARTS, VOTES
from gloss_utils.search.bm25 import BM25Index

WEIGHTS = Path(__file__).parents[1] / "params/ranking/weights.yaml"
FROZEN = HybridSettings.read(WEIGHTS)

# ---- co-occurrence


def table(matrix, items: str) -> dict[str, float]:
    rows, columns = matrix.nonzero()
    return {
        f"{items[row]}{items[column]}": round(float(matrix[row, column]), 6)
        for row, column in zip(rows, columns, strict=True)
    }


def test_following_counted_some_rows_at_a_time_is_the_same(monkeypatch):
    rng = np.random.default_rng(0)
    items = pd.Series([f"i{place}" for place in range(200)])
    histories = [items[rng.zipf(1.5, size=rng.integers(12)) % 200].tolist() for _ in range(400)]
    counting = {"window": 5, "decay": 0.8, "backward": 0.1, "damping": 0.4}
    whole = cooccurrence.following(histories, items, **counting)
    monkeypatch.setattr(cooccurrence, "PAIRS_AT_A_TIME", 500)
    assert (cooccurrence.following(histories, items, **counting) != whole).nnz == 0
    few = cooccurrence.following(histories, items, **counting, neighbours=3)
    assert (few != cooccurrence.strongest(whole, 3)).nnz == 0 and few.nnz < whole.nnz


def test_following_by_hand():
    items = pd.Series(list("abcd"))
    found = cooccurrence.following(["abc", "ab", "d"], items, window=2, decay=0.5, backward=0.1, damping=0)
    # ab twice next to each other, bc once, ac two apart; a tenth of it backwards.
    assert table(found, "abcd") == {"ab": 2, "bc": 1, "ac": 0.5, "ba": 0.2, "cb": 0.1, "ca": 0.05}
    near = cooccurrence.following(["abc", "ab"], items, window=1, decay=0.5, backward=0, damping=0)
    assert table(near, "abcd") == {"ab": 2, "bc": 1}
    shares = cooccurrence.following(["abc", "ab"], items, window=1, decay=0.5, backward=0, damping=1)
    assert table(shares, "abcd") == {"ab": 1, "bc": 0.5}  # a and b occur twice


def test_histories_do_not_run_into_each_other_and_strangers_are_left_out():
    items = pd.Series(list("ab"))
    found = cooccurrence.following(["xa", "", "b"], items, window=5, decay=1, backward=1, damping=0)
    assert found.nnz == 0
    assert cooccurrence.counts(["xab", "b"], items).tolist() == [1, 2]
    assert cooccurrence.counts([], items).tolist() == [0, 0]


def test_recent_weighs_the_last_item_most():
    found = cooccurrence.recent(["abx", "", "aba"], pd.Series(list("ab")), recency=0.5)
    assert found.toarray().tolist() == [[0.5, 1], [0, 0], [1.25, 0.5]]


def test_strongest_keeps_the_first_of_equals():
    matrix = cooccurrence.recent(["abcb", "ca", "b", ""], pd.Series(list("abc")), recency=1)
    assert table(cooccurrence.strongest(matrix, 1), "abc") == {"ab": 2, "ba": 1, "cb": 1}
    assert table(cooccurrence.strongest(matrix, 5), "abc") == table(matrix, "abc")
    assert cooccurrence.strongest(matrix[3:], 5).nnz == 0


# ---- all evidence, against a plain way to say the same


def plainly(found: dict[str, pd.DataFrame], histories, sequences, items: list[str], s: HybridSettings, depth: int):
    """What `hybrid` does, user by user: user -> [(item, score)]."""
    counts, follows = defaultdict(int), defaultdict(lambda: defaultdict(float))
    for sequence in sequences.values():
        for place, item in enumerate(sequence):
            counts[item] += 1
            for apart, other in enumerate(sequence[place + 1 : place + 1 + s.window]):
                follows[item][other] += s.decay**apart
                follows[other][item] += s.backward * s.decay**apart
    order, kept = {item: place for place, item in enumerate(items)}, {}
    for item, others in follows.items():
        best = sorted((o for o in others if others[o] > 0), key=lambda o: (-others[o], order[o]))[: s.neighbours]
        kept[item] = {other: others[other] * counts[item] ** -s.damping for other in best}
    popular = sorted(items, key=lambda item: (-counts[item], order[item]))
    rankings = {}
    for user, history in histories.items():
        parts = {feature: defaultdict(float) for feature in FEATURES}
        for feature, rows in found.items():
            heat = s.temperature_dense if feature.endswith("dense") else s.temperature_bm25
            for row in rows[(rows["user"] == user) & (rows["strength"] > 0)].itertuples():
                parts[feature][row.item] += math.exp((row.strength - 1) / heat) / row.query
        for back, item in enumerate(reversed(history)):
            for other, value in kept.get(item, {}).items():
                parts["cooccurrence"][other] += s.recency**back * value
        near = sorted(parts["cooccurrence"], key=lambda o: (-parts["cooccurrence"][o], order[o]))[: s.neighbours]
        candidates = {i for f in found for i in parts[f]} | set(near) | set(popular[:depth])
        candidates -= set(history)
        if len(candidates) < depth:
            candidates |= set(popular[: depth + len(set(history)) + len(candidates)]) - set(history)
        scores = {}
        for item in candidates:
            values = {feature: math.sqrt(parts[feature][item]) for feature in FEATURES}
            values["popularity"] = math.log1p(counts[item])
            scores[item] = round(sum(s.weights[feature] * value for feature, value in values.items()), 5)
        best = sorted(scores, key=lambda item: (-scores[item], -counts[item], order[item]))[:depth]
        rankings[user] = [(item, scores[item]) for item in best]
    return rankings


@pytest.fixture
def crowd(monkeypatch):
    """60 users and 40 items with random histories and candidates, in chunks of 7 users."""
    monkeypatch.setattr(evidence, "USERS_AT_A_TIME", 7)
    rng = np.random.default_rng(5)
    items = [f"i{number}" for number in rng.permutation(40)]
    sequences = {f"u{n}": rng.choice(items, rng.integers(0, 12), p=np.arange(1, 41) / 820).tolist() for n in range(60)}
    rows = [
        (user, query, item, 0.0, rng.uniform(-0.2, 1))
        for user in sequences
        for query in (1, 2, 3)
        for item in rng.choice(items, 4, replace=False)
    ]
    columns = ["user", "query", "item", "score", "strength"]
    found = {feature: pd.DataFrame(rows[place::4], columns=columns) for place, feature in enumerate(VOTES)}
    return found, sequences, {user: sequence[:-1] for user, sequence in sequences.items()}, items


@pytest.mark.parametrize("depth", [5, 38])
@pytest.mark.parametrize("neighbours", [3, 100])
def test_rankings_are_what_a_plain_loop_gives(crowd, depth, neighbours):
    found, histories, sequences, items = crowd
    weights = dict.fromkeys(FEATURES, 0.7) | {"last_bm25": 0.2}
    settings = FROZEN.model_copy(update={"neighbours": neighbours, "weights": weights})
    ranked = hybrid(found, histories, sequences, items, settings, depth)
    expected = plainly(found, histories, sequences, items, settings, depth)
    for user, rows in ranked.groupby("user"):
        assert rows["rank"].tolist() == list(range(1, len(rows) + 1))
        scores = dict(expected[user])
        assert rows["score"].tolist() == pytest.approx(list(scores.values()), abs=2e-5)
        assert dict(zip(rows["item"], rows["score"], strict=True)) == pytest.approx(scores, abs=2e-5)
    assert ranked["user"].drop_duplicates().tolist() == list(histories)


def test_a_long_history_gives_others_no_more_candidates():
    items = [f"i{number}" for number in range(500)]
    histories = {"long": items[:400], **{f"u{number}": [] for number in range(50)}}

    def candidates(users: list[str]) -> dict[str, set[int]]:
        some = {user: histories[user] for user in users}
        (found,) = Evidence(some, {}, items, FROZEN).candidates({}, 5)
        return {user: set(found.item[found.user == place]) for place, user in enumerate(users)}

    together = candidates(list(histories))
    assert len(together["u0"]) == 5 and together["long"] >= set(range(400, 405))
    assert together == {user: candidates([user])[user] for user in histories}


def test_several_weightings_at_once_are_each_of_them_alone(crowd):
    found, histories, sequences, items = crowd
    weightings = {part: evidence.without_part(part, FROZEN.weights) for part in PARTS}
    together = Evidence(histories, sequences, items, FROZEN).rankings(found, weightings, 5)
    assert len(weightings) == 4
    for part, weights in weightings.items():
        assert set(PARTS[part]) | set(weights) == set(FROZEN.weights)
        alone = hybrid(found, histories, sequences, items, FROZEN, 5, weights=weights)
        pd.testing.assert_frame_equal(together[part], alone)


def test_the_same_evidence_ranks_with_other_votes(crowd):
    found, histories, sequences, items = crowd
    fewer = {feature: rows[rows["query"] == 1] for feature, rows in found.items() if feature.startswith("texts")}
    known = Evidence(histories, sequences, items, FROZEN)
    replaced = known.rankings(found | fewer, {"": FROZEN.weights}, 5)[""]
    pd.testing.assert_frame_equal(replaced, hybrid(found | fewer, histories, sequences, items, FROZEN, 5))
    again = known.rankings(found, {"": FROZEN.weights}, 5)[""]
    pd.testing.assert_frame_equal(again, hybrid(found, histories, sequences, items, FROZEN, 5))
    assert not again.equals(replaced)


def test_ranking_does_not_load_torch():
    code = "import sys, gloss_utils.rank; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=WEIGHTS.parents[2]).returncode == 0


# ---- a small shop


@pytest.fixture
def shop():
    """Five items; users buy a, b, c in that order, and d is near a, e near b by meaning. The user is u."""
    data = dataset({"p": "abcde", "q": "abce", "u": "abd"}, items="abcde")
    angle = {"a": 0.0, "d": 0.1, "b": 1.0, "e": 1.1, "c": 2.0}
    texts = [item_text(f"title {item}") for item in "abcde"]
    indexes = {
        "dense": dense(texts, [(np.cos(angle[item]), np.sin(angle[item])) for item in "abcde"]),
        "bm25": BM25Index.build(
            ["Title: soap", "Title: comb", "Title: soap dish", "Title: soap box", "Title: comb bag"]
        ),
    }
    return data, indexes


def queries(*rows: tuple) -> pd.DataFrame:
    return pd.DataFrame(
        [(user, list(history), target, texts) for user, history, target, texts in rows],
        columns=["user", "history", "target", "texts"],
    )


def ranker(shop, rows: pd.DataFrame, split: str = "test", **options) -> Ranker:
    data, indexes = shop
    sequences = data.sequences() if split == "next" else splits.training_sequences(data, rows)
    return Ranker(rows, data.titles(), indexes, sequences, FROZEN, **{"seed": 1} | options)


def ranked(shop, rows: pd.DataFrame, **options) -> dict[str, str]:
    found = ranker(shop, rows, **options).rank()
    return {user: "".join(of_user["item"]) for user, of_user in found.groupby("user", sort=False)}


def title(item: str) -> str:
    return item_text(f"title {item}")


def test_fused_counts_all_texts_and_leaves_out_what_the_user_has(shop):
    rows = queries(("u", "a", "d", [title("a"), title("b"), title("e")]))
    # d is near the first text, 1; b is the second, 1/2, and near the third, 1/3; e is the third and near the second.
    assert ranked(shop, rows, rule="fused")["u"][:3] == "dbe"
    once = queries(("u", "b", "d", [title("d"), title("a"), title("c")]))
    assert ranked(shop, once, rule="fused")["u"][:2] == "da"
    assert ranked(shop, rows, rule="fused", exclude_seen=False)["u"][0] == "a"


def test_agreement_beats_a_better_beam(shop):
    data, indexes = shop
    texts = [title("c"), title("a"), title("d"), title("d"), title("a")]
    assert ranked((data, indexes), queries(("u", "b", None, texts)), rule="fused", split="next")["u"][0] in "ad"


def test_the_papers_rule_is_left_as_it_is(shop):
    rows = queries(("u", "b", "d", [title("b"), title("d")]))
    assert sorted(ranked(shop, rows, rule="paper")["u"]) == ["b", "d"]  # nothing left out, nothing added


def test_hybrid_finds_what_follows_though_no_text_names_it(shop):
    rows = queries(("u", "ab", "d", [title("e")]))
    found = ranked(shop, rows, depth=3)["u"]
    assert set(found) == set("cde") and found[0] in "ce"  # c follows b twice


def test_hybrid_ranks_a_new_item_that_a_text_names(shop):
    data, indexes = shop
    data.items["new"] = data.items["item"] == "e"
    data.items["title"] = ["rose soap", "oak comb", "silk scarf", "soap box", "paper bag"]
    texts = [item_text(title) for title in data.items["title"]]
    indexes = {"dense": dense(texts, indexes["dense"].vectors()), "bm25": BM25Index.build(texts)}
    rows = queries(("named", "", "d", [texts[4]]), ("not named", "", "d", [texts[3]]))
    known = ranker((data, indexes), rows).evidence
    assert known.counts[4] == 0 and known.following[:, [4]].nnz == 0
    found = ranked((data, indexes), rows)
    assert found["named"][0] == "e" and found["not named"][-1] == "e"


@pytest.mark.parametrize("rule", ["fused", "hybrid"])
def test_little_to_go_by_still_gives_a_full_ranking(shop, rule):
    rows = queries(
        ("u", "ab", "d", ["", "  \n"]),  # no text
        ("stranger", "", "a", [title("a")]),  # no history, no co-occurrence
        ("unknown", "xyz", "a", [""]),  # nothing that the catalogue knows, and no text
        ("seen", "ade", "b", [title("a"), title("d"), title("e")]),  # all that was named is seen
    )
    found = ranked(shop, rows, rule=rule)  # 20 items a text are asked for, 5 are there
    assert {user: "".join(sorted(items)) for user, items in found.items()} == {
        "u": "cde",
        "stranger": "abcde",
        "unknown": "abcde",
        "seen": "bc",
    }
    assert found["unknown"] == "abcde"  # by how often they occur before targets
    nobody = queries(("u", "ab", "d", ["", " "]), ("unknown", "x", "a", []))  # nobody has a text
    assert ranked(shop, nobody, rule=rule) == {"u": found["u"], "unknown": "abcde"}
    assert all(len(items) == 2 for items in ranked(shop, rows, rule=rule, depth=2).values())


def test_ties_in_every_score_keep_popularity_then_the_catalogues_order(shop):
    data, _ = shop
    histories, sequences = {"v": [], "w": ["a"]}, splits.training_sequences(data, queries())
    found = hybrid({}, histories, sequences, data.items["item"], FROZEN, 5, weights={})
    assert (found["score"] == 0).all()
    # a, b and c are trained on three, three and two times, d once, e never.
    assert {user: "".join(rows["item"]) for user, rows in found.groupby("user")} == {"v": "abcde", "w": "bcde"}


# ---- no leak


def swapped(data, targets: dict[str, str]):
    """The data with every user's last interaction replaced."""
    interactions = data.interactions
    last = interactions.groupby("user").tail(1).index
    interactions.loc[last, "item"] = interactions.loc[last, "user"].map(targets)
    return Dataset.of(data.items, interactions, data.users, data.statistics)


def test_rankings_do_not_change_with_the_targets(crowd):
    _, sequences, _, items = crowd
    letters = {item: chr(0x4E00 + place) for place, item in enumerate(items)}
    named = {user: "".join(letters[item] for item in s) for user, s in sequences.items() if len(s) >= 3}
    data = dataset(named, validation=[user for user in named if user.endswith("3")], items="".join(letters.values()))
    rng = np.random.default_rng(3)
    others = {user: rng.choice(data.items["item"]) for user in named}
    texts = [item_text(title) for title in data.items["title"]]
    indexes = {"dense": dense(texts, rng.normal(size=(40, 8))), "bm25": BM25Index.build(texts)}
    found = []
    for some in (data, swapped(data, others)):
        rows = splits.evaluation_examples(some, "test")
        rows["texts"] = [[texts[3], texts[5]]] * len(rows)
        found.append(ranker((some, indexes), rows).rank())
        # The same, where a file names users and targets.
        found.append(ranker((data, indexes), rows.assign(target=rng.permutation(rows["target"]))).rank())
    assert len(found[0]) > 300
    for other in found[1:]:
        pd.testing.assert_frame_equal(found[0], other)


def of_histories_alone(data, rows: pd.DataFrame, split: str) -> Evidence:
    """The evidence of users for whom nothing is searched."""
    return ranker((data, {}), rows, split).evidence


@pytest.mark.parametrize("split", ["test", "validation"])
def test_no_target_is_in_a_count_used_to_predict_it(split):
    data = dataset({"u": "abcx", "v": "abcy", "w": "abz"}, validation="v", items="abcxyz")
    rows = splits.evaluation_examples(data, split).assign(texts=[[]] * (3 if split == "test" else 1))
    known = of_histories_alone(data, rows, split)
    counts = dict(zip("abcxyz", known.counts.tolist(), strict=True))
    # Of v, a validation user, c is never learned from; of test targets nothing.
    assert counts == {"a": 3, "b": 3, "c": 1, "x": 0, "y": 0, "z": 0}
    assert known.following[:, [3, 4, 5]].nnz == 0
    assert known.following[1, 2] > 0  # b, c: by u alone


def test_what_to_offer_next_learns_from_everything():
    data = dataset({"u": "abcx", "v": "abcy"}, items="abcxy")
    rows = splits.evaluation_examples(data, "next").assign(texts=[[]] * 2)
    assert of_histories_alone(data, rows, "next").counts.tolist() == [2, 2, 2, 1, 1]


# ---- the weights


def test_frozen_weights_say_what_they_were_fitted_on():
    assert all(weight >= 0 for weight in FROZEN.weights.values())
    assert sorted(FROZEN.fitted_on.values()) == [
        f"{name}.validation.json.gz" for name in ("beauty-llama-1b", "beauty-llama-3b", "toys-llama-1b")
    ]
    assert "benchmarks.ranking" in WEIGHTS.read_text().split("\n")[0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"decay": "fast"}, ["decay: 'fast'", "a number from 0 up"]),
        ({"top_k": 0}, ["top_k: 0", "a whole number from 1 up"]),
        ({"top_k": 2.5}, ["top_k: 2.5"]),
        ({"temperature_dense": 0}, ["temperature_dense: 0"]),
        ({"decay": True}, ["decay: True"]),
        ({"decay": float("nan")}, ["decay: nan"]),
        ({"weights": {"texts_dense": 1}}, ["weights for texts_dense, texts_bm25"]),
        ({"weights": FROZEN.weights | {"sasrec": 1}}, ["weights for texts_dense, texts_bm25"]),
        ({"weights": dict.fromkeys(FEATURES, "much")}, ["cooccurrence: 'much'", "a number from 0 up"]),
        ({"fitted_on": None}, ["fitted_on"]),
        ({"fitted_on": {1: "a.json"}}, ["fitted_on"]),
        ({"decay": float("inf")}, ["decay: inf"]),
        ({"neighbours": "a\nb"}, ["neighbours", "a whole number from 1 up"]),
        ({"surplus": 1}, ["has to hold top_k, neighbours"]),
    ],
)
def test_a_wrong_file_of_weights_is_one_line(tmp_path, change, words):
    file = tmp_path / "weights.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(WEIGHTS.read_text()) | change))
    with one_line_error("ranking_weights", "params/ranking/weights.yaml", *words):
        HybridSettings.read(file)


@pytest.mark.parametrize("content", [b"", b"- a\n", b"a: [", b"\xff\xfe\x00"])
def test_a_file_that_holds_no_weights(tmp_path, content):
    file: Path = tmp_path / "weights.yaml"
    file.write_bytes(content)
    with one_line_error("ranking_weights", str(file)):
        HybridSettings.read(file)
    with one_line_error("ranking_weights", "cannot be read"):
        HybridSettings.read(tmp_path / "none.yaml")
