"""A damaged checkpoint is named, passed over, and never mistaken for a sound one."""

import json

import numpy as np
import pytest
from toy_checkpoints import contents, is_of, save

from dl_techniques.training import checkpoint_folder
from dl_techniques.training.checkpoint_reader import CheckpointReader
from dl_techniques.training.checkpoint_store import CheckpointStore


@pytest.fixture
def store(tmp_path):
    with CheckpointStore(tmp_path / "run" / "checkpoints") as store:
        yield store


def flip_bit(path, place):
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def cut(path, length):
    path.write_bytes(path.read_bytes()[:length])


STATE, PROGRESS = "state.safetensors", "progress.json"
DAMAGES = {
    "last byte flipped": (lambda f: flip_bit(f / STATE, -1), f"{STATE} is damaged: 1 of 2"),
    "a name flipped": (
        lambda f: (f / STATE).write_bytes((f / STATE).read_bytes().replace(b'"w"', b'"v"')),
        f"{STATE} is damaged: 2 of 2 arrays.*first 'v'",
    ),
    "a dtype changed": (
        lambda f: (f / STATE).write_bytes((f / STATE).read_bytes().replace(b"F32", b"I32")),
        f"{STATE} is damaged: 1 of 2 arrays.*first 'w'",
    ),
    "header's length flipped": (lambda f: flip_bit(f / STATE, 7), f"{STATE} is truncated"),
    "state truncated": (lambda f: cut(f / STATE, -5), f"{STATE} is not a valid safetensors"),
    "state empty": (lambda f: cut(f / STATE, 0), f"{STATE} is truncated"),
    "state gone": (lambda f: (f / STATE).unlink(), f"incomplete: it has no {STATE}"),
    "progress truncated": (lambda f: cut(f / PROGRESS, -1), f"{PROGRESS} is damaged"),
    "progress empty": (lambda f: cut(f / PROGRESS, 0), f"{PROGRESS} is damaged"),
    "progress gone": (lambda f: (f / PROGRESS).unlink(), f"incomplete: it has no {PROGRESS}"),
    "progress is a list": (lambda f: (f / PROGRESS).write_text("[]"), f"{PROGRESS} is damaged"),
    "progress changed": (
        lambda f: (f / PROGRESS).write_text(
            (f / PROGRESS).read_text().replace('"progress": {"step": 2', '"progress": {"step": 3')
        ),
        f"{PROGRESS} is damaged: it is not what was written",
    ),
    "both gone": (lambda f: [path.unlink() for path in f.iterdir()], "incomplete"),
    "another's state": (
        lambda f: (f / STATE).write_bytes((f.with_name("step_000000001") / STATE).read_bytes()),
        f"{STATE} is damaged: 2 of 2",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_is_named_and_passed_over(damage, store):
    change, message = DAMAGES[damage]
    save(store, 1)
    save(store, 2)
    before = contents(store.folder)
    change(store.folder / "step_000000002")
    assert contents(store.folder) != before
    assert store.latest() == 2
    with pytest.raises(ValueError, match=rf"step_000000002.*{message}"):
        store.load(2)
    with pytest.warns(UserWarning, match=rf"Step 2 is passed over.*step_000000002.*{message}"):
        step, arrays, progress = store.load_latest()
    assert step == 1
    assert is_of(1, arrays, progress)
    assert store.discard_newer(step) == [2]
    save(store, 2)
    assert store.load_latest()[0] == 2


def test_every_bit_of_the_files_is_guarded(store):
    """Flip one bit in every byte: it is found, or means nothing."""
    store.save(1, {"w": np.arange(3, dtype="float32")}, {"step": 1}, score=2, block=True)
    folder = store.folder / "step_000000001"
    for path in folder.iterdir():
        whole = path.read_bytes()
        for i in range(len(whole)):
            flip_bit(path, i)
            try:
                arrays, progress = store.load(1)
            except ValueError:
                pass
            else:
                assert progress == {"step": 1} and list(arrays) == ["w"]
                np.testing.assert_array_equal(arrays["w"], [0, 1, 2])
            path.write_bytes(whole)


def test_if_none_is_sound_all_that_was_found_is_listed(store, tmp_path):
    for reader in (store, CheckpointReader(tmp_path / "absent")):
        assert (reader.steps(), reader.latest(), reader.best()) == ([], None, None)
        with pytest.raises(ValueError, match="no sound checkpoint. It holds none at all"):
            reader.load_latest()
    for step in (1, 2):
        save(store, step)
        (store.folder / f"step_00000000{step}" / PROGRESS).unlink()
    with (
        pytest.warns(UserWarning, match="Step [12] is passed over"),
        pytest.raises(ValueError, match="step_000000002 is incomplete.*step_000000001 is incompl"),
    ):
        store.load_latest()
    with pytest.raises(ValueError, match=r"has no step 3; it has \[1, 2\]"):
        store.load(3)


def test_another_format_is_refused(store):
    store.save(1, {}, {}, block=True)
    path = store.folder / "step_000000001" / PROGRESS
    content = json.loads(path.read_text())["content"] | {"format": 2}
    path.write_bytes(checkpoint_folder._with_checksum(content))
    with pytest.raises(ValueError, match="has format 2, this version reads 1"):
        store.load(1)


def test_a_score_that_cannot_be_read_is_reported_and_is_not_the_best(tmp_path):
    with CheckpointStore(tmp_path) as store:
        for step in range(3):
            save(store, step, score=step)
        assert store.best() == 0
    (tmp_path / "step_000000000" / PROGRESS).unlink()
    with pytest.warns(UserWarning, match="score is unknown: .*step_000000000 is incomplete"):
        assert CheckpointReader(tmp_path).best() == 1
    with CheckpointStore(tmp_path) as store:
        with pytest.warns(UserWarning, match="score is unknown"):
            save(store, 3)
        assert (store.steps(), store.best()) == ([1, 2, 3], 1)
