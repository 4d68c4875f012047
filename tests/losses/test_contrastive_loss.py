import functools
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import ops
from tiny_models import numpy

from dl_techniques.losses.contrastive_loss import (
    ContrastiveLoss,
    SigmoidContrastiveLoss,
    pool_images,
    pool_text,
)

BACKEND = keras.backend.backend()
ROWS, WIDTH = 5, 4
MASK = np.array([True, True, False, True, True])
IDS = np.array([7, 3, 3, 7, 1], "int32")


def only_on(backend):
    """Keep a test for the backend that has what it is about."""
    return (lambda test: test) if backend == BACKEND else (lambda test: None)


both_losses = pytest.mark.parametrize("kind", [ContrastiveLoss, SigmoidContrastiveLoss])


@pytest.fixture
def embeds():
    rng = np.random.default_rng(2)
    return [rng.normal(size=(ROWS, WIDTH)).astype("float32") * size for size in (0.3, 9.0)]


def reference(kind, images, texts, mask=None, ids=None, scale=None, bias=-10.0):
    """The loss pair by pair in float64; the softmax's candidates as lists."""
    scale = scale or (10.0 if kind is SigmoidContrastiveLoss else 1 / 0.07)
    images, texts = (np.asarray(x, "float64") for x in (images, texts))
    rows = [i for i in range(len(images)) if mask is None or mask[i]]

    def cosine(i, j):
        return images[i] @ texts[j] / np.linalg.norm(images[i]) / np.linalg.norm(texts[j])

    def others(i):
        return [j for j in rows if j != i and (ids is None or ids[i] != ids[j])]

    total = 0.0
    for i in rows:
        if kind is SigmoidContrastiveLoss:
            total += np.log1p(np.exp(-(scale * cosine(i, i) + bias)))
            total += sum(np.log1p(np.exp(scale * cosine(i, j) + bias)) for j in others(i))
            continue
        own = np.exp(scale * cosine(i, i))
        for pairs in ([(i, j) for j in others(i)], [(j, i) for j in others(i)]):
            total -= np.log(own / (own + sum(np.exp(scale * cosine(*p)) for p in pairs))) / 2
    return total / len(rows) if rows else 0.0


def scalar(x) -> float:
    return float(numpy(x))


def value_and_gradients(loss, *arrays):
    """Return the value of loss(*arrays), compiled, and its gradients by each of them."""
    if BACKEND == "jax":
        import jax

        function = jax.value_and_grad(loss, tuple(range(len(arrays))))
        value, gradients = jax.jit(function)(*arrays)
    elif BACKEND == "tensorflow":
        import tensorflow as tf

        @tf.function(input_signature=[tf.TensorSpec((None, *x.shape[1:]), x.dtype) for x in arrays])
        def function(*x):
            with tf.GradientTape() as tape:
                tape.watch(x)
                value = loss(*x)
            return value, tape.gradient(value, x)

        value, gradients = function(*map(tf.constant, arrays))
    else:
        tensors = [ops.convert_to_tensor(x).requires_grad_(True) for x in arrays]
        value = loss(*tensors)
        value.backward()
        value, gradients = value.detach(), [x.grad for x in tensors]
    assert keras.backend.standardize_dtype(value.dtype) == "float32"
    return float(value), [numpy(x) for x in gradients]


@both_losses
@pytest.mark.parametrize("options", [{}, {"mask": MASK}, {"ids": IDS}, {"mask": MASK, "ids": IDS}])
def test_equals_reference(kind, options, embeds):
    layer = kind()
    given = {"row_mask": options.get("mask"), "ids": options.get("ids")}
    assert scalar(layer(*embeds, **given)) == pytest.approx(
        reference(kind, *embeds, **options), rel=1e-5
    )


