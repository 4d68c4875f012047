import keras
import numpy as np
import numpy_reference as reference
import pytest
from keras import ops
from only_on import only_on
from tiny_models import fill, numpy, run

from dl_techniques.layers import GatedCrossAttentionBlock, GroupedQueryAttention, attention

HEADS = [(4, 4), (4, 2), (4, 1)]


def _layer(num_heads=4, num_kv_heads=2, **kwargs):
    layer = GroupedQueryAttention(16, num_heads, num_kv_heads, **kwargs)
    layer.build((None, None, 16))
    return fill(layer)


def _x(length=5, seed=0):
    return np.random.default_rng(seed).standard_normal((2, length, 16)).astype("float32")


def _masks():
    """Return a causal mask for row 0 and a random one for row 1; its query 2 sees nothing."""
    causal = np.tril(np.ones((5, 5), bool))
    scattered = np.random.default_rng(1).uniform(size=(5, 5)) < 0.5
    scattered[2] = False
    return np.stack([causal, scattered])


@pytest.mark.parametrize(("num_heads", "num_kv_heads"), HEADS)
def test_equals_one_head_at_a_time(num_heads, num_kv_heads):
    layer = _layer(num_heads, num_kv_heads, use_qkv_bias=True, use_output_bias=True)
    mask = _masks()
    got = run(lambda x, m: layer(x, attention_mask=m), _x(), mask[:, None])
    expected = reference.attention(
        np.float64(_x()), reference.weights(layer), num_heads, num_kv_heads, mask
    )
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_rotary_positions_and_query_key_norm():
    layer = _layer(rope_theta=100.0, qk_norm=True, norm_epsilon=1e-5)
    assert {"q_norm/scale", "k_norm/scale"} <= reference.weights(layer).keys()
    got = run(layer, _x())
    expected = reference.attention(
        np.float64(_x()), reference.weights(layer), 4, 2, None, 100.0, True, 1e-5
    )
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_query_key_norm_over_the_whole_width():
    layer = _layer(qk_norm="width", norm_epsilon=0.01)
    x, w = np.float64(_x()), reference.weights(layer)
    assert w["q_norm/scale"].shape == (16,) and w["k_norm/scale"].shape == (8,)
    query, key, value = (reference.dense(x, reference.part(w, f"{n}_proj")) for n in "qkv")
    query = reference.rms_norm(query, reference.part(w, "q_norm"), 0.01).reshape(2, 5, 4, 4)
    key = reference.rms_norm(key, reference.part(w, "k_norm"), 0.01).reshape(2, 5, 2, 4)
    key, value = (np.repeat(part.reshape(2, 5, 2, 4), 2, axis=2) for part in (key, value))
    weights = np.exp(np.einsum("btnh,bsnh->bnts", query, key) / 2)
    weights /= weights.sum(-1, keepdims=True)
    out = np.einsum("bnts,bsnh->btnh", weights, value).reshape(2, 5, 16)
    expected = reference.dense(out, reference.part(w, "o_proj"))
    np.testing.assert_allclose(run(layer, _x()), expected, rtol=1e-5, atol=1e-5)


def test_unknown_query_key_norm():
    with pytest.raises(ValueError, match="qk_norm='head' must be False, True"):
        GroupedQueryAttention(16, 4, qk_norm="head")


def test_head_dim_of_its_own():
    layer = _layer(head_dim=6)
    assert reference.weights(layer)["q_proj/kernel"].shape == (16, 24)
    assert reference.weights(layer)["k_proj/kernel"].shape == (16, 12)
    assert reference.weights(layer)["o_proj/kernel"].shape == (24, 16)
    expected = reference.attention(np.float64(_x()), reference.weights(layer), 4, 2)
    np.testing.assert_allclose(run(layer, _x()), expected, rtol=1e-5, atol=1e-5)


def test_queries_that_see_nothing_give_zeros_before_the_output_projection():
    layer = _layer(use_output_bias=True)
    mask = np.zeros((2, 1, 5, 5), bool)
    mask[0, 0, 1, 3] = True
    got = run(lambda x, m: layer(x, attention_mask=m), _x(), mask)
    bias = layer.o_proj.bias.numpy()
    blind = np.ones((2, 5), bool)
    blind[0, 1] = False
    np.testing.assert_array_equal(got[blind], np.broadcast_to(bias, (9, 16)))
    assert np.abs(got[0, 1] - bias).max() > 0.1


