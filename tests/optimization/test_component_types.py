"""Every type of optimizer as a component: accumulation, clipping, bfloat16, saved state."""

import keras
import numpy as np
import pytest
from keras import ops

from dl_techniques.optimization import Adafactor, ComponentOptimizer, Muon, optimizer_builder

TYPES = ["adamw", "adam", "sgd", "lion", "adafactor", "muon"]
SHAPES = {"mlp/kernel": (4, 6), "mlp/bias": (6,), "token_embedding/embeddings": (5, 4)}


class Holder(keras.layers.Layer):
    """Variables of given shapes at the paths "holder/{part}/{name}"."""

    def __init__(self, shapes, **kwargs):
        super().__init__(**kwargs)
        self.shapes = shapes

    def build(self, input_shape=None):
        rng = np.random.default_rng(0)
        for path, shape in self.shapes.items():
            scope, name = path.split("/")
            with keras.name_scope(scope):
                variable = self.add_weight(shape=shape, initializer="zeros", name=name)
            variable.assign(rng.normal(size=shape))


def holder(dtype="float32", shapes=SHAPES):
    layer = Holder(shapes, name="holder", dtype=dtype)
    layer.build()
    return layer.trainable_variables


def component_optimizer(name, rate=0.03, accumulation_steps=1, clip=1.0, **settings):
    part = optimizer_builder({"type": name, **settings}, rate)
    return ComponentOptimizer({"holder": part}, clip, accumulation_steps)


def step(optimizer, variables, gradients, weight=1.0):
    with optimizer.token_weight(weight):
        optimizer.apply([ops.cast(g, variables[0].dtype) for g in gradients], variables)


def random_gradients(rng, variables):
    # Powers of two are exact in bfloat16.
    return [
        (2.0 ** rng.integers(-2, 3, v.shape) * rng.choice([-1, 1], v.shape)).astype("float32")
        for v in variables
    ]


def values(variables):
    return [ops.convert_to_numpy(ops.cast(v, "float32")).copy() for v in variables]


@pytest.mark.parametrize("name", TYPES)
def test_micro_batches_equal_the_big_batch(name):
    whole, parts = holder(), holder()
    optimizers = [component_optimizer(name, accumulation_steps=n) for n in (1, 2)]
    rng = np.random.default_rng(1)
    for _ in range(3):
        one, other = random_gradients(rng, whole), random_gradients(rng, whole)
        step(optimizers[0], whole, [(a + 3 * b) / 4 for a, b in zip(one, other, strict=True)])
        step(optimizers[1], parts, one, 1.0)
        before = values(parts)
        step(optimizers[1], parts, other, 3.0)
        assert all((a != b).any() for a, b in zip(before, values(parts), strict=True))
    for expected, got in zip(values(whole), values(parts), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", TYPES)
def test_clipping_is_what_the_component_sees(name):
    """A gradient of norm 100 cut to 1 moves the weights as that of norm 1 does."""
    moved = []
    for scale in (1.0, 100.0):
        variables = holder()
        optimizer = component_optimizer(name)
        gradients = random_gradients(np.random.default_rng(1), variables)
        norm = np.sqrt(sum((g**2).sum() for g in gradients))
        for _ in range(2):
            step(optimizer, variables, [g * (scale / norm) for g in gradients])
            step(optimizer, variables, [g * (0.5 / norm) for g in gradients])
        assert optimizer.gradient_norms["all"] == pytest.approx(0.5, rel=1e-5)
        moved.append(values(variables))
    for expected, got in zip(*moved, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("accumulation_steps", [1, 2])
def test_bfloat16_weights_follow_those_in_float32(name, accumulation_steps):
    tracks, start = [], None
    for dtype in ("float32", "bfloat16"):
        variables = holder(dtype)
        for variable, value in zip(variables, start or values(variables), strict=True):
            variable.assign(ops.cast(ops.cast(value, "bfloat16"), dtype))
        start = values(variables)
        settings = {"momentum": 0.9} if name == "sgd" else {}
        optimizer = component_optimizer(name, 0.1, accumulation_steps, **settings)
        rng = np.random.default_rng(1)
        drift = random_gradients(rng, variables)
        for _ in range(10 * accumulation_steps):
            noise = random_gradients(rng, variables)
            step(optimizer, variables, [4 * d + n for d, n in zip(drift, noise, strict=True)])
        assert {v.dtype for v in variables} == {dtype}
        tracks.append(values(variables))
    for first, expected, got in zip(start, *tracks, strict=True):
        way = np.linalg.norm(expected - first)
        assert way > 0.1
        assert np.linalg.norm(got - expected) < 0.12 * way


@pytest.mark.parametrize("name", ["adamw", "adam", "adafactor", "muon"])
def test_moments_of_bfloat16_weights_are_float32(name):
    optimizer = component_optimizer(name)
    optimizer.build(holder("bfloat16"))
    assert "bfloat16" not in {v.dtype for v in optimizer.variables}


@keras.saving.register_keras_serializable(package="test_component_types")
class Chain(keras.Model):
    """One small layer for each of four components."""

    NAMES = ("sgd", "lion", "adafactor", "muon")

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.chain = [keras.layers.Dense(3, name=f"{name}_part") for name in self.NAMES]

    def build(self, input_shape):
        for layer in self.chain:
            layer.build((None, 3))

    def call(self, x):
        for layer in self.chain:
            x = layer(x)
        return x


def test_saved_state_goes_on_as_if_never_stopped(tmp_path):
    settings = {"sgd": {"momentum": 0.9}}
    parts = {
        f"{name}_part": optimizer_builder({"type": name, **settings.get(name, {})}, 0.01)
        for name in Chain.NAMES
    }
    model = Chain(name="chain")
    model.build((None, 3))
    model.compile(ComponentOptimizer(parts, 1.0, accumulation_steps=2), "mse")
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 3, 3)).astype("float32")
    model.fit(x, y, batch_size=1, shuffle=False, verbose=0)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert again.optimizer.pending_batches == 1
    assert [type(o) for o in again.optimizer.optimizers] == [
        type(o) for o in model.optimizer.optimizers
    ]
    saved = values(model.trainable_variables)
    for one in (model, again):
        one.fit(x, y, batch_size=1, shuffle=False, verbose=0)
    for first, expected, got in zip(
        saved, *(values(m.trainable_variables) for m in (model, again)), strict=True
    ):
        np.testing.assert_array_equal(expected, got)
        assert (expected != first).any()


