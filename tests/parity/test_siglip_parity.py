import numpy as np
import pytest
from reference_models import copy_vision, randomise, run_reference, state_of
from tiny_models import run

from dl_techniques.layers import SigLIPVisionTransformer


@pytest.fixture(scope="module")
def reference():
    from transformers import SiglipVisionConfig, SiglipVisionModel

    config = SiglipVisionConfig(
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=3,
        num_attention_heads=3,
        image_size=20,
        patch_size=4,
        vision_use_head=False,
    )
    return randomise(SiglipVisionModel(config))


def test_hidden_states_of_every_block(reference):
    encoder = SigLIPVisionTransformer(20, 4, 24, 3, 3, mlp_ratio=40 / 24)
    encoder.build((None, 20, 20, 3))
    state = state_of(reference)
    prefix = next(k for k in state if "embeddings.patch" in k).split("embeddings.patch")[0]
    copy_vision(encoder, state, prefix)
    assert sum(v.size for v in state.values()) == encoder.count_params()
    images = np.random.default_rng(0).uniform(-1, 1, (2, 20, 20, 3)).astype("float32")
    expected = run_reference(reference, pixel_values=images.transpose(0, 3, 1, 2))

    def hidden_states(x):
        states = [encoder.patch_embedding(x)]
        for block in encoder.blocks:
            states.append(block(states[-1]))
        return [*states, encoder.norm(states[-1]), encoder(x)]

    *states, last, whole = run(hidden_states, images)
    assert len(states) == len(expected.hidden_states) == 4
    for ours, theirs in zip(states, expected.hidden_states, strict=True):
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-5, atol=1e-5)
    for ours in (last, whole):
        np.testing.assert_allclose(ours, expected.last_hidden_state.numpy(), rtol=1e-5, atol=1e-5)
