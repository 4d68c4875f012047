import keras
import numpy as np
import numpy_reference as reference
import pytest
from keras import ops
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


def test_sequences_that_are_too_long():
    with pytest.raises(ValueError, match="13 positions are more than max_positions=12"):
        _decoder()(np.zeros((1, 13), "int32"))
