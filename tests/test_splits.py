"""Splits, leave-one-out and by time: who is predicted from what, and what a method may learn from."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from helpers import SHARED, dataset, metadata, one_line_error, real, reviews

from gloss_utils.data import queries, sources, splits
from gloss_utils.data.dataset import Dataset
from gloss_utils.data.rules import Rules, build


def shown(examples: pd.DataFrame) -> dict[str, str]:
    """Examples as user -> "history>target"."""
    assert list(examples.columns) == ["user", "history", "target"]
    return {user: f"{''.join(history)}>{target or ''}" for user, history, target in examples.itertuples(index=False)}


SEQUENCES = {"p": "abcde", "q": "xyz", "v": "abcd", "w": "abc"}


def test_each_split_by_its_rule():
    data = dataset(SEQUENCES, validation="vw")
    # Item n-1 for p and q; item n-2 for v; w's history would be empty.
    assert shown(splits.training_examples(data)) == {"p": "abc>d", "q": "x>y", "v": "a>b"}
    assert shown(splits.evaluation_examples(data, "test")) == {"p": "abcd>e", "q": "xy>z", "v": "abc>d", "w": "ab>c"}
    assert shown(splits.evaluation_examples(data, "validation")) == {"v": "ab>c", "w": "a>b"}
    upcoming = splits.evaluation_examples(data, "next")
    assert shown(upcoming) == {"p": "abcde>", "q": "xyz>", "v": "abcd>", "w": "abc>"}
    assert upcoming["target"].isna().all()


def test_only_drawn_users_are_trained_and_evaluated():
    data = dataset(SEQUENCES, validation="vw", drawn="pw")
    assert shown(splits.training_examples(data)) == {"p": "abc>d"}
    assert shown(splits.evaluation_examples(data, "test")) == {"p": "abcd>e", "w": "ab>c"}
    assert shown(splits.evaluation_examples(data, "validation")) == {"w": "a>b"}


def test_a_split_without_users_is_an_error():
    with one_line_error("'validation'", "max_users"):
        splits.evaluation_examples(dataset(SEQUENCES, validation="vw", drawn="pq"), "validation")


def test_no_held_out_target_is_in_a_training_text(tmp_path):
    read, titles = sources.read(sources.find("demo", tmp_path))
    data = build(read, titles, None, 5)
    trained = {
        user: [*history, target] for user, history, target in splits.training_examples(data).itertuples(index=False)
    }
    sequences, validation = data.sequences(), set(data.users.loc[data.users["validation"], "user"])
    assert validation
    for user, text in trained.items():
        # By place, not by name: an item may be bought twice.
        held_out = 2 if user in validation else 1
        assert text == sequences[user][:-held_out]
    for split in ("test", "validation"):
        for user, history, _ in splits.evaluation_examples(data, split).itertuples(index=False):
            assert len(trained.get(user, [])) <= len(history)


NOBODY = pd.DataFrame(columns=["user", "history", "target"])


def training_sequences(data, *evaluated: tuple) -> dict[str, str]:
    rows = [(user, list(history), target) for user, history, target in evaluated]
    found = splits.training_sequences(data, pd.DataFrame(rows, columns=NOBODY.columns) if rows else NOBODY)
    return {user: "".join(sequence) for user, sequence in found.items()}


def test_training_sequences_are_what_the_training_texts_hold_drawn_or_not():
    data = dataset(SEQUENCES, validation="vw", drawn="q")
    assert training_sequences(data) == {"p": "abcd", "q": "xy", "v": "ab", "w": ""}


@pytest.mark.parametrize(
    ("sequence", "history", "target", "left"),
    [
        ("abcde", "abcd", "e", "abcd"),  # the test split: all that trains
        ("abcde", "abc", "d", "abc"),  # target in mid-sequence
        ("abcde", "", "a", ""),
        ("abaca", "aba", "c", "aba"),
        ("abaca", "ab", "a", "ab"),  # target repeated: the history says which occurrence is meant
        ("abaca", "abac", "a", "abac"),
        ("abaca", "bc", "a", ""),  # not a prefix: the first occurrence
        ("abcde", "bc", "d", "abc"),
        ("abcde", "bc", "z", ""),
        ("abcde", "acb", "d", "abc"),
        ("abcde", "abc", "z", "abc"),  # the history says where the target would stand, whatever it is
        ("abcde", "xy", "z", ""),
        ("abcde", "abcde", "z", "abcd"),
        ("abcde", "abcd", None, "abcd"),  # split next
    ],
)
def test_training_sequence_of_a_user_evaluated_from_a_file(sequence, history, target, left):
    data = dataset({"u": sequence, "other": "xyz"})
    assert training_sequences(data, ("u", history, target)) == {"u": left, "other": "xy"}


def test_training_sequences_of_validation_users_and_strangers():
    data = dataset(SEQUENCES, validation="vw")
    evaluated = [("v", "abc", "d"), ("w", "a", "b"), ("stranger", "ab", "c")]
    assert training_sequences(data, *evaluated) == {"p": "abcd", "q": "xy", "v": "ab", "w": ""}


def test_training_sequences_leave_the_data_alone():
    data = dataset(SEQUENCES)
    before = data.interactions
    training_sequences(data, ("p", "ab", "c"))
    assert data.interactions.equals(before)


@pytest.mark.parametrize("name", ["beauty", "toys"])
def test_published_validation_histories_are_ours(name):
    folder = SHARED / "data/generations"
    if not folder.is_dir():
        pytest.skip(f"the published generations are not in {folder}")
    published = queries.read(folder / f"{name}-llama-1b.validation.json.gz", 5, 0)
    data = real(name)
    data = replace(data, users=data.users.copy())
    data.users["validation"] = data.users["user"].isin(published["user"])
    ours = splits.evaluation_examples(data, "validation").set_index("user")
    assert len(ours) == len(published) == len(data.users) // 20
    ours = ours.loc[published["user"]]
    assert ours["history"].tolist() == published["history"].tolist()
    assert ours["target"].tolist() == published["target"].tolist()


@pytest.mark.parametrize("split", ["test", "validation", "next"])
def test_examples_in_blocks_of_users_are_the_same(split):
    data = dataset(SEQUENCES | {"z": "cba"}, validation="vw", drawn="pvwz")
    blocks = list(splits.example_blocks(data, split, 3))
    assert len(blocks) == 2 and set(blocks[0]["user"]) <= set("pvw") and set(blocks[1]["user"]) <= set("z")
    whole = splits.held_out_examples(data, split)
    assert [row for block in blocks for row in block.values.tolist()] == whole.values.tolist()


# ---- by time


def by_time(sequences: dict[str, str], begin: list[int], items: str = ""):
    """A dataset whose items are bought at the time of their place in "abc…", split into periods at `begin`."""
    data = dataset(sequences, validation="".join(sequences), items=items)
    data.times = data.interactions["item"].map("abcdefghijklmnopqrstuvwxyz".index).to_numpy()
    data.statistics["periods"] = begin
    data.items["new"] = ~data.items.index.isin(data.places[data.times < begin[0]])
    return data


def test_a_time_split_predicts_the_first_item_of_a_period():
    # Training: a to e; validation: f to h; test: i and later. No item of a later period comes before it.
    data = by_time({"u": "abcfgij", "v": "aei", "w": "acg", "x": "ijk", "y": "aej", "z": "fgj"}, [5, 8])
    data.items["new"] = False
    assert shown(splits.training_examples(data)) == {"u": "ab>c", "v": "a>e", "w": "a>c", "y": "a>e"}
    assert shown(splits.held_out_examples(data, "validation")) == {"u": "abc>f", "w": "ac>g"}
    assert shown(splits.held_out_examples(data, "test")) == {"u": "abcfg>i", "v": "ae>i", "y": "ae>j", "z": "fg>j"}
    assert shown(splits.held_out_examples(data, "next"))["w"] == "acg>"


def test_items_that_came_after_training_are_new_under_a_time_split():
    data = by_time({"u": "abcfgi", "v": "acf"}, [5, 8])
    assert data.new_items() == set("fgi")
    assert shown(splits.held_out_examples(data, "validation")) == {}
    assert shown(splits.held_out_examples(data, "test")) == {"u": "abcfg>i"}


def test_nothing_of_the_future_is_learnt_under_a_time_split():
    data = by_time({"u": "abcfgij", "v": "aei", "x": "ijk", "y": "abe"}, [5, 8])
    for split in ("test", "validation", "next"):
        examples = splits.held_out_examples(data, split)
        known = splits.training_sequences(data, examples)
        assert {user: "".join(items) for user, items in known.items()} == {"u": "abc", "v": "ae", "x": "", "y": "abe"}


@pytest.mark.parametrize(
    "rules",
    [{}, {"min_history": 5}, {"k_core": 4}, {"max_history": 3}, {"min_history": 4, "k_core": 4, "max_history": 5}],
    ids=str,
)
def test_what_is_learnt_hangs_on_nothing_later(rules):
    titles = metadata(*((f"i{item}", f"T {item}") for item in range(12)))
    rng = np.random.default_rng(3)
    draw = [(f"u{user}", f"i{item}") for user, item in rng.integers([25, 12], size=(200, 2))]
    found, offered = [], []
    for _ in range(5):
        draw[120:] = [(f"u{user}", f"i{item}") for user, item in rng.integers([25, 12], size=(80, 2))]
        read = reviews(*((*pair, time) for time, pair in enumerate(draw)))
        data = build(read, titles, None, 1, Rules(holdout="time", holdout_share=0.2, **rules))
        assert data.statistics["periods"] == [120, 160]
        examples = [splits.held_out_examples(data, split) for split in ("validation", "test", "next")]
        assert max(map(len, pd.concat(examples)["history"])) <= rules.get("max_history", 200)
        learnt = [splits.training_sequences(data, evaluated) for evaluated in examples]
        learnt = [{user: items for user, items in one.items() if items} for one in learnt]
        assert learnt[0] == learnt[1] == learnt[2] and min(map(len, learnt[0].values())) >= 3
        found.append((splits.training_examples(data).values.tolist(), learnt[0]))
        offered.append(examples[1].values.tolist())
    assert all(one == found[0] for one in found) and len(found[0][0]) >= 3
    assert offered[0] != offered[1]


def test_max_history_cuts_the_history_of_each_example_of_a_time_split():
    rows = [("u", "abcd", 0), ("v", "abc", 0), ("u", "a", 10), ("u", "c", 20)]
    read = reviews(*((user, item, first + place) for user, items, first in rows for place, item in enumerate(items)))
    rules = Rules(holdout="time", holdout_share=0.1, max_history=3)
    data = build(read, metadata(*((item, item) for item in "abcd")), None, 1, rules)
    assert data.statistics["periods"] == [10, 20]
    assert shown(splits.training_examples(data)) == {"u": "bc>d", "v": "ab>c"}
    assert shown(splits.held_out_examples(data, "validation")) == {"u": "bcd>a"}
    assert shown(splits.held_out_examples(data, "test")) == {"u": "cda>c"}
    assert shown(splits.held_out_examples(data, "next")) == {"u": "dac>", "v": "abc>"}


def test_the_demo_split_by_time_keeps_its_periods_apart(tmp_path):
    data = build(*sources.read(sources.find("demo", tmp_path)), None, 5, Rules(holdout="time", holdout_share=0.2))
    begin, times = data.statistics["periods"], data.interactions.groupby("user")["time"].agg(list)
    training = splits.training_examples(data).set_index("user")["history"].map(len)
    assert all(times[user][length] < begin[0] for user, length in training.items())
    for split, period in (("validation", [begin[0], begin[1]]), ("test", [begin[1], float("inf")])):
        lengths = splits.evaluation_examples(data, split).set_index("user")["history"].map(len)
        assert len(lengths) > 100
        for user, length in lengths.items():
            assert times[user][length] >= period[0] > times[user][length - 1] and times[user][length] < period[1]


def test_a_time_split_predicts_the_last_item_of_a_period_or_each_in_turn():
    data = by_time({"u": "abcfgij", "v": "aei", "w": "acfgh", "z": "fgjklm"}, [5, 8])
    data.items["new"] = False
    data.statistics["time_target"] = "last"
    assert shown(splits.training_examples(data)) == {"u": "ab>c", "v": "a>e", "w": "a>c"}
    assert shown(splits.held_out_examples(data, "validation")) == {"u": "abcf>g", "w": "acfg>h", "z": "f>g"}
    assert shown(splits.held_out_examples(data, "test")) == {"u": "abcfgi>j", "v": "ae>i", "z": "fgjkl>m"}
    data.statistics["time_target"] = "all"
    # Each target's history holds those before it; z has nothing before f, so that g is its first target.
    assert shown(splits.held_out_examples(data, "validation")) == {
        "u": "abc>f",
        "u@target2": "abcf>g",
        "w": "ac>f",
        "w@target2": "acf>g",
        "w@target3": "acfg>h",
        "z": "f>g",
    }
    assert shown(splits.held_out_examples(data, "test")) == {
        "u": "abcfg>i",
        "u@target2": "abcfgi>j",
        "v": "ae>i",
        "z": "fg>j",
        "z@target2": "fgj>k",
        "z@target3": "fgjk>l",
        "z@target4": "fgjkl>m",
    }
    assert shown(splits.held_out_examples(data, "next"))["u"] == "abcfgij>"


def test_new_items_are_in_test_targets_alone_whichever_is_predicted():
    data = by_time({"u": "abcfgi", "v": "acfg", "w": "abg"}, [5, 8])
    data.items["new"] = data.items["item"].isin(["f", "i"])
    data.statistics["time_target"] = "all"
    assert shown(splits.held_out_examples(data, "validation")) == {"u": "abc>g", "v": "ac>g", "w": "ab>g"}
    assert shown(splits.held_out_examples(data, "test")) == {"u": "abcfg>i"}


@pytest.mark.parametrize("which", ["first", "last", "all"])
@pytest.mark.parametrize("longest", [None, 3])
def test_nothing_of_the_future_is_learnt_whichever_item_is_predicted(which, longest):
    data = by_time({"u": "abcfgij", "v": "aeij", "x": "ijk", "y": "abe"}, [5, 8])
    data.statistics |= {"time_target": which, "max_history": longest}
    for split in ("test", "validation", "next"):
        examples = splits.held_out_examples(data, split)
        for history in examples["history"]:
            assert len(history) <= (longest or 9)
        known = splits.training_sequences(data, examples)
        assert {user: "".join(items) for user, items in known.items()} == {"u": "abc", "v": "ae", "x": "", "y": "abe"}


def test_whose_example_it_is():
    names = ["ann", "ann@target2", "ann@target", "a@target2@target13", "@targetb2"]
    assert [splits.owner(name) for name in names] == ["ann", "ann", "ann@target", "a@target2", "@targetb2"]


def test_the_rule_of_targets_is_kept_with_the_data(tmp_path):
    rows = [("u", item, time) for time, item in enumerate("abcdefgh")] + [("v", item, 1) for item in "abc"]
    data = build(
        reviews(*rows), metadata(*((item, item) for item in "abcdefgh")), None, 1,
        Rules(holdout="time", holdout_share=0.2, time_target="all"),
    )  # fmt: skip
    data.save(tmp_path)
    assert Dataset.load(tmp_path).statistics["time_target"] == "all"
    assert shown(splits.held_out_examples(Dataset.load(tmp_path), "test")) == {
        "u": "abcdef>g",
        "u@target2": "abcdefg>h",
    }
