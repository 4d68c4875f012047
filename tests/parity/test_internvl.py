"""InternVL of transformers, OpenGVLab's own files and NVLM-D's <-> `NVLM`."""

import numpy as np
import pytest
from internvit_names import published_internvit, with_dummy_heads
from reference_models import randomise, run_reference
from safetensors.numpy import load_file, save_file
from tiny_models import fill, logits

from dl_techniques.checkpoints import export_internvl
from dl_techniques.checkpoints.internvl_config import (
    config_from_internvl,
    config_from_internvl_chat,
    internvl_chat_from_config,
)
from dl_techniques.checkpoints.json_files import read_json, write_json
from dl_techniques.models.nvlm import NVLM, NVLM_CONFIGS

IMAGE_ID = 39
VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 4,
}
# transformers' names of what tells the 6B encoder from the 300M one, and the published ones.
KINDS = {
    "6b": {"norm_type": "rms_norm", "attention_bias": False, "use_qk_norm": True},
    "300m": {"norm_type": "layer_norm", "attention_bias": True, "use_qk_norm": False},
}
TEXT = {
    "model_type": "qwen2",
    "vocab_size": 40,
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}


def tiny_internvl(kind="300m", tied=False):
    from transformers import InternVLConfig, InternVLForConditionalGeneration

    config = InternVLConfig(
        vision_config={**VISION, **KINDS[kind]},
        text_config={**TEXT, "tie_word_embeddings": tied},
        tie_word_embeddings=tied,
        image_token_id=IMAGE_ID,
        image_seq_length=4,
    )
    return randomise(InternVLForConditionalGeneration(config), scale=0.2)


def published_config(kind="300m", model_type="internvl_chat", **changes):
    fields = KINDS[kind]
    return {
        "model_type": model_type,
        "vision_config": {
            **VISION,
            "model_type": "intern_vit_6b",
            "norm_type": fields["norm_type"],
            "qkv_bias": fields["attention_bias"],
            "qk_normalization": fields["use_qk_norm"],
        },
        "llm_config": {**TEXT, "tie_word_embeddings": False, "rope_theta": 10000.0},
        "downsample_ratio": 0.5,
        "ps_version": "v2",
        "select_layer": -1,
        "force_image_size": 16,
        "dynamic_image_size": True,
        "min_dynamic_patch": 1,
        "max_dynamic_patch": 6,
        "use_thumbnail": True,
        "template": "internvl2_5",
        **changes,
    }


def published_state(state):
    """Return the tensors of transformers' file under the names of OpenGVLab's."""
    vision = {k.removeprefix("vision_tower."): v for k, v in state.items() if "tower" in k}
    new = {f"vision_model.{key}": value for key, value in published_internvit(vision).items()}
    projector = {"layer_norm": "mlp1.0", "linear_1": "mlp1.1", "linear_2": "mlp1.3"}
    for key, value in state.items():
        if key.startswith("multi_modal_projector."):
            _, layer, kind = key.split(".")
            new[f"{projector[layer]}.{kind}"] = value
        elif key.startswith("language_model."):
            new[key] = value
    assert len(new) == len(state) - 2 * sum(".q_proj." in key for key in vision)
    return {key: np.ascontiguousarray(value) for key, value in new.items()}


def batch():
    """Return two neighbouring images in row 0, one in row 1, none in row 2."""
    generator = np.random.default_rng(0)
    ids = generator.integers(1, IMAGE_ID, (3, 16)).astype("int32")
    ids[0, 1:9] = ids[1, 6:10] = IMAGE_ID
    images = generator.uniform(-1, 1, (3, 2, 16, 16, 3)).astype("float32")
    return {"text_tokens": ids, "images": images, "num_images": np.array([2, 1, 0], "int32")}


