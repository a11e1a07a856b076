"""The ranking that learns: no leak, same bytes, what new items get, what texts add, and where there is little."""

import numpy as np
import pandas as pd
import pytest
from helpers import dataset, dense, run_of
from scipy import sparse

from gloss_utils import retrieve
from gloss_utils.data import queries as query_files
from gloss_utils.data import splits
from gloss_utils.data.dataset import Dataset
from gloss_utils.data.prompts import item_text
from gloss_utils.rank import HybridSettings, Ranker, examples, learned, read_trec, text_weights
from gloss_utils.rank.choices import FEATURES, candidates
from gloss_utils.rank.examples import hold_back, labelled
from gloss_utils.rank.learned import Learned
from gloss_utils.rank.signals import PARTS, SIGNALS, Signals
from gloss_utils.runs.parameters import EVALUATE, ROOT, SEGMENTS
from gloss_utils.search.bm25 import BM25Index

ITEMS = [f"i{place}" for place in range(60)]
FROZEN = HybridSettings.read(ROOT / "params/ranking/weights.yaml")


def chains(users: int = 300, seed: int = 0) -> dict[str, list[str]]:
    """Users who mostly take item i + 1 after item i."""
    rng, found = np.random.default_rng(seed), {}
    for user in range(users):
        start, length = rng.integers(60), rng.integers(3, 9)
        walk = [(start + step) % 60 if rng.random() < 0.8 else rng.integers(60) for step in range(length)]
        found[f"u{user}"] = [ITEMS[place] for place in walk]
    return found


def near(seed: int = 1) -> dict[str, sparse.csr_matrix]:
    """Similarities of random texts."""
    vectors = np.random.default_rng(seed).standard_normal((60, 8))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return {name: sparse.csr_matrix(np.maximum(vectors @ vectors.T, 0)) for name in ("dense", "bm25")}


def ranker(**options) -> Learned:
    sequences = chains()
    return Learned(sequences, sequences, ITEMS, near(), **{"users": 150} | options)


@pytest.fixture(scope="module")
def found() -> Learned:
    return ranker()


def test_it_learns_what_follows(found):
    first = found.rank(5).groupby("user").head(1).set_index("user")["item"]
    follows = [ITEMS[(ITEMS.index(items[-1]) + 1) % 60] for items in found.histories.values()]
    seen = [item in items for item, items in zip(follows, found.histories.values(), strict=True)]
    right = (first.loc[list(found.histories)].to_numpy() == np.array(follows))[~np.array(seen)]
    assert right.mean() > 0.5
    ranked = found.rank(5)
    assert ranked.groupby("user").size().eq(5).all()
    assert not any(item in found.histories[user] for user, item in zip(ranked["user"], ranked["item"], strict=True))


def test_the_same_seed_gives_the_same_bytes(found):
    again = ranker()
    assert again.model.model_to_string() == found.model.model_to_string()
    pd.testing.assert_frame_equal(again.rank(), found.rank(), check_exact=True)
    assert ranker(seed=2).model.model_to_string() != found.model.model_to_string()


def test_kept_trees_rank_as_those_that_were_fitted(found, monkeypatch):
    trees = found.trees_text
    monkeypatch.setattr(learned, "fit", None)  # which nothing may call
    again = ranker(trees=trees)
    pd.testing.assert_frame_equal(again.rank(), found.rank(), check_exact=True)
    pd.testing.assert_frame_equal(again.importances(), found.importances())
    nothing = Learned({"a": ["i0"]}, {}, ITEMS, near(), trees="")
    assert len(nothing.rank(7)) == 7


def test_stages_after_the_fourth_read_its_trees(small_run):
    folder, _ = small_run
    queries = query_files.read(folder.queries, 3, 0)
    for stage in (EVALUATE, SEGMENTS):
        run = run_of(small_run)
        run.stage = stage
        some = retrieve.ranker(run, queries, Dataset.load(folder.data))
        assert some.learned.trees == folder.trees.read_text() and "examples" not in vars(some.learned)
    ranked = [(row.user, row.item) for row in some.rank().itertuples()]
    written = read_trec(folder.ranking("gloss"))
    assert ranked == list(zip(written["query_id"], written["doc_id"], strict=True))


