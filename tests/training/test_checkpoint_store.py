"""What is saved comes back exactly; a failed save is reported and costs one step."""

import errno
import math
import os
import threading
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from toy_checkpoints import contents, is_of, names, save, state

from dl_techniques.training import checkpoint_folder, checkpoint_store
from dl_techniques.training.checkpoint_reader import CheckpointReader
from dl_techniques.training.checkpoint_store import CheckpointStore


@pytest.fixture
def store(tmp_path):
    with CheckpointStore(tmp_path / "run" / "checkpoints") as store:
        yield store


@pytest.fixture
def blocked(monkeypatch):
    """An event: until it is set, no write gets on. It lists the steps that have begun."""
    go, write = threading.Event(), checkpoint_store.write_checkpoint
    go.begun = []

    def slow(target, *rest):
        go.begun.append(target.name)
        assert go.wait(timeout=60)
        write(target, *rest)

    monkeypatch.setattr(checkpoint_store, "write_checkpoint", slow)
    yield go
    go.set()


def test_every_dtype_shape_and_progress_comes_back_exactly(store):
    generator = np.random.default_rng(0)
    arrays = {
        str(dtype): generator.integers(0, 2, (3, 2)).astype(dtype)
        for dtype in ("bool", "u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8")
    }
    arrays["bfloat16"] = generator.normal(size=(2, 5)).astype(ml_dtypes.bfloat16)
    arrays["nan"] = np.array([math.nan, -0.0, math.inf], "float32")
    arrays["a scalar"] = np.array(7, "int64")
    arrays["empty"] = np.zeros((0, 4), "float32")
    arrays["transposed"] = generator.normal(size=(4, 6)).T
    arrays["strided"] = np.arange(10)[::3]
    progress = {"losses": [0.1, 1e-300, None], "text": "\N{SNOWMAN}\ud800", "deep": {"a": [{}]}}
    store.save(12, arrays, progress, block=True)
    loaded, loaded_progress = store.load(12)
    assert loaded_progress == progress
    assert set(loaded) == set(arrays) and len(loaded) == len(arrays)
    for name, array in arrays.items():
        assert loaded[name].dtype == array.dtype and loaded.shape(name) == array.shape
        assert loaded[name].shape == array.shape
        assert loaded[name].tobytes() == array.tobytes()
    loaded["f4"][...] = 5  # Each access gives memory of its own.
    assert loaded["f4"].tobytes() == arrays["f4"].tobytes()
    with pytest.raises(KeyError):
        loaded["absent"]
    assert names(store.folder) == ["step_000000012"]
    assert names(store.folder / "step_000000012") == ["progress.json", "state.safetensors"]


def test_a_checkpoint_without_arrays_and_one_with_a_huge_step(store):
    store.save(0, {}, {}, block=True)
    store.save(10**10, {}, {"a": 1}, block=True)
    assert store.steps() == [0, 10**10]
    assert [dict(arrays) for arrays in (store.load(0)[0], store.load(10**10)[0])] == [{}, {}]


def test_neither_writing_nor_reading_holds_a_second_copy(store):
    arrays = {f"a{i}": np.full(250_000, i, "float32") for i in range(8)}
    tracemalloc.start()
    try:
        store.save(1, arrays, {}, block=True)
        writing = tracemalloc.get_traced_memory()[1]
        loaded, _ = store.load(1)
        for name in loaded:
            assert loaded[name][0] == arrays[name][0]
        whole = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert writing < 500_000  # Of 8,000,000 bytes.
    assert whole < 2_500_000  # One at a time, and the one before.


def test_what_cannot_be_stored_is_refused_at_once(store):
    good, progress = state(1)
    for arrays, message in (
        ({"w": [1.0]}, "'w' is a list, not a NumPy array"),
        ({"w": np.array(["a"])}, "'w' has dtype <U1"),
        ({"w": np.array([None])}, "'w' has dtype object"),
        ({"w": np.zeros(2, ">f4")}, "'w' has dtype >f4"),
        ({3: np.zeros(2)}, "3 cannot be the name"),
        ({"__metadata__": np.zeros(2)}, "cannot be the name"),
    ):
        with pytest.raises(ValueError, match=message):
            store.save(1, arrays, progress)
    with pytest.raises(ValueError, match="what JSON can hold.*float32"):
        store.save(1, good, {"loss": np.float32(1)})
    with pytest.raises(ValueError, match="must be a dict, got list"):
        store.save(1, good, [1])
    for step in (-1, 1.0, "1"):
        with pytest.raises(ValueError, match="integer of at least 0"):
            store.save(step, good, progress)
    store.close()
    assert names(store.folder) == []


