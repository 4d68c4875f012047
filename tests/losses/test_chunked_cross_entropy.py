import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import ops
from tiny_models import numpy

from dl_techniques.losses import NanoVLMLoss, NextTokenAccuracy
from dl_techniques.losses import chunked_cross_entropy as module
from dl_techniques.losses.nanovlm_loss import next_token_targets, token_losses, token_weights

chunked_cross_entropy = module.chunked_cross_entropy
IGNORE = -100
ROWS, LENGTH, WIDTH, VOCABULARY = 3, 7, 5, 11
BACKEND = keras.backend.backend()


def only_on(backend):
    """Collect a test on one backend only."""
    return (lambda test: test) if backend == BACKEND else (lambda test: None)


class Batch:
    """Labels, states and a head of one or the other orientation, the same on every backend."""

    def __init__(self, tied=True):
        rng = np.random.default_rng(5)
        self.tied = tied
        self.labels = rng.integers(0, VOCABULARY, (ROWS, LENGTH)).astype("int32")
        self.labels[0, :3] = IGNORE
        self.labels[1, 5] = IGNORE
        self.hidden = rng.normal(size=(ROWS, LENGTH, WIDTH)).astype("float32") * 2
        shape = (VOCABULARY, WIDTH) if tied else (WIDTH, VOCABULARY)
        self.head = rng.normal(size=shape).astype("float32")

    def logits(self, hidden, head):
        head = ops.cast(head, hidden.dtype)
        return ops.matmul(hidden, ops.transpose(head) if self.tied else head)

    def plain(self, smoothing=0.0, sample_weight=None):
        """Return the mean loss as a function of hidden and head, through all logits."""
        loss = NanoVLMLoss(label_smoothing=smoothing)
        return lambda hidden, head: loss(self.labels, self.logits(hidden, head), sample_weight)

    def chunked(self, chunk_size=4, smoothing=0.0, sample_weight=None, shards=1):
        """Return the same function, chunk by chunk."""

        def loss(hidden, head):
            targets = next_token_targets(self.labels)
            weights = token_weights(targets, self.labels.shape, sample_weight)
            total, *_ = chunked_cross_entropy(
                hidden, targets, weights, head, chunk_size, smoothing, self.tied, shards
            )
            return ops.divide_no_nan(total, ops.sum(weights))

        return loss


def value_and_gradients(loss, hidden, head, compiled=True, **options):
    """Return the loss, and its gradients by hidden and by head."""
    if BACKEND == "jax":
        import jax

        function = jax.value_and_grad(loss, argnums=(0, 1))
        out = (jax.jit(function) if compiled else function)(hidden, head)
    elif BACKEND == "tensorflow":
        out = _tensorflow(loss, hidden, head, compiled, **options)
    else:
        tensors = [ops.convert_to_tensor(x).requires_grad_(True) for x in (hidden, head)]
        value = loss(*tensors)
        value.backward()
        out = value.detach(), [x.grad for x in tensors]
    dtypes = [keras.backend.standardize_dtype(x.dtype) for x in out[1]]
    assert dtypes == [str(np.asarray(hidden).dtype), str(np.asarray(head).dtype)]
    return float(out[0]), *(ops.convert_to_numpy(ops.cast(x, "float32")) for x in out[1])


def _tensorflow(loss, hidden, head, compiled, unknown_sizes=False, xla=False):
    import tensorflow as tf

    def function(x, kernel):
        with tf.GradientTape() as tape:
            tape.watch([x, kernel])
            value = loss(x, kernel)
        return value, tape.gradient(value, [x, kernel])

    x, kernel = tf.constant(hidden), tf.constant(head)
    if unknown_sizes:
        kinds = [
            tf.TensorSpec((None, None, x.shape[2]), x.dtype),
            tf.TensorSpec.from_tensor(kernel),
        ]
        function = tf.function(function, input_signature=kinds)
    elif compiled:
        function = tf.function(function, jit_compile=xla)
    return function(x, kernel)


def assert_same(got, expected, tolerance=1e-6):
    assert got[0] == pytest.approx(expected[0], rel=tolerance)
    for a, b in zip(got[1:], expected[1:], strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * np.abs(b).max())


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("tied", [True, False])
def test_equals_the_loss_of_all_logits(tied, smoothing):
    batch = Batch(tied)
    expected = value_and_gradients(batch.plain(smoothing), batch.hidden, batch.head)
    got = value_and_gradients(batch.chunked(4, smoothing), batch.hidden, batch.head)
    assert_same(got, expected)
    assert np.abs(got[2]).min() > 0


