"""Which checkpoints stay, and who may write them."""

import math
import os

import numpy as np
import pytest
from toy_checkpoints import is_of, names, save, state

from dl_techniques.training.checkpoint_reader import CheckpointReader
from dl_techniques.training.checkpoint_store import CheckpointStore


@pytest.fixture
def store(tmp_path):
    with CheckpointStore(tmp_path / "run" / "checkpoints") as store:
        yield store


def kept_after(folder, scores, **options):
    with CheckpointStore(folder, **options) as store:
        for step, score in enumerate(scores):
            save(store, step, score)
            assert store.latest() == step
        for step in store.steps():
            assert is_of(step, *store.load(step))
        return store.steps(), store.best()


@pytest.mark.parametrize(
    "scores, options, steps, best",
    [
        ([None] * 6, {}, [3, 4, 5], None),
        ([None] * 6, {"keep_last": 1, "keep_best": 0}, [5], None),
        ([3, 1, 2, 4, 5, 6], {}, [1, 3, 4, 5], 1),
        ([3, 1, 2, 4, 5, 6], {"best": "max"}, [3, 4, 5], 5),
        ([9, 1, 2, 8, 5, 6], {"best": "max", "keep_best": 2, "keep_last": 1}, [0, 3, 5], 0),
        ([3, 1, 2, 4, 5, 6], {"keep_best": 0, "keep_last": 2}, [4, 5], 4),
        ([1, 1, 1, 1], {"keep_last": 1}, [0, 3], 0),
        ([math.nan, 2, math.nan], {"keep_last": 1}, [1, 2], 1),
        ([2, -math.inf, 3], {"keep_last": 1}, [0, 2], 0),
        ([2, math.inf, 3], {"keep_last": 1, "best": "max"}, [2], 2),
        ([math.nan, None], {"keep_last": 1, "best": "max"}, [1], None),
        ([np.float32(0.5), 0.25, 1], {"keep_last": 1}, [1, 2], 1),
    ],
)
def test_the_newest_and_the_best_are_kept(scores, options, steps, best, tmp_path):
    assert kept_after(tmp_path, scores, **options) == (steps, best)
    assert names(tmp_path) == [f"step_{step:09d}" for step in steps]
    direction = options.get("best", "min")
    assert CheckpointReader(tmp_path, direction).best() == best


def test_a_later_run_remembers_the_scores(tmp_path):
    assert kept_after(tmp_path, [5, 1, 4], keep_last=1) == ([1, 2], 1)
    with CheckpointStore(tmp_path, keep_last=1) as store:
        save(store, 3, 2)
        assert store.steps() == [1, 3]
        save(store, 4, 0.5)
        assert (store.steps(), store.best()) == ([4], 4)


def test_the_newest_is_replaced_when_it_is_saved_again(store):
    save(store, 1, score=1)
    for stage in (1, 2, 3):
        store.save(2, {}, {"stage": stage}, score=stage, block=True)
        assert store.steps() == [1, 2]
        assert store.load(2)[1] == {"stage": stage}
        assert len(names(store.folder)) == 2
    save(store, 3)
    assert store.best() == 1


def test_going_back_must_be_said(store):
    for step in (1, 5, 9):
        save(store, step, score=-step)
    with pytest.raises(ValueError, match=r"Step 8 is below the newest in .*step 9.*discard_newer"):
        store.save(8, *state(8))
    assert store.discard_newer(9) == []
    assert store.discard_newer(3) == [5, 9]
    assert (store.steps(), store.best()) == ([1], 1)
    save(store, 5, score=0)
    assert (store.steps(), store.best()) == ([1, 5], 1)
    assert store.discard_newer(-1) == [1, 5]
    assert names(store.folder) == []


def test_leftovers_of_killed_writers_go_and_nothing_else(tmp_path):
    ours = (".writing_step_000000007", ".writing_step_000000007.2", ".removing_step_000000001")
    others = (".writing_notes", "step_7", "step_000000007_copy", "xstep_000000007", "best")
    for name in (*ours, *others):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("")
    (tmp_path / "step_000000008").write_text("a file")
    assert CheckpointReader(tmp_path).steps() == []
    assert set(ours) < set(names(tmp_path))  # A reader leaves all as it is.
    with CheckpointStore(tmp_path, keep_last=1) as store:
        assert names(tmp_path) == sorted([*others, "step_000000008"])
        save(store, 9)
    assert names(tmp_path) == sorted([*others, "step_000000008", "step_000000009"])


def test_a_folder_has_one_writer_and_any_readers(store):
    save(store, 1)
    with pytest.raises(ValueError, match=rf"in use: process {os.getpid()} on .* CheckpointReader"):
        CheckpointStore(store.folder)
    assert is_of(1, *CheckpointReader(store.folder).load(1))
    save(store, 2)
    store.close()
    with CheckpointStore(store.folder) as other:
        assert other.steps() == [1, 2]
