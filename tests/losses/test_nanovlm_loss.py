import keras
import numpy as np
import pytest
from keras import ops

from dl_techniques.losses import NanoVLMLoss, supervised_token_count

IGNORE = -100


def reference(labels, logits, smoothing=0.0, weights=None):
    """Mean over supervised tokens, one token at a time in float64."""
    labels, logits = np.asarray(labels), np.asarray(logits, "float64")
    prefix = logits.shape[1] - labels.shape[1]
    total = count = 0.0
    for row in range(labels.shape[0]):
        for t in range(1, labels.shape[1]):
            target = labels[row, t]
            if target == IGNORE:
                continue
            line = logits[row, prefix + t - 1]
            log_p = line - np.log(np.sum(np.exp(line)))
            ce = -(1 - smoothing) * log_p[target] - smoothing * np.mean(log_p)
            w = 1.0 if weights is None else weights[row][t]
            total, count = total + w * ce, count + w
    return total / count if count else 0.0


def loss_and_gradient(loss, labels, logits):
    logits = np.asarray(logits)
    if keras.backend.backend() == "jax":
        import jax

        compiled = jax.jit(jax.value_and_grad(lambda x, y: loss(y, x)))
        value, gradient = compiled(logits, labels)
    elif keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        signature = (tf.TensorSpec((None, None), "int32"), tf.TensorSpec((None, None, 7)))

        @tf.function(input_signature=signature)
        def compiled(y, x):
            with tf.GradientTape() as tape:
                tape.watch(x)
                value = loss(y, x)
            return value, tape.gradient(value, x)

        value, gradient = compiled(tf.constant(labels), tf.constant(logits))
    else:
        x = ops.convert_to_tensor(logits).requires_grad_(True)
        value = loss(labels, x)
        value.backward()
        gradient = x.grad
        value = value.detach()
    return float(ops.convert_to_numpy(value)), ops.convert_to_numpy(gradient)


@pytest.fixture
def batch():
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 7, (3, 5)).astype("int32")
    labels[0, :3] = IGNORE
    labels[1, 4] = IGNORE
    labels[2] = IGNORE
    return labels, rng.normal(size=(3, 9, 7)).astype("float32") * 3


def test_hand_computed_value():
    # Only labels[1] = 2 and labels[2] = 0 count, asked of positions 0 and 1. labels[0] is never
    # asked; position 2 is asked for nothing.
    logits = np.log([[[0.1, 0.2, 0.7], [0.5, 0.25, 0.25], [0.9, 0.05, 0.05]]]).astype("float32")
    labels = np.array([[1, 2, 0]], "int32")
    expected = -(np.log(0.7) + np.log(0.5)) / 2
    assert float(NanoVLMLoss()(labels, logits)) == pytest.approx(expected, rel=1e-6)


