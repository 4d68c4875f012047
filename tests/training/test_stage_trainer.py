"""StageTrainer: what moves, what is logged, and runs that go on exactly where they were stopped."""

import json
import os
import signal
import sys
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from keras import ops
from tiny_models import logits
from toy_runs import micro_nanovlm
from toy_stages import ToyStream, align, text_batch, tune

from dl_techniques.training.checkpoint_reader import CheckpointReader
from dl_techniques.training.flops import model_flops
from dl_techniques.training.stage_trainer import StageTrainer
from dl_techniques.training.stages import Stage
from dl_techniques.training.watching import Evaluation, LogFile, WeightsAndBiases


def weights(model):
    return {v.path: ops.convert_to_numpy(v.value).copy() for v in model.weights}


def moved(before, after):
    return {path for path in before if not np.array_equal(before[path], after[path])}


def fresh_model():
    """Return the same model, and the same random numbers to come, whenever it is called."""
    keras.utils.set_random_seed(0)
    return micro_nanovlm(dropout=0.2)


def log_of(folder):
    """Return the lines of the log without times."""
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith("speed/")} for row in rows]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that was not stopped: its folder, and its weights at the beginning and the end."""
    folder = tmp_path_factory.mktemp("whole")
    model = fresh_model()
    before = weights(model)
    StageTrainer(model, [align(), tune()], folder).run()
    return folder, before, weights(model)


def test_a_stage_moves_what_it_trains_and_nothing_else(tmp_path):
    model = micro_nanovlm()
    first, text = weights(model), logits(model, text_batch())
    StageTrainer(model, [align()], tmp_path / "a").run()
    second = weights(model)
    assert moved(first, second) == {p for p in first if "modality_projection/" in p}
    np.testing.assert_array_equal(logits(model, text_batch()), text)
    assert len(model.optimizer.variables) < 20  # None for what is frozen.
    StageTrainer(model, [tune()], tmp_path / "b").run()
    opened = ("modality_projection/", "language_decoder/block_0/")
    assert moved(second, weights(model)) == {p for p in first if any(o in p for o in opened)}


def test_the_log_has_every_step(whole):
    folder, _, end = whole
    rows = log_of(folder)
    assert [row["step"] for row in rows] == list(range(1, 10))
    assert all(np.isfinite(row["train/loss"]) for row in rows)
    assert set(rows[0]) >= {"learning_rate/modality_projection", "gradient_norm/all"}
    assert len([key for key in rows[-1] if key.startswith("learning_rate/")]) == 2
    assert list((folder / "tensorboard").glob("events*"))
    model = fresh_model()
    for stage, line in ((align(), 0), (tune(), -1)):
        speed = json.loads((folder / "log.jsonl").read_text().splitlines()[line])
        stage.apply(model)
        expected = stage.accumulation_steps * model_flops(model, next(iter(stage.data))[0])
        found = speed["speed/model_tflops_per_second"] * speed["speed/seconds"] * 1e12
        assert found == pytest.approx(expected)
        assert speed["speed/peak_memory_mb"] > 10
    last = keras.saving.load_model(folder / "tune" / "model.keras", compile=False)
    for path, value in weights(last).items():
        np.testing.assert_array_equal(value, end[path])


def test_a_stopped_run_goes_on_as_if_it_had_not_been(whole, tmp_path):
    def stop(step, model):
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt, match="Stopped after step 2;"):
        StageTrainer(fresh_model(), [align(), tune()], tmp_path, on_step=stop).run()
    model = micro_nanovlm(seed=3, dropout=0.2)  # Whatever it holds is replaced.
    StageTrainer(model, [align(), tune()], tmp_path).run(resume=True)
    assert log_of(tmp_path) == log_of(whole[0])
    for path, value in weights(model).items():
        np.testing.assert_array_equal(value, whole[2][path], path)


def test_steps_after_the_last_checkpoint_are_taken_again(whole, tmp_path):
    class Crash(Exception):
        pass

    def crash(step, model):
        if step == 7:
            raise Crash

    stages = [align(), tune()]
    with pytest.raises(Crash):
        StageTrainer(fresh_model(), stages, tmp_path, checkpoint_every=3, on_step=crash).run()
    assert len(log_of(tmp_path)) == 6
    keras.utils.set_random_seed(9)
    model = micro_nanovlm(dropout=0.2)
    StageTrainer(model, stages, tmp_path, checkpoint_every=3).run(resume=True)
    assert log_of(tmp_path) == log_of(whole[0])
    for path, value in weights(model).items():
        np.testing.assert_array_equal(value, whole[2][path], path)


def test_stages_that_end_with_their_data_are_as_if_their_steps_were_done(whole, tmp_path, caplog):
    asked = []

    def evaluate(step, model):
        asked.append(step)
        return Evaluation({"toy": 0.0}, score=float(step == 4))

    def trainer(model):
        stages = [
            align(steps=50, planned_steps=4, data=ToyStream(1, batches=4, ends=True)),
            # The eleventh batch is no whole update.
            tune(steps=50, planned_steps=5, data=ToyStream(2, batches=11, ends=True)),
        ]
        return StageTrainer(model, stages, tmp_path, evaluate=evaluate, evaluate_every=4)

    model = fresh_model()
    trainer(model).run()
    lines = log_of(tmp_path)
    assert [row for row in lines if "train/loss" in row] == log_of(whole[0])
    assert asked == [4, 8, 9]
    checkpoints = CheckpointReader(tmp_path / "checkpoints", "max")
    assert (checkpoints.best(), checkpoints.steps()) == (4, [4, 8, 9])
    again = micro_nanovlm(seed=3, dropout=0.2)
    trainer(again).run(resume=True)
    assert asked == [4, 8, 9] and log_of(tmp_path) == lines
    for path, value in whole[2].items():
        np.testing.assert_array_equal(weights(model)[path], value, path)
        np.testing.assert_array_equal(weights(again)[path], value, path)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_data_that_ends_too_soon_is_told(tmp_path, caplog):
    data = ToyStream(1, batches=3, ends=True)
    model = micro_nanovlm()
    StageTrainer(model, [align(steps=50, data=data)], tmp_path / "a").run()
    assert "planned for 50 steps, but the data had 3" in caplog.text
    with pytest.raises(ValueError, match="before the first step, which takes 4 batches"):
        StageTrainer(model, [align(accumulation_steps=4, data=data)], tmp_path / "b").run()


def test_a_step_that_is_not_finite_is_left_out_and_named(tmp_path):
    model, clean = micro_nanovlm(), micro_nanovlm()
    seen = {}

    def keep(step, model):
        seen[step] = weights(model)

    stage = align(steps=5, data=ToyStream(1, spoiled=[2]))
    StageTrainer(model, [stage], tmp_path, on_step=keep).run()
    assert not moved(seen[2], seen[3]) and moved(seen[3], seen[4])
    assert all(np.isfinite(value).all() for value in seen[5].values())
    (line,) = (tmp_path / "skipped.jsonl").read_text().splitlines()
    assert json.loads(line) == {"step": 3, "loss": "nan", "samples": ["toy/2"]}
    assert log_of(tmp_path)[2]["train/loss"] is None and log_of(tmp_path)[4]["skipped_steps"] == 1
    spoiled = align(steps=9, data=ToyStream(1, spoiled=[3, 4, 5]))
    with pytest.raises(FloatingPointError, match=r"3 steps in a row.*up to step 6.*is step 4"):
        StageTrainer(
            clean, [spoiled], tmp_path / "b", checkpoint_every=2, keep_last=3, max_skipped=3
        ).run()


def test_loss_scaling_leaves_it_out_too(tmp_path):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = micro_nanovlm()
    finally:
        keras.config.set_dtype_policy(before)
    seen = {}

    def keep(step, model):
        seen[step] = weights(model)

    stage = align(steps=5, data=ToyStream(1, spoiled=[2]))
    StageTrainer(model, [stage], tmp_path, on_step=keep).run()
    assert not moved(seen[2], seen[3]) and moved(seen[3], seen[5])
    (line,) = (tmp_path / "skipped.jsonl").read_text().splitlines()
    assert json.loads(line) == {"step": 3, "loss": "nan", "samples": ["toy/2"]}
    spoiled = align(steps=9, data=ToyStream(1, spoiled=[3, 4, 5]))
    with pytest.raises(FloatingPointError, match="3 steps in a row.*up to step 6"):
        StageTrainer(model, [spoiled], tmp_path / "b", max_skipped=3).run()


@pytest.mark.no_backend
def test_who_watches_may_change_when_a_run_is_resumed(tmp_path, monkeypatch):
    begun = []

    class Run:
        def __init__(self, **options):
            begun.append(options)
            self.id = options.get("id", f"run {len(begun)}")

        def log(self, values, step):
            pass

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=Run))

    def trainer(*watchers):
        return StageTrainer(None, [align()], tmp_path, watchers=watchers)

    def file(name):
        return LogFile(tmp_path / name)

    def go_on(*watchers):
        """Resume from the first trainer's state, and take another step."""
        resumed = trainer(*watchers)
        resumed.restore(progress)
        resumed.tell(2, {"b": 2.0})
        return resumed

    first = trainer(file("own"), WeightsAndBiases("p"))
    first.tell(1, {"a": 1.0})
    progress = json.loads(json.dumps(first.progress(0, 1, 1, False, None)))
    first.tell(2, {"a": 9.0})
    assert begun == [{"project": "p"}]
    go_on(WeightsAndBiases("p"))
    go_on(file("own"), file("new"), WeightsAndBiases("q"))
    go_on()
    assert begun[1:] == [{"project": "p", "id": "run 1", "resume": "must"}, {"project": "q"}]
    read = {name: (tmp_path / name).read_text() for name in ("own", "log.jsonl", "new")}
    both = '{"step": 1, "a": 1.0}\n{"step": 2, "b": 2.0}\n'
    assert read == {"own": both, "log.jsonl": both, "new": '{"step": 2, "b": 2.0}\n'}


