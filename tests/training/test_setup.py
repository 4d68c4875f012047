"""The default loss, schedule and optimizers: the numbers that users were promised."""

import keras
import pytest
from toy_runs import ToyData, micro_nanovlm, weights

from dl_techniques.losses import NanoVLMLoss
from dl_techniques.optimization import AdamW
from dl_techniques.training.setup import (
    component_optimizer,
    create_training_setup,
    default_optimizer,
    setup_different_learning_rates,
)
from dl_techniques.training.trainer import NanoVLMTrainer, learning_rates

RATES = {"vision": 1e-5, "language": 1e-5, "projection": 1e-4}
PARTS = {
    "vision": "vision_encoder",
    "language": "language_decoder",
    "projection": "modality_projection",
}


def test_training_setup_is_the_promised_one():
    setup = create_training_setup()
    assert sorted(setup) == ["loss_fn", "lr_schedule", "optimizer"]
    assert isinstance(setup["loss_fn"], NanoVLMLoss)
    assert setup["loss_fn"].label_smoothing == 0.1
    optimizer = setup["optimizer"]
    assert isinstance(optimizer, AdamW)
    assert (optimizer.beta_1, optimizer.beta_2) == (0.9, 0.999)
    assert optimizer.global_clipnorm == 1.0
    found = [float(setup["lr_schedule"](step)) for step in (0, 500, 1000, 26000, 51000, 99999)]
    half = 1e-4 * (1e-4 + (1 - 1e-4) / 2)
    assert found == pytest.approx([1e-8, 5.0005e-5, 1e-4, half, 1e-8, 1e-8], rel=1e-3)
    assert float(optimizer.learning_rate) == pytest.approx(1e-8)


def test_each_part_has_its_rate_and_its_weights():
    model = micro_nanovlm()
    setup = setup_different_learning_rates(model)
    kinds = ("optimizer", "params")
    assert sorted(setup) == sorted(f"{name}_{kind}" for name in RATES for kind in kinds)
    for name, rate in RATES.items():
        assert isinstance(setup[f"{name}_optimizer"], AdamW)
        assert float(setup[f"{name}_optimizer"].learning_rate) == pytest.approx(rate)
        paths = {variable.path for variable in setup[f"{name}_params"]}
        assert paths and all(path.startswith(PARTS[name] + "/") for path in paths)
    params = [id(v) for name in RATES for v in setup[f"{name}_params"]]
    assert sorted(params) == sorted(id(v) for v in model.trainable_variables)


def test_the_trainers_default_optimizer_has_these_rates():
    optimizer = default_optimizer(micro_nanovlm(), accumulation_steps=None)
    expected = {PARTS[name]: pytest.approx(rate) for name, rate in RATES.items()}
    assert learning_rates(optimizer) == expected
    assert learning_rates(keras.optimizers.LossScaleOptimizer(optimizer)) == expected
    assert learning_rates(keras.optimizers.SGD(0.5)) == {"all": 0.5}
    assert optimizer.get_config()["global_clipnorm"] == 1.0
    assert optimizer.accumulation_steps is None


def test_each_part_moves_by_its_own_rate():
    model = micro_nanovlm()
    parts = {name: keras.optimizers.SGD(rate) for name, rate in RATES.items()}
    parts["vision"] = keras.optimizers.SGD(0.0)
    before = weights(model)
    NanoVLMTrainer(model, optimizer=component_optimizer(parts)).train_step(ToyData()[0])
    moved = {path for path, value in weights(model).items() if (value != before[path]).any()}
    assert {path.split("/")[0] for path in moved} == {PARTS["language"], PARTS["projection"]}
