"""A run that is stopped and resumed is the run that was not stopped."""

import errno
import json
import os
import signal

import keras
import numpy as np
import pytest
from toy_runs import ToyData, adam, micro_nanovlm, weights

from dl_techniques.training import training_state
from dl_techniques.training.trainer import NanoVLMTrainer

EPOCHS = 3


def new_trainer(folder, seed=0, optimizer=None, **changes):
    keras.utils.set_random_seed(seed)
    model = micro_nanovlm(seed=seed, dropout=0.2, **changes)
    return NanoVLMTrainer(model, optimizer=optimizer or adam(), output_dir=folder)


def losses(trainer):
    return [row["loss"] for row in trainer.history["steps"]]


def ctrl_c_before(epoch, i):
    """Return an `on_read` for ToyData. Batches are read ahead, in another thread."""

    def on_read(*place):
        if place == (epoch, i):
            os.kill(os.getpid(), signal.SIGINT)

    return on_read


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    trainer = new_trainer(tmp_path_factory.mktemp("whole"))
    trainer.fit(ToyData(), epochs=EPOCHS, validation_data=ToyData(seed=1))
    return trainer


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """The folder of a run that was stopped in the middle of its second epoch."""
    folder = tmp_path_factory.mktemp("stopped")
    data = ToyData(on_read=ctrl_c_before(1, 1))
    with pytest.raises(KeyboardInterrupt, match="Stopped after step [45] of 9; resume to go on"):
        new_trainer(folder).fit(data, epochs=EPOCHS, validation_data=ToyData(seed=1))
    return folder


def copy_of(folder, target):
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


@pytest.fixture
def folder(stopped, tmp_path):
    return copy_of(stopped, tmp_path)


def test_a_stopped_run_has_saved_a_whole_step(stopped, uninterrupted):
    names = {path.name for path in stopped.iterdir()}
    assert names == {"history.json", "loss_curve.png", "training_state.safetensors"}
    history = json.loads((stopped / "history.json").read_text())
    done = len(history["steps"])
    assert done in (4, 5)
    assert [row["loss"] for row in history["steps"]] == losses(uninterrupted)[:done]
    assert len(history["epochs"]) == 1


def test_the_resumed_run_is_the_uninterrupted_one(folder, uninterrupted):
    # Nothing of this process' second model, its weights, random state or names, may matter.
    trainer = new_trainer(folder, seed=7)
    trainer.fit(ToyData(), epochs=EPOCHS, validation_data=ToyData(seed=1), resume=True)
    assert losses(trainer) == losses(uninterrupted)
    assert trainer.history["epochs"] == uninterrupted.history["epochs"]
    expected = weights(uninterrupted.model)
    for path, value in weights(trainer.model).items():
        np.testing.assert_array_equal(value, expected[path])
    assert (folder / "nanovlm_final.keras").is_file()


def test_a_stop_in_the_last_step_of_an_epoch_loses_nothing(uninterrupted, tmp_path):
    trainer = new_trainer(tmp_path)
    step = trainer.train_step

    def last_step(batch):
        logs = step(batch)
        if len(trainer.history["steps"]) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return logs

    trainer.train_step = last_step
    validation = ToyData(seed=1)
    with pytest.raises(KeyboardInterrupt, match="after step 3 of 9"):
        trainer.fit(ToyData(), epochs=EPOCHS, validation_data=validation, save_every_epochs=1)
    assert trainer.history["epochs"] == uninterrupted.history["epochs"][:1]
    assert (tmp_path / "nanovlm_checkpoint_epoch_1.keras").is_file()
    trainer.train_step = step
    trainer.fit(ToyData(), epochs=EPOCHS, validation_data=validation, resume=True)
    assert losses(trainer) == losses(uninterrupted)
    assert trainer.history["epochs"] == uninterrupted.history["epochs"]


def test_a_second_ctrl_c_stops_at_once_and_the_handler_is_put_back(tmp_path):
    given = signal.getsignal(signal.SIGINT)
    before = signal.default_int_handler  # A shell lets its background jobs ignore the signal.
    signal.signal(signal.SIGINT, before)
    trainer = new_trainer(tmp_path)

    def impatient(batch):
        # To this thread: two that wait for another one would count as one.
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    trainer.train_step = impatient
    with pytest.raises(KeyboardInterrupt) as stop:
        trainer.fit(ToyData(), epochs=1)
    assert "resume" not in str(stop.value)
    assert signal.getsignal(signal.SIGINT) is before
    signal.signal(signal.SIGINT, given)


