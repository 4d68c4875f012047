import math
import re
import types

import keras
import numpy as np
import numpy_reference as reference
import pytest
from keras import ops
from only_on import only_on
from tiny_models import run

from dl_techniques.layers import RotaryEmbedding
from dl_techniques.layers.rotary_embedding import rotary_frequencies

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def _x(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype("float32")


def test_rotates_pairs_half_a_head_apart():
    x, positions = _x(2, 3, 2, 8), np.array([[0, 1, 5], [7, 2, 100]])
    got = run(RotaryEmbedding(8, theta=500.0), x, positions)
    for b, t, h in np.ndindex(2, 3, 2):
        expected = reference.rotate(np.float64(x[b, t, h]), positions[b, t], 500.0)
        np.testing.assert_allclose(got[b, t, h], expected, atol=2e-5)
    np.testing.assert_array_equal(got[0, 0], x[0, 0])


def test_keeps_norms():
    x = _x(1, 64, 3, 16)
    got = run(RotaryEmbedding(16), x, np.arange(0, 6400, 100)[None])
    np.testing.assert_allclose(np.linalg.norm(got, axis=-1), np.linalg.norm(x, axis=-1), rtol=1e-5)


def test_scores_depend_on_the_distance_alone():
    query, key = _x(1, 1, 1, 16), _x(1, 1, 1, 16, seed=1)
    layer = RotaryEmbedding(16, theta=100.0)
    offsets = np.array([[0], [3], [50], [1000]])
    query, key = (np.repeat(t, 4, axis=0) for t in (query, key))
    scores = (run(layer, query, offsets + 7) * run(layer, key, offsets)).sum(-1)
    np.testing.assert_allclose(scores, scores[:1].repeat(4, 0), atol=1e-3)
    nearer = (run(layer, query, offsets + 2) * run(layer, key, offsets)).sum(-1)
    assert np.abs(nearer - scores).min() > 0.01


def compiled_by_xla(function, *args) -> str:
    """Return the text of a compiled program."""
    if keras.backend.backend() == "jax":
        import jax

        return jax.jit(function).lower(*args).compile().as_text()
    import tensorflow as tf

    traced = tf.function(function, jit_compile=True, autograph=False)
    return traced.experimental_get_compiler_ir(*map(tf.constant, args))("optimized_hlo")


@only_on("jax", "tensorflow")
def test_xla_computes_the_sines_of_all_layers_once():
    layers = [RotaryEmbedding(8, name=name) for name in "ab"]

    def two_layers(x, positions):
        for layer in layers:
            x = ops.tanh(layer(x, positions) * layer(ops.flip(x, 2), positions))
        return x

    text = compiled_by_xla(two_layers, _x(2, 5, 3, 8), np.arange(10, dtype="int32").reshape(2, 5))
    assert text.count(" cosine(") == text.count(" sine(") == 1


def test_positions_of_one_row_serve_all_rows():
    x, positions = _x(3, 4, 2, 8), np.array([[4, 5, 6, 7]])
    layer = RotaryEmbedding(8)
    np.testing.assert_array_equal(run(layer, x, positions), run(layer, x, positions.repeat(3, 0)))


@pytest.mark.parametrize(("head_dim", "theta"), [(64, 100000.0), (128, 1000000.0), (64, 10000.0)])
def test_plain_frequencies(head_dim, theta):
    expected = [theta ** (-2 * i / head_dim) for i in range(head_dim // 2)]
    np.testing.assert_allclose(rotary_frequencies(head_dim, theta), expected, rtol=1e-6)


def test_llama3_frequencies_by_hand():
    scaled = rotary_frequencies(64, 500000.0, LLAMA3)
    plain = rotary_frequencies(64, 500000.0)
    wavelengths = 2 * math.pi / plain
    short, long = wavelengths < 8192 / 4, wavelengths > 8192
    np.testing.assert_array_equal(scaled[short], plain[short])
    np.testing.assert_allclose(scaled[long], plain[long] / 32, rtol=1e-6)
    between = ~(short | long)
    assert short.sum() > 5 and long.sum() > 5 and between.any()
    assert (scaled[between] < plain[between]).all()
    assert (scaled[between] > plain[between] / 32).all()


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama3_frequencies_of_transformers(factor):
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaling = {**LLAMA3, "factor": factor}
    config = types.SimpleNamespace(
        rope_parameters={**scaling, "rope_theta": 500000.0},
        hidden_size=2048,
        num_attention_heads=32,
        head_dim=64,
        standardize_rope_params=lambda: None,
    )
    expected, attention_scale = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    assert attention_scale == 1.0
    np.testing.assert_allclose(
        rotary_frequencies(64, 500000.0, scaling), expected.numpy(), rtol=2e-6
    )


def test_the_layer_uses_its_scaling():
    # (1, 0) becomes (cos, sin) of position x frequency.
    x = np.repeat(np.array([1.0, 0.0], "float32"), 32)[None, None, None]
    got = run(RotaryEmbedding(64, 500000.0, LLAMA3), x, np.array([[3]]))[0, 0, 0]
    angles = 3 * rotary_frequencies(64, 500000.0, LLAMA3)
    np.testing.assert_allclose(got, np.concatenate([np.cos(angles), np.sin(angles)]), atol=1e-6)


def test_refused_scalings():
    with pytest.raises(ValueError, match="rope_type 'llama3' and the keys"):
        RotaryEmbedding(8, scaling={"rope_type": "linear", "factor": 2.0})
    with pytest.raises(ValueError, match="high_freq_factor.*got {'rope_type': 'llama3'}"):
        RotaryEmbedding(8, scaling={"rope_type": "llama3"})
    for head_dim in (7, 0, -2):
        with pytest.raises(ValueError, match=f"head_dim={head_dim} must be a positive even number"):
            RotaryEmbedding(head_dim)


@pytest.mark.no_backend
@pytest.mark.parametrize(
    ("x_shape", "positions_shape"),
    [((2, 3, 4, 8), (3,)), ((2, 3, 4, 6), (2, 3)), ((2, 3, 8), (2, 3))],
)
def test_other_axes(x_shape, positions_shape):
    message = re.escape(f"got shapes {x_shape} and {positions_shape}: give positions that all")
    with pytest.raises(ValueError, match=message):
        RotaryEmbedding(8)(_x(*x_shape), np.zeros(positions_shape, "int32"))
