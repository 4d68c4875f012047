"""NanoVLMTrainer: steps, epochs, evaluation, files; plain compile and fit."""

import json

import keras
import numpy as np
import pytest
from only_on import only_on
from PIL import Image
from tiny_models import fill, logits
from toy_runs import ToyData, adam, micro_nanovlm, next_token_sums, weights

from dl_techniques.losses import NanoVLMLoss, NextTokenAccuracy
from dl_techniques.models.nano_vlm import NanoVLM
from dl_techniques.optimization import optimizer_builder
from dl_techniques.training.trainer import NanoVLMTrainer, supervised_tokens


@pytest.fixture
def policy(request):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(request.param)
    yield request.param
    keras.config.set_dtype_policy(before)


@pytest.fixture(scope="module")
def compiled():
    return NanoVLMTrainer(micro_nanovlm(), optimizer=adam())


@pytest.fixture
def trainer(compiled, tmp_path):
    """A trainer with fresh weights and optimizer that is compiled once for all tests."""
    fill(compiled.model)
    for variable in compiled.model.optimizer.variables:
        if "learning_rate" not in variable.path:
            variable.assign(np.zeros(variable.shape))
    compiled.output_dir = tmp_path / "run"
    return compiled


def test_one_image_text_pair_is_learned_by_heart(trainer):
    batch = ToyData().rows([0])
    for _ in range(80):
        logs = trainer.train_step(batch)
    assert logs["loss"] < 0.01
    assert logs["accuracy"] == 1.0


@only_on("jax", "tensorflow")
def test_the_step_of_a_new_model_is_traced_once(monkeypatch):
    traced = []
    step = NanoVLM.train_step
    monkeypatch.setattr(NanoVLM, "train_step", lambda *a: traced.append(1) or step(*a))
    trainer = NanoVLMTrainer(micro_nanovlm())
    for _ in range(2):
        trainer.train_step(ToyData(shuffle=False)[0])
    assert traced == [1]


def test_a_step_reports_the_loss_before_its_update(trainer):
    model = trainer.model
    data = ToyData(shuffle=False)
    for inputs, labels in (data[0], data[1]):
        loss, right, count = next_token_sums(logits(model, inputs), labels)
        logs = trainer.train_step((inputs, labels))
        assert logs["loss"] == pytest.approx(loss / count, rel=1e-4)
        assert logs["accuracy"] == pytest.approx(right / count, rel=1e-6)


def test_evaluation_weighs_tokens_not_batches(trainer):
    model = trainer.model
    data = ToyData(shuffle=False)
    data.labels[-1] = -100  # The last batch learns nothing at all.
    sums = np.array([next_token_sums(logits(model, data[i][0]), data[i][1]) for i in range(3)])
    assert len(set(sums[:, 2])) == 3
    loss, right, count = sums.sum(axis=0)
    found = trainer.evaluate(data)
    assert found["tokens"] == count
    assert found["loss"] == pytest.approx(loss / count, rel=1e-5)
    assert found["accuracy"] == pytest.approx(right / count, rel=1e-6)


