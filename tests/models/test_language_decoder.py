import keras
import numpy as np
import numpy_reference as reference
import pytest
from keras import ops
from only_on import only_on
from tiny_models import fill, random_ids, relative_path, run

from dl_techniques.models.language_decoder import LanguageDecoder

KINDS = {
    "smollm2": {},
    "qwen2": {"use_qkv_bias": True},
    "llama3": {
        "tie_embeddings": False,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        },
    },
    "qwen3": {"qk_norm": True, "head_dim": 6},
}


def _decoder(**kwargs):
    layer = LanguageDecoder(
        20, 16, 2, num_heads=4, num_kv_heads=2, mlp_dim=24, max_positions=12, **kwargs
    )
    layer.build((None, None))
    return fill(layer)


def test_equals_the_reference():
    layer = _decoder(rope_theta=50.0, norm_epsilon=0.01)
    w = reference.weights(layer)
    ids = random_ids(2, 6) % 20
    x = w["token_embedding/embeddings"][ids]
    mask = np.tril(np.ones((2, 6, 6), bool))
    for i in range(2):
        x = reference.decoder_block(x, reference.part(w, f"block_{i}"), 4, 2, mask, 50.0, 0.01)
    hidden = reference.rms_norm(x, reference.part(w, "norm"), 0.01)
    np.testing.assert_allclose(
        run(lambda i: layer(i, return_hidden=True), ids), hidden, rtol=1e-4, atol=1e-5
    )
    expected = hidden @ w["token_embedding/embeddings"].T
    np.testing.assert_allclose(run(layer, ids), expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("kind", list(KINDS))
def test_cached_is_uncached(kind):
    layer = _decoder(**KINDS[kind])
    ids = random_ids(2, 8) % 20
    # Row 1 has two tokens of padding on its left.
    mask = np.ones((2, 10), bool)
    mask[1, :2] = False
    whole = run(lambda i, m: layer(i, attention_mask=m), ids, mask[:, :8])

    def stepwise(ids, mask):
        cache, outs = layer.make_cache(2, 10), []
        for start, end in ((0, 5), (5, 6), (6, 8)):
            out, cache = layer(
                ids[:, start:end], attention_mask=mask, cache=cache, cache_index=start
            )
            outs.append(out)
        return ops.concatenate(outs, axis=1)

    stepped = run(stepwise, ids, mask)
    np.testing.assert_allclose(stepped[0], whole[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(stepped[1, 2:], whole[1, 2:], rtol=1e-5, atol=1e-5)


def test_all_tokens_see_all_of_a_context_without_a_mask():
    layer = _decoder(cross_attention_every=2)
    ids, context = random_ids(2, 6) % 20, np.random.default_rng(0).normal(size=(2, 3, 16))
    context, everything = context.astype("float32"), np.ones((2, 1, 6, 3), bool)
    whole = run(lambda i, c: layer(i, context=c), ids, context)
    masked = run(lambda i, c, m: layer(i, context=c, context_mask=m), ids, context, everything)
    np.testing.assert_array_equal(whole, masked)
    assert np.abs(whole - run(layer, ids)).max() > 1e-3

    def stepwise(ids, context):
        first, cache = layer(
            ids[:, :4], cache=layer.make_cache(2, 6), cache_index=0, context=context
        )
        return ops.concatenate([first, layer(ids[:, 4:], cache=cache, cache_index=4)[0]], axis=1)

    np.testing.assert_allclose(run(stepwise, ids, context), whole, rtol=1e-5, atol=1e-5)


def test_steps_with_a_cache_as_functional_models(tmp_path):
    layer = _decoder(cross_attention_every=2)
    ids, context = random_ids(2, 3) % 20, np.ones((2, 3, 16), "float32")
    whole = run(lambda i, c: layer(i, context=c), ids, context)

    def model_of(length, cache, **inputs):
        given = {"inputs": keras.Input((length,), dtype="int32", name="inputs"), **inputs}
        index = keras.Input((), dtype="int32", name="index")
        out, new = layer(**given, cache=cache, cache_index=index)
        return keras.Model({**given, "cache": cache, "index": index}, {"out": out, "cache": new})

    def symbolic(cache):
        return keras.tree.map_structure(
            lambda x: keras.Input(x.shape[1:], dtype=keras.backend.standardize_dtype(x.dtype)),
            cache,
        )

    def called(model, inputs):
        inputs = keras.tree.map_structure(ops.convert_to_tensor, inputs)
        return run(model, inputs)

    empty, start = layer.make_cache(2, 4), np.zeros(2, "int32")
    first = model_of(2, symbolic(empty), context=keras.Input((3, 16), name="context"))
    inputs = {"inputs": ids[:, :2], "context": context, "cache": empty, "index": start}
    state = called(first, inputs)
    np.testing.assert_allclose(state["out"], whole[:, :2], rtol=1e-5, atol=1e-5)
    described = keras.tree.map_structure(lambda x: (2, *x.shape[1:]), first.output["cache"])
    assert described == keras.tree.map_structure(np.shape, state["cache"])
    model_of(1, symbolic(state["cache"])).save(tmp_path / "step.keras")
    step = keras.saving.load_model(tmp_path / "step.keras")
    inputs = {"inputs": ids[:, 2:], "cache": state["cache"], "index": start + 2}
    state = called(step, inputs)
    np.testing.assert_allclose(state["out"], whole[:, 2:], rtol=1e-5, atol=1e-5)


def test_embeddings_may_stand_for_ids_and_positions_may_be_given():
    layer = _decoder()
    ids = random_ids(2, 6) % 20
    table = layer.token_embedding.embeddings.numpy()
    expected = run(layer, ids)
    np.testing.assert_allclose(run(layer, table[ids]), expected, rtol=1e-5, atol=1e-6)
    # Rotary scores depend on distances alone.
    shifted = run(lambda i, p: layer(i, positions=p), ids, np.arange(3, 9)[None].repeat(2, 0))
    np.testing.assert_allclose(shifted, expected, rtol=1e-4, atol=1e-5)
    spread = run(lambda i, p: layer(i, positions=p), ids, 2 * np.arange(6)[None].repeat(2, 0))
    assert np.abs(spread - expected).max() > 1e-3


def test_weights_of_tied_and_untied_heads():
    tied, untied = _decoder(), _decoder(tie_embeddings=False)
    tied, untied = ({relative_path(v, d) for v in d.weights} for d in (tied, untied))
    assert untied - tied == {"token_embedding/reverse_embeddings"}
    assert "block_1/attention/q_proj/kernel" in tied


def test_hidden_states_in_a_functional_model():
    layer = _decoder()
    ids = keras.Input((None,), dtype="int32")
    hidden = layer(ids, return_hidden=True)
    assert hidden.shape == (None, None, 16)
    model = keras.Model(ids, keras.layers.Dense(3, name="probe")(hidden))
    assert run(model, random_ids(2, 6) % 20).shape == (2, 6, 3)


@pytest.mark.parametrize("index", [4, np.array([4, 2], "int32")], ids=["common", "per row"])
def test_tokens_that_the_cache_has_no_slots_for(index):
    layer, ids = _decoder(), random_ids(2, 2) % 20
    error = (
        ValueError if keras.backend.backend() != "torch" or isinstance(index, int) else IndexError
    )
    with pytest.raises(error, match="no room for 2 tokens from slot 4 on|out of bounds"):
        layer(ids, cache=layer.make_cache(2, 5), cache_index=index)


@only_on("jax", "tensorflow")
def test_rows_become_nan_where_compiled_code_finds_no_slots_for_them():
    layer, ids = _decoder(), random_ids(2, 2) % 20

    def call(ids, index):
        return layer(ids, cache=layer.make_cache(2, 5), cache_index=index)[0]

    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        call = tf.function(call)
    cases = [(4, [False, False]), (3, [True, True]), ([4, 3], [False, True])]
    # TensorFlow raises at an index of its own for each row.
    for index, fits in cases[: 3 if keras.backend.backend() == "jax" else 2]:
        out = run(call, ids, np.asarray(index, "int32"))
        np.testing.assert_array_equal(
            np.isfinite(out), np.broadcast_to(np.reshape(fits, (2, 1, 1)), out.shape)
        )


def test_sequences_that_are_too_long():
    with pytest.raises(ValueError, match="13 positions are more than max_positions=12"):
        _decoder()(np.zeros((1, 13), "int32"))