def test_hand_computed_values():
    images = np.array([[2.0, 0.0], [0.0, 3.0]], "float32")
    texts = np.array([[1.0, 0.0], [0.6, 0.8]], "float32")
    # Cosines [[1, 0.6], [0, 0.8]], temperature 1.
    rows = [np.log1p(np.exp(0.6 - 1.0)), np.log1p(np.exp(0.0 - 0.8))]
    columns = [np.log1p(np.exp(0.0 - 1.0)), np.log1p(np.exp(0.6 - 0.8))]
    loss = ContrastiveLoss(temperature=1.0, learned=False)
    assert scalar(loss(images, texts)) == pytest.approx(sum(rows + columns) / 4, rel=1e-6)
    pairs = [np.log1p(np.exp(x)) for x in (-1.0 + 2.0, 0.6 - 2.0, 0.0 - 2.0, -0.8 + 2.0)]
    loss = SigmoidContrastiveLoss(temperature=1.0, bias=-2.0, learned=False)
    assert scalar(loss(images, texts)) == pytest.approx(sum(pairs) / 2, rel=1e-6)


@both_losses
def test_gradients_are_those_of_the_reference(kind, embeds):
    layer = kind()
    layer.build((None, WIDTH))
    _, gradients = value_and_gradients(lambda *x: layer(*x, row_mask=MASK, ids=IDS), *embeds)
    step = 1e-5
    for k, at in [(0, (0, 1)), (0, (4, 3)), (1, (1, 0)), (1, (3, 2))]:
        ends = []
        for sign in (1, -1):
            moved = [x.astype("float64") for x in embeds]
            moved[k][at] += sign * step
            ends.append(reference(kind, *moved, MASK, IDS))
        assert gradients[k][at] == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-3)


