"""From queries to rankings: the paper's rule, the baselines, the TREC files."""

import numpy as np
import pandas as pd
import pytest
from helpers import dataset, dense

from gloss_utils.rank import (
    last_item_search,
    nearest_items,
    paper_rule,
    popularity,
    read_trec,
    trec,
    write_qrels,
    write_trec,
)
from gloss_utils.rank.ranker import PAPER, Ranker
from gloss_utils.search.bm25 import BM25Index

ITEMS = pd.Series(list("abcd"))


class Answers:
    """An index with the answers given to it: text -> items and scores, best first."""

    def __init__(self, **answers: str):
        self.answers = {text: [pair.split(":") for pair in found.split()] for text, found in answers.items()}

    def search(self, texts, k):
        found = [self.answers[text][:k] for text in texts]
        ids = [["abcd".index(item) for item, _ in pairs] for pairs in found]
        return np.array(ids), np.array([[float(score) for _, score in pairs] for pairs in found])

    def strength(self, scores):
        return scores / 2


def found(*rows: str) -> pd.DataFrame:
    """Candidates from "user query item score"."""
    split = [row.split() for row in rows]
    return pd.DataFrame(
        [(user, int(query), item, float(score)) for user, query, item, score in split],
        columns=["user", "query", "item", "score"],
    )


def shown(frame: pd.DataFrame) -> dict[str, str]:
    """A ranking as user -> items in order; its ranks must run from 1."""
    assert list(frame.columns) == ["user", "rank", "item", "score"]
    for _, rows in frame.groupby("user"):
        assert rows["rank"].tolist() == list(range(1, len(rows) + 1))
    return {user: "".join(rows["item"]) for user, rows in frame.groupby("user", sort=False)}


def test_candidates_of_each_query():
    index = Answers(x="b:0.9 a:0.5", y="c:1 d:0.25")
    queries = pd.DataFrame({"user": ["u", "v"], "texts": [["x", " ", "y"], ["y"]]})
    rows = nearest_items(queries, index, ITEMS).values.tolist()
    # A blank text names nothing.
    assert rows == [["u", 1, "b", 0.9, 0.45], ["u", 3, "c", 1.0, 0.5], ["v", 1, "c", 1.0, 0.5]]
    rows = nearest_items(queries, index, ITEMS, k=2).values.tolist()
    assert [row[:4] for row in rows[:4]] == [
        ["u", 1, "b", 0.9],
        ["u", 1, "a", 0.5],
        ["u", 3, "c", 1.0],
        ["u", 3, "d", 0.25],
    ]


def test_the_papers_rule_takes_the_first_item_of_a_title_whether_texts_are_searched_or_looked_up():
    titles = {"a": "Silk", "b": "Rose", "c": "Rose", "d": "Silk"}
    index = dense([f"Title: {title}" for title in titles.values()], [[1, 0], [0, 1], [0, 1], [1, 0]])
    queries = pd.DataFrame({"user": ["u"], "history": [["a"]], "texts": [["Title: Rose", "Title: Silk"]]})

    def ranked(top_k: int | None, exact: bool) -> pd.DataFrame:
        return Ranker(queries, titles, {"dense": index}, {}, rule=PAPER, top_k=top_k, exact_titles=exact).rank()

    assert sorted(ranked(None, exact=True)["item"]) == ["a", "b"]
    for top_k in (None, 2):
        pd.testing.assert_frame_equal(ranked(top_k, exact=True), ranked(top_k, exact=False))


def test_only_blank_texts_give_no_ranking():
    queries = pd.DataFrame({"user": ["u"], "texts": [["", " \n"]]})
    none = nearest_items(queries, Answers(), ITEMS)
    assert list(none.columns) == ["user", "query", "item", "score", "strength"] and none.empty
    for exclude in (False, True):
        assert shown(paper_rule(none, {"u": ["a"]}, 1, 5, exclude)) == {}


def test_the_later_querys_score_stands():
    rows = found("u 1 a 1.0", "u 2 b 0.8", "u 3 a 0.5", "u 4 c 0.6", "u 5 c 0.9")
    ranked = paper_rule(rows, {"u": []}, 1, 10)
    assert shown(ranked) == {"u": "cba"}
    assert ranked["score"].tolist() == [0.9, 0.8, 0.5]


