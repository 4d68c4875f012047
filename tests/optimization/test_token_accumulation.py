"""ComponentOptimizer inside `fit`, compiled as the backend compiles by default."""

import zipfile

import keras
import numpy as np
import pytest
from keras import ops

from dl_techniques.losses import NanoVLMLoss, supervised_token_count
from dl_techniques.optimization import (
    AdamW,
    ComponentOptimizer,
    learning_rate_schedule_builder,
    token_weight,
)

VOCABULARY = 11
LossScaleOptimizer = keras.optimizers.LossScaleOptimizer


@keras.saving.register_keras_serializable(package="test_token_accumulation")
class TokenModel(keras.Model):
    """Predicts the next id from the present one; trains as `token_weight` describes."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.table = keras.layers.Embedding(VOCABULARY, 4, name="table")
        self.head = keras.layers.Dense(VOCABULARY, name="head")
        self.unused = keras.layers.Dense(2, name="unused")

    def build(self, input_shape):
        self.table.build(input_shape)
        self.head.build((*input_shape, 4))
        self.unused.build((*input_shape, 4))

    def call(self, x):
        return self.head(self.table(x))

    def train_step(self, *args):
        with token_weight(self.optimizer, supervised_token_count(args[-1][1])):
            return super().train_step(*args)


def data():
    """Six rows; by pairs they have 6, 0 and 1 supervised tokens."""
    rng = np.random.default_rng(0)
    ids = rng.integers(1, VOCABULARY, (6, 5)).astype("int32")
    labels = np.full_like(ids, -100)
    labels[0] = ids[0]
    labels[1, 3:] = ids[1, 3:]
    labels[5, 4] = ids[5, 4]
    return ids, labels


def components(kind):
    if kind == "sgd":
        make = keras.optimizers.SGD
        return {"table": make(0.5, momentum=0.9), "head|unused": make(0.1, momentum=0.9)}
    schedule = learning_rate_schedule_builder(
        {"type": "cosine_decay", "learning_rate": 0.1, "decay_steps": 10, "warmup_steps": 2}
    )
    return {"table": AdamW(schedule, weight_decay=0.1), "head|unused": AdamW(0.01)}


def fresh_model(optimizer):
    keras.utils.set_random_seed(1)
    model = TokenModel(name="tokens")
    model.build((None, 5))
    model.compile(optimizer=optimizer, loss=NanoVLMLoss())
    return model


def train(model, batch_size, epochs=1):
    ids, labels = data()
    model.fit(ids, labels, batch_size=batch_size, epochs=epochs, shuffle=False, verbose=0)
    return model


def state(model):
    """Two vectors: all weights, and all moments (empty before the first step)."""
    inner = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    moments = [v for part in inner.optimizers for v in part.variables if len(v.shape)]
    return [
        np.concatenate([np.zeros(0), *(ops.convert_to_numpy(v).ravel() for v in group)])
        for group in (model.trainable_variables, moments)
    ]


def iterations(model):
    return int(ops.convert_to_numpy(model.optimizer.iterations))


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize(("kind", "clip"), [("sgd", None), ("sgd", 0.1), ("adamw", 0.1)])
def test_uneven_micro_batches_equal_the_big_batch(kind, clip, scaled):
    whole = fresh_model(ComponentOptimizer(components(kind), clip))
    optimizer = ComponentOptimizer(components(kind), clip, accumulation_steps=3)
    parts = fresh_model(LossScaleOptimizer(optimizer) if scaled else optimizer)
    start, _ = state(parts)
    for _ in range(2):
        train(whole, batch_size=6)
        train(parts, batch_size=2)
        for expected, got in zip(state(whole), state(parts), strict=True):
            assert np.linalg.norm(got - expected) <= 1e-6 * np.linalg.norm(expected)
    assert np.linalg.norm(state(parts)[0] - start) > 1e-2
    assert iterations(whole) == iterations(parts) == 2


@pytest.mark.parametrize("scaled", [False, True])
def test_nothing_moves_before_the_last_micro_batch(scaled):
    optimizer = ComponentOptimizer(components("adamw"), 1.0, accumulation_steps=4)
    model = fresh_model(LossScaleOptimizer(optimizer) if scaled else optimizer)
    before, _ = state(model)
    train(model, batch_size=2)
    after, moments = state(model)
    np.testing.assert_array_equal(before, after)
    assert moments.size == 2 * after.size
    assert not moments.any()
    assert iterations(model) == 0
    assert optimizer.pending_batches == 3
    train(model, batch_size=2)
    assert iterations(model) == 1
    assert optimizer.pending_batches == 2


def test_non_finite_batches_are_not_counted():
    optimizer = ComponentOptimizer(components("sgd"), 1.0, accumulation_steps=2)
    model = fresh_model(LossScaleOptimizer(optimizer))
    model.head.bias.assign(np.full(VOCABULARY, np.nan))
    before, _ = state(model)
    ids, labels = data()
    model.fit(ids[:2], labels[:2], batch_size=2, verbose=0)
    assert optimizer.pending_batches == 0
    assert not ops.convert_to_numpy(optimizer._sums.sums[0]).any()
    np.testing.assert_array_equal(before, state(model)[0])
    assert float(ops.convert_to_numpy(model.optimizer.dynamic_scale)) == 2.0**14


def test_mixed_float16_trains():
    optimizer = ComponentOptimizer(components("adamw"), 1.0, accumulation_steps=2)
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = fresh_model(LossScaleOptimizer(optimizer))
        ids, labels = data()
        first = model.evaluate(ids, labels, batch_size=6, verbose=0)
        train(model, batch_size=2, epochs=20)
        last = model.evaluate(ids, labels, batch_size=6, verbose=0)
    finally:
        keras.config.set_dtype_policy("float32")
    assert last < 0.7 * first
    assert iterations(model) == 30


@pytest.mark.parametrize("scaled", [False, True])
def test_saved_model_continues_as_if_never_stopped(tmp_path, scaled):
    optimizer = ComponentOptimizer(components("adamw"), 1.0, accumulation_steps=2)
    model = fresh_model(LossScaleOptimizer(optimizer) if scaled else optimizer)
    train(model, batch_size=2)  # one update, one micro-batch pending
    path = tmp_path / "model.keras"
    model.save(path)
    again = keras.models.load_model(path)
    assert type(again.optimizer) is type(model.optimizer)
    assert iterations(again) == iterations(model) == 1
    for one in (model, again):
        train(one, batch_size=2)
    for expected, got in zip(state(model), state(again), strict=True):
        np.testing.assert_array_equal(expected, got)
    assert iterations(again) == 3


def test_optimizer_state_is_written_once(tmp_path):
    import h5py

    model = train(fresh_model(ComponentOptimizer(components("adamw"))), batch_size=6)
    model.save(tmp_path / "model.keras")
    with zipfile.ZipFile(tmp_path / "model.keras") as archive:
        archive.extract("model.weights.h5", tmp_path)
    sizes = []
    with h5py.File(tmp_path / "model.weights.h5") as store:
        store["optimizer"].visititems(
            lambda _, item: sizes.append(item.size) if isinstance(item, h5py.Dataset) else None
        )
    assert sum(sizes) == sum(int(np.prod(v.shape)) for v in model.optimizer.variables)


def test_flush_at_the_end_equals_the_big_batch():
    whole = train(fresh_model(ComponentOptimizer(components("sgd"), 0.1)), batch_size=6)
    parts = fresh_model(ComponentOptimizer(components("sgd"), 0.1, accumulation_steps=None))
    train(parts, batch_size=2)
    if keras.backend.backend() == "jax":
        import jax

        # The functional form, compiled as a trainer would.
        variables = parts.optimizer.variables, parts.trainable_variables
        present = [[v.value for v in group] for group in variables]
        trained, moved = jax.jit(parts.optimizer.stateless_apply_accumulated)(*present)
        for group, new in zip(variables, (moved, trained), strict=True):
            for variable, value in zip(group, new, strict=True):
                variable.assign(value)
    else:
        parts.optimizer.apply_accumulated()
    for expected, got in zip(state(whole), state(parts), strict=True):
        assert np.linalg.norm(got - expected) <= 1e-6 * np.linalg.norm(expected)
    assert iterations(parts) == 1


def test_token_weight_leaves_other_optimizers_alone():
    for optimizer in (None, keras.optimizers.SGD(0.1)):
        with token_weight(optimizer, 3.0):
            assert not hasattr(optimizer, "_token_weight")
