"""Stages in blocks: the same bytes as all at once, no more held than a block, and what was cut off goes on."""

import pickle
import re
from collections import Counter
from functools import partial

import numpy as np
import pandas as pd
import pytest
from helpers import one_line_error, run_of

from benchmarks.scale import read_trec_blocks
from gloss_utils import evaluate, explore_data, retrieve
from gloss_utils.base.files import digest, fingerprint
from gloss_utils.data import interactions, raw_lines, readers, rules
from gloss_utils.data import queries as query_files
from gloss_utils.data.dataset import Dataset
from gloss_utils.rank import Ranker
from gloss_utils.rank.cooccurrence import Pairs
from gloss_utils.rank.ranker import RULES
from gloss_utils.report.in_blocks import COLUMNS, Values
from gloss_utils.runs import blocks as run_blocks
from gloss_utils.runs import resumed, workers
from gloss_utils.runs.parameters import EVALUATE, EXPLORE, RETRIEVE


@pytest.fixture
def blocks(monkeypatch) -> list[int]:
    """Three users at a time; the list will hold how many users each ranker was for."""
    sizes, real = [], Ranker.__post_init__
    monkeypatch.setattr(Ranker, "__post_init__", lambda self: real(self) or sizes.append(len(self.queries)))
    monkeypatch.setattr(retrieve, "USERS_AT_ONCE", 3)
    return sizes


def of_stage(copied_run, stage: str, **values):
    run = run_of(copied_run, **values)
    run.stage = stage
    return run


@pytest.mark.parametrize("rule", RULES)
def test_stage_four_writes_the_same_bytes(copied_run, monkeypatch, rule):
    results, written, counted, real = [], [], [], Pairs.__init__
    monkeypatch.setattr(Pairs, "__init__", lambda *given, **how: counted.append(1) or real(*given, **how))
    for size in (3, 4096):
        monkeypatch.setattr(retrieve, "USERS_AT_ONCE", size)
        run = of_stage(copied_run, RETRIEVE, ranking=rule, remake=["cooccurrence"])
        results.append(retrieve.prepare(run))
        written.append({path.name: path.read_bytes() for path in run.outputs})
        counted.append(None)
    assert written[0] == written[1] and len(written[0]) > 2
    few, all_at_once = counted[: counted.index(None)], counted[counted.index(None) + 1 : -1]
    assert few == all_at_once and few  # counted once, not once a block
    pd.testing.assert_frame_equal(retrieve.summary(results[0]), retrieve.summary(results[1]))
    pd.testing.assert_frame_equal(results[0].ranking, results[1].ranking)


def test_no_more_than_a_block_of_users_is_ranked_for_and_shown(copied_run, blocks, monkeypatch):
    folder, _ = copied_run
    monkeypatch.setattr(retrieve, "SHOWN", 5)
    users = query_files.read(folder.queries, 3, 0)["user"].tolist()
    found = retrieve.prepare(of_stage(copied_run, RETRIEVE, show_user=users[-1]))
    assert len(users) > 30 and max(blocks) == 3
    assert found.queries["user"].tolist() == [*users[:6], users[-1]]  # the first blocks, and the one to show
    assert set(found.ranking["user"]) == set(found.queries["user"])
    assert users[-1] in retrieve.show(found, users[-1]).data


def test_users_whose_weights_hang_on_each_other_are_ranked_for_together(copied_run, blocks):
    folder, _ = copied_run
    retrieve.prepare(of_stage(copied_run, RETRIEVE, split="validation"))
    assert set(blocks) == {len(query_files.read(folder.queries, 3, 0))}


def test_recommendations_in_blocks(copied_run, monkeypatch):
    frames = []
    for size in (3, 4096):
        monkeypatch.setattr(retrieve, "USERS_AT_ONCE", size)
        frames.append(pd.read_parquet(_recommended(copied_run)))
    pd.testing.assert_frame_equal(*frames)


def _recommended(copied_run):
    run = of_stage(copied_run, RETRIEVE, split="next", queries_file=str(copied_run[0].root / "given.jsonl"))
    query_files.write(copied_run[0].root / "given.jsonl", query_files.read(copied_run[0].queries, 3, 0, False))
    retrieve.prepare(run)
    return run.folder.recommendations