def test_users_keep_the_order_given_and_their_own_scores():
    rows = found("v 1 a 0.1", "u 1 a 0.9", "v 2 b 0.2", "u 2 c 0.3")
    histories = {"v": [], "u": []}
    assert list(shown(paper_rule(rows, histories, 1, 10)).items()) == [("v", "ba"), ("u", "ac")]
    assert shown(paper_rule(rows, histories, 1, 1)) == {"v": "b", "u": "a"}


def test_what_the_user_has_is_left_out_only_when_asked():
    rows = found("u 1 a 1.0", "u 2 b 0.8", "v 1 a 1.0", "v 2 b 0.9", "w 1 a 1.0")
    histories = {"u": ["a", "x"], "v": ["b"], "w": ["a"]}
    assert shown(paper_rule(rows, histories, 1, 10)) == {"u": "ab", "v": "ab", "w": "a"}
    assert shown(paper_rule(rows, histories, 1, 10, exclude_seen=True)) == {"u": "b", "v": "a"}


def ties(items: str, users=("ann",), seed=0) -> dict[str, str]:
    rows = found(*(f"{user} {place} {item} 1.0" for user in users for place, item in enumerate(items, 1)))
    return shown(paper_rule(rows, {user: [] for user in users}, seed, 10))


def test_ties_are_ordered_by_seed_user_and_item_alone():
    # Worked out with b2sum -l 64 of "<seed>\0<user>\0<item>": a published ranking must come out the same for ever.
    assert ties("pqrst", ("ann", "bob")) == {"ann": "pstqr", "bob": "tspqr"}
    assert ties("pqrst", ("ann", "bob"), seed=3407) == {"ann": "qpsrt", "bob": "qsptr"}
    assert ties("tsrqp") == ties("rptsq") == {"ann": "pstqr"}  # not by the order generated
    assert ties("rsq") == {"ann": "sqr"}  # nor by what else there is
    users = [f"user{number}" for number in range(400)]
    first = [order[0] for order in ties("ab", users).values()]
    assert 140 < first.count("a") < 260  # no item is always ahead


def test_ties_are_broken_within_a_score_only():
    rows = found("ann 1 q 0.5", "ann 2 p 0.4", "ann 3 r 0.5", "ann 4 s 0.5")
    assert shown(paper_rule(rows, {"ann": []}, 0, 10)) == {"ann": "sqrp"}


# ---- baselines

CATALOGUE = "dcba"  # the metadata's order


@pytest.fixture
def world():
    """Four items with titles; inner products fall with the distance of the letters, c and a alike near b."""
    data = dataset({"u": "abcd"}, items=CATALOGUE)
    angle = {"a": 0.0, "b": 0.4, "c": 0.8, "d": 1.4}
    vectors = [(np.cos(angle[item]), np.sin(angle[item])) for item in CATALOGUE]
    return data, dense([f"Title: title {item}" for item in CATALOGUE], vectors)


def test_last_item_search_keeps_the_query_item(world):
    data, index = world
    histories = {"v": ["d", "a"], "u": ["a", "b"]}
    ranked = last_item_search(histories, index, data.titles(), 3)
    assert list(shown(ranked).items()) == [("v", "abc"), ("u", "bca")]  # c before a: the metadata's order
    np.testing.assert_allclose(ranked["score"], [1, np.cos(0.4), np.cos(0.8), 1, np.cos(0.4), np.cos(0.4)], atol=1e-5)


def test_last_item_search_leaves_out_all_the_user_has(world):
    data, index = world
    histories = {"v": ["d", "a"], "u": ["b"], "w": ["b", "a", "b", "d"], "x": list("abcd")}
    ranked = last_item_search(histories, index, data.titles(), 3, exclude_seen=True)
    assert list(shown(ranked).items()) == [("v", "bc"), ("u", "cad"), ("w", "c")]
    assert shown(last_item_search(histories, index, data.titles(), 1, exclude_seen=True)) == {
        "v": "b",
        "u": "c",
        "w": "c",
    }


def test_last_item_search_looks_past_a_long_history():
    letters = [chr(number) for number in range(0x4E00, 0x4E00 + 200)]
    data = dataset({"u": "".join(letters)}, items="".join(letters))
    index = BM25Index.build(["Title: soap"] * 200)  # all alike: the metadata's order
    histories = {"long": letters[:150], "short": letters[:1], "last": letters[199:]}
    ranked = shown(last_item_search(histories, index, data.titles(), 5, exclude_seen=True))
    assert list(ranked.items()) == [
        ("long", "".join(letters[150:155])),
        ("short", "".join(letters[1:6])),
        ("last", "".join(letters[:5])),
    ]


