import keras
import numpy as np
import pytest
from keras import ops

from dl_techniques.optimization import (
    Adafactor,
    AdamW,
    Muon,
    adafactor,
    learning_rate_schedule_builder,
    moments,
    optimizer_builder,
)


class Holder(keras.layers.Layer):
    """Variables of the kinds that weight decay tells apart."""

    SHAPES = {
        "kernel": (3, 2),
        "bias": (2,),
        "gamma": (3,),
        "position_embedding": (4, 2),
        "class_token": (1, 1, 2),
    }

    def build(self, input_shape=None):
        for name, shape in self.SHAPES.items():
            self.add_weight(shape=shape, initializer="ones", name=name)


def holder():
    layer = Holder(name="holder")
    layer.build()
    return layer


def no_grad_apply(optimizer, gradients, variables):
    gradients = [ops.convert_to_tensor(g) for g in gradients]
    optimizer.apply(gradients, variables)
    return [ops.convert_to_numpy(v) for v in variables]


def test_only_matrices_are_decayed():
    layer = holder()
    optimizer = optimizer_builder({"type": "adamw", "weight_decay": 0.5}, 0.1)
    zeros = [np.zeros(v.shape, "float32") for v in layer.trainable_variables]
    values = no_grad_apply(optimizer, zeros, layer.trainable_variables)
    names = [v.name for v in layer.trainable_variables]
    factors = {name: float(value.ravel()[0]) for name, value in zip(names, values, strict=True)}
    assert factors.pop("kernel") == pytest.approx(0.95)
    assert factors == {"bias": 1.0, "gamma": 1.0, "position_embedding": 1.0, "class_token": 1.0}


def test_asked_exclusion_is_kept():
    layer = holder()
    optimizer = AdamW(0.1, weight_decay=0.5)
    optimizer.exclude_from_weight_decay(var_names=["kernel"])
    zeros = [np.zeros(v.shape, "float32") for v in layer.trainable_variables]
    values = no_grad_apply(optimizer, zeros, layer.trainable_variables)
    assert all((value == 1.0).all() for value in values)


def test_an_update_reads_its_schedule_once_for_all_weights():
    class Schedule(keras.optimizers.schedules.LearningRateSchedule):
        read = 0

        def __call__(self, step):
            self.read += 1
            return 0.1

    variables = holder().trainable_variables
    optimizer = AdamW(Schedule(), weight_decay=0.5)
    no_grad_apply(optimizer, [np.ones(v.shape, "float32") for v in variables], variables)
    assert optimizer._learning_rate.read == 1


@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("clip", [None, 1.0, 1000.0])
def test_adamw_follows_its_definition(clip, amsgrad):
    config = {"type": "adamw", "weight_decay": 0.1, "epsilon": 1e-3, "beta_2": 0.9}
    if clip:
        config["gradient_clipping_by_norm"] = clip
    optimizer = optimizer_builder(config, 0.01)
    if amsgrad:
        optimizer = AdamW.from_config({**optimizer.get_config(), "amsgrad": True})
    rng = np.random.default_rng(0)
    variable = keras.Variable(rng.normal(size=(4, 3)), dtype="float32", name="kernel")
    w = ops.convert_to_numpy(variable).astype("float64")
    m, v, largest = np.zeros((3, 4, 3))
    for step in range(1, 5):
        g = rng.normal(size=(4, 3)).astype("float32") * (3, 9, 1, 1)[step - 1]
        (value,) = no_grad_apply(optimizer, [g.copy()], [variable])
        g = g.astype("float64")
        if clip:
            g *= min(1.0, clip / np.linalg.norm(g))
        w -= 0.01 * 0.1 * w
        m = 0.9 * m + 0.1 * g
        v = 0.9 * v + 0.1 * g * g
        rate = 0.01 * np.sqrt(1 - 0.9**step) / (1 - 0.9**step)
        largest = np.maximum(largest, v) if amsgrad else v
        w -= rate * m / (np.sqrt(largest) + 1e-3)
        np.testing.assert_allclose(value, w, rtol=2e-6, atol=1e-7)
    assert int(optimizer.iterations) == 4


