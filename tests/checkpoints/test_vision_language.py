import numpy as np
import pytest
from references import (
    IMAGE_ID,
    LATER,
    NANOVLM_CONFIG,
    loaded_by_transformers,
    smolvlm,
    state_of,
    text_ids,
    vlm_batch,
    vlm_logits,
)
from safetensors.numpy import load_file, save_file
from test_decoders import assert_same_tensors
from tiny_models import logits, tiny_nanovlm
from tiny_presets import tiny_model

from dl_techniques.checkpoints import (
    Checkpoint,
    export_nanovlm,
    export_smolvlm,
    load_weights,
)
from dl_techniques.checkpoints.json_files import read_json
from dl_techniques.checkpoints.nanovlm_config import config_from_nanovlm
from dl_techniques.checkpoints.smolvlm_config import config_from_smolvlm
from dl_techniques.models.nano_vlm import NanoVLM
from dl_techniques.preprocessing.images import ImageProcessor

PIXELS = {"image_mean": 0.5, "image_std": 0.5}


def nanovlm_state(state: dict) -> dict:
    """Return a SmolVLM's weights under nanoVLM's names, written out by hand."""
    vit, lm = "model.vision_model", "model.text_model"
    new = {
        "vision_encoder.patch_embedding.conv.weight": state[
            f"{vit}.embeddings.patch_embedding.weight"
        ],
        "vision_encoder.patch_embedding.conv.bias": state[f"{vit}.embeddings.patch_embedding.bias"],
        "vision_encoder.patch_embedding.position_embedding": state[
            f"{vit}.embeddings.position_embedding.weight"
        ][None],
        "vision_encoder.layer_norm.weight": state[f"{vit}.post_layernorm.weight"],
        "vision_encoder.layer_norm.bias": state[f"{vit}.post_layernorm.bias"],
        "MP.proj.weight": state["model.connector.modality_projection.proj.weight"],
        "decoder.norm.weight": state[f"{lm}.norm.weight"],
        "decoder.rotary_embd.inv_freq": (1 / 100000 ** (np.arange(0, 6, 2) / 6)).astype("float32"),
        "decoder.head.weight": state["lm_head.weight"],
    }
    for i in range(2):
        a, b = f"{vit}.encoder.layers.{i}", f"vision_encoder.blocks.{i}"
        for kind in ("weight", "bias"):
            qkv = [state[f"{a}.self_attn.{part}_proj.{kind}"] for part in "qkv"]
            new[f"{b}.attn.qkv_proj.{kind}"] = np.concatenate(qkv)
            new[f"{b}.attn.out_proj.{kind}"] = state[f"{a}.self_attn.out_proj.{kind}"]
            for n in "12":
                new[f"{b}.ln{n}.{kind}"] = state[f"{a}.layer_norm{n}.{kind}"]
                new[f"{b}.mlp.fc{n}.{kind}"] = state[f"{a}.mlp.fc{n}.{kind}"]
        a, b = f"{lm}.layers.{i}", f"decoder.blocks.{i}"
        new[f"{b}.norm1.weight"] = state[f"{a}.input_layernorm.weight"]
        new[f"{b}.norm2.weight"] = state[f"{a}.post_attention_layernorm.weight"]
        new[f"{b}.attn.out_proj.weight"] = state[f"{a}.self_attn.o_proj.weight"]
        for part in "qkv":
            new[f"{b}.attn.{part}_proj.weight"] = state[f"{a}.self_attn.{part}_proj.weight"]
        for part in ("gate", "up", "down"):
            new[f"{b}.mlp.{part}_proj.weight"] = state[f"{a}.mlp.{part}_proj.weight"]
    return {k: np.ascontiguousarray(v) for k, v in new.items()}


@pytest.fixture(scope="module")
def tied():
    return smolvlm(tied=True)


