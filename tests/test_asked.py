"""What the model is asked for: features, weights that are learnt from others, and the whole way through the stages."""

import json

import numpy as np
import pandas as pd
import pytest
from helpers import dataset, one_line_error, run_of

from gloss_utils import retrieve
from gloss_utils.base.files import digest, read_json
from gloss_utils.data import prompts, splits
from gloss_utils.data.dataset import Dataset
from gloss_utils.language import TitleTrie, load_finetuned, scoring
from gloss_utils.rank import asked
from gloss_utils.rank.asked import FEATURES, HISTORIES, PARTS, PROBABILITIES, Asked
from gloss_utils.rank.text_weights import fold_of
from gloss_utils.rank.trec import read_trec
from gloss_utils.report import metrics, tables
from gloss_utils.runs import asking, notebooks, parameters, resumed
from gloss_utils.runs.folder import RunFolder

USERS, ITEMS = 400, 8


def table(seed: int, truth: dict[str, float]) -> pd.DataFrame:
    """Examples whose targets are drawn by a conditional logit with these weights."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(USERS, ITEMS, len(FEATURES)))
    scores = values @ np.array([truth.get(name, 0.0) for name in FEATURES]) + rng.gumbel(size=(USERS, ITEMS))
    rows = pd.DataFrame(values.reshape(-1, len(FEATURES)), columns=list(FEATURES))
    rows.insert(0, "user", np.repeat([f"u{n}" for n in range(USERS)], ITEMS))
    rows.insert(1, "item", np.tile([f"i{n}" for n in range(ITEMS)], USERS))
    return rows.assign(is_target=(scores == scores.max(axis=1, keepdims=True)).ravel())


def test_weights_are_those_by_which_targets_were_drawn():
    weights = asked.likeliest(table(1, {"history": 1.5, "logprob": 0.8, "alone": -0.8}), FEATURES)
    assert weights[["history", "logprob", "alone"]].to_numpy() == pytest.approx([1.5, 0.8, -0.8], abs=0.25)
    assert weights.drop(["history", "logprob", "alone"]).abs().max() < 0.2
    assert asked.likeliest(table(1, {}).assign(is_target=False), ["history"]).tolist() == [0.0]


def test_the_model_is_heeded_as_far_as_first_places_gain():
    helps = table(1, {"history": 1.0, "logprob": 1.0})
    weights, step = asked.fit(helps, FEATURES)
    assert step > 0.7 and weights["logprob"] == pytest.approx(step * asked.likeliest(helps, FEATURES)["logprob"])
    # The target is the first by history, of whom the model knows nothing, or the model lifts it from the last places.
    rng, items = np.random.default_rng(1), 40
    rows = table(1, {}).iloc[:0]
    for user in range(USERS):
        of_user = pd.DataFrame(rng.normal(size=(items, len(FEATURES))), columns=list(FEATURES))
        of_user["history"] = np.linspace(3, -3, items)
        target = 0 if rng.random() < 0.6 else int(rng.integers(30, items))
        of_user.loc[target, "logprob"] += 1.5 * (target > 0)
        rows = pd.concat([rows, of_user.assign(user=f"u{user}", item=range(items), is_target=of_user.index == target)])
    of_all, (heeded, step) = asked.likeliest(rows, FEATURES), asked.fit(rows, FEATURES)
    assert step < 0.5
    assert of_all["logprob"] > 0.2 and abs(heeded["logprob"]) < 0.5 * of_all["logprob"]
    assert asked.fit(rows, ["history", "logprob"])[0]["history"] > 0
    weights, step = asked.fit(rows, ["logprob"])  # of nothing to hold on to
    assert weights.equals(asked.likeliest(rows, ["logprob"])) and step == 1


def test_features_by_hand():
    proposed = pd.DataFrame(
        [("ann", 1, "tea", 3.0), ("ann", 2, "cup", 1.0), ("ann", 3, "pot", 0.5), ("bob", 1, "cup", 2.0)],
        columns=["user", "rank", "item", "score"],
    )
    said = pd.DataFrame([("ann", "cup", -2.0), ("ann", "tea", -6.0)], columns=["user", "item", "logprob"])
    alone = pd.DataFrame([("tea", -5.0, 2), ("cup", -4.0, 4), ("pot", -3.0, 1)], columns=["item", "logprob", "tokens"])
    more = proposed.replace("pot", "new")
    nearest = pd.DataFrame(
        [("ann", 1, "cup"), ("ann", 2, "tea"), ("ann", 3, "cup"), ("bob", 1, "pot")], columns=["user", "query", "item"]
    )
    queries = pd.DataFrame(
        [("ann", [-2.0, -4.0, -6.0], [2, 4, 3]), ("bob", [None], [None])], columns=["user", "logprobs", "lengths"]
    )
    rows = asked.features(proposed, said, alone, asked.named_items(nearest, queries)).set_index(["user", "item"])
    assert rows.loc[("ann", "cup")].tolist() == pytest.approx(
        [1.0, 1 / 2, -2.0, -4.0, -0.5, 1.0, np.exp(-1) + np.exp(-2), 1.0]
    )
    assert rows.loc[("ann", "tea")].tolist() == pytest.approx([3.0, 1.0, -6.0, -5.0, -3.0, 1 / 2, np.exp(-1), 1 / 2])
    assert rows.loc[("ann", "pot")].tolist() == pytest.approx([0.5, 1 / 3, -6.0, -3.0, -6.0, 1 / 3, 0.0, 0.0])
    assert rows.loc[("bob", "cup"), ["logprob", "written"]].tolist() == [0.0, 0.0]  # nobody was asked, nothing named
    rows = asked.features(more, said, alone, asked.named_items(nearest, queries)).set_index(["user", "item"])
    assert rows.loc[("ann", "new"), ["logprob", "alone", "per_token"]].tolist() == [-6.0, -4.0, -3.0]  # an added item


def ranked(examples: pd.DataFrame, of_others: bool, parts=PARTS) -> pd.DataFrame:
    users = examples["user"].unique()
    rows = examples.drop(columns="is_target")
    proposed = rows[["user", "item", "history"]].rename(columns={"history": "score"})
    proposed = proposed.assign(rank=proposed.groupby("user")["score"].rank(ascending=False))
    alone = pd.DataFrame({"item": rows["item"].unique(), "logprob": -1.0, "tokens": 2})
    named = pd.DataFrame(columns=["user", "item", "written", "written_place"])
    judge = Asked(rows[["user", "item", "logprob"]], alone, examples, ITEMS, of_others)
    return judge.rank(proposed, named, dict.fromkeys(users, ()), ITEMS, parts)


def test_a_users_own_target_does_not_weigh_what_is_said_to_that_user():
    examples = table(2, {"logprob": 1.0})
    fold = examples["user"].map(fold_of)
    before = ranked(examples, of_others=False)
    other = examples.assign(is_target=examples["is_target"].where(fold != fold[0], examples["item"] == "i0"))
    after = ranked(other, of_others=False)
    own = before["user"].map(fold_of) == fold[0]
    pd.testing.assert_frame_equal(before[own], after[own])
    assert not before[~own].equals(after[~own])


def test_without_probabilities_the_order_is_that_of_histories():
    found = ranked(table(3, {"history": 1.0, "logprob": 1.0}), True, [HISTORIES])
    expected = table(3, {"history": 1.0, "logprob": 1.0}).sort_values(["user", "history"], ascending=[True, False])
    assert found.sort_values(["user", "rank"])["item"].tolist() == expected["item"].tolist()
    both = ranked(table(3, {"history": 1.0, "logprob": 1.0}), True, [HISTORIES, PROBABILITIES])
    assert both["item"].tolist() != found["item"].tolist()


def test_the_model_does_not_train_on_what_teaches_the_ranking():
    data = dataset({"a": "pqrst", "b": "qrst", "c": "rstp", "d": "stpqr", "e": "pq", "v": "pqrs"}, validation="v")
    held = splits.ranking_examples(data, 0.5, seed=1)
    assert len(held) == 2 and "v" not in set(held["user"]) and "e" not in set(held["user"])
    known = dict(zip(data.users["user"], splits.cuts(data).known(), strict=True))
    texts = splits.training_examples(data, set(held["user"])).set_index("user")
    for row in held.itertuples():
        assert [*row.history, row.target] == known[row.user]
        assert [*texts.loc[row.user, "history"], texts.loc[row.user, "target"]] == row.history
    others = set(texts.index) - set(held["user"])
    assert all([*texts.loc[user, "history"], texts.loc[user, "target"]] == known[user] for user in others)
    assert splits.ranking_examples(data, 0.5, seed=1).equals(held)
    assert splits.ranking_examples(data, 0.0, seed=1).empty


@pytest.fixture(scope="module")
def asked_run(small_run, tmp_path_factory) -> RunFolder:
    """Trained as a whole on what the catalogue leaves open, with a third of the users left to teach the ranking, and
    asked for 12 items per user."""
    root = tmp_path_factory.mktemp("asked")
    more = {
        "tuning": "full",
        "loss": "catalogue",
        "decoding": "catalogue",
        "length_penalty": 0,
        "recall_users": 5,
        "guide": 0.2,
        "load_in_4bit": False,
        "ranking_share": 0.3,
        "ask": 12,
        "sasrec_epochs": 0,
    }
    notebooks.run(
        [str(small_run[1])], [("run_dir", str(root / "run")), *((k, str(v)) for k, v in more.items())], last="05"
    )
    return RunFolder(root / "run")


def test_what_the_model_says_is_its_log_probability(asked_run):
    run = run_of((asked_run, None))
    scored, data = pd.read_parquet(asked_run.asked / asking.SCORES), Dataset.load(asked_run.data)
    model, tokenizer = load_finetuned(asked_run.base, asked_run.adapter, False)
    trie = TitleTrie(tokenizer, data.titles().values()).trie
    titles, held = data.titles(), splits.ranking_examples(data, 0.3, run["seed"])
    queries = retrieve.query_files.read(asked_run.queries, run["num_beams"], 0).set_index("user")
    user, before = next((row.user, row.history) for row in held.itertuples() if row.user in queries.index)
    histories = {user + asking.HELD: before, user: queries.loc[user, "history"], asking.ALONE: []}
    assert set(before) < set(histories[user])  # the held user is ranked for, too, after more
    for user in histories:
        rows = scored[scored["user"] == user].iloc[:5]
        room = run["max_length"] - run["max_new_tokens"]
        [prompt] = prompts.encode_prompts(tokenizer, [[titles[item] for item in histories[user]]], room)
        lines = prompts.encode_texts(tokenizer, [prompts.item_text(titles[item]) for item in rows["item"]])
        texts = [[*line, tokenizer.eos_token_id] for line in lines]
        [expected] = scoring.plain(model, [prompt], [texts], trie)
        assert rows["logprob"].tolist() == pytest.approx(expected, abs=1e-3)
        assert rows["tokens"].tolist() == [len(line) + 1 for line in lines]
    alone = scored[scored["user"] == asking.ALONE].assign(title=lambda rows: rows["item"].map(titles))
    assert len(alone) == len(data.items)
    assert np.exp(alone.drop_duplicates("title")["logprob"]).sum() == pytest.approx(1, abs=1e-3)  # the titles are all


def test_who_teaches_the_ranking_is_ranked_for_as_everybody_is(asked_run):
    held = splits.ranking_examples(Dataset.load(asked_run.data), 0.3, run_of((asked_run, None))["seed"])
    examples = pd.read_parquet(asked_run.asked_examples)
    assert set(examples["user"]) == set(held["user"].astype(object) + asking.HELD)
    assert not examples.duplicated(["user", "item"]).any()
    ranking = read_trec(asked_run.ranking("gloss"))
    assert set(held["user"]) & set(ranking["query_id"]) and set(ranking.groupby("query_id").size()) == {10}
    assert not ranking.duplicated(["query_id", "doc_id"]).any()


def test_ask_needs_users_to_learn_from(copied_run, capsys):
    folder, file = copied_run
    values = [("holdout", "time"), ("ask", "6"), ("ranking_share", "0.2"), ("run_dir", str(folder.root) + "-time")]
    with one_line_error("leaves no user to learn from", "ranking_share 0.2"):
        notebooks.run([str(file)], values, last="04")


def test_training_notes_what_the_model_would_recommend(asked_run):
    history = pd.DataFrame(read_json(asked_run.training)["history"])
    judged = history.dropna(subset="recall@5")
    assert judged["epoch"].tolist() == history.dropna(subset="eval_loss")["epoch"].tolist() != []
    assert (judged["recall@5"] * 5 % 1 == 0).all()  # of 5 users
    assert history["seconds"].is_monotonic_increasing and history["seconds"].iloc[0] > 0


def test_what_each_part_adds_is_in_the_metrics(asked_run):
    found = read_json(asked_run.metrics)
    assert {"gloss", "gloss-histories"} <= {row["method"] for row in found["rows"]}
    assert [row["left_out"] for row in found["parts"]] == [
        "none", "probabilities", "generated texts", "probabilities and generated texts"
    ]  # fmt: skip
    of_all = {
        row["method"]: row["recall@5"] for row in found["rows"] if row["segment"] == "all" and row["seen"] == "left out"
    }
    assert found["parts"][-1]["recall@5"] == of_all["gloss-histories"]
    gained = {row["group"]: row for row in found["by_model"]}
    assert gained["all"]["recall@5"] == of_all["gloss"]
    assert gained["all"]["recall@5_gained"] == pytest.approx(of_all["gloss"] - of_all["gloss-histories"], abs=2e-6)


def test_what_is_gained_by_group_is_paired_and_by_hand():
    values = {"ann": (1.0, 0.0), "bob": (0.0, 0.0), "eve": (0.0, 1.0), "joe": (1.0, 0.0)}
    rows = [
        {"user": user, "method": method, "segment": "regular" if user != "joe" else "power", "new_item": user == "eve"}
        | dict.fromkeys(metrics.METRICS, pair[place])
        for place, method in enumerate(("with", "without"))
        for user, pair in values.items()
    ]
    often = pd.Series({"ann": 0, "bob": 7, "eve": 0, "joe": 30})
    found = {row["group"]: row for row in metrics.gained_by_group(pd.DataFrame(rows), "with", "without", often, 1)}
    gained = {group: (row["users"], row["recall@5"], row["recall@5_gained"]) for group, row in found.items()}
    assert gained == {
        "regular": (3, pytest.approx(1 / 3, abs=1e-6), 0.0),
        "power": (1, 1.0, 1.0),
        "all": (4, 0.5, 0.25),
        "new-items": (1, 0.0, -1.0),
        "target occurs 0 to 4 times": (2, 0.5, 0.0),
        "target occurs 5 to 9 times": (1, 0.0, 0.0),
        "target occurs 20 times or more": (1, 1.0, 1.0),
    }


def test_no_evaluated_target_is_read(asked_run, monkeypatch, tmp_path):
    run = run_of((asked_run, None))
    monkeypatch.setattr(run, "stage", parameters.RETRIEVE)
    data = Dataset.load(asked_run.data)
    queries = retrieve.query_files.read(asked_run.queries, run["num_beams"], 0)
    held = retrieve._held(run, data)
    before = retrieve.ranker(run, queries, data)
    other = retrieve.ranker(run, queries.assign(target=data.items["item"].iloc[0]), data)
    assert before.learned.trees_text == other.learned.trees_text
    pd.testing.assert_frame_equal(before.learned.rank_for_held(12), other.learned.rank_for_held(12))
    # And the held users' own targets change neither the trees nor what is proposed to them.
    known = {user: [*before.learned.held[user], data.items["item"].iloc[0]] for user in held["user"]}
    swapped = retrieve.ranker(run, queries, data)
    swapped.training_sequences = dict(swapped.training_sequences) | known
    assert swapped.learned.trees_text == before.learned.trees_text
    pd.testing.assert_frame_equal(before.learned.rank_for_held(12), swapped.learned.rank_for_held(12))


def test_validation_users_teach_where_nobody_was_kept_apart(copied_run):
    folder, file = copied_run
    notebooks.run([str(file)], [("split", "validation"), ("ask", "6"), ("sasrec_epochs", "0")], last="05")
    queries = retrieve.query_files.read(folder.queries, 3, 0)
    assert set(pd.read_parquet(folder.asked_examples)["user"]) == set(queries["user"])
    assert {"gloss", "gloss-histories"} <= {row["method"] for row in read_json(folder.metrics)["rows"]}
    found = asking.asked_before(run_of((folder, None)), held=pd.DataFrame())
    assert not found.of_others and len(found.weights()) == 5
    shown = tables.text_weights(read_json(folder.metrics)["text_weights"])
    assert list(shown.columns) == [asked.HEEDED, *FEATURES] and shown[asked.HEEDED].between(0, 1).all()
    assert shown.to_numpy() == pytest.approx(found.weights().to_numpy(), rel=1e-5)


def test_what_histories_propose_is_ranked_once(asked_run, monkeypatch):
    run = run_of((asked_run, None))
    data, queries = Dataset.load(asked_run.data), retrieve.query_files.read(asked_run.queries, run["num_beams"], 0)
    ranker, asked_for = retrieve.ranker(run, queries, data), []
    rank = ranker.learned.rank
    monkeypatch.setattr(ranker.learned, "rank", lambda *given: asked_for.append(given) or rank(*given))
    for texts in (1, 2, 3):
        ranker.rank(texts)
    assert asked_for == [(12, True)]


def test_asking_goes_on_where_it_was_cut_off(asked_run, monkeypatch, tmp_path):
    run, worked = run_of((asked_run, None)), []
    monkeypatch.setattr(run, "unfinished", lambda name, plan: tmp_path / plan)
    run.known["proposed"] = digest("some")

    def work(left, map_parts):
        for number, places in left.items():
            worked.append(number)
            if len(worked) == 2:
                raise KeyboardInterrupt
            yield number, [[float(place)] for place in places], None

    with pytest.raises(KeyboardInterrupt):
        resumed.in_batches(run, "asked", "x", [[2, 0], [1], [3]], work, "asking")
    assert resumed.in_batches(run, "asked", "x", [[2, 0], [1], [3]], work, "asking") == [[0.0], [1.0], [2.0], [3.0]]
    assert worked == [0, 1, 1, 2]


def test_a_model_that_was_trained_as_a_whole_is_an_ordinary_folder(asked_run):
    from transformers import AutoModelForCausalLM

    config = json.loads((asked_run.adapter / "config.json").read_text())
    assert config["model_type"] == "llama" and not (asked_run.adapter / "adapter_config.json").exists()
    model = AutoModelForCausalLM.from_pretrained(asked_run.adapter)
    base = AutoModelForCausalLM.from_pretrained(asked_run.base)
    changed = {
        name
        for (name, one), other in zip(model.named_parameters(), base.parameters(), strict=True)
        if not one.equal(other)
    }
    assert changed == {name for name, _ in base.named_parameters()}
    facts = read_json(asked_run.training)
    assert facts["trainable_parameters"] == facts["all_parameters"] == model.num_parameters()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"ask": 10, "ranking_share": 0.0}, ("no user is left", "ranking_share")),
        ({"ask": 10, "ranking": "hybrid"}, ("ranking: learned",)),
        ({"ask": 10, "queries_file": "texts.jsonl"}, ("a model of the run's own",)),
        ({"ask": 10, "ranking_share": 0.2, "shuffle_test": True}, ("shuffle_test", "as they are")),
        ({"tuning": "full", "load_in_4bit": True}, ("load_in_4bit to false",)),
        ({"loss": "catalogue", "decoding": "free"}, ("set decoding to catalogue",)),
    ],
)
def test_parameters_that_do_not_fit(values, words):
    with one_line_error(*words):
        parameters.check(values)