def test_averages_are_what_a_stage_ends_with(tmp_path):
    model, seen = micro_nanovlm(), {}

    def keep(step, model):
        seen[step] = weights(model), model.optimizer.averaged_values()

    stage = align(steps=3, ema_decay=0.9)
    StageTrainer(model, [stage], tmp_path, on_step=keep).run()
    last, averages = seen[3]
    names = [v.path for v in model.trainable_variables]
    end = weights(model)
    for name, average in zip(names, averages, strict=True):
        np.testing.assert_array_equal(end[name], average)
        assert np.abs(last[name] - average).max() > 1e-5
    saved = keras.saving.load_model(tmp_path / "align" / "model.keras", compile=False)
    assert not moved(end, weights(saved))


def test_what_cannot_be_run_is_refused(whole, tmp_path):
    model = micro_nanovlm()
    with pytest.raises(ValueError, match="Stages need names of their own"):
        StageTrainer(model, [align(), align()], tmp_path)
    with pytest.raises(ValueError, match="holds the checkpoints of a run"):
        StageTrainer(model, [align()], whole[0]).run()
    with pytest.raises(ValueError, match="has the stages"):
        StageTrainer(model, [tune()], whole[0]).run(resume=True)
    with pytest.raises(ValueError, match="of an older version"):
        StageTrainer(model, [align()], tmp_path)._place({"stages": ["align"], "step": 3})
    with pytest.raises(ValueError, match="no sound checkpoint"):
        StageTrainer(model, [align()], tmp_path / "none").run(resume=True)
    with pytest.raises(ValueError, match="The data ended before the stage"):
        StageTrainer(model, [align(data=ToyStream(1, batches=2))], tmp_path / "short").run()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "a b"}, "letters"),
        ({"steps": 0}, "steps"),
        ({"planned_steps": 2}, "at most steps=1"),
        ({"trainable": {}}, "trains nothing"),
        ({"trainable": {"modality_projection": 0.0}}, "learning rate 0.0"),
        ({"trainable": {"modality_projection": "1e-4"}}, "learning rate '1e-4'"),
        ({"layer_decay": {"modality_projection": "0.9"}}, "layer_decay '0.9' .* must be a number"),
        ({"unfreeze_last_blocks": {"vision_encoder": 1}}, "no patterns of trainable"),
        ({"schedule": {"type": "steps"}}, "needs a type"),
        ({"schedule": {"type": "cosine", "alfa": 1}}, "needs a type"),
    ],
)
def test_wrong_stages_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Stage(**{"name": "a", "steps": 1, "trainable": {"modality_projection": 1.0}, **changes})
