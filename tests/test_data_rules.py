"""The rules of METHOD.md, "Data rules", up to the splits; the real data's counts."""

import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from helpers import SHARED, frame_of, metadata, one_line_error, real, reviews

from gloss_utils.data.dataset import Dataset
from gloss_utils.data.interactions import SCHEMA, Interactions
from gloss_utils.data.rules import Rules, apply_rules, build, cut_title, draw_users, periods


def rows(data: Dataset) -> list[str]:
    return [f"{user}{item}{time}" for user, item, time in data.interactions.itertuples(index=False)]


def test_items_without_a_title_go_with_their_interactions():
    read = reviews(("u", "a", 1), ("u", "none", 2), ("u", "blank", 3), ("u", "unlisted", 4), ("v", "none", 5))
    titles = metadata(("none", None), ("blank", " \t"), ("a", "Soap"))
    data = apply_rules(read, titles)
    assert data.items.values.tolist() == [["a", "Soap"]]
    assert rows(data) == ["ua1"]
    assert data.statistics["dropped"]["items_without_title"] == 3
    assert data.statistics["dropped"]["reviews_of_items_without_title"] == 4


def test_titles_are_cut_to_25_words_and_entities_stay():
    words = [f"w{number}" for number in range(1, 27)]
    assert cut_title(" ".join(words)) == " ".join(words[:25])
    assert cut_title(" ".join(words[:25])) == " ".join(words[:25])
    title = "Rose &amp; Mist&reg; 3.4 oz &#39;L&#39;"
    data = apply_rules(reviews(("u", "a", 1)), metadata(("a", title)))
    assert data.items["title"].tolist() == [title]


def test_an_item_listed_twice_counts_once():
    read = reviews(("u", "a", 1), ("u", "b", 2), ("u", "c", 3))
    titles = metadata(("b", "B"), ("a", "A"), ("b", "B"), ("c", None), ("a", "other"), ("c", "C"))
    data = apply_rules(read, titles)
    assert data.items.values.tolist() == [["b", "B"], ["a", "A"], ["c", "C"]]  # the metadata's order
    assert len(data.interactions) == 3
    assert data.statistics["dropped"]["items_listed_again_with_other_values"] == 1


def test_items_that_nobody_has_are_not_in_the_catalogue():
    data = apply_rules(reviews(("u", "a", 1)), metadata(("z", "Z"), ("a", "A")))
    assert data.items["item"].tolist() == ["a"]


def test_only_reviews_alike_in_user_item_time_and_rating_are_duplicates():
    read = reviews(
        ("u", "a", 1, 5.0),
        ("u", "a", 1, 5.0),  # dropped
        ("u", "a", 1, 4.0),  # another rating
        ("u", "a", 2, 5.0),  # another time
        ("v", "a", 1, 5.0),  # another user
        ("u", "b", 1, None),
        ("u", "b", 1, None),  # dropped
        ("u", "b", 1, 5.0),
    )
    data = apply_rules(read, metadata(("a", "A"), ("b", "B")))
    assert rows(data) == ["ua1", "ua1", "ub1", "ub1", "ua2", "va1"]
    assert data.statistics["dropped"]["duplicate_reviews"] == 2


def test_ties_keep_the_files_order():
    # More than 16 equal times: a sort that is not stable would mix them.
    items = [f"{7 * number % 40:02d}" for number in range(40)]
    read = reviews(*((user, item, 5) for item in items for user in ("v", "u")), ("u", "99", 4))
    data = apply_rules(read, metadata(*((item, "T") for item in [*items, "99"])))
    assert data.interactions["user"].tolist() == ["u"] * 41 + ["v"] * 40
    assert data.interactions["item"].tolist() == ["99", *items, *items]


def test_users_with_fewer_than_3_are_counted_and_then_left_out():
    read = reviews(
        *(("long", item, time) for time, item in enumerate("abcd")),
        *(("three", item, time) for time, item in enumerate("aba")),
        ("two", "a", 1),
        ("two", "only", 2),
        ("lost", "a", 1),  # 3 reviews, 2 once the item without a title is gone
        ("lost", "b", 2),
        ("lost", "untitled", 3),
    )
    titles = metadata(*((item, item) for item in ["a", "b", "c", "d", "only"]), ("untitled", None))
    data = build(read, titles, None, 0)
    assert data.users["user"].tolist() == ["long", "three"]
    assert data.users["interactions"].tolist() == [4, 3]
    assert set(data.interactions["user"]) == {"long", "three"}
    assert data.items["item"].tolist() == ["a", "b", "c", "d", "only"]
    counted = {name: value for name, value in data.statistics.items() if name not in ("dropped", "periods")}
    assert counted == {
        "users": 2,
        "users_with_any": 4,
        "items": 5,
        "new_items": 0,
        "interactions": 4 + 3 + 2 + 2,
        "mean_history": 2.75,
        "std_history": 0.96,  # of 4, 3, 2, 2 about 2.75: sqrt(2.75 / 3)
    }
    assert data.sequences() == {"long": list("abcd"), "three": list("aba")}