def their_logits(reference, inputs):
    real = np.arange(2) < inputs["num_images"][:, None]
    return run_reference(
        reference,
        input_ids=inputs["text_tokens"].astype("int64"),
        attention_mask=np.ones(inputs["text_tokens"].shape, "int64"),
        pixel_values=inputs["images"][real].transpose(0, 3, 1, 2),
    ).logits.numpy()


def assert_same_state(folder, expected):
    written = load_file(folder / "model.safetensors")
    assert written.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_array_equal(written[key], value, key)
        assert written[key].dtype == value.dtype


def loaded_by_transformers(folder):
    from transformers import InternVLForConditionalGeneration

    model, info = InternVLForConditionalGeneration.from_pretrained(
        folder, output_loading_info=True, local_files_only=True
    )
    assert not any(info.values()), info
    return model.eval()


def written_folder(folder, state, config):
    folder.mkdir(exist_ok=True)
    write_json(folder / "config.json", config)
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize(("kind", "tied"), [("300m", False), ("6b", True)])
def test_internvl_of_transformers_and_of_opengvlab(kind, tied, tmp_path):
    reference = tiny_internvl(kind, tied)
    reference.save_pretrained(tmp_path / "theirs")
    state = load_file(tmp_path / "theirs/model.safetensors")
    inputs = batch()
    expected = their_logits(reference, inputs)
    model = NVLM.from_preset(tmp_path / "theirs", processor=None)
    assert model.tokens_per_image == 4
    got = logits(model, inputs)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
    assert np.abs(got).mean() > 0.1

    export_internvl(model, tmp_path / "ours")
    assert_same_state(tmp_path / "ours", state)
    again = loaded_by_transformers(tmp_path / "ours")
    np.testing.assert_array_equal(their_logits(again, inputs), expected)
    ours, theirs = (read_json(tmp_path / f"{n}/config.json") for n in ("ours", "theirs"))
    assert config_from_internvl(ours) == config_from_internvl(theirs)

    original = published_state(state)
    assert original["vision_model.embeddings.class_embedding"].shape == (1, 1, 16)
    config = published_config(kind, image_token_id=IMAGE_ID)
    config["llm_config"]["tie_word_embeddings"] = tied
    folder = written_folder(tmp_path / "original", original, config)
    other = NVLM.from_preset(folder, processor=None)
    np.testing.assert_array_equal(logits(other, inputs), got)
    export_internvl(model, tmp_path / "back", layout="original")
    assert_same_state(tmp_path / "back", original)
    back = read_json(tmp_path / "back/config.json")
    assert config_from_internvl_chat(back) == config_from_internvl_chat(config)


def nvlm_d_state(seed=0):
    """Return (NVLM-D's tensors without dummy heads, logits of `batch` by transformers' InternVL).

    NVLM-D's projector has other widths and no biases: here as in InternVL, with zeros for biases.
    """
    reference = tiny_internvl("6b")
    projector = reference.model.multi_modal_projector
    projector.linear_1.bias.data.zero_()
    projector.linear_2.bias.data.zero_()
    generator = np.random.default_rng(seed)
    import torch

    widened = {
        "linear_1": generator.standard_normal((32, 64)).astype("float32") / 8,
        "linear_2": generator.standard_normal((24, 32)).astype("float32") / 8,
    }
    for name, weight in widened.items():
        layer = torch.nn.Linear(*weight.shape[::-1], bias=False)
        layer.weight.data.copy_(torch.from_numpy(weight))
        setattr(projector, name, layer)
    expected = their_logits(reference, batch())
    state = {k: v.detach().numpy() for k, v in reference.state_dict().items()}
    renamed = {}
    for key, value in state.items():
        key = key.removeprefix("model.").replace("language_model.", "language_model.model.")
        renamed[key.replace("lm_head", "language_model.lm_head")] = value
    return published_state(renamed), expected


