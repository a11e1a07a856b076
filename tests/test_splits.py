"""Leave-one-out splits: who is predicted from what, and what a method may learn from."""

import pandas as pd
import pytest
from helpers import SHARED, dataset, one_line_error, real

from gloss_utils import demo, explore_data, queries, sources, splits


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
    review_file, metadata_file = tmp_path / "r", tmp_path / "m"
    demo.write(review_file, metadata_file)
    read, _ = sources.read_reviews(review_file, 0)
    titles, _ = sources.read_metadata(metadata_file, set(read["item"]), 0)
    data = explore_data.build(read, titles, None, 5)
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


def learnable(data, *evaluated: tuple) -> dict[str, str]:
    rows = [(user, list(history), target) for user, history, target in evaluated]
    found = splits.learnable_sequences(data, pd.DataFrame(rows, columns=NOBODY.columns) if rows else NOBODY)
    return {user: "".join(sequence) for user, sequence in found.items()}


def test_learnable_is_what_the_training_texts_hold_drawn_or_not():
    data = dataset(SEQUENCES, validation="vw", drawn="q")
    assert learnable(data) == {"p": "abcd", "q": "xy", "v": "ab", "w": ""}


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
def test_learnable_of_a_user_evaluated_from_a_file(sequence, history, target, left):
    data = dataset({"u": sequence, "other": "xyz"})
    assert learnable(data, ("u", history, target)) == {"u": left, "other": "xy"}


def test_learnable_of_validation_users_and_strangers():
    data = dataset(SEQUENCES, validation="vw")
    evaluated = [("v", "abc", "d"), ("w", "a", "b"), ("stranger", "ab", "c")]
    assert learnable(data, *evaluated) == {"p": "abcd", "q": "xy", "v": "ab", "w": ""}


def test_learnable_leaves_the_data_alone():
    data = dataset(SEQUENCES)
    before = data.interactions.copy()
    learnable(data, ("p", "ab", "c"))
    assert data.interactions.equals(before)


@pytest.mark.parametrize("name", ["beauty", "toys"])
def test_published_validation_histories_are_ours(name):
    folder = SHARED / "data/generations"
    if not folder.is_dir():
        pytest.skip(f"the published generations are not in {folder}")
    published, _ = queries.read(folder / f"{name}-llama-1b.validation.json.gz", 5, 0)
    data = real(name)
    data = explore_data.Dataset(data.items, data.interactions, data.users.copy(), data.statistics)
    data.users["validation"] = data.users["user"].isin(published["user"])
    ours = splits.evaluation_examples(data, "validation").set_index("user")
    assert len(ours) == len(published) == len(data.users) // 20
    ours = ours.loc[published["user"]]
    assert ours["history"].tolist() == published["history"].tolist()
    assert ours["target"].tolist() == published["target"].tolist()