@both_losses
def test_rows_left_out_have_no_effect(kind, embeds):
    layer = kind()
    layer.build((None, WIDTH))
    loss = functools.partial(layer, row_mask=MASK)
    value, gradients = value_and_gradients(loss, *embeds)
    assert value == pytest.approx(scalar(layer(*(x[MASK] for x in embeds))), rel=1e-6)
    for spoilt in (0.0, float("nan"), 1e30):
        changed = [np.where(MASK[:, None], x, np.float32(spoilt)) for x in embeds]
        again, changed = value_and_gradients(loss, *changed)
        assert again == pytest.approx(value, rel=1e-6)
        for a, b in zip(changed, gradients, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
            assert not a[~MASK].any()
            assert a[MASK].all()


@both_losses
def test_no_row_at_all_gives_zero_loss_and_gradient(kind, embeds):
    layer = kind()
    layer.build((None, WIDTH))
    value, gradients = value_and_gradients(
        lambda *x: layer(*x, row_mask=np.zeros(ROWS, bool)), *embeds
    )
    assert value == 0.0
    assert not np.any(gradients)


@both_losses
def test_zero_vectors_that_take_part_stay_finite(kind, embeds):
    layer = kind()
    layer.build((None, WIDTH))
    embeds[0][1] = 0.0
    value, gradients = value_and_gradients(layer, *embeds)
    assert np.isfinite(value)
    assert np.isfinite(gradients).all()
    assert np.abs(gradients).max() < 1e3


@both_losses
def test_order_of_rows_and_length_of_vectors_do_not_matter(kind, embeds):
    layer = kind()
    value = scalar(layer(*embeds, row_mask=MASK, ids=IDS))
    order = np.array([3, 0, 4, 2, 1])
    moved = [x[order] for x in embeds]
    assert scalar(layer(*moved, row_mask=MASK[order], ids=IDS[order])) == pytest.approx(
        value, rel=1e-6
    )
    lengths = np.linspace(0.01, 100, ROWS, dtype="float32")[:, None]
    longer = [x * lengths for x in embeds]
    assert scalar(layer(*longer, row_mask=MASK, ids=IDS)) == pytest.approx(value, rel=1e-5)


def test_symmetric_in_images_and_texts(embeds):
    loss = ContrastiveLoss()
    assert scalar(loss(*embeds, ids=IDS)) == pytest.approx(
        scalar(loss(*embeds[::-1], ids=IDS)), rel=1e-6
    )


@both_losses
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_inputs_and_policies(kind, dtype, embeds):
    # Squares of 300 leave the range of float16.
    halves = [ops.cast(300.0 * x / np.abs(x).max(), dtype) for x in embeds]
    layer = kind(dtype=f"mixed_{dtype}")
    value = layer(*halves)
    assert keras.backend.standardize_dtype(value.dtype) == "float32"
    assert {v.dtype for v in layer.variables} == {"float32"}
    exact = [numpy(x) for x in halves]
    assert scalar(value) == pytest.approx(reference(kind, *exact), rel=1e-5)
    # Float32 embeddings are not rounded on their way in.
    assert scalar(layer(*embeds)) == pytest.approx(reference(kind, *embeds), rel=1e-5)


class Pairs(keras.Model):
    """Two tables whose rows are pulled together."""

    def __init__(self, loss):
        super().__init__()
        self.images = keras.layers.Embedding(ROWS, WIDTH, "orthogonal", name="images")
        self.texts = keras.layers.Embedding(ROWS, WIDTH, "orthogonal", name="texts")
        self.contrast = loss

    def call(self, inputs):
        return self.contrast(self.images(inputs), self.texts(inputs))

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return y_pred


@both_losses
def test_trains_and_its_variables_move(kind):
    model = Pairs(kind())
    model.compile(keras.optimizers.Adam(0.05))
    rows = np.arange(ROWS)
    losses = model.fit(rows, rows, batch_size=ROWS, epochs=20, verbose=0).history["loss"]
    assert losses[-1] < 0.5 * losses[0]
    start = {"log_scale": -np.log(0.07 if kind is ContrastiveLoss else 0.1), "bias": -10.0}
    moved = {v.name: float(v.numpy()) for v in model.contrast.trainable_variables}
    assert set(moved) == ({"log_scale"} if kind is ContrastiveLoss else {"log_scale", "bias"})
    for name, value in moved.items():
        assert abs(value - start[name]) > 0.01


def test_learned_temperature_is_held_at_one_hundredth():
    model = Pairs(ContrastiveLoss(temperature=0.0101))
    model.compile(keras.optimizers.SGD(1e3))
    rows = np.arange(ROWS)
    model.images.build()
    model.texts.build()
    # The right pairs are a little closer than the others: a sharper temperature is better.
    model.texts.embeddings.assign(ops.convert_to_tensor(np.eye(ROWS, WIDTH)))
    model.images.embeddings.assign(ops.convert_to_tensor(np.eye(ROWS, WIDTH) * 0.01 + 1.0))
    model.images.trainable = model.texts.trainable = False
    model.fit(rows[:WIDTH], rows[:WIDTH], batch_size=WIDTH, verbose=0)
    assert scalar(model.contrast.scale()) == pytest.approx(100.0, rel=1e-6)


@both_losses
def test_fixed_temperature_has_no_variable(kind, embeds):
    loss = kind(temperature=0.005, learned=False)
    assert scalar(loss(*embeds)) == pytest.approx(reference(kind, *embeds, scale=200.0), rel=1e-5)
    assert loss.variables == []


@both_losses
def test_config_and_file_round_trip(kind, embeds, tmp_path):
    inputs = [keras.Input((WIDTH,)) for _ in range(2)]
    layer = kind(temperature=0.2, name="contrast")
    model = keras.Model(inputs, layer(*inputs))
    layer.log_scale.assign(1.5)
    model.save(tmp_path / "loss.keras")
    loaded = keras.saving.load_model(tmp_path / "loss.keras")
    twin = loaded.get_layer("contrast")
    assert twin.get_config() == layer.get_config()
    assert scalar(twin.scale()) == pytest.approx(np.exp(1.5), rel=1e-6)
    assert scalar(loaded(embeds)) == scalar(model(embeds))


@both_losses
def test_two_replicas_equal_one_device(kind, embeds):
    layer = kind()
    layer.build((None, WIDTH))
    halves = slice(2), slice(2, None)

    def one_device(first, second, texts):
        return layer(ops.concatenate([first, second]), texts, row_mask=MASK, ids=IDS)

    def mean_of_replicas(first, second, texts):
        losses = []
        for own, rows in zip((first, second), halves, strict=True):
            # What a gather gives, in the order of the arrays: every replica's rows.
            whole = [ops.concatenate([first, second]), texts, MASK.astype("float32"), IDS]

            losses.append(
                layer(
                    own,
                    texts[rows],
                    MASK[rows],
                    IDS[rows],
                    all_gather=lambda _, whole=whole: ops.convert_to_tensor(whole.pop(0)),
                )
            )
            assert whole == []
        return sum(losses) / 2

    parts = [embeds[0][rows] for rows in halves]
    expected, gradients = value_and_gradients(one_device, *parts, embeds[1])
    value, same = value_and_gradients(mean_of_replicas, *parts, embeds[1])
    assert value == pytest.approx(expected, rel=1e-6)
    for a, b in zip(same, gradients, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


MIRRORED = """
import numpy as np, tensorflow as tf
from dl_techniques.losses.contrastive_loss import ContrastiveLoss

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
rng = np.random.default_rng(0)
images, texts = (tf.constant(rng.normal(size=(4, 3)).astype("float32")) for _ in range(2))
mask, ids = tf.constant([True, False, True, True]), tf.constant([1, 2, 1, 3])
with strategy.scope():
    layer = ContrastiveLoss()
    layer.build((None, 3))
    weight = tf.Variable(tf.eye(3))

def value_and_gradients(rows, share, **options):
    with tf.GradientTape() as tape:
        loss = layer(images[rows] @ weight, texts[rows], mask[rows], ids[rows], **options)
        scaled = loss * share
    return scaled, tape.gradient(scaled, [weight, layer.log_scale.value])

@tf.function
def on_replicas():
    def one():
        context = tf.distribute.get_replica_context()
        start = 2 * context.replica_id_in_sync_group
        gather = lambda x: context.all_gather(x, axis=0)
        return value_and_gradients(slice(start, start + 2), 0.5, all_gather=gather)
    per_replica = strategy.run(one)
    return tf.nest.map_structure(lambda x: strategy.reduce("SUM", x, axis=None), per_replica)

for a, b in zip(
    tf.nest.flatten(on_replicas()), tf.nest.flatten(value_and_gradients(slice(4), 1.0)), strict=True
):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
print("same")
"""


@only_on("tensorflow")
def test_mirrored_replicas_equal_one_device():
    done = subprocess.run([sys.executable, "-c", MIRRORED], capture_output=True, text=True)
    assert done.stdout.strip() == "same", done.stderr[-2000:]


def test_pooling():
    tokens = np.array([[[1.0, 2.0], [3.0, 6.0]]], "float16")
    np.testing.assert_array_equal(numpy(pool_images(tokens)), [[2.0, 4.0]])
    nan = float("nan")
    states = np.array([[[1, 2], [3, 6], [nan, nan]], [[nan, 5], [4, 4], [2, 1]]], "float32")
    mask = np.array([[True, True, False], [False, False, False]])
    np.testing.assert_array_equal(numpy(pool_text(states, mask)), [[2.0, 4.0], [0.0, 0.0]])
    assert keras.backend.standardize_dtype(pool_images(tokens).dtype) == "float32"


def test_refusals(embeds):
    loss = ContrastiveLoss()
    images, texts = embeds
    for arguments, message in (
        ((images[None], texts), r"both be float\[B, D\].*\[1, 5, 4\] and \[5, 4\]"),
        ((images, texts[:, 1:]), r"\[5, 4\] and \[5, 3\]"),
        ((images, texts[1:]), r"\[5, 4\] and \[4, 4\]"),
        ((images, texts, MASK[1:]), r"row_mask must have shape \[5\], got \[4\]"),
        ((images, texts, MASK, IDS[:, None]), r"ids must have shape \[5\], got \[5, 1\]"),
        ((images, texts, MASK, MASK.astype("float32")), "ids must be integers"),
    ):
        with pytest.raises(ValueError, match=message):
            loss(*arguments)
    for bad in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="must be above 0"):
            SigmoidContrastiveLoss(temperature=bad)
    with pytest.raises(ValueError, match="stays at or above 0.01.*learned=False"):
        ContrastiveLoss(temperature=0.005)
