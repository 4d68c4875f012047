"""Projector, resamplers and compressor against formulas written in NumPy."""

import math

import keras
import numpy as np
import pytest
from tiny_models import fill, numpy, run

from dl_techniques import layers
from dl_techniques.layers.patch_embedding import sincos_positions

RNG = np.random.default_rng(0)
TOKENS = RNG.normal(size=(2, 9, 8)).astype("float32")


def built(layer, x=TOKENS):
    layer.build(x.shape)
    return fill(layer)


def by_path(layer) -> dict:
    return {v.path.removeprefix(layer.name + "/"): numpy(v.value) for v in layer.variables}


def norm(x, gamma, beta, epsilon):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon) * gamma + beta


def gelu(x):
    return 0.5 * x * (1.0 + np.vectorize(math.erf)(x / math.sqrt(2.0)))


def attention(w, prefix, queries, tokens, heads):
    """Return multi-head attention of queries to tokens, by loops over rows and heads."""
    q, k, v = (
        x @ w[f"{prefix}/{name}_proj/kernel"] + w[f"{prefix}/{name}_proj/bias"]
        for name, x in (("q", queries), ("k", tokens), ("v", tokens))
    )
    out, size = np.zeros_like(q), q.shape[-1] // heads
    for row in range(len(q)):
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            scores = q[row, :, part] @ k[row, :, part].T / math.sqrt(size)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            weights /= weights.sum(-1, keepdims=True)
            out[row, :, part] = weights @ v[row, :, part]
    return out @ w[f"{prefix}/o_proj/kernel"] + w[f"{prefix}/o_proj/bias"]


def test_projector_is_dense_gelu_dense_norm():
    layer = built(layers.VisionProjector(6, 10))
    w = by_path(layer)
    hidden = gelu(TOKENS @ w["fc1/kernel"] + w["fc1/bias"])
    expected = hidden @ w["fc2/kernel"] + w["fc2/bias"]
    expected = norm(expected, w["norm/gamma"], w["norm/beta"], 1e-5)
    np.testing.assert_allclose(run(layer, TOKENS), expected, atol=1e-5)


def test_projector_of_nvlm_d():
    layer = built(
        layers.VisionProjector(6, 10, use_layer_norm=False, use_input_norm=True, use_bias=False)
    )
    w = by_path(layer)
    assert sorted(w) == ["fc1/kernel", "fc2/kernel", "input_norm/beta", "input_norm/gamma"]
    x = norm(TOKENS, w["input_norm/gamma"], w["input_norm/beta"], 1e-5)
    expected = gelu(x @ w["fc1/kernel"]) @ w["fc2/kernel"]
    np.testing.assert_allclose(run(layer, TOKENS), expected, atol=1e-5)


def test_one_layer_is_one_matrix():
    layer = built(layers.VisionProjector(6, num_layers=1, use_layer_norm=False))
    w = by_path(layer)
    expected = TOKENS @ w["fc1/kernel"] + w["fc1/bias"]
    np.testing.assert_allclose(run(layer, TOKENS), expected, atol=1e-5)
    with pytest.raises(ValueError, match="num_layers=0 must be at least 1"):
        layers.VisionProjector(6, num_layers=0)


def test_projector_drops_after_the_gelu_in_training_only():
    layer = built(layers.VisionProjector(6, 10, dropout=0.5))
    learning = numpy(layer(TOKENS, training=True))
    assert not np.allclose(learning, numpy(layer(TOKENS)), atol=1e-3)
    np.testing.assert_array_equal(numpy(layer(TOKENS)), numpy(layer(TOKENS, training=False)))


def test_perceiver_by_its_formula():
    layer = built(layers.VisionResampler(3, depth=2, num_heads=2))
    w = by_path(layer)
    x = np.repeat(w["queries"][None], 2, axis=0)
    for i in range(2):
        part = {k.removeprefix(f"block_{i}/"): v for k, v in w.items()}
        seen = norm(TOKENS, part["token_norm/gamma"], part["token_norm/beta"], 1e-6)
        query = norm(x, part["query_norm/gamma"], part["query_norm/beta"], 1e-6)
        x = x + attention(part, "attention", query, seen, 2)
        hidden = norm(x, part["mlp_norm/gamma"], part["mlp_norm/beta"], 1e-6)
        hidden = gelu(hidden @ part["mlp/fc1/kernel"] + part["mlp/fc1/bias"])
        x = x + hidden @ part["mlp/fc2/kernel"] + part["mlp/fc2/bias"]
    expected = norm(x, w["norm/gamma"], w["norm/beta"], 1e-6)
    np.testing.assert_allclose(run(layer, TOKENS), expected, atol=1e-5)


def test_compressor_by_its_formula():
    layer = built(layers.VisionTokenCompressor(8, 3, 2))
    w = by_path(layer)
    x = np.repeat(w["queries"][None], 2, axis=0)
    expected = norm(
        x + attention(w, "attention", x, TOKENS, 2), w["norm/gamma"], w["norm/beta"], 1e-6
    )
    np.testing.assert_allclose(run(layer, TOKENS), expected, atol=1e-5)