def test_no_label_is_in_the_counts_that_predict_it(monkeypatch):
    sequences = chains()
    known, histories, labels = hold_back(sequences, 150, 1)
    assert len(labels) == 150 and all(sequences[user][:-1] == history for user, history in histories.items())
    assert all(known[user] == sequences[user] for user in sequences if user not in labels)
    seen = []
    monkeypatch.setattr(examples, "Signals", lambda *given: seen.append(list(given[0])) or Signals(*given))
    labelled(sequences, ITEMS, near(), 1, 150)
    assert seen == [list(known.values())]
    # What a label is changes no candidate and no feature: only which candidate is marked.
    others = {user: [*items[:-1], "i0"] if user in labels else items for user, items in sequences.items()}
    assert hold_back(others, 150, 1)[:2] == (known, histories)


def test_rankings_do_not_change_with_the_targets():
    letters = [chr(0x4E00 + place) for place in range(60)]
    sequences = {user: "".join(letters[ITEMS.index(item)] for item in items) for user, items in chains().items()}
    data = dataset(sequences, validation=[user for user in sequences if user.endswith("3")], items="".join(letters))
    rng, texts = np.random.default_rng(3), [item_text(title) for title in data.items["title"]]
    indexes = {"dense": dense(texts, rng.normal(size=(60, 8))), "bm25": BM25Index.build(texts)}
    for split in ("test", "validation"):
        found, rows = [], splits.evaluation_examples(data, split)
        rows["texts"] = [[texts[3]]] * len(rows)
        last = data.interactions.groupby("user").tail(1).index
        changed = data.interactions.copy()
        changed.loc[last, "item"] = rng.permutation(changed.loc[last, "item"])
        for of, targets in (
            (data.interactions, rows["target"]),
            (changed, rows["target"]),
            (data.interactions, rng.permutation(rows["target"])),
        ):
            data = Dataset.of(data.items, of, data.users, data.statistics)
            known = splits.training_sequences(data, rows.assign(target=targets))
            some = Ranker(rows.assign(target=targets), data.titles(), indexes, known, FROZEN, rule="learned")
            some.learned.users = 150
            found.append(some.rank())
        assert len(found[0]) > 100
        for other in found[1:]:
            pd.testing.assert_frame_equal(found[0], other)


def test_features_by_hand():
    alone = dict.fromkeys(near(), sparse.identity(60, format="csr"))
    world = Signals([["i0", "i1"], ["i0", "i1"], ["i0", "i2"]], ITEMS, alone)
    (some,) = candidates(world, [["i0"]])
    rows = some.set_index("item")
    assert tuple(some.columns[2:]) == FEATURES and set(SIGNALS) == {name for part in PARTS.values() for name in part}
    assert rows.loc[1, "cooccurrence"] == pytest.approx(2 / 3**0.4) and rows.loc[1, "popularity"] == pytest.approx(
        np.log(3)
    )
    assert rows.loc[2, "cooccurrence_share"] == pytest.approx(0.5) and rows.loc[1, "cooccurrence_share"] == 1
    assert rows.loc[[1, 2], "cooccurrence_place"].tolist() == [1, 0.5]
    assert rows.loc[5, ["cooccurrence", "cooccurrence_place"]].tolist() == [0, 0]
    assert rows.loc[2, "cosine"] == pytest.approx(1 / 3**0.5)


def test_signals_do_not_know_the_catalogues_order(found):
    # The catalogue is sorted as the purchases of one day are, which says nothing of what is bought.
    order = np.random.default_rng(5).permutation(60)
    shuffled = {name: matrix[order][:, order] for name, matrix in near().items()}
    other = Signals(chains().values(), [ITEMS[place] for place in order], shuffled)
    histories = list(chains().values())[:20]
    one, another = found.signals.of(histories), other.of(histories)
    assert set(one) | {"popularity"} == set(SIGNALS)
    for signal, matrix in one.items():
        np.testing.assert_allclose(matrix.toarray()[:, order], another[signal].toarray(), atol=1e-12)