@pytest.mark.parametrize(("kind", "is_tied"), [("smolvlm", True), ("idefics3", False)])
def test_smolvlm_loads_exports_and_goes_back(kind, is_tied, tmp_path):
    reference = smolvlm(kind, is_tied)
    reference.save_pretrained(tmp_path / "theirs")
    model = NanoVLM(**config_from_smolvlm(read_json(tmp_path / "theirs/config.json")))
    load_weights(model, tmp_path / "theirs", "smolvlm")
    batch = vlm_batch()
    expected = vlm_logits(reference, batch)
    got = logits(model, batch)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
    assert np.abs(got).mean() > 0.1

    export_smolvlm(model, tmp_path / "ours", kind=kind, **PIXELS)
    assert_same_tensors(tmp_path / "theirs", tmp_path / "ours")
    again = loaded_by_transformers(type(reference), tmp_path / "ours")
    np.testing.assert_array_equal(vlm_logits(again, batch), expected)
    config = config_from_smolvlm(read_json(tmp_path / "ours/config.json"))
    assert config == config_from_smolvlm(read_json(tmp_path / "theirs/config.json"))


def test_nanovlm_file_loads_exports_and_goes_back(tied, tmp_path):
    state = nanovlm_state(state_of(tied))
    metadata = {"decoder.token_embedding.weight": "decoder.head.weight"}
    save_file(state, tmp_path / "model.safetensors", metadata)
    config = {**NANOVLM_CONFIG, **LATER}
    model = NanoVLM(**config_from_nanovlm(config))
    load_weights(model, tmp_path, "nanovlm")
    batch = vlm_batch()
    expected = vlm_logits(tied, batch)
    np.testing.assert_allclose(logits(model, batch), expected, rtol=1e-5, atol=1e-5)

    export_nanovlm(model, tmp_path / "ours", tokenizer="a/b", image_mean=0, image_std=1)
    written = load_file(tmp_path / "ours/model.safetensors")
    assert sorted(written) == sorted(state)
    for key, value in state.items():
        if key != "decoder.rotary_embd.inv_freq":
            np.testing.assert_array_equal(written[key], value)
    key = "decoder.rotary_embd.inv_freq"
    np.testing.assert_allclose(written[key], state[key], rtol=1e-6)
    with Checkpoint(tmp_path / "ours") as checkpoint:
        assert metadata.items() <= checkpoint.metadata.items()
    again = read_json(tmp_path / "ours/config.json")
    assert config_from_nanovlm(again) == config_from_nanovlm(config)
    free = {"vit_model_type", "lm_model_type", "lm_tokenizer", "vlm_load_backbone_weights"}
    assert set(config) - set(again) == {"lm_eos_token_id"}
    assert {k for k in again if again[k] != config[k]} == free


def test_nanovlms_first_release_puts_the_image_first(tied, tmp_path):
    save_file(nanovlm_state(state_of(tied)), tmp_path / "first.safetensors")
    model = NanoVLM(**config_from_nanovlm(NANOVLM_CONFIG))
    assert model.fusion == "prefix"
    load_weights(model, tmp_path / "first.safetensors", "nanovlm")
    text = text_ids(2, 6).astype("int32")
    images = vlm_batch()["images"][:1].repeat(2, axis=0)[:, :1]
    got = logits(model, {"text_tokens": text, "images": images})
    ids = np.concatenate([np.full((2, 4), IMAGE_ID, "int32"), text], axis=1)
    expected = vlm_logits(tied, {"text_tokens": ids, "images": images})
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
    export_nanovlm(model, tmp_path / "ours", tokenizer="a/b", image_mean=0, image_std=1)
    assert set(read_json(tmp_path / "ours/config.json")) <= set(NANOVLM_CONFIG)
    # SmolVLM places images by a token, which is new: 40. transformers normalises pixels by 0.5.
    export_smolvlm(model, tmp_path / "smolvlm", **PIXELS)
    again = loaded_by_transformers(type(tied), tmp_path / "smolvlm")
    assert again.config.image_token_id == 40
    ids[ids == IMAGE_ID] = 40
    got = vlm_logits(again, {"text_tokens": ids, "images": images})
    np.testing.assert_allclose(got[..., :40], expected, rtol=1e-5, atol=1e-5)
    # The new id's logit is the mean of the others.
    np.testing.assert_allclose(got[..., 40], expected.mean(-1), rtol=1e-4, atol=1e-5)