def test_adafactor_keeps_means_only_and_equals_keras():
    shapes = {"mlp/kernel": (4, 6), "mlp/bias": (6,), "mlp/cube": (2, 3, 4)}
    updated, sizes = [], []
    for make in (Adafactor, keras.optimizers.Adafactor):
        optimizer, variables = make(0.05), holder(shapes=shapes)
        rng = np.random.default_rng(1)
        for _ in range(4):
            gradients = [rng.normal(size=v.shape).astype("float32") for v in variables]
            optimizer.apply([ops.convert_to_tensor(g) for g in gradients], variables)
        updated.append(values(variables))
        sizes.append(sum(int(np.prod(v.shape)) for v in optimizer.variables))
    for got, expected in zip(*updated, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5)
    # Rows and columns, one square per element of a vector; the count and the rate.
    assert sizes[0] == (4 + 6) + 6 + (2 * 3 + 2 * 4) + 2
    # Keras has the products too, and two zeros for the vector.
    assert sizes[1] - sizes[0] == 4 * 6 + 2 * 3 * 4 + 2


def test_adafactor_where_whole_rows_and_columns_have_no_gradient():
    (variable,) = holder(shapes={"mlp/kernel": (3, 3)})
    before = values([variable])[0]
    gradient = np.zeros((3, 3), "float32")
    gradient[0, 0] = 1.0
    Adafactor(0.1).apply([ops.convert_to_tensor(gradient)], [variable])
    moved = values([variable])[0] - before
    assert moved[0, 0] < -0.01
    moved[0, 0] = 0
    np.testing.assert_array_equal(moved, 0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_muon_orthogonalises_matrices_and_leaves_the_rest_to_adam(dtype):
    matrices = {"mlp/kernel": (6, 4), "q_proj/kernel": (4, 4)}
    rest = {
        "norm/scale": (4,),
        "mlp/bias": (2, 3),
        "patch_embedding/position_embedding": (4, 5),
        "token_embedding/embeddings": (3, 4),
        "top/class_token": (1, 1, 4),
        "cube/kernel": (2, 3, 4),
    }
    variables = holder(dtype, matrices | rest)
    optimizer = optimizer_builder({"type": "muon", "adam_lr_ratio": 0.5}, 0.25)
    assert isinstance(optimizer, Muon)
    before = values(variables)
    gradients = random_gradients(np.random.default_rng(1), variables)
    optimizer.apply([ops.cast(g, dtype) for g in gradients], variables)
    names = [*matrices, *rest]
    moved = {p: a - b for p, a, b in zip(names, values(variables), before, strict=True)}
    rough = {"float32": 1e-4, "bfloat16": 0.02}[dtype]
    for path, shape in matrices.items():
        # Moonlight's scale: 0.2 times the root of the longer side.
        stretch = np.linalg.svd(moved[path].astype("float64"), compute_uv=False)
        stretch /= 0.25 * 0.2 * np.sqrt(max(shape))
        assert (0.6 < stretch).all() and (stretch < 1.3).all()
    for path, gradient in zip(rest, gradients[len(matrices) :], strict=True):
        # Adam's first step is the rate, whatever the gradient.
        np.testing.assert_allclose(moved[path], -0.125 * np.sign(gradient), atol=rough)