def test_what_texts_name_changes_no_other_items_features(found):
    (alone,) = candidates(found.signals, [["i0", "i1"]])
    (cut,) = candidates(found.signals, [["i0", "i1"]], more=sparse.csr_matrix(np.ones((1, 60))))
    both = cut.merge(alone[["user", "item"]])
    assert len(both) == len(alone)
    pd.testing.assert_frame_equal(both, alone)


def test_a_new_item_has_what_its_neighbours_have():
    sequences = [["i0", "i1"], ["i0", "i1"], ["i2", "i3"]]
    alike = sparse.identity(60, format="lil")
    alike[9, 1] = 0.9  # i9 is new and near i1, i8 near nothing
    world = Signals(sequences, ITEMS, dict.fromkeys(("dense", "bm25"), alike.tocsr()))
    follows = world.of([["i0"]])["cooccurrence"].toarray()[0]
    assert follows[1] > 0 and follows[9] == pytest.approx(2 * follows[1])
    assert world.counts[[1, 9, 8]].tolist() == [2, 4, 0]
    assert world.new.sum() == 56 and world.new[[8, 9]].all()
    # A new item in a history speaks by its neighbours, too.
    assert world.of([["i9"]])["cooccurrence"].toarray()[0][0] == pytest.approx(follows[1] * 0.1)


def test_trees_are_fitted_in_a_world_with_as_many_new_items():
    sequences = {user: [item for item in items if item not in ITEMS[:12]] for user, items in chains().items()}
    hidden = examples.hide(sequences, ITEMS, 1)
    left = {item for items in hidden.values() for item in items}
    assert len(left) == 48 - 48 * 12 // 60 and hidden == examples.hide(sequences, ITEMS, 1)
    assert all(hidden[user] == [item for item in items if item in left] for user, items in sequences.items())
    assert examples.hide(chains(), ITEMS, 1) == chains()  # where no item is new, none is hidden
    marked = labelled(sequences, ITEMS, near(), 1, 150)
    assert set(marked.candidates.loc[marked.is_label, "new"]) == {0, 1}
    assert marked.candidates["item"].min() >= 12  # what no sequence holds can be no label


def test_new_labels_come_from_several_worlds_and_weigh_as_in_one(monkeypatch):
    sequences = {user: [item for item in items if item not in ITEMS[:12]] for user, items in chains().items()}
    several = labelled(sequences, ITEMS, near(), 1, 150)
    monkeypatch.setattr(examples, "WORLDS", 1)
    one = labelled(sequences, ITEMS, near(), 1, 150)

    def labels(some) -> pd.DataFrame:
        return some.candidates.assign(weight=some.weight)[some.is_label]

    new, others = (labels(several)[labels(several)["new"] == kind] for kind in (1, 0))
    assert set(new["weight"]) == {1 / 4} and set(others["weight"]) == {1}
    assert len(others) == (labels(one)["new"] == 0).sum() and set(labels(one)["weight"]) == {1}
    assert len(new) > 2 * (labels(one)["new"] == 1).sum() and new["user"].is_unique
    assert new["item"].nunique() > labels(one).query("new == 1")["item"].nunique()
    sizes = several.candidates.groupby("user", sort=False).size()
    assert sizes.index.is_monotonic_increasing and len(sizes) == len(new) + len(others)  # each user's rows are together
    whole = labelled(chains(), ITEMS, near(), 1, 150)
    assert set(whole.weight) == {1}  # where no item is new


def test_a_world_for_held_users_lacks_their_next_items_alone(monkeypatch):
    sequences, seen = chains(), []
    held = {user: items[:-1] for user, items in list(sequences.items())[:20]}
    monkeypatch.setattr(learned, "Signals", lambda *given: seen.append(list(map(list, given[0]))) or Signals(*given))
    found = Learned(sequences, sequences, ITEMS, near(), users=150, held=held).rank_for_held(5)
    assert list(found["user"].unique()) == list(held)
    others = [items for user, items in sequences.items() if user not in held]
    assert seen == [[*others, *held.values()]]  # what labels are for trees is counted here