def test_nvlm_d_with_seven_dummy_heads(tmp_path):
    state, expected = nvlm_d_state()
    assert "mlp1.1.bias" not in state and "language_model.lm_head.weight" in state
    padded = with_dummy_heads(state, width=16 + 7 * 8)
    qkv = "vision_model.encoder.layers.1.attn.qkv.weight"
    assert padded[qkv].shape == (3 * 72, 16) and state[qkv].shape == (3 * 16, 16)
    config = published_config("6b", "NVLM_D", template="chatml", image_token_id=IMAGE_ID)
    folder = written_folder(tmp_path / "theirs", padded, config)
    model = NVLM.from_preset(folder, processor=None)
    got = logits(model, batch())
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
    assert np.abs(got).mean() > 0.1
    # Written without the dummy heads.
    export_internvl(model, tmp_path / "ours", layout="nvlm_d")
    assert_same_state(tmp_path / "ours", state)
    again = NVLM.from_preset(tmp_path / "ours", processor=None)
    np.testing.assert_array_equal(logits(again, batch()), got)
    assert read_json(tmp_path / "ours/config.json")["model_type"] == "NVLM_D"
    assert again.arguments() == model.arguments()


def test_dummy_heads_that_are_none(tmp_path):
    state, _ = nvlm_d_state()
    padded = with_dummy_heads(state, width=72)
    padded["vision_model.encoder.layers.0.attn.proj.weight"][0, -1] = 1e-3
    config = published_config("6b", "NVLM_D", image_token_id=IMAGE_ID)
    folder = written_folder(tmp_path, padded, config)
    with pytest.raises(ValueError, match="the heads beyond that are not zero"):
        NVLM.from_preset(folder, processor=None)


def test_nvlm_d_72b_is_the_named_configuration():
    config = {
        "model_type": "NVLM_D",
        "vision_config": {"num_hidden_layers": 45, "image_size": 448},
        "llm_config": {
            "architectures": ["Qwen2ForCausalLM"],
            "hidden_size": 8192,
            "intermediate_size": 29568,
            "num_hidden_layers": 80,
            "num_attention_heads": 64,
            "num_key_value_heads": 8,
            "vocab_size": 152064,
            "rope_theta": 1000000.0,
        },
        "ps_version": "v2",
        "image_token_id": 151654,
    }
    ours, named = config_from_internvl_chat(config), NVLM_CONFIGS["nvlm_d_72b"]
    for part in ("vision_config", "language_config", "projector_config"):
        assert {key: ours[part][key] for key in named[part]} == named[part]
    for name in ("architecture", "scale_factor", "vocab_size", "image_token_id"):
        assert ours[name] == named[name]


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "added_tokens.json"])
def test_the_placeholders_id_is_the_tokenizers(name, tmp_path):
    state, _ = nvlm_d_state()
    folder = written_folder(tmp_path, state, published_config("6b", "NVLM_D"))
    with pytest.raises(ValueError, match=r"image_token_id.*'<\|vision_pad\|>'"):
        NVLM.from_preset(folder, processor=None)
    token = {"content": "<|vision_pad|>"}
    content = {
        "tokenizer.json": {"added_tokens": [{"id": 3, "content": "x"}, {"id": 37, **token}]},
        "tokenizer_config.json": {"added_tokens_decoder": {"37": token}},
        "added_tokens.json": {"x": 3, "<|vision_pad|>": 37},
    }
    write_json(folder / name, content[name])
    assert NVLM.from_preset(folder, processor=None).image_token_id == 37
    other = "tokenizer.json" if name == "added_tokens.json" else "added_tokens.json"
    changed = {"added_tokens": [{"id": 36, **token}], "<|vision_pad|>": 36}
    write_json(folder / other, changed)
    with pytest.raises(ValueError, match="disagree about the id of"):
        NVLM.from_preset(folder, processor=None)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"ps_version": "v1"}, "ps_version='v1': only 'v2'.*column by column"),
        ({"ps_version": None}, "ps_version=None"),
        ({"select_layer": -4}, "select_layer=-4"),
        ({"downsample_ratio": 0.7}, "downsample_ratio=0.7"),
        ({"force_image_size": 32}, "force_image_size=32.*16"),
        ({"llm_config": {"architectures": ["InternLM2ForCausalLM"]}}, "InternLM2ForCausalLM"),
        ({"llm_config": {**TEXT, "use_sliding_window": True}}, "use_sliding_window=True"),
        ({"vision_config": {**VISION, "use_moe": True}}, "use_moe=True"),
        ({"image_token_id": None}, "image_token_id=None"),
        ({"model_type": "internvl"}, "model_type='internvl'"),
    ],
)
def test_unsupported_fields_of_the_original_are_named(changes, named):
    config = published_config(image_token_id=IMAGE_ID)
    assert config_from_internvl_chat(config)["scale_factor"] == 2
    with pytest.raises(ValueError, match=named):
        config_from_internvl_chat({**config, **changes})


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"vision_feature_layer": -2}, "vision_feature_layer=-2"),
        ({"vision_feature_select_strategy": "full"}, "vision_feature_select_strategy='full'"),
        ({"projector_hidden_act": "relu"}, "projector_hidden_act='relu'"),
        ({"downsample_ratio": 0}, "downsample_ratio=0"),
        ({"vision_config": {"use_mean_pooling": False}}, "use_mean_pooling=False"),
        ({"vision_config": {"image_size": [448, 224]}}, r"image_size=\[448, 224\]"),
        ({"vision_config": {"use_mask_token": True}}, "use_mask_token=True"),
        ({"vision_config": {"hidden_dropout_prob": 0.1}}, "hidden_dropout_prob=0.1"),
        ({"text_config": {"model_type": "qwen3"}}, "model_type='qwen3'"),
    ],
)
def test_unsupported_fields_of_transformers_are_named(changes, named):
    config = {"model_type": "internvl", "vision_config": {}, "text_config": TEXT}
    ours = config_from_internvl(config)
    assert ours["image_token_id"] == 151667 and ours["language_config"]["tie_embeddings"]
    with pytest.raises(ValueError, match=named):
        config_from_internvl({**config, **changes})


