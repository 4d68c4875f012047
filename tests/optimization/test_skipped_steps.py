"""Steps without finite gradients change nothing, eagerly and inside compiled steps."""

import keras
import numpy as np
import pytest
from keras import ops
from only_on import only_on
from part_models import apply, full, model_with, state, values

from dl_techniques.optimization import (
    AdamW,
    ComponentOptimizer,
    gradient_ops,
    learning_rate_schedule_builder,
)

LossScaleOptimizer = keras.optimizers.LossScaleOptimizer
BACKEND = keras.backend.backend()


def rate():
    return learning_rate_schedule_builder(
        {"type": "linear_decay", "learning_rate": 0.5, "decay_steps": 20}
    )


def make_optimizer(accumulation_steps=1):
    parts = {"a": AdamW(rate(), weight_decay=0.1), "b": keras.optimizers.SGD(rate(), momentum=0.9)}
    return ComponentOptimizer(parts, 1.0, accumulation_steps, ema_decay=0.9)


def counts(optimizer):
    return optimizer.skipped_steps, optimizer.skipped_in_a_row


# 1e30 is finite, its square is not.
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e30])
@pytest.mark.parametrize("clip", [None, 1.0])
def test_a_bad_step_changes_nothing(bad, clip):
    variables = model_with("a", "b").trainable_variables
    optimizer = ComponentOptimizer({"a": AdamW(rate()), "b": AdamW(0.1)}, clip, ema_decay=0.9)
    assert counts(optimizer) == (0, 0)
    apply(optimizer, variables, [full(1), full(2)])
    before, norms = state(optimizer, variables), optimizer.gradient_norms
    gradient = full(1)
    gradient[1, 0] = bad
    for k in (1, 2):
        apply(optimizer, variables, [full(1), gradient.copy()])
        assert counts(optimizer) == (k, k)
    for old, new in zip(before, state(optimizer, variables), strict=True):
        np.testing.assert_array_equal(old, new)
    assert optimizer.gradient_norms == norms
    assert isinstance(optimizer.skipped_steps, int)
    apply(optimizer, variables, [full(1), full(2)])
    assert counts(optimizer) == (2, 0)
    assert int(optimizer.iterations) == 2
    assert np.isfinite(np.concatenate(values(variables))).all()
    assert (before[0] != values(variables)[0]).all()


@pytest.mark.parametrize("missing", [False, True])
def test_a_bad_micro_batch_is_replaced_by_the_next(missing):
    updated = []
    for bad_at in (None, 0, 1):
        variables = model_with("a", "b").trainable_variables
        optimizer = make_optimizer(2)
        optimizer.build(variables)
        for i, (gradient, weight) in enumerate([(1.0, 1.0), (-4.0, 3.0)]):
            if i == bad_at:
                before = state(optimizer, variables)
                bad = [None if missing else full(1), full(np.nan)]
                apply(optimizer, variables, bad, 5.0)
                for old, new in zip(before, state(optimizer, variables), strict=True):
                    np.testing.assert_array_equal(old, new)
                assert counts(optimizer) == (1, 1)
            apply(optimizer, variables, [full(gradient), full(2 * gradient)], weight)
        assert counts(optimizer) == (0 if bad_at is None else 1, 0)
        assert optimizer.pending_batches == 0
        assert int(optimizer.iterations) == 1
        updated.append(state(optimizer, variables))
    for other in updated[1:]:
        for expected, got in zip(updated[0], other, strict=True):
            np.testing.assert_array_equal(expected, got)


def test_a_weight_that_is_not_finite_spoils_the_batch():
    variables = model_with("a").trainable_variables
    optimizer = ComponentOptimizer({"a": AdamW(0.1)}, accumulation_steps=None)
    apply(optimizer, variables, [full(1)], np.nan)
    assert (optimizer.pending_batches, *counts(optimizer)) == (0, 1, 1)


def test_sums_too_large_to_be_squared_are_dropped():
    variables = model_with("a").trainable_variables
    optimizer = ComponentOptimizer({"a": AdamW(0.1)}, accumulation_steps=2)
    # Each norm, 8e18, has a finite square; that of their sum, 3.2e19, has none.
    for _ in range(2):
        apply(optimizer, variables, [full(4e18)], 2.0)
    np.testing.assert_array_equal(values(variables)[0], full(1))
    assert (optimizer.pending_batches, *counts(optimizer)) == (0, 1, 1)
    for _ in range(2):
        apply(optimizer, variables, [full(1)], 2.0)
    np.testing.assert_allclose(values(variables)[0], full(1 - 0.1 * 0.004 - 0.1), rtol=2e-6)


def data(bad_row=None):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(7, 2)).astype("float32")
    if bad_row is None:
        x = np.delete(x, 3, axis=0)
    else:
        x[bad_row] = np.nan
    return x, np.ones((len(x), 2), "float32")


def fit(optimizer, bad_row):
    keras.utils.set_random_seed(0)
    model = model_with("a", "b")
    model.compile(optimizer=optimizer, loss="mse")
    x, y = data(bad_row)
    model.fit(x, y, batch_size=1, shuffle=False, verbose=0)
    return model


