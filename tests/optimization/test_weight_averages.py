import keras
import numpy as np
import pytest
from keras import ops
from part_models import apply, full, model_with, values

from dl_techniques.optimization import AdamW, ComponentOptimizer

SGD = keras.optimizers.SGD


def make_optimizer(accumulation_steps=1, ema_decay=0.3):
    parts = {"a": SGD(0.25), "b": AdamW(0.1)}
    return ComponentOptimizer(parts, None, accumulation_steps, ema_decay=ema_decay)


def averaged(start, weights, decay):
    """Average a list of weights by the rule that `WeightAverages` states."""
    average = start.astype("float64")
    for n, weight in enumerate(weights):
        kept = min(decay, (1 + n) / (10 + n))
        average = kept * average + (1 - kept) * weight
    return average


# 0.3 rules from the fourth update on; 0.999 is not reached.
@pytest.mark.parametrize("ema_decay", [0.3, 0.999])
@pytest.mark.parametrize("accumulation_steps", [1, 3])
def test_averages_follow_every_update(ema_decay, accumulation_steps):
    variables = model_with("a", "b").trainable_variables
    optimizer = make_optimizer(accumulation_steps, ema_decay)
    optimizer.build(variables)
    for start, average in zip(values(variables), optimizer.averaged_values(), strict=True):
        np.testing.assert_array_equal(start, average)
    rng, seen, start = np.random.default_rng(0), [], values(variables)
    for step in range(6 * accumulation_steps):
        gradients = rng.normal(size=(2, 2, 2)).astype("float32")
        apply(optimizer, variables, list(gradients))
        apply(optimizer, variables, [full(np.nan), full(1)])
        if (step + 1) % accumulation_steps == 0:
            seen.append([value.copy() for value in values(variables)])
        got = optimizer.averaged_values()
        for k in range(2):
            expected = averaged(start[k], [s[k] for s in seen], ema_decay)
            np.testing.assert_allclose(got[k], expected, rtol=2e-6)
    assert np.abs(got[0] - seen[-1][0]).max() > 0.01


def test_averages_in_compiled_steps():
    model = model_with("a", "b")
    optimizer = make_optimizer(ema_decay=0.9)
    model.compile(optimizer=optimizer, loss="mse")
    start, seen = values(model.trainable_variables)[0].copy(), []
    x = np.ones((1, 2), "float32")
    for _ in range(4):
        model.fit(x, 0 * x, verbose=0)
        seen.append(values(model.trainable_variables)[0].copy())
    expected = averaged(start, seen, 0.9)
    np.testing.assert_allclose(optimizer.averaged_values()[0], expected, rtol=2e-6)
    # A compiled evaluation, which on JAX gives the memory of the weights away.
    with optimizer.averaged_weights():
        inside = model.evaluate(x, 0 * x, verbose=0)
    np.testing.assert_array_equal(values(model.trainable_variables)[0], seen[-1])
    np.testing.assert_allclose(optimizer.averaged_values()[0], expected, rtol=2e-6)
    assert inside > 1.1 * model.evaluate(x, 0 * x, verbose=0)
    model.fit(x, 0 * x, verbose=0)
    expected = averaged(start, [*seen, values(model.trainable_variables)[0]], 0.9)
    np.testing.assert_allclose(optimizer.averaged_values()[0], expected, rtol=2e-6)


def test_values_given_out_do_not_move():
    variables = model_with("a", "b").trainable_variables
    optimizer = make_optimizer()
    apply(optimizer, variables, [full(1), full(1)])
    given = optimizer.averaged_values()
    kept = [value.copy() for value in given]
    apply(optimizer, variables, [full(1), full(1)])
    for old, new in zip(kept, given, strict=True):
        np.testing.assert_array_equal(old, new)
        assert new.dtype == "float32"
        assert new.flags.writeable  # Not a view of what the optimizer holds.


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_come_back_exactly(dtype):
    rng = np.random.default_rng(0)
    variables = [
        keras.Variable(rng.normal(size=(2, 2)), dtype=dtype, name=name) for name in ("a", "b")
    ]
    optimizer = make_optimizer()
    for _ in range(3):
        gradients = rng.normal(size=(2, 2, 2)).astype("float32")
        optimizer.apply([ops.cast(g, dtype) for g in gradients], variables)
    as_numbers = [ops.convert_to_numpy(ops.cast(v, "float32")).copy() for v in variables]
    averages = optimizer.averaged_values()
    with pytest.raises(KeyError), optimizer.averaged_weights():
        for variable, average, weight in zip(variables, averages, as_numbers, strict=True):
            assert variable.dtype == dtype
            inside = ops.convert_to_numpy(ops.cast(variable, "float32"))
            rounded = ops.convert_to_numpy(ops.cast(ops.cast(average, dtype), "float32"))
            np.testing.assert_array_equal(inside, rounded)
            assert np.abs(inside - weight).max() > 1e-3
        # What happens to the weights inside reaches neither the averages nor what comes back.
        variables[0].assign(ops.zeros((2, 2), dtype=dtype))
        raise KeyError
    for variable, weight in zip(variables, as_numbers, strict=True):
        np.testing.assert_array_equal(ops.convert_to_numpy(ops.cast(variable, "float32")), weight)
    for before, after in zip(averages, optimizer.averaged_values(), strict=True):
        np.testing.assert_array_equal(before, after)


def test_averages_cost_memory_only_where_asked_for():
    sizes = []
    for ema_decay in (None, 0.9):
        optimizer = make_optimizer(ema_decay=ema_decay)
        optimizer.build(model_with("a", "b").trainable_variables)
        sizes.append(sum(int(np.prod(v.shape)) for v in optimizer.variables))
    assert sizes[1] - sizes[0] == 8


def test_averages_are_saved_and_go_on(tmp_path):
    @keras.saving.register_keras_serializable(package="test_weight_averages")
    class Model(keras.Sequential):
        pass

    model = Model([keras.Input((2,)), keras.layers.Dense(2, name="a")])
    optimizer = ComponentOptimizer({"a": AdamW(0.1)}, ema_decay=0.9)
    model.compile(optimizer=optimizer, loss="mse")
    x = np.ones((2, 2), "float32")
    model.fit(x, x, batch_size=1, verbose=0)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert again.optimizer.ema_decay == 0.9
    for one in (model, again):
        one.fit(x, x, batch_size=1, verbose=0)
    expected, got = optimizer.averaged_values(), again.optimizer.averaged_values()
    for one, other in zip(expected, got, strict=True):
        np.testing.assert_array_equal(one, other)
    assert not (expected[0] == values(model.trainable_variables)[0]).any()


def test_errors():
    for ema_decay in (0.0, 1.0, -0.5):
        with pytest.raises(ValueError, match="ema_decay must lie between 0 and 1"):
            make_optimizer(ema_decay=ema_decay)
    for optimizer in (make_optimizer(ema_decay=None), make_optimizer()):
        with pytest.raises(ValueError, match="set ema_decay, and build"):
            optimizer.averaged_values()
        with pytest.raises(ValueError, match="set ema_decay, and build"):
            optimizer.averaged_weights()