def test_adamw_with_a_gradient_of_other_memory_layout():
    rng = np.random.default_rng(0)
    start, g = rng.normal(size=(2, 4, 3)).astype("float32")
    updated = []
    for gradient in (ops.convert_to_tensor(g), ops.transpose(ops.convert_to_tensor(g.T.copy()))):
        variable = keras.Variable(start, name="kernel")
        AdamW(0.1).apply([gradient], [variable])
        updated.append(ops.convert_to_numpy(variable))
    np.testing.assert_array_equal(*updated)


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd", "lion", "adafactor", "muon"])
def test_every_type_lowers_a_loss_and_is_serializable(name):
    optimizer = optimizer_builder({"type": name, "gradient_clipping_by_norm": 1.0}, 0.05)
    optimizer = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    variable = keras.Variable(np.full((2, 2), 3.0, "float32"), name="kernel")
    for _ in range(10):
        (value,) = no_grad_apply(optimizer, [ops.convert_to_numpy(variable) * 2], [variable])
    assert (value < 2.97).all()


def test_settings_reach_the_optimizer():
    schedule = learning_rate_schedule_builder(
        {"type": "constant", "learning_rate": 0.5, "warmup_steps": 2}
    )
    config = {"type": "adamw", "beta_1": 0.8, "beta_2": 0.95, "gradient_clipping_by_norm": 1.0}
    optimizer = optimizer_builder(config, schedule)
    assert (optimizer.beta_1, optimizer.beta_2, optimizer.global_clipnorm) == (0.8, 0.95, 1.0)
    assert float(ops.convert_to_tensor(optimizer.learning_rate)) == 0.0
    assert optimizer_builder({"type": "sgd", "momentum": 0.5}, 1.0).momentum == 0.5
    clipped = optimizer_builder({"type": "adam", "gradient_clipping_by_value": 0.1}, 1.0)
    assert clipped.clipvalue == 0.1


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"type": "adamW"}, r"'adamW'.*'adafactor', 'adam', 'adamw', 'lion', 'muon', 'sgd'"),
        ({}, "Unknown optimizer type None"),
        ({"type": "adamw", "clipnorm": 1.0}, r"\['clipnorm'\].*'gradient_clipping_by_norm'"),
        ({"type": "sgd", "beta_1": 0.9}, r"\['beta_1'\].*'momentum'"),
        ({"type": "adamw", "beta_1": "0.9"}, "'beta_1' must be a number"),
        (
            {"type": "sgd", "gradient_clipping_by_norm": 1, "gradient_clipping_by_value": 1},
            "only one of",
        ),
    ],
)
def test_bad_config(config, message):
    with pytest.raises(ValueError, match=message):
        optimizer_builder(config, 1e-3)


@pytest.mark.parametrize(
    ("make", "owner", "name", "calls_on_torch"),
    [
        # Programs of AdamW are shared by optimizers; this one is of its own.
        (lambda: AdamW(0.01, beta_1=0.87), moments, "less", 0),
        (lambda: Adafactor(0.01), adafactor, "less", 15),
        (lambda: Muon(0.01), keras.optimizers.Muon, "zeropower_via_newtonschulz5", 15),
    ],
    ids=["adamw", "adafactor", "muon"],
)
def test_weights_that_are_alike_are_traced_once(make, owner, name, calls_on_torch, monkeypatch):
    traced, function = [], getattr(owner, name)

    def noted(*args, **kwargs):
        traced.append(name)
        return function(*args, **kwargs)

    monkeypatch.setattr(owner, name, noted)
    layers = [keras.layers.Dense(7, use_bias=False) for _ in range(5)]
    model = keras.Sequential([keras.Input((7,)), *layers])
    model.compile(optimizer=make(), loss="mse")
    x = np.ones((2, 7), "float32")
    losses = [float(model.train_on_batch(x, np.zeros_like(x))) for _ in range(3)]
    assert losses[2] < losses[1] < losses[0]
    assert len(traced) == (calls_on_torch if keras.backend.backend() == "torch" else 1)