@pytest.fixture(params=[False, True] if BACKEND == "jax" else [False])
def accelerator(request, monkeypatch):
    """Whether JAX seems to run on one."""
    if request.param:
        monkeypatch.setattr(gradient_ops, "jax_platform", lambda: "gpu")
    return request.param


@pytest.mark.parametrize("accumulation_steps", [1, 2])
def test_fit_over_a_bad_batch_equals_fit_without_it(accumulation_steps, accelerator):
    optimizers = [make_optimizer(accumulation_steps) for _ in range(2)]
    models = [fit(optimizers[0], None), fit(optimizers[1], 3)]
    without, over = (
        state(o, m.trainable_variables) for o, m in zip(optimizers, models, strict=True)
    )
    for expected, got in zip(without, over, strict=True):
        np.testing.assert_array_equal(expected, got)
    assert np.abs(without[0] - 1).max() > 0.1
    assert [counts(o) for o in optimizers] == [(0, 0), (1, 0)]
    assert int(ops.convert_to_numpy(optimizers[1].iterations)) == 6 // accumulation_steps


def test_loss_scaling_skips_by_itself():
    inner = make_optimizer()
    model = fit(LossScaleOptimizer(inner, initial_scale=4.0), 3)
    expected = values(fit(make_optimizer(), None).trainable_variables)
    for one, other in zip(values(model.trainable_variables), expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)
    assert float(ops.convert_to_numpy(model.optimizer.dynamic_scale)) == 2.0
    assert counts(inner) == (0, 0)


def test_what_loss_scaling_lets_through_is_skipped_inside():
    variables = model_with("a", "b").trainable_variables
    inner = make_optimizer(2)
    optimizer = LossScaleOptimizer(inner, initial_scale=2.0)
    optimizer.build(variables)
    before, step = state(inner, variables), compiled_step(optimizer, variables)
    step([full(1e30), full(1)])
    for old, new in zip(before, state(inner, variables), strict=True):
        np.testing.assert_array_equal(old, new)
    assert counts(inner) == (1, 1)
    assert float(ops.convert_to_numpy(optimizer.dynamic_scale)) == 2.0
    for _ in range(2):
        step([full(1), full(1)])
    assert (values(variables)[1] < 1).all()
    assert counts(inner) == (1, 0)


def compiled_step(optimizer, variables):
    """Return gradients -> None, which applies them in a compiled step."""
    if BACKEND == "tensorflow":
        import tensorflow as tf

        return tf.function(lambda gradients: optimizer.apply(gradients, variables))
    if BACKEND == "torch":
        return lambda gradients: apply(optimizer, variables, gradients)
    import jax

    step, groups = jax.jit(optimizer.stateless_apply), (variables, optimizer.variables)

    def run(gradients):
        trained, kept = ([v.value for v in group] for group in groups)
        for group, new in zip(groups, step(kept, gradients, trained), strict=True):
            for variable, value in zip(group, new, strict=True):
                variable.assign(value)

    return run


@only_on("jax")
def test_no_loop_makes_the_host_of_an_accelerator_wait(accelerator):
    import jax

    variables, optimizer = model_with("a", "b").trainable_variables, make_optimizer()
    optimizer.build(variables)
    kept, trained = ([v.value for v in group] for group in (optimizer.variables, variables))
    step = jax.jit(optimizer.stateless_apply).lower(kept, [full(1), full(1)], trained)
    assert ("while" in step.as_text()) is not accelerator


@only_on("jax")
@pytest.mark.parametrize("accumulation_steps", [1, 2])
def test_a_compiled_step_has_no_copy_of_the_weights(accumulation_steps):
    import jax

    variables = [keras.Variable(np.ones((64, 64), "float32"), name="a") for _ in range(8)]
    optimizer = ComponentOptimizer({"a": AdamW(0.1)}, 1.0, accumulation_steps, ema_decay=0.9)
    optimizer.build(variables)

    def step(trained, kept, x):
        gradients = jax.grad(lambda t: sum(((x @ w) ** 2).sum() for w in t))(trained)
        return optimizer.stateless_apply(kept, gradients, trained)

    given = [[v.value for v in group] for group in (variables, optimizer.variables)]
    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(*given, np.ones((2, 64), "float32"))
    # The gradients, which must all be there before it is known whether they are finite.
    assert compiled.compile().memory_analysis().temp_size_in_bytes < 1.3 * 8 * 64 * 64 * 4


def test_counts_are_saved():
    optimizer = make_optimizer()
    model = fit(optimizer, 6)
    assert counts(optimizer) == (1, 1)
    names = {v.path.split("/")[-1] for v in optimizer.variables}
    assert names > {"skipped_steps", "skipped_in_a_row", "gradient_norms"}
    store = {}
    optimizer.save_own_variables(store)
    again = make_optimizer()
    again.build(model.trainable_variables)
    again.load_own_variables(store)
    assert counts(again) == (1, 1)
    assert again.gradient_norms == optimizer.gradient_norms
