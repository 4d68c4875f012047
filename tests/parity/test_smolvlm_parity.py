"""The whole model against SmolVLM: vision, pixel shuffle, projection, splicing, decoding."""

import numpy as np
from reference_models import (
    copy_language,
    copy_linear,
    copy_vision,
    randomise,
    run_reference,
    state_of,
)
from tiny_models import fill, logits

from dl_techniques.models.nano_vlm import NanoVLM

IMAGE_ID = 39


def _reference():
    from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration

    config = SmolVLMConfig(
        image_token_id=IMAGE_ID,
        scale_factor=2,
        tie_word_embeddings=True,
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 16,
            "patch_size": 4,
        },
        text_config={
            "model_type": "llama",
            "vocab_size": 40,
            "hidden_size": 24,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 64,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
            "pad_token_id": 0,
        },
    )
    return randomise(SmolVLMForConditionalGeneration(config))


def _ours(state):
    model = NanoVLM(
        {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}
        | {"mlp_ratio": 2.0},
        {"hidden_dim": 24, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "mlp_dim": 32}
        | {"rope_theta": 100000.0, "max_positions": 64},
        {"input_dim": 16, "output_dim": 24, "scale_factor": 2}
        | {"use_gelu": False, "use_layer_norm": False, "use_bias": False},
        vocab_size=40,
        image_token_id=IMAGE_ID,
    )
    fill(model)
    copy_vision(model.vision_encoder, state, "model.vision_model.")
    connector = "model.connector.modality_projection.proj"
    copy_linear(model.modality_projection.proj, state, connector)
    copy_language(model.language_decoder, state, "model.text_model.")
    return model


def test_logits_with_two_images_one_and_none():
    reference = _reference()
    model = _ours(state_of(reference))
    generator = np.random.default_rng(0)
    ids = generator.integers(1, IMAGE_ID, (3, 16)).astype("int32")
    # Row 0 has two neighbouring images, row 1 one, row 2 none.
    ids[0, 1:9] = ids[1, 6:10] = IMAGE_ID
    images = generator.uniform(-1, 1, (3, 2, 16, 16, 3)).astype("float32")
    counts = np.array([2, 1, 0], "int32")
    # The reference knows absent images by their zeros.
    images[np.arange(2) >= counts[:, None]] = 0
    expected = run_reference(
        reference,
        input_ids=ids.astype("int64"),
        attention_mask=np.ones((3, 16), "int64"),
        pixel_values=images.transpose(0, 1, 4, 2, 3),
    )
    got = logits(model, {"text_tokens": ids, "images": images, "num_images": counts})
    np.testing.assert_allclose(got, expected.logits.numpy(), rtol=1e-5, atol=1e-5)
    assert np.abs(got).mean() > 0.1