def test_queries_are_read_in_blocks(copied_run):
    path = copied_run[0].queries
    whole, some = query_files.read(path, 3, 0), list(query_files.blocks(path, 3, 0, users_at_once=7))
    assert [len(frame) for frame in some[:-1]] == [7] * (len(some) - 1) and 0 < len(some[-1]) <= 7
    pd.testing.assert_frame_equal(pd.concat(some, ignore_index=True), whole)


@pytest.mark.parametrize("order", [slice(None), slice(None, None, -1)])
def test_the_digest_of_histories_does_not_hang_on_blocks_or_order(copied_run, order):
    frame = query_files.read(copied_run[0].queries, 3, 0)[order]
    expected = digest(sorted(zip(frame["user"], frame["history"], strict=True)))
    assert query_files.digest_of_histories(lambda: iter([frame[:4], frame[4:]])) == expected


def test_what_the_evaluated_users_teach_hangs_on_no_block(copied_run):
    run, data = of_stage(copied_run, RETRIEVE), Dataset.load(copied_run[0].data)
    frame = query_files.read(copied_run[0].queries, 3, 0)
    assert retrieve._learnable(run, data, frame) == retrieve._learnable(run, data, iter([frame[:4], frame[4:]]))


def test_a_catalogue_too_large_for_learned_is_named_before_the_work(copied_run, monkeypatch):
    monkeypatch.setattr(retrieve, "memory", lambda: 10**6)
    monkeypatch.setattr(retrieve, "in_blocks", None)  # which nothing may call
    with one_line_error("learned", "17 kB", "hybrid"):
        retrieve.prepare(of_stage(copied_run, RETRIEVE, ranking="learned"))


def test_stage_five_in_blocks_finds_the_same(copied_run, blocks):
    folder, _ = copied_run
    before, per_user = _evaluated(folder), pd.read_parquet(folder.per_user)
    evaluate.prepare(of_stage(copied_run, EVALUATE))
    assert max(blocks) == 3 and len(per_user) > 100
    assert _evaluated(folder) == before
    pd.testing.assert_frame_equal(pd.read_parquet(folder.per_user), per_user, check_exact=True)
    assert not folder.unfinished.exists()


BLOCKS = 10  # of six users


def everything(folder) -> dict[str, bytes]:
    """All that stages 4 and 5 leave."""
    views = [*folder.rankings.iterdir(), folder.metrics, folder.per_user, folder.qrels, folder.trees]
    return {path.name: path.read_bytes() for path in views}


@pytest.mark.parametrize("stages, rule", [("45", "hybrid"), ("4", "learned"), ("4", "paper")])
def test_two_workers_leave_the_bytes_of_one_process(copied_run, blocks, monkeypatch, stages, rule):
    left = []
    monkeypatch.setattr(retrieve, "USERS_AT_ONCE", 16)
    for engine in ("local", "ray"):
        for stage, prepare in ((RETRIEVE, retrieve.prepare), (EVALUATE, evaluate.prepare))[: len(stages)]:
            prepare(of_stage(copied_run, stage, ranking=rule, engine=engine, workers=2, shuffle_test=True))
        left.append(everything(copied_run[0]))
        ranked, blocks[:] = list(blocks), []
    assert left[0] == left[1] and len(left[0]) > 20
    assert 16 not in ranked  # by this process


@pytest.mark.parametrize("stage, prepare", [(RETRIEVE, retrieve.prepare), (EVALUATE, evaluate.prepare)])
def test_a_stage_that_was_killed_goes_on_after_its_last_block(copied_run, blocks, monkeypatch, capsys, stage, prepare):
    folder, _ = copied_run
    monkeypatch.setattr(retrieve, "USERS_AT_ONCE", 6)
    run = partial(of_stage, copied_run, stage, ranking="hybrid")
    prepare(run())
    before, all_of_them, real, lives = everything(folder), blocks.count(6), run_blocks.write_whole, [4]

    def dying(path):
        lives[0] -= 1
        if lives[0] < 0:
            raise KeyboardInterrupt
        return real(path)

    monkeypatch.setattr(run_blocks, "write_whole", dying)
    with pytest.raises(KeyboardInterrupt):
        prepare(run())
    assert everything(folder) == before  # nothing is written by halves
    lives[0], blocks[:] = 1000, []
    prepare(run())
    assert everything(folder) == before and blocks.count(6) == all_of_them * (BLOCKS - 4) / BLOCKS > 0
    assert "4 blocks of users are those of a run that was cut off" in capsys.readouterr().out
    lives[0], blocks[:] = 1, []
    with pytest.raises(KeyboardInterrupt):
        prepare(run())
    lives[0], blocks[:] = 1000, []
    prepare(run(seed=1))  # blocks of another seed are not taken
    assert blocks.count(6) == all_of_them and not folder.unfinished.exists()