@pytest.mark.parametrize("chunk_size", [1, 21, 1000])
def test_any_chunk_size_gives_the_same(chunk_size):
    batch = Batch()
    expected = value_and_gradients(batch.plain(), batch.hidden, batch.head)
    got = value_and_gradients(batch.chunked(chunk_size), batch.hidden, batch.head)
    assert_same(got, expected)


def test_shards_give_the_same():
    batch = Batch(tied=False)
    expected = value_and_gradients(batch.plain(0.1), batch.hidden, batch.head)
    got = value_and_gradients(batch.chunked(2, 0.1, shards=3), batch.hidden, batch.head)
    assert_same(got, expected)


def test_not_compiled():
    batch = Batch()
    expected = value_and_gradients(batch.plain(), batch.hidden, batch.head)
    got = value_and_gradients(batch.chunked(), batch.hidden, batch.head, compiled=False)
    assert_same(got, expected)


@only_on("tensorflow")  # only TensorFlow compiles for unknown sizes
@pytest.mark.parametrize("options", [{"unknown_sizes": True}, {"xla": True}])
def test_unknown_sizes_and_xla(options):
    batch = Batch()
    expected = value_and_gradients(batch.plain(0.1), batch.hidden, batch.head)
    got = value_and_gradients(batch.chunked(4, 0.1), batch.hidden, batch.head, **options)
    assert_same(got, expected)


@pytest.mark.parametrize(
    "sample_weight",
    [
        np.array([0.5, 0.0, 30.0], "float32"),
        np.linspace(0.1, 1.5, ROWS * LENGTH).reshape(ROWS, LENGTH).astype("float32"),
    ],
)
def test_sample_weights(sample_weight):
    batch = Batch()
    plain, chunked = (f(sample_weight=sample_weight) for f in (batch.plain, batch.chunked))
    expected = value_and_gradients(plain, batch.hidden, batch.head)
    assert_same(value_and_gradients(chunked, batch.hidden, batch.head), expected)


def test_upstream_gradient_is_multiplied():
    batch = Batch()
    plain, chunked = batch.plain(), batch.chunked()
    expected = value_and_gradients(lambda *x: 3.0 * plain(*x) ** 2, batch.hidden, batch.head)
    got = value_and_gradients(lambda *x: 3.0 * chunked(*x) ** 2, batch.hidden, batch.head)
    assert_same(got, expected)


def test_nothing_supervised_gives_zero_loss_and_gradients():
    batch = Batch()
    batch.labels[:, 1:] = IGNORE
    for got in value_and_gradients(batch.chunked(), batch.hidden, batch.head):
        assert not np.any(got)


def test_right_predictions_are_those_of_the_metric():
    batch = Batch()
    weight = np.array([1.0, 0.25, 2.0], "float32")
    # Ties go to the first id, as argmax decides, so that these are all alike but for id 3.
    batch.head[:] = batch.head[3]
    batch.head[[0, 4]] *= 0.5
    batch.labels[2, 2:] = [1, 0, 2, 0, 1]
    accuracy = NextTokenAccuracy()
    accuracy.update_state(batch.labels, batch.logits(batch.hidden, batch.head), weight)
    targets = next_token_targets(batch.labels)
    weights = token_weights(targets, batch.labels.shape, weight)
    _, _, hits = chunked_cross_entropy(batch.hidden, targets, weights, batch.head, 4)
    assert keras.backend.standardize_dtype(hits.dtype) == "float32"
    right = float(ops.sum(hits * weights))
    assert right == pytest.approx(float(accuracy.correct), rel=1e-6)
    assert 0 < right < float(ops.sum(weights))


@pytest.mark.parametrize("shards", [1, 3])
def test_tells_the_loss_of_each_token(shards):
    batch = Batch()
    targets = next_token_targets(batch.labels)
    weights = token_weights(targets, batch.labels.shape, np.array([3.0, 0.0, 0.5], "float32"))
    total, losses, _ = chunked_cross_entropy(
        batch.hidden, targets, weights, batch.head, 4, 0.1, shards=shards
    )
    expected = numpy(token_losses(batch.logits(batch.hidden, batch.head), targets, 0.1))
    expected = np.where(numpy(weights) == 0, 0.0, expected)
    np.testing.assert_allclose(numpy(losses), expected, rtol=1e-5)
    assert float(total) == pytest.approx((expected * numpy(weights)).sum(), rel=1e-6)