def test_last_item_search_takes_the_last_item_that_the_catalogue_knows(world):
    data, index = world
    histories = {"u": ["c", "a", "unknown"], "stranger": ["unknown"], "new": []}
    for exclude_seen, expected in ((False, "ab"), (True, "bd")):
        assert shown(last_item_search(histories, index, data.titles(), 2, exclude_seen)) == {"u": expected}


@pytest.mark.parametrize("exclude_seen", [False, True])
def test_last_item_search_where_the_catalogue_knows_nobodys_items(world, exclude_seen):
    assert shown(last_item_search({"u": ["unknown"], "v": []}, world[1], world[0].titles(), 5, exclude_seen)) == {}


def test_popularity():
    sequences = {"p": list("aab"), "q": list("b"), "r": list("c"), "s": []}
    ranked = popularity({"v": ["a"], "u": []}, sequences, list(CATALOGUE), 3)
    assert list(shown(ranked).items()) == [("v", "bac"), ("u", "bac")]  # b before a, both 2: the metadata's order
    assert ranked["score"].tolist() == [2, 2, 1] * 2
    assert shown(popularity({"v": []}, sequences, list(CATALOGUE), 99)) == {"v": "bac"}  # d does not occur


# ---- TREC files


def ranked(**scores: list[float]) -> pd.DataFrame:
    rows = [(u, rank, f"{u}{rank}", s) for u, of_user in scores.items() for rank, s in enumerate(of_user, 1)]
    return pd.DataFrame(rows, columns=["user", "rank", "item", "score"])


def test_scores_fall_strictly_in_float32():
    # Ties, ties only in float32, zeros, and a tie whose lowered score meets the next.
    step = float(np.float32(1) - np.nextafter(np.float32(1), np.float32(0)))
    scores = {"u": [1.0] * 5 + [1 - step] + [0.5], "v": [0.3, 0.3 - 1e-12], "w": [0.0] * 4, "x": [1e8, 1e8, -1.0]}
    frame = ranked(**scores)
    falling = trec.falling(frame)
    assert falling["score"].dtype == np.float32
    for _, rows in falling.groupby("user"):
        assert (np.diff(rows["score"].to_numpy()) < 0).all()
    np.testing.assert_allclose(falling["score"], frame["score"], rtol=1e-6, atol=1e-40)
    assert falling["score"].iloc[6] == 0.5  # where it falls anyway it stays
    assert falling[["user", "rank", "item"]].equals(frame[["user", "rank", "item"]])
    untouched = ranked(u=[0.75, 0.5, 0.25])
    assert trec.falling(untouched)["score"].tolist() == [0.75, 0.5, 0.25]


def test_a_trec_run_comes_back_as_it_was_written(tmp_path):
    frame = ranked(v=[1.0, 1.0, 1.0, 0.1], u=[0.0] * 12)
    path = tmp_path / "rankings/run.trec"
    write_trec(path, frame, "gloss")
    lines = [line.split(" ") for line in path.read_text().splitlines()]
    assert [line[:4] + line[5:] for line in lines[:2]] == [
        ["v", "Q0", "v1", "1", "gloss"],
        ["v", "Q0", "v2", "2", "gloss"],
    ]
    back = read_trec(path)
    assert list(back.columns) == ["query_id", "doc_id", "score"]
    assert back["query_id"].tolist() == frame["user"].tolist() and back["doc_id"].tolist() == frame["item"].tolist()
    scores = back["score"].to_numpy(dtype=np.float32)
    np.testing.assert_array_equal(scores, trec.falling(frame)["score"])
    assert (np.diff(scores[:4]) < 0).all() and (np.diff(scores[4:]) < 0).all()


def test_an_empty_ranking_and_the_qrels(tmp_path):
    write_trec(tmp_path / "run.trec", ranked(), "gloss")
    assert read_trec(tmp_path / "run.trec").empty
    write_qrels(tmp_path / "qrels.trec", {"v": "a", "u": "b"})
    assert (tmp_path / "qrels.trec").read_text() == "v 0 a 1\nu 0 b 1\n"
