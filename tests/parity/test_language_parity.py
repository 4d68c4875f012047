import numpy as np
import pytest
from keras import ops
from reference_models import copy_language, randomise, run_reference, state_of
from tiny_models import run

from dl_techniques.layers.attention_mask import attention_rule
from dl_techniques.models.language_decoder import LanguageDecoder

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
SIZES = {
    "vocab_size": 40,
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


def _smollm2():
    from transformers import LlamaConfig, LlamaForCausalLM

    rope = {"rope_type": "default", "rope_theta": 100000.0}
    config = LlamaConfig(**SIZES, rms_norm_eps=1e-5, tie_word_embeddings=True, rope_parameters=rope)
    return LlamaForCausalLM(config), {"rope_theta": 100000.0}


def _llama3():
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        **SIZES,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        rope_parameters={**LLAMA3, "rope_theta": 500.0},
    )
    ours = {"rope_theta": 500.0, "rope_scaling": LLAMA3, "tie_embeddings": False}
    return LlamaForCausalLM(config), ours


def _qwen2():
    from transformers import Qwen2Config, Qwen2ForCausalLM

    rope = {"rope_type": "default", "rope_theta": 1000000.0}
    config = Qwen2Config(**SIZES, rms_norm_eps=1e-6, tie_word_embeddings=True, rope_parameters=rope)
    ours = {"rope_theta": 1000000.0, "use_qkv_bias": True, "norm_epsilon": 1e-6}
    return Qwen2ForCausalLM(config), ours


FAMILIES = {"smollm2": _smollm2, "llama3": _llama3, "qwen2": _qwen2}


@pytest.mark.parametrize("family", list(FAMILIES))
def test_hidden_states_of_every_block_and_logits(family):
    reference, arguments = FAMILIES[family]()
    randomise(reference)
    decoder = LanguageDecoder(40, 24, 3, 6, 32, num_kv_heads=2, max_positions=64, **arguments)
    decoder.build((None, None))
    state = state_of(reference)
    copy_language(decoder, state, "model.")
    assert sum(p.numel() for p in reference.parameters()) == decoder.count_params()
    # Row 1 is padded on its left, and there are enough positions for the scaling to matter.
    ids = np.random.default_rng(0).integers(0, 40, (2, 48))
    mask = np.ones((2, 48), bool)
    mask[1, :5] = False
    positions = np.maximum(mask.cumsum(axis=1) - 1, 0)
    expected = run_reference(
        reference, input_ids=ids, attention_mask=mask.astype("int64"), position_ids=positions
    )

    def hidden_states(ids, mask):
        allowed, positions = attention_rule(ops.arange(48), 48, mask)
        states = [decoder.token_embedding(ids)]
        for block in decoder.blocks:
            states.append(block(states[-1], positions, allowed))
        return [*states[:-1], decoder.norm(states[-1]), decoder(ids, attention_mask=mask)]

    *states, logits = run(hidden_states, ids.astype("int32"), mask)
    assert len(states) == len(expected.hidden_states) == 4
    for ours, theirs in zip(states, expected.hidden_states, strict=True):
        np.testing.assert_allclose(ours[mask], theirs.numpy()[mask], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(logits[mask], expected.logits.numpy()[mask], rtol=1e-5, atol=1e-5)
    assert np.abs(logits).mean() > 0.1
