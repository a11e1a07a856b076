"""The artefact `cooccurrence`: counted in parts, once in a run, and the same to the last bit as in memory."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from helpers import flip, run_of

from gloss_utils import retrieve, user_segments
from gloss_utils.base.files import fingerprint
from gloss_utils.data import queries as query_files
from gloss_utils.data.dataset import Dataset
from gloss_utils.rank import HybridSettings, baselines, cooccurrence
from gloss_utils.rank.cooccurrence import Pairs
from gloss_utils.runs import counting
from gloss_utils.runs.artefacts import path_of
from gloss_utils.runs.parameters import EVALUATE, RETRIEVE, SEGMENTS

NAME = "cooccurrence"


def of_stage(copied_run, stage: str, **values):
    run = run_of(copied_run, **values)
    run.stage = stage
    return run


def asked_for(copied_run, stage: str = RETRIEVE, **values):
    """What a stage gets, of the sequences that may be learned from; these; and how they are counted."""
    run, data = of_stage(copied_run, stage, **values), Dataset.load(copied_run[0].data)
    sequences = retrieve._learnable(run, data, query_files.read(copied_run[0].queries, 3, 0))
    settings = HybridSettings.read(run["ranking_weights"])
    return counting.following(run, data, sequences, settings), sequences, settings


def same(one, other):
    assert one.shape == other.shape
    for name in cooccurrence.ARRAYS:
        a, b = getattr(one, name), getattr(other, name)
        assert a.dtype == b.dtype and np.array_equal(a, b), name


@pytest.fixture
def several_parts(monkeypatch) -> list[range]:
    """Parts of a few items; the list will hold those that are counted."""
    counted, real = [], Pairs.following
    monkeypatch.setattr(cooccurrence, "PAIRS_AT_A_TIME", 20_000)
    monkeypatch.setattr(Pairs, "following", lambda self, block: counted.append(block) or real(self, block))
    return counted


@pytest.fixture
def nothing_counted(monkeypatch):
    """Let counting fail."""

    def fail(*_):
        raise AssertionError("co-occurrence was counted again")

    monkeypatch.setattr(Pairs, "__init__", fail)


def test_what_is_opened_is_what_is_counted_in_memory(copied_run, several_parts):
    found, sequences, settings = asked_for(copied_run, remake=[NAME])
    assert len(several_parts) > 3 and len(found.data) > 1000
    same(found, cooccurrence.following(sequences.values(), sequences.values().items, **settings.counting()))
    assert not found.data.flags.writeable and not found.indices.flags.writeable  # the files, and no copies


def test_a_count_that_was_killed_goes_on_after_its_last_part(copied_run, several_parts, monkeypatch, capsys):
    folder, real = copied_run[0], Pairs.following
    asked_for(copied_run, remake=[NAME])
    whole, blocks = fingerprint(path_of(folder.root, NAME)), several_parts.copy()

    def dying(self, block):
        if block in blocks[2:]:
            raise KeyboardInterrupt
        return real(self, block)

    monkeypatch.setattr(Pairs, "following", dying)
    with pytest.raises(KeyboardInterrupt):
        asked_for(copied_run, remake=[NAME])
    [unfinished] = folder.unfinished.glob(f"{NAME}-*")
    first, _ = sorted(unfinished.iterdir(), key=lambda file: file.stat().st_mtime_ns)
    flip(first)  # of a damaged part nothing is taken
    several_parts.clear()
    monkeypatch.setattr(Pairs, "following", real)
    asked_for(copied_run, remake=[NAME])
    assert several_parts == [blocks[0], *blocks[2:]]
    assert f"1 of {len(blocks)} parts are those of a run that was cut off" in capsys.readouterr().out
    assert fingerprint(path_of(folder.root, NAME)) == whole and not unfinished.exists()


@pytest.mark.parametrize("stage", [RETRIEVE, EVALUATE, SEGMENTS])
def test_a_run_counts_once(copied_run, nothing_counted, stage):
    run, data = of_stage(copied_run, stage, ranking="hybrid"), Dataset.load(copied_run[0].data)
    ranker = retrieve.ranker(run, query_files.read(copied_run[0].queries, 3, 0).head(9), data, evaluated=_all(run))
    assert len(ranker.rank()) == len(baselines.by_name(ranker)["item-knn"](ranker.histories, exclude_seen=True)) == 90


def _all(run):
    return query_files.blocks(run.folder.queries, 3, 0)


@pytest.mark.parametrize("rule", ["hybrid", "paper"])
def test_an_added_item_is_counted_by_nobody(copied_run, nothing_counted, rule):
    run = of_stage(copied_run, SEGMENTS, ranking=rule)
    shop = user_segments.open_shop(run)
    more = shop.add(pd.DataFrame({"item": ["new"], "title": ["Rose Hand Cream"]}))
    assert "recommended" in user_segments.story(run, shop, more).data.index[-2]


def test_later_stages_count_by_themselves_what_stage_four_did_not(copied_run):
    """Else other users' targets would be learned from."""
    run, data = of_stage(copied_run, EVALUATE), Dataset.load(copied_run[0].data)
    settings = HybridSettings.read(run["ranking_weights"])
    assert counting.following(run, data, data.sequences(), settings) is None


@pytest.mark.parametrize("changed", ["counting", "weights", "split", "data"])
def test_what_changes_the_counts_makes_them_anew(copied_run, tmp_path, several_parts, changed):
    given, values, before = tmp_path / "weights.yaml", {}, fingerprint(path_of(copied_run[0].root, NAME))
    text = Path(of_stage(copied_run, RETRIEVE)["ranking_weights"]).read_text()
    if changed == "split":
        values = {"split": "next"}
    elif changed == "data":
        data = Dataset.load(copied_run[0].data)
        lengths = data.users["interactions"] - 1
        last = lengths.cumsum() + np.arange(len(lengths))
        data.places, data.times = (np.delete(array, last) for array in (data.places, data.times))
        data.users["interactions"] = lengths
        data.save(copied_run[0].data)
    else:
        line = {"counting": ("window: 20", "window: 19"), "weights": ("popularity: ", "popularity: 1")}[changed]
        assert line[0] in text
        given.write_text(text.replace(*line))
        values = {"ranking_weights": str(given)}
    found, sequences, settings = asked_for(copied_run, **values)
    same(found, cooccurrence.following(sequences.values(), sequences.values().items, **settings.counting()))
    assert (fingerprint(path_of(copied_run[0].root, NAME)) == before) == (changed == "weights")


def test_rows_of_more_entries_than_int32_counts(tmp_path, monkeypatch):
    matrix, part = cooccurrence.following(["abc", "ab"], list("abc"), 2, 0.5, 0.1, 0.4), tmp_path / "part.npz"
    counting.save_npz(part, matrix, compressed=False)
    cooccurrence.save(tmp_path / "few", [part])
    with monkeypatch.context() as small:
        small.setattr(np, "iinfo", lambda _: SimpleNamespace(max=2))
        cooccurrence.save(tmp_path / "many", [part])
    few, many = (cooccurrence.load(tmp_path / name, 3) for name in ("few", "many"))
    same(few, matrix)
    assert np.load(tmp_path / "many/indices.npy").dtype == np.load(tmp_path / "many/indptr.npy").dtype == np.int64
    assert (many != few).nnz == 0
    added = cooccurrence.load(tmp_path / "few", 5)
    assert added.shape == (5, 5) and (added[:3, :3] != few).nnz == 0 and added.nnz == few.nnz