@pytest.mark.parametrize(
    "make",
    [lambda: layers.VisionResampler(3, num_heads=2), lambda: layers.VisionTokenCompressor(8, 3, 2)],
)
def test_the_order_of_the_tokens_does_not_matter(make):
    layer = built(make())
    np.testing.assert_allclose(run(layer, TOKENS), run(layer, TOKENS[:, ::-1]), atol=1e-5)
    other = np.concatenate([TOKENS, TOKENS], axis=1)
    np.testing.assert_allclose(run(layer, TOKENS), run(layer, other), atol=1e-5)


def test_average_pooling_of_a_divisible_grid_and_of_an_uneven_one():
    grid = np.arange(16, dtype="float32").reshape(1, 16, 1)
    pooled = run(layers.VisionResampler(4, "avgpool"), grid)
    np.testing.assert_allclose(pooled[0, :, 0], [2.5, 4.5, 10.5, 12.5])
    # 3 x 3 to 2 x 2: the cells overlap in the middle row and column.
    grid = np.arange(9, dtype="float32").reshape(1, 9, 1)
    pooled = run(layers.VisionResampler(4, "avgpool"), grid)
    np.testing.assert_allclose(pooled[0, :, 0], [2.0, 3.0, 5.0, 6.0])


def test_average_pooling_without_a_known_length():
    inputs = keras.Input((None, 8))
    model = keras.Model(inputs, layers.VisionResampler(4, "avgpool")(inputs))
    for side in (2, 3, 5):
        x = RNG.normal(size=(1, side * side, 8)).astype("float32")
        expected = numpy(layers.VisionResampler(4, "avgpool")(x))
        np.testing.assert_allclose(numpy(model(x)), expected, atol=1e-6)


def test_what_makes_no_grid_is_refused():
    with pytest.raises(ValueError, match="num_tokens must be a square for mode='avgpool', got 5"):
        layers.VisionResampler(5, "avgpool")
    with pytest.raises(ValueError, match="number of vision tokens must be a square.* got 7"):
        layers.VisionResampler(4, "avgpool")(TOKENS[:, :7])
    with pytest.raises(ValueError, match="mode='mean' must be one of"):
        layers.VisionResampler(4, "mean")
    with pytest.raises(ValueError, match="not both"):
        layers.VisionConnector({"output_dim": 4}, {"num_tokens": 4}, {"input_dim": 8})


def test_connector_is_its_parts_in_order():
    layer = built(
        layers.VisionConnector(
            {"output_dim": 5, "hidden_dim": 7},
            compressor_config={"input_dim": 32, "num_queries": 3, "num_heads": 2},
            scale_factor=2,
        ),
        TOKENS[:, :4],
    )
    x = TOKENS[:, :4]
    expected = layer.vision_projector(layer.vision_compressor(layer.pixel_shuffle(x)))
    np.testing.assert_allclose(run(layer, x), numpy(expected), atol=1e-6)


@pytest.mark.parametrize("name", ["queries", "gate"])
def test_gradients_reach_what_starts_without_an_effect(name):
    if name == "queries":
        layer = built(layers.VisionResampler(3, num_heads=2))
        function = layer
    else:
        layer = layers.GatedCrossAttentionBlock(8, 2)
        layer.build((None, None, 8))

        def function(x):
            return layer(x, layer.project_context(x))

    (variable,) = (v for v in layer.trainable_variables if v.path.endswith(name))
    before = numpy(keras.ops.sum(function(TOKENS) ** 3))
    variable.assign_add(0.1 * RNG.normal(size=variable.shape).astype("float32"))
    after = numpy(keras.ops.sum(function(TOKENS) ** 3))
    assert abs(after - before) > 1e-3


def test_sincos_positions_by_their_formula():
    rows, columns, width = 2, 3, 8
    got = run(lambda: sincos_positions(rows, columns, width))
    for row in range(rows):
        for column in range(columns):
            expected = []
            for place in (row, column):
                rates = [place / 10000 ** (2 * k / 4) for k in range(2)]
                expected += [math.sin(a) for a in rates] + [math.cos(a) for a in rates]
            np.testing.assert_allclose(got[row * columns + column], expected, atol=1e-6)


def test_fixed_positions_have_no_weight_and_tell_places_apart():
    layer = layers.PatchEmbedding(8, 4, 8, positions="sincos")
    image = np.ones((1, 8, 12, 3), "float32")
    out = numpy(layer(image))
    assert [v.path.split("/")[-1] for v in layer.variables] == ["kernel", "bias"]
    np.testing.assert_allclose(
        out[0] - out[0, :1], run(lambda: sincos_positions(2, 3, 8)) - [[0, 0, 1, 1] * 2], atol=1e-5
    )
    with pytest.raises(ValueError, match="multiple of 4"):
        layers.PatchEmbedding(8, 4, 6, positions="sincos")
