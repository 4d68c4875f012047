"""LLaVA-1.5 of transformers <-> `GhostVis`: every key, every tensor, every logit."""

import copy

import numpy as np
import pytest
from reference_models import randomise, run_reference, state_of
from safetensors.numpy import load_file, save_file
from tiny_models import fill, logits

from dl_techniques.checkpoints import export_llava, export_smolvlm
from dl_techniques.checkpoints.json_files import read_json, write_json
from dl_techniques.checkpoints.llava_config import config_from_llava, llava_from_config
from dl_techniques.models.ghost_vis import GHOSTVIS_CONFIGS, GhostVis
from dl_techniques.models.nano_vlm import NanoVLM

IMAGE_ID = 39
PUBLISHED = {
    "architectures": ["LlavaForConditionalGeneration"],
    "image_token_index": 32000,
    "model_type": "llava",
    "pad_token_id": 32001,
    "projector_hidden_act": "gelu",
    "text_config": {
        "max_position_embeddings": 4096,
        "model_type": "llama",
        "rms_norm_eps": 1e-5,
        "vocab_size": 32064,
    },
    "tie_word_embeddings": False,
    "vision_config": {
        "hidden_size": 1024,
        "image_size": 336,
        "intermediate_size": 4096,
        "model_type": "clip_vision_model",
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "patch_size": 14,
        "projection_dim": 768,
    },
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
}


def tiny_llava(text="llama", **changes):
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    config = LlavaConfig(
        vision_config={
            "model_type": "clip_vision_model",
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "image_size": 12,
            "patch_size": 4,
        },
        text_config={
            "model_type": text,
            "vocab_size": 40,
            "hidden_size": 24,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 64,
            "pad_token_id": 0,
        },
        image_token_index=IMAGE_ID,
        image_seq_length=9,
        **changes,
    )
    return randomise(LlavaForConditionalGeneration(config), scale=0.2)


def batch(tokens=9):
    """Return two neighbouring images in row 0, one in row 1, none in row 2."""
    generator = np.random.default_rng(0)
    ids = generator.integers(1, IMAGE_ID, (3, 24)).astype("int32")
    ids[0, 2 : 2 + 2 * tokens] = ids[1, 5 : 5 + tokens] = IMAGE_ID
    images = generator.uniform(-1, 1, (3, 2, 12, 12, 3)).astype("float32")
    return {"text_tokens": ids, "images": images, "num_images": np.array([2, 1, 0], "int32")}


def their_logits(reference, inputs):
    real = np.arange(2) < inputs["num_images"][:, None]
    return run_reference(
        reference,
        input_ids=inputs["text_tokens"].astype("int64"),
        attention_mask=np.ones(inputs["text_tokens"].shape, "int64"),
        pixel_values=inputs["images"][real].transpose(0, 3, 1, 2),
    ).logits.numpy()


def hub_layout(folder):
    """Rename the tensors of a folder to what the hub's files have."""
    path = folder / "model.safetensors"
    tower, inner = "vision_tower.", "vision_tower.vision_model."
    state = {key.replace(tower, inner): value for key, value in load_file(path).items()}
    state["vision_tower.vision_model.embeddings.position_ids"] = np.arange(10)[None]
    save_file(state, path, {"format": "pt"})


def assert_exported(theirs, ours, last=2):
    """Compare every tensor of two folders, but for the layers and the norm that LLaVA ignores."""
    expected = {
        key.replace("vision_tower.vision_model.", "vision_tower."): value
        for key, value in load_file(theirs / "model.safetensors").items()
        if f".encoder.layers.{last}." not in key and "position_ids" not in key
    }
    written = load_file(ours / "model.safetensors")
    prefix = "vision_tower.vision_model."
    assert all(key.startswith(prefix) for key in written if key.startswith("vision_tower."))
    written = {key.replace(prefix, "vision_tower."): value for key, value in written.items()}
    assert written.keys() == expected.keys()
    for key, value in expected.items():
        if "post_layernorm" in key:
            value = np.full_like(value, key.endswith("weight"))
        np.testing.assert_array_equal(written[key], value, key)
        assert written[key].dtype == value.dtype