@pytest.mark.parametrize("dropout", [0.0, 1e-7])
def test_explicit_path_of_training_equals_the_library_call(dropout):
    # At 1e-7 nothing is dropped, but the weights take the path that could drop them.
    plain, trained = _layer(rope_theta=1e4), _layer(rope_theta=1e4, dropout=dropout)
    mask = _masks()[:, None]
    expected = run(lambda x, m: plain(x, attention_mask=m), _x(), mask)
    got = numpy(trained(_x(), attention_mask=mask, training=True))
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


@only_on("torch")
@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_on_cpus_gradients_of_reduced_types_do_not_take_the_librarys_path(policy):
    import torch

    layer, exact = _layer(rope_theta=1e4, dtype=policy), _layer(rope_theta=1e4)
    paths, mask = [], _masks()[:, None]
    x = torch.tensor(_x(), requires_grad=True)
    for grad in (torch.no_grad, torch.enable_grad):
        with grad(), torch.profiler.profile() as profile:
            out = layer(x, attention_mask=mask)
        names = {event.key for event in profile.key_averages()}
        paths.append("aten::scaled_dot_product_attention" in names)
        np.testing.assert_allclose(numpy(out.detach()), run(exact, _x(), None, mask), atol=0.05)
    assert paths == [True, policy == "float32"]


def test_dropout_keeps_the_expectation_and_acts_only_in_training():
    layer = _layer(dropout=0.4)
    # One row many times over: the mean over rows is a mean over dropout masks.
    x = np.repeat(_x()[:1], 4000, axis=0)
    plain = run(layer, x[:1])[0]
    np.testing.assert_array_equal(run(lambda x: layer(x, training=False), x[:1])[0], plain)
    dropped = numpy(layer(x, training=True))
    assert np.abs(dropped - plain).max() > 0.1
    error = np.abs(dropped.mean(0) - plain)
    assert (error <= 5 * dropped.std(0) / np.sqrt(4000) + 1e-5).all()


def test_cache_holds_what_was_seen_before():
    layer = _layer(rope_theta=1e4)
    x, causal = _x(), np.tril(np.ones((5, 5), bool))[None, None]
    whole = run(lambda x, m: layer(x, attention_mask=m), x, causal)
    empty = np.zeros((2, 7, 2, 4), "float32")

    def stepwise(x, empty):
        cache, outs = (empty, empty), []
        for start, end in ((0, 3), (3, 4), (4, 5)):
            positions = ops.expand_dims(ops.arange(start, end), 0)
            mask = ops.expand_dims(ops.arange(7), 0) <= ops.expand_dims(positions[0], 1)
            out, cache = layer(
                x[:, start:end], positions, mask[None, None], cache=cache, cache_index=start
            )
            outs.append(out)
        return ops.concatenate(outs, axis=1), cache[0]

    stepped, keys = run(stepwise, x, empty)
    np.testing.assert_allclose(stepped, whole, rtol=1e-5, atol=1e-6)
    assert np.abs(keys[:, :5]).min(axis=(-2, -1)).all()
    np.testing.assert_array_equal(keys[:, 5:], 0)


@pytest.mark.no_backend
def test_a_symbolic_cache_comes_back_too():
    layer, cache = _layer(), tuple(keras.Input((7, 2, 4)) for _ in range(2))
    x, mask = keras.Input((1, 16)), keras.Input((1, 1, 7), dtype="bool")
    index = keras.Input((), dtype="int32")
    out, new = layer(x, attention_mask=mask, cache=cache, cache_index=index)
    model = keras.Model([x, mask, index, *cache], [out, *new])
    assert [y.shape for y in model.outputs] == [(None, 1, 16), (None, 7, 2, 4), (None, 7, 2, 4)]


def test_padded_rows_have_finite_gradients():
    layer = _layer(rope_theta=1e4)
    mask = np.zeros((2, 1, 5, 5), bool)
    mask[0, :, :, 0] = True
    gradient = _gradient(lambda x: ops.sum(layer(x, attention_mask=mask) ** 2), _x())
    assert np.isfinite(gradient).all()
    assert np.abs(gradient[0]).max() > 0
    np.testing.assert_array_equal(gradient[1], 0)