def test_the_k_core_leaves_nobody_and_nothing_below_k():
    # u4 has two, one of them c, which only u4 and u3 have: without u4, c goes too, and then u3 is below 2.
    read = reviews(
        *((user, item, 1) for user, items in (("u1", "ab"), ("u2", "ab"), ("u3", "ac"), ("u4", "cd")) for item in items)
    )
    titles = metadata(*((item, item) for item in "abcd"))
    for k, left in ((0, 8), (1, 8), (2, 4), (3, 0)):
        data = apply_rules(read, titles, Rules(k_core=k))
        assert len(data.interactions) == left
        assert data.statistics["dropped"].get("interactions_outside_the_k_core", 0) == 8 - left
    data = apply_rules(read, titles, Rules(k_core=2))
    assert rows(data) == ["u1a1", "u1b1", "u2a1", "u2b1"]


def test_of_a_long_history_the_latest_stay():
    read = reviews(*(("u", item, time) for time, item in enumerate("abcde")), ("v", "a", 9))
    titles = metadata(*((item, item) for item in "abcde"))
    data = apply_rules(read, titles, Rules(max_history=3))
    assert rows(data) == ["uc2", "ud3", "ue4", "va9"]
    assert data.items["item"].tolist() == ["a", "c", "d", "e"]
    assert data.statistics["dropped"]["interactions_before_max_history"] == 2


def test_users_with_short_histories_may_be_left_out():
    read = reviews(
        *((user, item, time) for user, items in (("u", "abcde"), ("v", "abcd")) for time, item in enumerate(items))
    )
    data = build(read, metadata(*((item, item) for item in "abcde")), None, 0, Rules(min_history=5))
    assert data.users["user"].tolist() == ["u"] and data.statistics["users_with_any"] == 2
    with one_line_error("at least 6 interactions"):
        build(read, metadata(("a", "A")), None, 0, Rules(min_history=6))


@pytest.mark.parametrize(
    "rules",
    [{}, {"k_core": 3, "max_history": 10}, {"holdout": "time", "holdout_share": 0.2, "k_core": 3, "max_history": 4}],
    ids=str,
)
def test_parts_and_their_borders_do_not_show(monkeypatch, rules):
    rng = np.random.default_rng(4)
    draw = rng.integers([30, 12, 50, 2], size=(300, 4)).tolist()
    rows = [(f"u{user}", f"i{item}", time, float(rating)) for user, item, time, rating in draw]
    rows += rows[:60:3]
    titles = metadata(*((f"i{item}", f"T{item}" if item else None) for item in range(11, -1, -1)))
    whole = build(reviews(*rows), titles, None, 1, Rules(**rules))
    monkeypatch.setattr("gloss_utils.data.interactions.ENCODED", 7)
    monkeypatch.setattr("gloss_utils.data.interactions.AT_ONCE", 16)
    monkeypatch.setattr("gloss_utils.data.rules.AT_ONCE", 16)
    read = Interactions()
    for start in range(0, len(rows), 5):
        part = pd.DataFrame(rows[start : start + 5], columns=["user", "item", "time", "rating"]).assign(part=0.0)
        read.append(pa.Table.from_pandas(part, SCHEMA, preserve_index=False))
    in_chunks = pa.concat_tables([pa.Table.from_pandas(titles[:4]), pa.Table.from_pandas(titles[4:])]).to_pandas()
    parts = build(read.read_to_the_end(), in_chunks, None, 1, Rules(**rules))
    for name in ("items", "users", "interactions"):
        pd.testing.assert_frame_equal(getattr(parts, name), getattr(whole, name))
    assert json.loads(json.dumps(parts.statistics)) == whole.statistics
    assert whole.statistics["dropped"]["duplicate_reviews"] > 0