def test_fit_records_and_saves_every_epoch(trainer, tmp_path):
    model = trainer.model
    trainer.fit(ToyData(), epochs=1)  # What was done before is no part of the run.
    trainer.train_step(ToyData()[0])
    held_out = ToyData(seed=1)
    history = trainer.fit(ToyData(), epochs=3, validation_data=held_out, save_every_epochs=2)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "history.json",
        "loss_curve.png",
        "nanovlm_checkpoint_epoch_2.keras",
        "nanovlm_final.keras",
        "training_state.safetensors",
    ]
    assert json.loads((tmp_path / "run" / "history.json").read_text()) == history
    with Image.open(tmp_path / "run" / "loss_curve.png") as picture:
        assert picture.format == "PNG"
        picture.load()
    assert [row["step"] for row in history["steps"]] == list(range(1, 10))
    assert [row["epoch"] for row in history["steps"]] == [1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert history["steps"][0]["learning_rates"] == pytest.approx(
        {"vision_encoder": 1e-2, "language_decoder": 1e-2, "modality_projection": 1e-2}
    )
    _check_epoch_averages(history)
    final = trainer.evaluate(held_out)
    assert history["epochs"][-1]["val_loss"] == pytest.approx(final["loss"], rel=1e-6)
    assert history["epochs"][-1]["train_loss"] < history["epochs"][0]["train_loss"]
    loaded = keras.saving.load_model(tmp_path / "run" / "nanovlm_final.keras")
    for path, value in weights(loaded).items():
        np.testing.assert_array_equal(value, weights(model)[path])


def _check_epoch_averages(history):
    for row in history["epochs"]:
        steps = [s for s in history["steps"] if s["epoch"] == row["epoch"]]
        tokens = np.array([s["supervised_tokens"] for s in steps])
        assert len(set(tokens)) > 1
        for name in ("loss", "accuracy"):
            mean = tokens @ [s[name] for s in steps] / tokens.sum()
            assert row[f"train_{name}"] == pytest.approx(mean, rel=1e-5)


def test_model_files_hold_no_optimizer_state(trainer, tmp_path):
    trainer.fit(ToyData(), epochs=1)
    model = trainer.model
    assert model.optimizer.built and model.compiled  # Training can go on.
    model.save(tmp_path / "all.keras")
    size = (tmp_path / "run" / "nanovlm_final.keras").stat().st_size
    assert size < 0.75 * (tmp_path / "all.keras").stat().st_size


def test_a_loss_that_is_not_finite_names_the_step(trainer):
    data = ToyData()

    def poison(epoch, i):
        if (epoch, i) == (1, 1):
            data.images[:] = np.nan

    data.on_read = poison
    with pytest.raises(FloatingPointError, match="nan at step 5"):
        trainer.fit(data, epochs=2)
    assert not trainer.output_dir.exists()  # Nothing broken is saved.


@pytest.mark.parametrize("argument", ["epochs", "log_every", "save_every_epochs"])
def test_numbers_below_one_are_refused(trainer, argument):
    with pytest.raises(ValueError, match=f"{argument}=0"):
        trainer.fit(ToyData(), **{argument: 0})


def test_frozen_parts_stay_and_all_others_move():
    model = micro_nanovlm()
    model.vision_encoder.trainable = False
    frozen = {v.path: keras.ops.convert_to_numpy(v.value) for v in model.vision_encoder.variables}
    before = weights(model)
    trainer = NanoVLMTrainer(model)
    for _ in range(2):
        trainer.train_step(ToyData()[0])
    assert list(trainer.model.optimizer.learning_rates) == [
        "language_decoder",
        "modality_projection",
    ]
    for variable in model.vision_encoder.variables:
        np.testing.assert_array_equal(
            keras.ops.convert_to_numpy(variable.value), frozen[variable.path]
        )
    after = weights(model)
    assert before and [path for path in before if (before[path] == after[path]).all()] == []


def test_gradients_reach_every_weight():
    model = micro_nanovlm()
    before = weights(model)
    NanoVLMTrainer(model, optimizer=keras.optimizers.SGD(1.0)).train_step(ToyData()[0])
    after = weights(model)
    moved = {path: np.abs(after[path] - before[path]).max() for path in before}
    # Softmax does not see what is added to all its inputs, so the keys' bias has no gradient.
    unmoved = {path for path in moved if moved[path] < 1e-6 * max(moved.values())}
    assert unmoved == {path for path in moved if path.endswith("k_proj/bias")}


@pytest.mark.parametrize(
    "policy", ["float32", "bfloat16", "mixed_bfloat16", "mixed_float16"], indirect=True
)
def test_plain_compile_and_fit(policy):
    model = micro_nanovlm()
    optimizer = optimizer_builder({"type": "adamw", "weight_decay": 0.0}, 1e-2)
    model.compile(optimizer, NanoVLMLoss(), metrics=[NextTokenAccuracy()])
    history = model.fit(ToyData(), epochs=8, verbose=0, shuffle=False).history
    assert history["loss"][-1] < 0.8 * history["loss"][0]
    assert history["next_token_accuracy"][-1] > history["next_token_accuracy"][0]
    assert all(np.isfinite(value).all() for value in weights(model).values())
    expected = "bfloat16" if policy == "bfloat16" else "float32"
    assert {v.dtype for v in model.trainable_variables} == {expected}
    scaled = isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    assert scaled == (policy == "mixed_float16")
    if scaled:
        check_that_overflowing_steps_are_left_out(model)


def check_that_overflowing_steps_are_left_out(model):
    before = weights(model)
    for scale, moves in ((2.0**40, False), (2.0**10, True)):
        model.optimizer.dynamic_scale.assign(scale)
        model.train_on_batch(*ToyData()[0])
        assert moves == any((v != before[path]).any() for path, v in weights(model).items())


def test_supervised_tokens_leaves_out_what_nothing_can_predict():
    labels = np.array([[5, 6, -100, 7], [-100, -100, -100, -100]])
    assert supervised_tokens(labels) == 2