def test_a_memory_mapped_array_goes_to_workers_as_its_files_name(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(3 * 10**5).reshape(-1, 3))
    array = np.load(tmp_path / "a.npy", mmap_mode="r")
    for some in (array, array[7:], array[5:9, 1:]):
        sent = pickle.dumps(some, 5)
        np.testing.assert_array_equal(pickle.loads(sent), some)
        assert len(sent) < 1000
    assert workers.map_parts  # whose module says how


def _evaluated(folder) -> dict[str, str]:
    """All files of stage 5 as texts; without SASRec's scores, whose last digits hang on who is in its batch."""
    found = {path.name: path.read_text() for path in [*folder.rankings.iterdir(), folder.metrics]}
    for name in found:
        if name.startswith("sasrec"):
            found[name] = re.sub(r" \S+ sasrec$", "", found[name], flags=re.MULTILINE)
    return found


def test_values_are_appended_by_name(tmp_path):
    values, rows = Values(tmp_path), np.array([[1, 0.5], [2, np.nan]])
    for name in ("x", "y", "x"):
        values.add(name, rows)
    assert values.read("x", COLUMNS[:1]).tolist() == [[1], [2], [1], [2]]
    assert values.read("y", COLUMNS[1::-1]).tolist()[0] == [0.5, 1]


def test_trec_files_are_read_in_blocks(tmp_path):
    path = tmp_path / "run.trec"
    path.write_text("u Q0 a 1 2.5 m\nu Q0 b 2 1.5 m\nw Q0 a 1 0.25 m\n")
    found = [frame.to_numpy().tolist() for frame in read_trec_blocks(path, [["u"], ["v"], ["w"]])]
    assert found == [[["u", "a", 2.5], ["u", "b", 1.5]], [], [["w", "a", 0.25]]]
    with pytest.raises(ValueError, match="u, who is out of order"):
        list(read_trec_blocks(path, [["w"], ["u"][:0]]))


@pytest.mark.parametrize("lost", ["interactions", "items"])
def test_stage_one_goes_on_after_its_last_part(copied_run, monkeypatch, capsys, lost):
    folder, _ = copied_run
    monkeypatch.setattr(raw_lines, "BLOCK", 8000)
    monkeypatch.setattr(interactions, "AT_ONCE", 400)
    monkeypatch.setattr(resumed, "PART", 3 * 10**4)
    before, done, lives, grouped = fingerprint(folder.data), [], [10**6], rules._grouped

    def dying(places, records):
        if not lives[0]:
            raise KeyboardInterrupt
        lives[0] -= 1
        return done.append("group") or grouped(places, records)

    for name, kind in (("_interactions", "interactions"), ("_items", "items")):
        real = getattr(readers, name)
        monkeypatch.setattr(readers, name, lambda *given, real=real, kind=kind: done.append(kind) or real(*given))
    monkeypatch.setattr(rules, "_grouped", dying)
    run = partial(of_stage, copied_run, EXPLORE, remake=["data"])
    explore_data.prepare(run())
    whole = Counter(done)
    assert fingerprint(folder.data) == before and min(whole.values()) > 5

    lives[0] = whole["group"] - 1
    with pytest.raises(KeyboardInterrupt):
        explore_data.prepare(run())
    [parts] = folder.unfinished.glob("data-*")
    assert sorted({file.name[0] for file in parts.iterdir()}) == ["0", "1", "2"]
    file = sorted(parts.glob(f"{['interactions', 'items'].index(lost)}-*"))[-1]
    file.write_bytes(file.read_bytes()[:-1])  # of a file cut short nothing is taken
    lives[0] = 10**6
    done.clear()
    explore_data.prepare(run())
    again = Counter(done)
    assert fingerprint(folder.data) == before and not folder.unfinished.exists()
    assert (again["interactions"] > 0, again["items"] > 0) == (lost == "interactions", lost == "items")
    assert again["interactions"] < whole["interactions"] and 0 < again["group"] < whole["group"]
    assert "blocks are those of a run that was cut off" in capsys.readouterr().out