def check_refused(trainer, data, message):
    """Require that resuming raises, and changes neither model nor trainer nor folder."""
    state = {path: path.read_bytes() for path in trainer.output_dir.iterdir()}
    before = weights(trainer.model)
    with pytest.raises(ValueError, match=message):
        trainer.fit(data, epochs=EPOCHS, resume=True)
    assert all((value == before[path]).all() for path, value in weights(trainer.model).items())
    assert trainer.history == {"steps": [], "epochs": []}
    assert {path: path.read_bytes() for path in trainer.output_dir.iterdir()} == state


def test_what_belongs_to_another_run_is_refused(folder):
    trainer = new_trainer(folder, seed=7)
    check_refused(trainer, ToyData(batch_size=3), "other data.*batch size")
    check_refused(trainer, ToyData(seed=1), "other data.*seed")
    check_refused(trainer, ToyData(rows=6, batch_size=2), "other data")
    wider = new_trainer(folder, mlp_dim=40)
    check_refused(wider, ToyData(), r"gate_proj/kernel: file \(24, 32\), model \(24, 40\)")
    plain = new_trainer(folder, optimizer=keras.optimizers.SGD(0.1, momentum=0.9))
    check_refused(plain, ToyData(), "another model, optimizer")


def test_files_that_cannot_be_read_are_refused(folder, tmp_path_factory):
    trainer = new_trainer(folder, seed=7)
    path = folder / training_state.FILE_NAME
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:4], b"", b"\xff" * 200):
        path.write_bytes(damaged)
        check_refused(trainer, ToyData(), "training_state.safetensors is damaged")
    path.unlink()
    check_refused(trainer, ToyData(), "nothing to resume: .*does not exist")
    trainer.output_dir = None
    with pytest.raises(ValueError, match="needs the trainer's output_dir"):
        trainer.fit(ToyData(), epochs=EPOCHS, resume=True)


def test_a_full_disk_leaves_the_older_state(folder, monkeypatch):
    def no_space(arrays, path, metadata):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    trainer = new_trainer(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setattr(training_state, "save_file", no_space)
    with pytest.raises(OSError, match="training_state.safetensors: .*No space left"):
        trainer.fit(ToyData(), epochs=EPOCHS, resume=True)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_full_disk_leaves_the_older_model(tmp_path, monkeypatch):
    trainer = new_trainer(tmp_path)
    path = tmp_path / "nanovlm_final.keras"
    path.write_bytes(b"older")

    def no_space(partial):
        partial.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(trainer.model, "save", no_space)
    with pytest.raises(OSError, match="No space left"):
        training_state.save_model(trainer.model, path)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == b"older"
    assert trainer.model.compiled and trainer.model.optimizer is not None


@pytest.mark.parametrize("name", ["bfloat16", "mixed_float16"])
def test_state_of_other_precisions_comes_back_exactly(name, tmp_path):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        first, second = new_trainer(tmp_path), new_trainer(tmp_path, seed=7)
    finally:
        keras.config.set_dtype_policy(before)
    for trainer in (first, second):
        trainer.model.optimizer.build(trainer.model.trainable_variables)
    generator = np.random.default_rng(0)
    for variable in first.model.optimizer.variables:
        variable.assign(generator.uniform(1, 9, variable.shape))
    training_state.save_training_state(tmp_path, first.model, {"any": [1.5, None]})
    progress = training_state.load_training_state(tmp_path, second.model, lambda saved: None)
    assert progress == {"any": [1.5, None]}
    for owner in (lambda t: t.model, lambda t: t.model.optimizer):
        pairs = zip(owner(first).variables, owner(second).variables, strict=True)
        for expected, found in pairs:
            assert expected.dtype == found.dtype
            np.testing.assert_array_equal(
                *(keras.ops.convert_to_numpy(v.value) for v in (expected, found))
            )
