"""Items that training has not seen: what is kept from whom, who may rank them, and adding one afterwards."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from helpers import dataset, dense, one_line_error, run_of

from gloss_utils import fine_tune, user_segments
from gloss_utils.data import splits
from gloss_utils.data.dataset import Dataset
from gloss_utils.data.prompts import encode_texts, item_text
from gloss_utils.data.rules import draw_new_items
from gloss_utils.language import tiny
from gloss_utils.rank import read_trec
from gloss_utils.report import metrics, tables
from gloss_utils.search import BM25Index, encoder


def with_new(new: str, sequences: dict[str, str], validation: str = "") -> Dataset:
    data = dataset(sequences, validation=validation)
    data.items["new"] = data.items["item"].isin(list(new))
    return data


SEQUENCES = {"p": "abcnd", "q": "anb", "r": "xyzn", "v": "abncd", "w": "nnab"}


def shown(examples: pd.DataFrame) -> dict[str, str]:
    return {user: f"{''.join(history)}>{target}" for user, history, target in examples.itertuples(index=False)}


def test_new_items_leave_training_and_validation_and_stay_in_test():
    data = with_new("n", SEQUENCES, validation="vw")
    # v is left abc before its test target, w a alone: no validation, no training.
    assert shown(splits.training_examples(data)) == {"p": "ab>c", "r": "xy>z", "v": "a>b"}
    assert shown(splits.held_out_examples(data, "validation")) == {"v": "ab>c"}
    assert shown(splits.evaluation_examples(data, "test")) == {
        "p": "abcn>d",
        "q": "an>b",
        "r": "xyz>n",
        "v": "abnc>d",
        "w": "nna>b",
    }


def learnable(data: Dataset, examples: pd.DataFrame) -> dict[str, str]:
    return {user: "".join(items) for user, items in splits.training_sequences(data, examples).items()}


def test_nothing_is_learnt_of_new_items_nor_of_targets():
    data = with_new("n", SEQUENCES, validation="vw")
    expected = {"p": "abc", "q": "", "r": "xyz", "v": "ab", "w": ""}
    assert learnable(data, splits.evaluation_examples(data, "test")) == expected
    assert learnable(data, splits.held_out_examples(data, "validation")) == expected
    file = pd.DataFrame([("p", list("ab"), "c"), ("r", list("xyz"), "n")], columns=splits.COLUMNS)
    assert learnable(data, file) == expected | {"p": "ab"}
    later = pd.DataFrame([("p", list("bc"), "n"), ("v", list("bnc"), "d")], columns=splits.COLUMNS)
    assert learnable(data, later) == expected  # the target's place is found among all items


def test_as_many_are_drawn_as_asked_for_and_none_by_default(small_run):
    items = pd.DataFrame({"item": range(99)})
    assert draw_new_items(items, 0.1, 1).sum() == 9
    assert draw_new_items(items, 0.0, 1).sum() == 0
    some, same, other = (draw_new_items(items, 0.3, seed) for seed in (1, 1, 2))
    assert (some == same).all() and (some != other).any()
    folder, _ = small_run
    data = Dataset.load(folder.data)
    assert data.items["new"].sum() == data.statistics["new_items"] == int(0.05 * len(data.items)) > 10


def test_neither_tokenizer_nor_base_model_reads_a_new_title(small_run, monkeypatch):
    data = Dataset.load(small_run[0].data)
    data.items.loc[data.items["new"].idxmax(), "title"] = data.items["title"].iloc[-1]  # a title of two items, one new
    read = []
    monkeypatch.setattr(tiny, "train_base", lambda titles, *_: read.extend(titles))
    with pytest.raises(TypeError):  # there is no model to save
        fine_tune.tiny_base(run_of(small_run, remake=["base"]), data)
    new = set(data.items.loc[data.items["new"], "title"])
    assert len(new) > 10 and not new & set(read)
    assert set(read) == set(data.items["title"]) - new


def test_no_training_text_names_a_new_item(small_run):
    data = Dataset.load(small_run[0].data)
    new = data.new_items()
    for examples in (splits.training_examples(data), splits.held_out_examples(data, "validation")):
        assert not new & {item for row in examples.itertuples() for item in (*row.history, row.target)}
    test = splits.evaluation_examples(data, "test")
    assert new & set(test["target"]) and new & {item for history in test["history"] for item in history}


def test_what_ranks_by_ids_never_ranks_a_new_item_and_what_reads_titles_may(small_run):
    folder, _ = small_run
    new = Dataset.load(folder.data).new_items()
    ranked = {
        method: set(read_trec(folder.ranking(method, "left out"))["doc_id"])
        for method in tables.METHODS
        if method != metrics.GLOSS_HISTORIES
    }
    assert not any(ranked[method] & new for method in ("popularity", "item-knn", "ease", "sasrec"))
    assert ranked["lis-dense"] & new and ranked["star"] & new


def test_the_segment_of_new_items_is_beside_the_others():
    per_user = pd.DataFrame(
        [
            ("u", "gloss", "regular", True, 1.0),
            ("v", "gloss", "cold-start", False, 0.0),
            ("w", "gloss", "power", True, 0.5),
        ],
        columns=["user", "method", "segment", "new_item", "value"],
    )
    per_user = per_user.assign(**dict.fromkeys(metrics.METRICS, per_user["value"]), seen="left out")
    rows = {row["segment"]: row for row in metrics.summarise(per_user, "test", 1)}
    assert [rows[segment]["users"] for segment in rows] == [3, 1, 1, 1, 2]
    assert rows["new-items"]["recall@5"] == 0.75 and rows["all"]["recall@5"] == 0.5


# ---- adding one afterwards


@pytest.fixture
def shop(monkeypatch):
    data = dataset({"u": "abc"})
    texts = [item_text(title) for title in data.items["title"]]
    encoded = []

    def encode(_, texts):
        encoded.extend(texts)
        return np.tile(np.array([[0.6, 0.8]], dtype=np.float32), (len(texts), 1))

    monkeypatch.setattr(encoder, "encode_texts", encode)
    monkeypatch.setattr(encoder, "load_encoder", lambda *_: SimpleNamespace())
    tokenizer = tiny.train_tokenizer(data.items["title"].tolist(), 300)
    indexes = {"dense": dense(texts, [[1, 0], [0, 1], [-1, 0]]), "bm25": BM25Index.build(texts)}
    return user_segments.Shop(data, indexes, tokenizer), encoded


def test_one_call_adds_an_item_to_all_that_knows_the_catalogue(shop):
    before, encoded = shop
    after = before.add(pd.DataFrame({"item": ["n", "m"], "title": ["Rose  Toner", "title a"]}))
    assert encoded == ["Title: Rose Toner"]  # the other's text is there already
    assert after.data.items["item"].tolist() == list("abcnm") and after.data.new_items() == {"n", "m"}
    ids, scores = after.indexes["dense"].search(["Title: Rose Toner", "Title: title a"], 2)
    assert ids.tolist() == [[3, 1], [0, 4]] and scores[0].tolist() == [1, 0.8]
    assert after.indexes["bm25"].search(["toner"], 1)[0].tolist() == [[3]]
    assert set(after.catalogue.texts.to_pylist()) == {
        "Title: title a",
        "Title: title b",
        "Title: title c",
        "Title: Rose Toner",
    }
    [tokens] = encode_texts(after.tokenizer, ["Title: Rose Toner"])
    node = 0
    for token in [*tokens, after.tokenizer.eos_token_id]:
        node = after.catalogue.trie.below(node)[token]  # each token may be written where the title has it
    assert before.data.items["item"].tolist() == list("abc")
    assert before.indexes["dense"].search(["Title: Rose Toner"], 9)[0].shape == (1, 3)


def test_the_first_item_that_cannot_be_added_is_named_with_its_own_reason(shop):
    added = pd.DataFrame({"item": ["a", "n"], "title": ["Soap", " "]})
    with one_line_error("item 'a' is in the catalogue already"):
        shop[0].add(added)
    with one_line_error("item 'n' has no title"):
        shop[0].add(added[::-1])


@pytest.mark.parametrize(
    ("item", "title", "words"), [("a", "Soap", "already"), ("n", " ", "title"), ("n", None, "title")]
)
def test_an_item_that_cannot_be_added(shop, item, title, words):
    with one_line_error(repr(item), words):
        shop[0].add(pd.DataFrame({"item": [item], "title": [title]}))