def test_new_items_are_favoured_as_much_as_asked():
    sequences = {user: [item for item in items if item not in ITEMS[:12]] for user, items in chains().items()}
    counts, ranked = [], Learned(sequences, sequences, ITEMS, near(), users=150)
    for ranked.favour in (-100, 0, 1, 100):
        counts.append(int(ranked.rank(5)["item"].isin(ITEMS[:12]).sum()))
    assert 0 == counts[0] < counts[1] < counts[2] < counts[3] == 5 * 300


def test_a_users_own_target_does_not_weigh_that_users_texts():
    users = [f"u{place}" for place in range(200)]
    rows = pd.DataFrame([(user, f"i{place}") for user in users for place in range(4)], columns=["user", "item"])
    rng = np.random.default_rng(0)
    rows = rows.assign(score=rng.normal(size=800), texts_dense=0.0, texts_bm25=(rows["item"] == "i2") * 1.0)
    targets = {user: "i2" if place % 3 else "i1" for place, user in enumerate(users)}
    weights = text_weights.out_of_fold(rows, targets)
    assert (weights["texts_bm25"] > 0.5).all() and (weights["texts_dense"] == 0).all()
    same = {user for user in users if text_weights.fold_of(user) == text_weights.fold_of("u7")}
    others = text_weights.out_of_fold(rows, targets | dict.fromkeys(same, "i3"))
    assert (others.loc["u7"] == weights.loc["u7"]).all()
    others = text_weights.out_of_fold(rows, targets | dict.fromkeys(set(users) - same, "i3"))
    assert (others.loc["u7"] == 0).all()
    unknown = text_weights.out_of_fold(rows, targets | {"u7": None})
    assert (unknown.loc["u7"] == weights.loc["u7"]).all()


def test_texts_count_nothing_where_they_do_not_clearly_help():
    users = [f"u{place}" for place in range(200)]
    rows = pd.DataFrame([(user, f"i{place}") for user in users for place in range(20)], columns=["user", "item"])
    rng = np.random.default_rng(1)
    score = rng.normal(size=4000) + 1.5 * (rows["item"] == "i1")
    rows = rows.assign(score=score, texts_dense=rng.random(4000), texts_bm25=(rows["item"] == "i2") * 1.0)
    assert (text_weights.out_of_fold(rows, dict.fromkeys(users, "i1")) == 0).all(axis=None)
    assert (text_weights.out_of_fold(rows, dict.fromkeys(users)) == 0).all(axis=None)  # no target is known


@pytest.mark.parametrize("sequences", [{}, {"u": ["i0"]}, {"u": ["i0", "i1"]}, {"u": ["i0", "i1"], "v": ["i0", "i1"]}])
def test_little_to_learn_from_still_gives_a_full_ranking(sequences):
    histories = {"a": ["i0"], "b": [], "c": ["strange"], "d": ITEMS[:55]}
    some = Learned(histories, sequences, ITEMS, near())
    sizes = some.rank(7).groupby("user").size().to_dict()
    assert sizes == {"a": 7, "b": 7, "c": 7, "d": 5}


def test_parts_are_left_out_by_fitting_again(found):
    rankings = found.without_parts(5)
    assert list(rankings) == ["none", *PARTS]
    pd.testing.assert_frame_equal(rankings["none"], found.rank(5))
    assert all(not rankings[part].equals(rankings["none"]) for part in PARTS)
    alone = learned.fit(found.examples, [signal for signal in SIGNALS if signal != "popularity"], found.seed)
    assert alone.model_to_string() == found.models["popularity"].model_to_string()  # though others are fitted beside it
    shares = found.importances()
    assert shares["gain"].sum() == pytest.approx(1) and shares["gain"].is_monotonic_decreasing
    assert set(shares["signal"]) == {*SIGNALS, "new"} and set(shares["part"]) == {*PARTS, "new items"}