def test_what_is_told_has_no_gradient():
    batch = Batch()
    targets = next_token_targets(batch.labels)
    weights = token_weights(targets, batch.labels.shape)

    def loss(hidden, head, told=1.0):
        total, losses, hits = chunked_cross_entropy(hidden, targets, weights, head, 4)
        return total + told * ops.sum(losses**2 + 5.0 * hits)

    expected = value_and_gradients(lambda *x: loss(*x, told=0.0), batch.hidden, batch.head)
    got = value_and_gradients(loss, batch.hidden, batch.head)
    assert got[0] > expected[0] + 1
    assert_same((expected[0], *got[1:]), expected)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_with_loss_scaling(dtype):
    batch = Batch()
    # On both sides the logits of these states are rounded to half precision.
    hidden = ops.convert_to_numpy(ops.cast(batch.hidden, dtype))
    plain, chunked = batch.plain(0.1), batch.chunked(smoothing=0.1)
    expected = value_and_gradients(lambda *x: 1024.0 * plain(*x), hidden, batch.head)
    got = value_and_gradients(lambda *x: 1024.0 * chunked(*x), hidden, batch.head)
    assert got[0] == pytest.approx(expected[0], rel=1e-6)
    assert_same(got, expected, tolerance=2e-3 if dtype == "float16" else 2e-2)


def test_tiny_weights_keep_their_gradient_in_float16():
    # Softmax times 1e-8 would be 0 in float16; the loss scale comes too late to help.
    batch = Batch()
    hidden = batch.hidden.astype("float16")
    targets = next_token_targets(batch.labels)
    weights = token_weights(targets, batch.labels.shape)

    def loss(hidden, head, unit):
        total, *_ = chunked_cross_entropy(hidden, targets, weights * unit, head, 4)
        return total * (64.0 / unit)

    expected = value_and_gradients(lambda *x: loss(*x, unit=1.0), hidden, batch.head)
    got = value_and_gradients(lambda *x: loss(*x, unit=1e-8), hidden, batch.head)
    assert_same(got, expected, tolerance=1e-3)


def test_float32_sums_of_half_precision_states():
    # The sum of 8000 losses of about 12 is out of the range of float16.
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(8, 1000, 7)).astype("float16") * 8
    targets = rng.integers(0, 7, (8, 1000)).astype("int32")
    weights = np.ones((8, 1000), "float32")
    total, *_ = chunked_cross_entropy(hidden, targets, weights, np.eye(7, dtype="float32"), 512)
    x = hidden.astype("float64")
    losses = np.log(np.exp(x).sum(-1)) - np.take_along_axis(x, targets[..., None], -1)[..., 0]
    assert losses.sum() > 65_504
    assert float(total) == pytest.approx(losses.sum(), rel=1e-5)


@pytest.mark.parametrize("bad", [VOCABULARY, -1])
def test_target_out_of_range_is_not_silent(bad):
    batch = Batch()
    batch.labels[1, 4] = bad
    expected = value_and_gradients(batch.plain(), batch.hidden, batch.head)
    got = value_and_gradients(batch.chunked(), batch.hidden, batch.head)
    assert np.isnan(got[0])
    assert np.isnan(expected[0])
    assert_same((0.0, *got[1:]), (0.0, *expected[1:]))


def test_tokens_of_weight_zero_have_no_effect():
    batch = Batch()
    ignored = np.asarray(ops.convert_to_numpy(next_token_targets(batch.labels))) == IGNORE
    spoilt = np.where(ignored[..., None], np.float32("nan"), batch.hidden)
    expected = value_and_gradients(batch.chunked(4), batch.hidden, batch.head)
    got = value_and_gradients(batch.chunked(4), spoilt, batch.head)
    assert_same(got, expected)
    assert not got[1][ignored].any()
    assert got[1][~ignored].all()


def test_chunks_of_ignored_tokens_take_no_time(monkeypatch):
    chunks = []
    loop = module._loop
    monkeypatch.setattr(module, "_loop", lambda n, *x: (chunks.append(int(n)), loop(n, *x))[1])
    hidden, head = np.ones((3, 8, 2), "float32"), np.ones((4, 2), "float32")
    targets, weights = np.zeros((3, 8), "int32"), np.zeros((3, 8), "float32")
    weights[0, 3] = weights[1, ::2] = 1.0
    for shards, expected in ((1, 3), (3, 2)):
        chunked_cross_entropy(hidden, targets, weights, head, 2, shards=shards)
        assert chunks.pop() == expected
    chunked_cross_entropy(hidden, targets, 0 * weights, head, 2)
    assert chunks == [0]