def test_hand_computed_label_smoothing():
    logits = np.log([[[0.1, 0.2, 0.7], [1 / 3, 1 / 3, 1 / 3]]]).astype("float32")
    labels = np.array([[IGNORE, 2]], "int32")
    expected = -0.7 * np.log(0.7) - 0.3 * (np.log(0.1) + np.log(0.2) + np.log(0.7)) / 3
    loss = NanoVLMLoss(label_smoothing=0.3)
    assert float(loss(labels, logits)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("prefix", [0, 4])
def test_equals_reference(batch, smoothing, prefix):
    labels, logits = batch
    logits = logits[:, : 5 + prefix]
    value, _ = loss_and_gradient(NanoVLMLoss(label_smoothing=smoothing), labels, logits)
    assert value == pytest.approx(reference(labels, logits, smoothing), rel=1e-6)


def test_weight_is_by_token_not_by_row(batch):
    labels, logits = batch
    logits = logits[:, :5]
    rows = [reference(labels[i : i + 1], logits[i : i + 1]) for i in range(2)]
    # Row 0 has two supervised tokens, row 1 three, row 2 none.
    expected = (2 * rows[0] + 3 * rows[1]) / 5
    assert float(NanoVLMLoss()(labels, logits)) == pytest.approx(expected, rel=1e-6)


def test_gradient_is_that_of_the_reference(batch):
    labels, logits = batch
    _, gradient = loss_and_gradient(NanoVLMLoss(label_smoothing=0.1), labels, logits)
    step = 1e-4
    for at in [(0, 6, 1), (1, 4, labels[1, 1]), (1, 5, 0), (1, 8, 2), (0, 0, 0), (2, 5, 5)]:
        high, low = logits.astype("float64"), logits.astype("float64")
        high[at] += step
        low[at] -= step
        slope = (reference(labels, high, 0.1) - reference(labels, low, 0.1)) / (2 * step)
        assert gradient[at] == pytest.approx(slope, abs=1e-6)
    assert not gradient[:, :4].any()
    assert not gradient[:, -1].any()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_logits_are_reduced_in_float32(dtype):
    # 4000 tokens of loss ~11.5 would overflow or lose digits if summed in half precision.
    rng = np.random.default_rng(0)
    logits = ops.cast(rng.normal(size=(4, 1001, 7)) * 8, dtype)
    labels = rng.integers(0, 7, (4, 1001)).astype("int32")
    loss = NanoVLMLoss()(labels, logits)
    assert keras.backend.standardize_dtype(loss.dtype) == "float32"
    exact = ops.convert_to_numpy(ops.cast(logits, "float32"))
    assert float(loss) == pytest.approx(reference(labels, exact), rel=1e-5)


@pytest.mark.parametrize("labels", [np.full((3, 5), IGNORE), [[3] + [IGNORE] * 4] * 3])
def test_no_supervised_token_gives_zero_loss_and_gradient(batch, labels):
    value, gradient = loss_and_gradient(NanoVLMLoss(), np.array(labels, "int32"), batch[1])
    assert value == 0.0
    assert not gradient.any()
    assert float(supervised_token_count(np.array(labels, "int32"))) == 0.0


def test_sample_weight_per_row_and_per_label(batch):
    labels, logits = batch
    loss = NanoVLMLoss()
    rows = np.array([0.5, 2.0, 1.0], "float32")
    per_label = np.linspace(0.1, 1.5, 15).reshape(3, 5).astype("float32")
    spread = np.repeat(rows[:, None], 5, axis=1)
    expected = reference(labels, logits, weights=spread)
    assert float(loss(labels, logits, rows)) == pytest.approx(expected, rel=1e-6)
    assert float(loss(labels, logits, rows[:, None])) == pytest.approx(expected, rel=1e-6)
    expected = reference(labels, logits, weights=per_label)
    assert float(loss(labels, logits, per_label)) == pytest.approx(expected, rel=1e-6)
    assert float(loss(labels, logits, np.zeros(3, "float32"))) == 0.0


@pytest.mark.parametrize("bad", [7, -1])
def test_label_out_of_range_is_not_silent(batch, bad):
    labels, logits = batch
    labels[0, 4] = bad
    assert np.isnan(float(NanoVLMLoss()(labels, logits)))


def test_other_ignore_index():
    logits = np.random.default_rng(1).normal(size=(1, 4, 7)).astype("float32")
    labels = np.array([[1, 0, 0, 5]], "int32")
    expected = reference([[1, IGNORE, IGNORE, 5]], logits)
    assert float(NanoVLMLoss(ignore_index=0)(labels, logits)) == pytest.approx(expected, rel=1e-6)
    assert float(supervised_token_count(labels, ignore_index=0)) == 1.0


def test_supervised_token_count_leaves_out_the_first_position(batch):
    assert float(supervised_token_count(batch[0])) == 5.0
    assert float(supervised_token_count(np.array([[4, 4], [4, IGNORE]], "int64"))) == 1.0


def test_errors(batch):
    labels, logits = batch
    loss = NanoVLMLoss()
    with pytest.raises(ValueError, match="4 positions but labels have 5"):
        loss(labels, logits[:, :4])
    with pytest.raises(ValueError, match=r"labels must be int32\[B, S\].*float32"):
        loss(labels.astype("float32"), logits)
    with pytest.raises(ValueError, match=r"logits must be float\[B, L, V\]"):
        loss(labels, logits[0])
    with pytest.raises(ValueError, match="sample_weight must have shape"):
        loss(labels, logits, np.ones((3, 4), "float32"))
    with pytest.raises(ValueError, match="label_smoothing"):
        NanoVLMLoss(label_smoothing=1.0)


def test_config_round_trip():
    loss = NanoVLMLoss(ignore_index=0, label_smoothing=0.2, name="words")
    again = keras.losses.deserialize(keras.losses.serialize(loss))
    assert isinstance(again, NanoVLMLoss)
    assert again.get_config() == loss.get_config()