def test_nanovlm_with_either_or_both_of_the_tied_tensors(tied, tmp_path):
    state = nanovlm_state(state_of(tied))
    model = NanoVLM(**config_from_nanovlm({**NANOVLM_CONFIG, **LATER}))
    head = state.pop("decoder.head.weight")
    save_file({**state, "decoder.token_embedding.weight": head}, tmp_path / "a.safetensors")
    load_weights(model, tmp_path / "a.safetensors", "nanovlm")
    both = {**state, "decoder.head.weight": head, "decoder.token_embedding.weight": head}
    save_file(both, tmp_path / "b.safetensors")
    load_weights(model, tmp_path / "b.safetensors", "nanovlm")
    other = {**both, "decoder.head.weight": head + np.float32(1e-6)}
    save_file(other, tmp_path / "c.safetensors")
    with pytest.raises(ValueError, match="head.weight.*differ, but the model's head is tied"):
        load_weights(model, tmp_path / "c.safetensors", "nanovlm")


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), ([0.5, 0.4, 0.3], [0.2, 0.3, 0.4])])
def test_normalisation_is_folded_into_the_patch_embedding(mean, std, tied, tmp_path):
    """The same pixels, each through its own processor, give the same logits."""
    tied.save_pretrained(tmp_path / "theirs")
    model = NanoVLM(**config_from_smolvlm(read_json(tmp_path / "theirs/config.json")))
    load_weights(model, tmp_path / "theirs", "smolvlm")
    batch = vlm_batch()
    generator = np.random.default_rng(1)
    pixels = generator.uniform(0, 1, batch["images"].shape).astype("float32")
    absent = np.arange(2) >= batch["num_images"][:, None]
    mine = (pixels - np.array(mean, "float32")) / np.array(std, "float32")
    # A black image is no absent one.
    pixels[0, 0], mine[0, 0] = 0, (0 - np.array(mean)) / np.array(std)
    expected = logits(model, {**batch, "images": mine})
    export_smolvlm(model, tmp_path / "smolvlm", image_mean=mean, image_std=std)
    again = loaded_by_transformers(type(tied), tmp_path / "smolvlm")
    theirs = (pixels - 0.5) / 0.5
    theirs[absent] = 0
    got = vlm_logits(again, {**batch, "images": theirs})
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)

    export_nanovlm(model, tmp_path / "nanovlm", None, "a/b", mean, std)
    nano = NanoVLM(**config_from_nanovlm(read_json(tmp_path / "nanovlm/config.json")))
    load_weights(nano, tmp_path / "nanovlm", "nanovlm")
    got = logits(nano, {**batch, "images": pixels})
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_the_processor_says_how_pixels_are_normalised(tmp_path):
    model = NanoVLM(**config_from_nanovlm({**NANOVLM_CONFIG, **LATER}))
    with pytest.raises(ValueError, match="image_mean"):
        export_smolvlm(model, tmp_path)

    export_smolvlm(model, tmp_path / "given", image_mean=0.0, image_std=1.0)
    model = tiny_model(tmp_path / "tokenizer", images=ImageProcessor(16, mean=0.0, std=1.0))
    export_smolvlm(model, tmp_path / "own")
    model.processor = None
    export_smolvlm(model, tmp_path / "given", image_mean=0.0, image_std=1.0)
    assert_same_tensors(tmp_path / "given", tmp_path / "own")


def test_what_the_formats_lack_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="use_gelu"):
        export_smolvlm(tiny_nanovlm(), tmp_path / "a", **PIXELS)
    with pytest.raises(ValueError, match="use_gelu"):
        export_nanovlm(tiny_nanovlm(), tmp_path / "b", **PIXELS)
    assert not list(tmp_path.iterdir())