def test_logits_of_one_chunk_only(monkeypatch):
    sizes = []
    einsum = ops.einsum

    def watched(*args):
        out = einsum(*args)
        sizes.append(tuple(out.shape))
        return out

    monkeypatch.setattr(module.ops, "einsum", watched)
    batch = Batch()
    value_and_gradients(batch.chunked(4), batch.hidden, batch.head)
    assert set(sizes) == {(1, 4, VOCABULARY), (1, 4, WIDTH), (1, VOCABULARY, WIDTH)}


@only_on("jax")  # only XLA tells what a program needs
def test_memory_and_work_of_the_compiled_program():
    import jax

    tokens, width, vocabulary, size = 512, 4, 4096, 32
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(1, tokens, width)).astype("float32")
    head = rng.normal(size=(vocabulary, width)).astype("float32")
    targets, weights = np.zeros((1, tokens), "int32"), np.ones((1, tokens), "float32")

    def loss(hidden, head):
        return chunked_cross_entropy(hidden, targets, weights, head, size)[0]

    def products(function):
        text = jax.jit(function).lower(hidden, head).compile().as_text()
        return text.count(" dot(")

    compiled = jax.jit(jax.grad(loss, (0, 1))).lower(hidden, head).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < tokens * vocabulary * 4 / 4
    # What nobody asks for is not computed: no gradient, or that of a frozen head.
    assert products(loss) == 1
    assert products(jax.grad(loss, 0)) == 2
    assert products(jax.grad(loss, (0, 1))) == 3


@only_on("torch")  # compilers find that out themselves
def test_no_unwanted_gradient_on_pytorch(monkeypatch):
    import torch

    products = []
    einsum = ops.einsum
    monkeypatch.setattr(module.ops, "einsum", lambda *x: (products.append(x[0]), einsum(*x))[1])
    batch = Batch()
    loss = batch.chunked(100)
    hidden = torch.tensor(batch.hidden, requires_grad=True)
    loss(hidden, batch.head).backward()
    assert len(products) == 2
    assert hidden.grad is not None
    with torch.no_grad():
        loss(hidden, batch.head)
    assert len(products) == 3


SHARDED = """
import jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from dl_techniques.losses.chunked_cross_entropy import chunked_cross_entropy

mesh = Mesh(np.array(jax.devices()), ("batch",))
split, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("batch",), ()))
rng = np.random.default_rng(0)
hidden = rng.normal(size=(4, 8, 3)).astype("float32")
head = rng.normal(size=(5, 3)).astype("float32")
targets = rng.integers(0, 5, (4, 8)).astype("int32")
weights = rng.random((4, 8)).astype("float32")

def loss(hidden, head, targets, weights, shards):
    return chunked_cross_entropy(hidden, targets, weights, head, 4, shards=shards)[0]

def gradients(shards):
    function = lambda *x: jax.value_and_grad(loss, (0, 1))(*x, shards)
    placed = jax.jit(function, in_shardings=(split, whole, split, split))
    text = placed.lower(hidden, head, targets, weights).compile().as_text()
    return "all-gather" in text, placed(hidden, head, targets, weights)

assert len(jax.devices()) == 2
gathers, one = gradients(1)
assert gathers
gathers, two = gradients(2)
assert not gathers
assert two[1][0].sharding.is_equivalent_to(split, 3)
jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), one, two)
"""


@only_on("jax")  # only JAX has arrays that span devices
def test_each_device_keeps_its_own_tokens():
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", SHARDED], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_refusals():
    batch = Batch()
    targets = next_token_targets(batch.labels)
    weights = token_weights(targets, batch.labels.shape)
    good = {"hidden": batch.hidden, "targets": targets, "weights": weights, "head": batch.head}
    for change, message in (
        ({"hidden": batch.hidden[0]}, r"hidden must be float\[B, L, D\]"),
        ({"targets": targets[:, 1:]}, r"targets must have shape \[3, 7\].*got \[3, 6\]"),
        ({"weights": weights[0]}, r"weights must have shape \[3, 7\].*got \[7\]"),
        ({"targets": weights}, "targets must be int32"),
        ({"transpose_head": False}, r"head \[11, 5\] with transpose_head=False.*width 11"),
        ({"chunk_size": 0}, "chunk_size=0"),
        ({"label_smoothing": 1.0}, "label_smoothing"),
        ({"shards": 2}, "3 rows cannot be shared evenly"),
    ):
        with pytest.raises(ValueError, match=message):
            chunked_cross_entropy(**{**good, **change})
