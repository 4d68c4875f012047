import numpy as np
import pytest
from references import VISION, loaded_by_transformers, outputs, siglip, state_of
from safetensors.numpy import load_file, save_file
from tiny_models import run

from dl_techniques.checkpoints import export_vision_encoder, load_weights
from dl_techniques.checkpoints.configs import (
    siglip_from_vision_config,
    vision_config_from_siglip,
)
from dl_techniques.checkpoints.json_files import read_json
from dl_techniques.layers import SigLIPVisionTransformer


def encoder_of(folder):
    config = vision_config_from_siglip(read_json(folder / "config.json"))
    encoder = SigLIPVisionTransformer(**config)
    encoder.build((None, config["img_size"], config["img_size"], 3))
    load_weights(encoder, folder, "siglip")
    return encoder


def images():
    return np.random.default_rng(0).uniform(-1, 1, (2, 16, 16, 3)).astype("float32")


def last_hidden_state(reference):
    return outputs(reference, pixel_values=images().transpose(0, 3, 1, 2)).last_hidden_state


def test_loads_exports_and_goes_back(tmp_path):
    reference = siglip(vision_use_head=False)
    reference.save_pretrained(tmp_path / "theirs")
    encoder = encoder_of(tmp_path / "theirs")
    expected = outputs(reference, pixel_values=images().transpose(0, 3, 1, 2))

    def hidden_states(x):
        states = [encoder.patch_embedding(x)]
        for block in encoder.blocks:
            states.append(block(states[-1]))
        return [*states, encoder(x)]

    *states, last = run(hidden_states, images())
    for ours, theirs in zip(states, expected.hidden_states, strict=True):
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(last, expected.last_hidden_state.numpy(), rtol=1e-5, atol=1e-5)

    export_vision_encoder(encoder, tmp_path / "ours")
    again = loaded_by_transformers(type(reference), tmp_path / "ours")
    np.testing.assert_array_equal(last_hidden_state(again), expected.last_hidden_state)
    written = load_file(tmp_path / "ours/model.safetensors")
    stored = load_file(tmp_path / "theirs/model.safetensors")
    assert sorted(written) == sorted(f"vision_model.{key}" for key in stored)
    for key, value in stored.items():
        np.testing.assert_array_equal(written[f"vision_model.{key}"], value)
    config = vision_config_from_siglip(read_json(tmp_path / "ours/config.json"))
    assert config == vision_config_from_siglip(read_json(tmp_path / "theirs/config.json"))


def test_a_file_of_the_hub_with_text_tower_and_pooling_head(tmp_path):
    """These begin with `vision_model.`; what the table drops has a reason."""
    reference = siglip()
    state = {f"vision_model.{k}": v for k, v in state_of(reference).items()}
    assert any(".head." in key for key in state)
    state["vision_model.embeddings.position_ids"] = np.arange(16)[None]
    state["text_model.final_layer_norm.weight"] = np.ones(4, "float32")
    state["logit_scale"] = np.ones((), "float32")
    state["logit_bias"] = np.ones(1, "float32")
    save_file({k: np.ascontiguousarray(v) for k, v in state.items()}, tmp_path / "hub.safetensors")
    encoder = SigLIPVisionTransformer(16, 4, 16, 2, 2, mlp_ratio=24 / 16)
    encoder.build((None, 16, 16, 3))
    load_weights(encoder, tmp_path / "hub.safetensors", "siglip")
    got = run(encoder, images())
    expected = last_hidden_state(reference).numpy()
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_of_a_whole_siglip_config_the_vision_part_is_read():
    whole = {"model_type": "siglip", "vision_config": VISION, "text_config": {"hidden_size": 3}}
    assert vision_config_from_siglip(whole)["embed_dim"] == 16
    so400m = {"hidden_size": 1152, "intermediate_size": 4304, "patch_size": 14}
    arguments = vision_config_from_siglip({**so400m, "num_attention_heads": 16})
    assert siglip_from_vision_config(arguments)["intermediate_size"] == 4304
    assert arguments["depth"] == 12


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"layer_norm_eps": 1e-5}, "layer_norm_eps"),
        ({"attention_dropout": 0.5}, "attention_dropout"),
        ({"num_channels": 4}, "num_channels"),
        ({"model_type": "siglip2_vision_model"}, "model_type"),
        ({"image_size": [16, 32]}, "image_size"),
        ({"intermediate_size": None}, "intermediate_size"),
    ],
)
def test_unsupported_fields_are_named(changes, named):
    with pytest.raises(ValueError, match=named):
        vision_config_from_siglip({**VISION, **changes})


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"class_token": True}, "class_token"), ({"img_size": (16, 32)}, "img_size")],
)
def test_arguments_that_siglip_lacks_are_named(changes, named):
    assert siglip_from_vision_config({"img_size": (32, 32)})["image_size"] == 32
    with pytest.raises(ValueError, match=named):
        siglip_from_vision_config(changes)