def test_times_with_fractions_are_in_exact_order():
    frame = pd.DataFrame([("u", "a", 1, 5.0, 0.5), ("u", "b", 1, 5.0, 0.25), ("u", "c", 0, 5.0, 0.75)])
    read = Interactions()
    read.append(pa.Table.from_pandas(frame.set_axis(SCHEMA.names, axis=1), SCHEMA, preserve_index=False))
    data = apply_rules(read.read_to_the_end(), metadata(*((item, item) for item in "abc")))
    assert rows(data) == ["uc0", "ub1", "ua1"]


def test_interactions_leave_nothing_on_the_disk(tmp_path):
    read = Interactions(tmp_path)
    read.append(pa.table({"user": ["u"], "item": ["a"], "time": [1], "rating": [5.0], "part": [0.0]}).cast(SCHEMA))
    assert len(read.read_to_the_end()) == 1 and frame_of(read).values.tolist() == [["u", "a", 1, 5.0]]
    assert not list(tmp_path.iterdir())


def test_a_time_split_takes_shares_of_all_interactions():
    times = pd.Series(range(100)).sample(frac=1, random_state=0)
    assert periods(times, 0.1) == [80, 90]
    assert periods(times, 0.4) == [20, 60]
    with one_line_error("holdout_share = 0.1", "leave_one_out"):
        periods(pd.Series([5] * 100), 0.1)
    with one_line_error("cannot be split by time"):
        periods(pd.Series([1] * 50 + [2] * 50), 0.1)


def test_nothing_left_is_an_error():
    with one_line_error("at least 3 interactions"):
        build(reviews(("u", "a", 1), ("u", "a", 2)), metadata(("a", "A")), None, 0)
    with one_line_error("at least 3 interactions"):
        build(reviews(*(("u", "a", time) for time in range(5))), metadata(("z", "Z")), None, 0)


@pytest.mark.parametrize(("users", "drawn"), [(19, 0), (20, 1), (39, 1), (40, 2), (140, 7), (1999, 99), (2000, 100)])
def test_validation_users_are_5_percent_rounded_down(users, drawn):
    counts = pd.Series(3, index=[f"u{number}" for number in range(users)])
    assert draw_users(counts, None, 1)["validation"].sum() == drawn


def test_the_draw_hangs_on_the_seed_and_not_on_the_order_of_users():
    counts = pd.Series(range(3, 403), index=[f"u{number:03d}" for number in range(400)])

    def validation(counts, seed):
        users = draw_users(counts, None, seed)
        assert users["user"].tolist() == sorted(counts.index)
        assert users["interactions"].tolist() == list(range(3, 403))
        return users.loc[users["validation"], "user"].tolist()

    assert validation(counts, 1) == validation(counts[::-1], 1)
    assert len(validation(counts, 1)) == 20
    assert validation(counts, 1) != validation(counts, 2)
    assert validation(counts, 1) != sorted(counts.index)[:20]
    some = draw_users(counts, 20, 1)
    assert (some["validation"] & some["drawn"]).sum() < 5  # a draw of its own: 1 in 20 is expected


def test_max_users_keeps_the_catalogue_the_counts_and_the_validation_split():
    read = reviews(*((f"u{user:02d}", f"i{(user + time) % 50}", time) for user in range(60) for time in range(4)))
    titles = metadata(*((f"i{item}", "T") for item in range(50)))
    whole, small = (build(read, titles, users, 3) for users in (None, 10))
    assert whole.users["drawn"].all() and small.users["drawn"].sum() == 10
    assert small.items.equals(whole.items) and small.interactions.equals(whole.interactions)
    assert small.statistics == whole.statistics and whole.statistics["users"] == 60
    assert whole.users["validation"].sum() == 3
    assert small.users["validation"].equals(whole.users["validation"])
    assert build(read, titles, 1000, 3).users["drawn"].all()
    more = build(read, titles, 20, 3).users
    assert more.loc[small.users["drawn"], "drawn"].all()  # more users hold the fewer


@pytest.mark.parametrize("name", ["beauty", "toys"])
def test_real_counts_are_the_published_ones(name):
    ours = real(name).statistics
    published = json.loads((SHARED / "reference/published.json").read_text())["dataset_statistics"][name]
    names = ["users", "users_with_any", "items", "interactions", "mean_history", "std_history"]
    assert {key: ours[key] for key in names} == {key: published[key] for key in names}