def test_a_header_that_could_not_be_read_does_not_count_as_saved(store):
    save(store, 1)
    many = {f"{i}{'x' * 5000}": np.zeros(1, "float32") for i in range(900)}
    with pytest.raises(OSError, match="Step 2 could not be saved.*header of .* is not read"):
        store.save(2, many, {}, block=True)
    assert store.steps() == [1]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"keep_last": 0}, "keep_last=0 must be at least 1"),
        ({"keep_best": -1}, "keep_best=-1 at least 0"),
        ({"best": "lowest"}, "'min' or 'max', got 'lowest'"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        CheckpointStore(tmp_path, **arguments)
    assert names(tmp_path) == []


def test_saving_does_not_wait_and_a_second_save_waits_for_the_first(store, blocked):
    arrays, progress = state(1)
    store.save(1, arrays, progress)
    progress["step"] = "changed later"
    assert store.steps() == [] and store.latest() is None
    second = threading.Thread(target=lambda: store.save(2, *state(2)))
    second.start()
    while not blocked.begun:
        second.join(0.01)
    second.join(0.05)
    assert second.is_alive() and blocked.begun == ["step_000000001"]
    blocked.set()
    second.join()
    store.wait()
    assert blocked.begun == ["step_000000001", "step_000000002"]
    assert store.steps() == [1, 2]
    assert is_of(1, *store.load(1))


def test_closing_finishes_the_write_and_is_final(tmp_path, blocked):
    with CheckpointStore(tmp_path) as store:
        store.save(1, *state(1))
        threading.Timer(0.05, blocked.set).start()
    assert CheckpointReader(tmp_path).steps() == [1]
    store.close()
    for call in (lambda: save(store, 2), lambda: store.discard_newer(0)):
        with pytest.raises(ValueError, match="closed"):
            call()
    assert is_of(1, *store.load(1))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EIO])
@pytest.mark.parametrize("call", ["save", "wait", "close", "discard_newer"])
def test_an_error_of_the_background_surfaces_once_and_costs_one_step(
    code, call, tmp_path, monkeypatch
):
    def fails_halfway(folder, tensors, **options):
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError(code, os.strerror(code))

    store = CheckpointStore(tmp_path)
    save(store, 1)
    before = contents(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_folder, "write_folder", fails_halfway)
        store.save(2, *state(2))
        arguments = {"save": (3, *state(3)), "discard_newer": (1,)}.get(call, ())
        message = f"Step 2 could not be saved .*untouched: .*{os.strerror(code)}"
        with pytest.raises(OSError, match=message):
            getattr(store, call)(*arguments)
    store.wait()
    assert contents(tmp_path) == before
    if call == "close":  # It let the lock go.
        store = CheckpointStore(tmp_path)
    with store:
        save(store, 2)
        assert store.steps() == [1, 2]


def test_whatever_fails_in_the_background_is_one_os_error(store, monkeypatch):
    def fails(*arguments, **options):
        raise MemoryError("no memory")

    monkeypatch.setattr(checkpoint_folder, "write_folder", fails)
    with pytest.raises(OSError, match="Step 1 could not be saved .*no memory") as caught:
        save(store, 1)
    assert isinstance(caught.value.__cause__, MemoryError)
    assert names(store.folder) == []


def test_a_failure_to_remove_an_old_one_does_not_hide_the_new(tmp_path, monkeypatch):
    rmtree = checkpoint_store.shutil.rmtree

    def fails(path, **options):
        if ".removing_" in str(path):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        rmtree(path, **options)

    with CheckpointStore(tmp_path, keep_last=1) as store:
        save(store, 1)
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint_store.shutil, "rmtree", fails)
            with pytest.raises(OSError, match="Step 2 is saved, but an older one stays.*Permiss"):
                save(store, 2)
        assert store.steps() == [2]
    with CheckpointStore(tmp_path):
        assert names(tmp_path) == ["step_000000002"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file/checkpoints"):
        CheckpointStore(tmp_path / "file" / "checkpoints")


def test_all_is_on_the_disk_before_it_counts(tmp_path, monkeypatch):
    """Without this order a power cut could leave a checkpoint with a name and no content."""
    synced, renames = [], []
    rename, sync = os.rename, os.fsync

    def recorded_sync(descriptor):
        sync(descriptor)
        synced.append(os.fstat(descriptor).st_ino)

    def recorded_rename(source, target):
        if target.name.startswith("step_"):
            inside = [source, *source.iterdir()]
            renames.append([path.stat().st_ino in synced for path in inside])
            synced.clear()
        rename(source, target)

    with CheckpointStore(tmp_path) as store:
        monkeypatch.setattr(os, "fsync", recorded_sync)
        monkeypatch.setattr(os, "rename", recorded_rename)
        save(store, 1)
    assert renames == [[True, True, True]]
    assert synced == [tmp_path.stat().st_ino]