def _gradient(function, x):
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        return np.asarray(jax.jit(jax.grad(function))(x))
    if backend == "tensorflow":
        import tensorflow as tf

        x = tf.constant(x)
        with tf.GradientTape() as tape:
            tape.watch(x)
            out = function(x)
        return tape.gradient(out, x).numpy()
    x = ops.convert_to_tensor(x).requires_grad_(True)
    function(x).backward()
    return x.grad.cpu().numpy()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((16, 3), "hidden_dim=16 must be a positive multiple of num_heads=3"),
        ((16, 4, 3), "num_heads=4 must be a positive multiple of num_kv_heads=3"),
        ((16, 0), "num_heads=0"),
        ((16, 4, 0), "multiple of num_kv_heads=0"),
    ],
)
def test_impossible_heads(arguments, message):
    with pytest.raises(ValueError, match=message):
        GroupedQueryAttention(*arguments)


@pytest.mark.parametrize("kind", [GroupedQueryAttention, GatedCrossAttentionBlock])
def test_a_context_is_projected_before_or_within_the_call(kind):
    layer, context = kind(16, 4), _x(7, seed=1)
    keys_values = layer.project_context(context)  # Of a layer that no call has built.
    fill(layer)
    before = run(lambda x, c: layer(x, keys_values=layer.project_context(c)), _x(), context)
    np.testing.assert_array_equal(run(lambda x, c: layer(x, context=c), _x(), context), before)
    assert not np.allclose(before, run(lambda x: layer(x, context=x), _x()))
    with pytest.raises(ValueError, match="takes keys_values or context, not both"):
        layer(_x(), keys_values=keys_values, context=context)


@pytest.mark.no_backend
@pytest.mark.parametrize("kind", [GroupedQueryAttention, GatedCrossAttentionBlock])
def test_a_symbolic_context_is_not_projected_outside_of_the_call(kind):
    with pytest.raises(ValueError, match=r"call the layer with context=\.\.\. in place of keys"):
        kind(16, 4).project_context(keras.Input((None, 16)))


@pytest.mark.no_backend
def test_gated_attention_needs_something_to_attend_to():
    with pytest.raises(ValueError, match="needs keys_values or context"):
        GatedCrossAttentionBlock(16, 4)(_x())


@pytest.mark.no_backend
@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.zeros((1, 1, 5, 5), "float32"), r"float32 of shape \(1, 1, 5, 5\).*`mask == 0`"),
        (np.ones((1, 1, 5, 5), "int32"), r"int32 of shape \(1, 1, 5, 5\)"),
        (np.ones((5, 5), bool), r"bool of shape \(5, 5\).*mask\[None, None\]"),
        (np.ones((2, 5, 5), bool), r"bool of shape \(2, 5, 5\).*mask\[:, None\]"),
    ],
)
def test_masks_are_bool_with_four_axes(mask, message):
    layer = _layer()
    for call in (layer, layer.attention_weights):
        with pytest.raises(ValueError, match=message):
            call(_x(), attention_mask=mask)


def test_wrong_width_and_cache_without_mask():
    with pytest.raises(ValueError, match=r"width hidden_dim=16, got shape \(2, 5, 8\)"):
        GroupedQueryAttention(16, 4)(np.zeros((2, 5, 8), "float32"))
    cache = (np.zeros((2, 7, 2, 4), "float32"),) * 2
    with pytest.raises(ValueError, match="cache needs cache_index and an attention_mask"):
        _layer()(_x(), cache=cache)


@pytest.mark.parametrize("mask_shape", [(2, 1, 5, 5), (1, 1, 1, 5), (2, 4, 5, 1)])
def test_odd_lengths_are_made_even_for_flash_attention(monkeypatch, mask_shape):
    layer, x = _layer(), _x()
    mask = np.random.default_rng(2).uniform(size=mask_shape) < 0.6
    plain = run(lambda x, m: layer(x, attention_mask=m), x, mask)
    library, lengths = ops.dot_product_attention, []

    def even_only(query, key, value, mask):
        lengths.extend(a.shape[1] for a in (query, key, value))
        assert mask.shape[2:] == (query.shape[1], key.shape[1])
        return library(query, key, value, mask=mask)

    monkeypatch.setattr(attention, "_is_flash_on_jax", lambda dtype: True)
    monkeypatch.setattr(attention.ops, "dot_product_attention", even_only)
    even = run(lambda x, m: layer(x, attention_mask=m), x, mask)
    np.testing.assert_allclose(even, plain, rtol=1e-6, atol=1e-6)
    assert set(lengths) == {6}