def loaded_by_transformers(folder):
    from transformers import LlavaForConditionalGeneration

    model, info = LlavaForConditionalGeneration.from_pretrained(
        folder, output_loading_info=True, local_files_only=True
    )
    assert not any(info.values()), info
    return model.eval()


@pytest.mark.parametrize(
    ("text", "layout", "changes"),
    [
        ("llama", "transformers 5", {}),
        ("llama", "hub", {"multimodal_projector_bias": False}),
        ("qwen2", "hub", {"vision_feature_select_strategy": "full", "tie_word_embeddings": True}),
    ],
)
def test_loads_exports_and_goes_back(text, layout, changes, tmp_path):
    reference = tiny_llava(text, **changes)
    reference.save_pretrained(tmp_path / "theirs")
    if layout == "hub":
        hub_layout(tmp_path / "theirs")
    model = GhostVis.from_preset(tmp_path / "theirs", processor=None)
    tokens = 10 if changes.get("vision_feature_select_strategy") == "full" else 9
    assert model.tokens_per_image == tokens
    assert model.language_decoder.tie_embeddings == changes.get("tie_word_embeddings", False)
    inputs = batch(tokens)
    expected = their_logits(reference, inputs)
    got = logits(model, inputs)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
    assert np.abs(got).mean() > 0.1

    export_llava(model, tmp_path / "ours")
    assert_exported(tmp_path / "theirs", tmp_path / "ours")
    again = loaded_by_transformers(tmp_path / "ours")
    assert again.config.vision_config.num_hidden_layers == 2
    np.testing.assert_array_equal(their_logits(again, inputs), expected)
    ours = config_from_llava(read_json(tmp_path / "ours/config.json"))
    assert ours == config_from_llava(read_json(tmp_path / "theirs/config.json"))
    export_llava(GhostVis.from_preset(tmp_path / "ours", processor=None), tmp_path / "twice")
    first, second = (load_file(tmp_path / f"{n}/model.safetensors") for n in ("ours", "twice"))
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize(("layer", "depth"), [(-1, 3), (-3, 1), (2, 2), (3, 3)])
def test_any_layer_may_be_the_one_that_is_read(layer, depth, tmp_path):
    reference = tiny_llava(vision_feature_layer=layer)
    reference.save_pretrained(tmp_path)
    model = GhostVis.from_preset(tmp_path, processor=None)
    assert model.vision_encoder.depth == depth
    inputs = batch()
    expected = their_logits(reference, inputs)
    np.testing.assert_allclose(logits(model, inputs), expected, rtol=1e-5, atol=1e-5)


def test_bfloat16_stays_as_it_is(tmp_path):
    tiny_llava().bfloat16().save_pretrained(tmp_path / "theirs")
    model = GhostVis.from_preset(tmp_path / "theirs", processor=None, dtype="bfloat16")
    export_llava(model, tmp_path / "ours")
    assert_exported(tmp_path / "theirs", tmp_path / "ours")
    assert read_json(tmp_path / "ours/config.json")["dtype"] == "bfloat16"


def test_the_published_configuration_is_ours():
    config = config_from_llava(PUBLISHED)
    named = GHOSTVIS_CONFIGS["llava_1_5_7b"]
    for part in ("vision_config", "language_config", "projector_config"):
        assert {k: config[part][k] for k in named[part]} == named[part]
    assert (config["vocab_size"], config["image_token_id"]) == (32064, 32000)
    written = llava_from_config({**config, "resampler_config": None})
    assert written["vision_config"]["num_hidden_layers"] == 23
    assert written["image_seq_length"] == 576
    again = config_from_llava(written)
    explicit = {"num_kv_heads": 32, "head_dim": 128}
    assert again["language_config"] == {**config["language_config"], **explicit}
    assert {**again, "language_config": config["language_config"]} == config


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"vision_feature_layer": [-2, -5]}, r"vision_feature_layer=\[-2, -5\].*only one layer"),
        ({"vision_feature_layer": -25}, "vision_feature_layer=-25.*24 layers"),
        ({"vision_feature_layer": 0}, "vision_feature_layer=0"),
        ({"vision_feature_layer": 25}, "vision_feature_layer=25"),
        ({"vision_feature_select_strategy": "mean"}, "vision_feature_select_strategy='mean'"),
        ({"projector_hidden_act": "relu"}, "projector_hidden_act='relu'"),
        ({"vision_config": {"model_type": "siglip_vision_model"}}, "model_type='siglip_vision"),
        ({"text_config": {"model_type": "mistral"}}, "model_type='mistral'"),
        ({"image_token_index": None}, "image_token_index=None"),
        ({"model_type": "llava_next"}, "model_type='llava_next'"),
    ],
)
def test_unsupported_fields_are_named(changes, named):
    with pytest.raises(ValueError, match=named):
        config_from_llava({**PUBLISHED, **changes})