def tiny_nvlm(**changes):
    config = config_from_internvl_chat(published_config(image_token_id=IMAGE_ID))
    return fill(NVLM(**{**config, **changes}))


@pytest.mark.parametrize(
    ("layout", "changes", "named"),
    [
        ("nvlm_d", {}, "use_bias=True: NVLM-D"),
        ("transformers", {"scale_factor": None, "projector_config": None}, "scale_factor=None"),
        ("original", {"compressor_config": {"ratio": 2}}, "compressor_config="),
        ("original", {"bidirectional_images": True}, "bidirectional_images=True"),
        ("v1", {}, "layout='v1'"),
    ],
)
def test_what_internvl_lacks_is_refused_before_anything_is_written(
    layout, changes, named, tmp_path
):
    model = tiny_nvlm()
    if "compressor_config" in changes:
        model.modality_projection.compressor_config = changes["compressor_config"]
    elif "scale_factor" in changes:
        model.modality_projection.scale_factor = None
    elif changes:
        model = tiny_nvlm(**changes)
    with pytest.raises(ValueError, match=named):
        export_internvl(model, tmp_path, layout=layout)
    assert not list(tmp_path.iterdir())


def test_nvlm_d_written_from_a_whole_config_is_read_again():
    named = {k: v for k, v in NVLM_CONFIGS["nvlm_d_72b"].items() if k != "total_params"}
    theirs = internvl_chat_from_config(named, "NVLM_D")
    assert theirs["llm_config"]["intermediate_size"] == 29568
    again = config_from_internvl_chat(theirs)
    for part in ("vision_config", "language_config", "projector_config"):
        assert {key: again[part][key] for key in named[part]} == named[part]