def tiny_ghostvis(**changes):
    language = {"hidden_dim": 24, "num_layers": 1, "num_heads": 4, "mlp_dim": 32}
    config = {
        "vision_config": {
            **config_from_llava(PUBLISHED)["vision_config"],
            "img_size": 12,
            "patch_size": 4,
            "embed_dim": 16,
            "depth": 1,
            "num_heads": 2,
        },
        "language_config": language,
        "projector_config": {"output_dim": 24, "hidden_dim": 24, "use_layer_norm": False},
        "vocab_size": 40,
        "image_token_id": IMAGE_ID,
    }
    return fill(GhostVis(**{**copy.deepcopy(config), **changes}))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"resampler_config": {"num_tokens": 4, "num_heads": 2}}, "resampler_config="),
        ({"projector_config": {"output_dim": 24, "hidden_dim": 24}}, "use_layer_norm=True"),
        ({"projector_config": {"output_dim": 24, "use_layer_norm": False}}, "hidden_dim=2048"),
        ({"bidirectional_images": True}, "bidirectional_images=True"),
        (
            {"vision_config": {"img_size": 12, "patch_size": 4, "embed_dim": 16, "num_heads": 2}},
            "class_token=False: CLIP",
        ),
    ],
)
def test_what_llava_lacks_is_refused_before_anything_is_written(changes, named, tmp_path):
    with pytest.raises(ValueError, match=named):
        export_llava(tiny_ghostvis(**changes), tmp_path)
    assert not list(tmp_path.iterdir())


def test_models_of_other_families_are_refused(tmp_path):
    with pytest.raises(ValueError, match="GhostVis has a VisionConnector.*export_llava"):
        export_smolvlm(tiny_ghostvis(), tmp_path, image_mean=0.5, image_std=0.5)
    tiny_llava().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is a GhostVis, not a NanoVLM"):
        NanoVLM.from_preset(tmp_path)


def test_damaged_folders_are_refused(tmp_path):
    reference = tiny_llava()
    reference.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    behind = "vision_tower.encoder.layers.2."
    assert any(key.startswith(behind) for key in state)
    more = {key.replace(".2.", ".3."): v for key, v in state.items() if key.startswith(behind)}
    del state["multi_modal_projector.linear_2.bias"]
    save_file({**state, **more}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError) as error:
        GhostVis.from_preset(tmp_path, processor=None)
    assert "multi_modal_projector.linear_2.bias: missing" in str(error.value)
    # The configuration has three layers: a fourth is none of those that lie behind.
    assert "vision_tower.encoder.layers.3.layer_norm1.weight: unexpected" in str(error.value)
    assert behind not in str(error.value)


def test_a_tied_head_with_a_tensor_of_its_own(tmp_path):
    reference = tiny_llava()
    assert not np.array_equal(
        state_of(reference)["lm_head.weight"],
        state_of(reference)["model.language_model.embed_tokens.weight"],
    )
    reference.save_pretrained(tmp_path)
    config = read_json(tmp_path / "config.json")
    write_json(tmp_path / "config.json", {**config, "tie_word_embeddings": True})
    with pytest.raises(ValueError, match="lm_head.weight: differ, but the model's head is tied"):
        GhostVis.from_preset(tmp_path, processor=None)
