"""GhostVis and NVLM in our own format, from backbones, and with their processors."""

import keras
import numpy as np
import pytest
from internvit_names import published_internvit
from references import clip, internvit, internvit_config, outputs, qwen2, siglip, state_of, text_ids
from safetensors.numpy import save_file
from tiny_models import fill, logits, numpy, run
from tiny_presets import MARKERS, assert_same_weights, byte_tokenizer, picture, question

from dl_techniques.checkpoints import export_internvl, export_llava
from dl_techniques.checkpoints.converting import convert, load_any
from dl_techniques.checkpoints.family_files import INTERNVL2_5
from dl_techniques.checkpoints.inspection import describe
from dl_techniques.checkpoints.json_files import read_json, write_json
from dl_techniques.datasets.vqa_dataset import VQADataProcessor
from dl_techniques.models.ghost_vis import GhostVis
from dl_techniques.models.nano_vlm import NanoVLM
from dl_techniques.models.nvlm import NVLM
from dl_techniques.preprocessing.chat_templates import VICUNA
from dl_techniques.preprocessing.image_processors import (
    CenterCropImageProcessor,
    InternVLImageProcessor,
    NVLMImageProcessor,
)
from dl_techniques.preprocessing.images import ImageProcessor
from dl_techniques.preprocessing.preprocessor_config import preprocessor_config

VISION = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}
CLIP_LIKE = {
    **VISION,
    "class_token": True,
    "drop_class_token": True,
    "activation": "quick_gelu",
    "norm_epsilon": 1e-5,
    "use_patch_bias": False,
    "use_pre_norm": True,
    "use_final_norm": False,
}
INTERNVIT_LIKE = {
    **VISION,
    "class_token": True,
    "drop_class_token": True,
    "activation": "gelu",
    "use_final_norm": False,
    "layer_scale": 0.1,
    "norm_type": "rms",
    "use_qkv_bias": False,
    "qk_norm": "width",
}
LANGUAGE = {
    "hidden_dim": 24,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "mlp_dim": 32,
    "max_positions": 1024,
    "use_qkv_bias": True,
    "tie_embeddings": False,
}
RESAMPLER = {"num_tokens": 4, "depth": 1, "num_heads": 2}
BARE = {"output_dim": 24, "hidden_dim": 24, "use_layer_norm": False}
INTERNVL = {**BARE, "use_input_norm": True}
NVLM_D = {**INTERNVL, "hidden_dim": 32, "use_bias": False}


def ghostvis(**changes):
    config = {
        "vision_config": VISION,
        "language_config": LANGUAGE,
        "projector_config": {"output_dim": 24, "hidden_dim": 20},
        "resampler_config": RESAMPLER,
        "vocab_size": 40,
        "image_token_id": 39,
    }
    return fill(GhostVis(**{**config, **changes}))


def nvlm(architecture="decoder", **changes):
    config = {
        "vision_config": INTERNVIT_LIKE,
        "language_config": LANGUAGE,
        "projector_config": INTERNVL,
        "vocab_size": 40,
        "image_token_id": None if architecture == "cross_attention" else 39,
    }
    if architecture != "decoder":
        config["language_config"] = {**LANGUAGE, "cross_attention_every": 2}
        config["tile_tag_ids"] = [30, 31, 32]
    return fill(NVLM(architecture, **{**config, **changes}))


MODELS = {
    "ghostvis": ghostvis,
    "llava": lambda: ghostvis(
        vision_config=CLIP_LIKE, projector_config=BARE, resampler_config=None
    ),
    "nvlm_d": nvlm,
    "nvlm_x": lambda: nvlm("cross_attention"),
    "nvlm_h": lambda: nvlm("hybrid"),
}


def with_processor(model, folder, template, image_token, images, special=()):
    """Return the same model with a processor, its vocabulary as large as the tokenizer's."""
    tokenizer = byte_tokenizer(folder, [*MARKERS, *special])
    (image_token_id,) = tokenizer.add_special_tokens([image_token])
    arguments = model.arguments() | {
        "vocab_size": tokenizer.vocab_size,
        "image_token_id": image_token_id,
    }
    model = fill(type(model)(**arguments))
    model.processor = VQADataProcessor(
        max_text_length=1024,
        tokenizer=tokenizer,
        template=template,
        image_token_id=image_token_id,
        tokens_per_image=model.tokens_per_image,
        image_processor=images,
    )
    return model


def assert_same_processor(ours, again, path):
    for messages in (question(path), question(text="Why?")):
        first, second = (p.encode_prompt(messages).token_ids for p in (ours, again))
        assert first == second
    np.testing.assert_array_equal(ours.preprocess_tiles(path), again.preprocess_tiles(path))
    assert ours.template == again.template
    assert ours.stop_ids == again.stop_ids


@pytest.mark.parametrize("name", MODELS)
def test_our_own_format(name, tmp_path):
    model = MODELS[name]()
    model.training_data, model.stop_ids = "Shapes.", (3, 5)
    model.save_to_preset(tmp_path / "preset")
    again = type(model).from_preset(tmp_path / "preset")
    assert type(again) is type(model) and again.processor is None
    assert again.arguments() == model.arguments()
    assert (again.training_data, again.stop_ids) == ("Shapes.", (3, 5))
    assert_same_weights(model, again)
    card = (tmp_path / "preset/README.md").read_text()
    assert f"from {type(model).__module__} import {type(model).__name__}\n" in card
    assert '"projector_config": {' in card
    with pytest.raises(ValueError, match=f"is a {type(model).__name__}, not a NanoVLM"):
        NanoVLM.from_preset(tmp_path / "preset")

    found = load_any(tmp_path / "preset")
    assert type(found) is type(model)
    assert f"architecture  {type(model).__name__}" in describe(tmp_path / "preset")
    convert(found, tmp_path / "model.keras", "keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert again.arguments() == model.arguments()
    assert_same_weights(model, again)


def test_our_own_format_with_a_processor(tmp_path):
    path = picture(tmp_path / "a.png")
    images = CenterCropImageProcessor(16)
    model = with_processor(ghostvis(), tmp_path / "t", "chatml", "<|image|>", images)
    model.save_to_preset(tmp_path / "preset")
    again = GhostVis.from_preset(tmp_path / "preset")
    assert_same_processor(model.processor, again.processor, path)
    assert again.processor.tokens_per_image == 4
    images = NVLMImageProcessor(16, max_num=4)
    model = with_processor(nvlm(), tmp_path / "t", "nvlm", "<|vision_pad|>", images)
    model.save_to_preset(tmp_path / "preset")
    again = NVLM.from_preset(tmp_path / "preset")
    assert_same_processor(model.processor, again.processor, path)
    assert_same_weights(model, again)


def test_llava_with_its_processor_runs_in_transformers(tmp_path):
    from PIL import Image
    from transformers import LlavaProcessor

    path = picture(tmp_path / "a.png", size=(40, 23))
    images = CenterCropImageProcessor(16)
    model = with_processor(MODELS["llava"](), tmp_path / "t", "vicuna", "<image>", images)
    export_llava(model, tmp_path / "llava")
    again = GhostVis.from_preset(tmp_path / "llava")
    assert_same_weights(model, again)
    assert_same_processor(model.processor, again.processor, path)
    assert again.processor.template == VICUNA

    theirs = LlavaProcessor.from_pretrained(tmp_path / "llava")
    conversation = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "\nWhat?"}]}
    ]
    text = theirs.apply_chat_template(conversation, add_generation_prompt=True)
    assert text.endswith("questions. USER: <image>\nWhat? ASSISTANT:")
    inputs = theirs(images=[Image.open(path)], text=text, return_tensors="np")
    ours = again.processor.encode_prompt(question(path, text="\nWhat?"))
    assert inputs["input_ids"][0].tolist() == ours.token_ids
    assert ours.token_ids.count(model.image_token_id) == 16
    pixels = again.processor.preprocess_tiles(path).transpose(0, 3, 1, 2)
    # transformers' tensors may differ by a grey level.
    np.testing.assert_allclose(inputs["pixel_values"], pixels, atol=1.01 / 255 / 0.26)
    # Without our note, as in others' folders, the template is LLaVA's.
    settings = read_json(tmp_path / "llava/tokenizer_config.json")
    del settings["dl_techniques"]
    write_json(tmp_path / "llava/tokenizer_config.json", settings)
    assert GhostVis.from_preset(tmp_path / "llava").processor.template == VICUNA
    # transformers 5 writes the image settings into the processor's file.
    theirs.save_pretrained(tmp_path / "llava")
    (tmp_path / "llava/preprocessor_config.json").unlink()
    assert_same_processor(model.processor, GhostVis.from_preset(tmp_path / "llava").processor, path)


@pytest.mark.parametrize(
    ("layout", "projector", "template", "image_token", "images"),
    [
        ("transformers", INTERNVL, "chatml", "<IMG_CONTEXT>", InternVLImageProcessor(16)),
        ("original", INTERNVL, INTERNVL2_5, "<IMG_CONTEXT>", InternVLImageProcessor(16, 2, 5)),
        ("original", INTERNVL, "qwen2", "<IMG_CONTEXT>", InternVLImageProcessor(16)),
        ("nvlm_d", NVLM_D, "nvlm", "<|vision_pad|>", NVLMImageProcessor(16, max_num=4)),
    ],
)
def test_internvl_and_nvlm_d_with_their_processors(
    layout, projector, template, image_token, images, tmp_path
):
    path = picture(tmp_path / "a.png", size=(60, 29))
    model = nvlm(projector_config=projector)
    special = ["<img>", "</img>", "<video>"]
    model = with_processor(model, tmp_path / "t", template, image_token, images, special)
    export_internvl(model, tmp_path / "out", layout=layout)
    again = NVLM.from_preset(tmp_path / "out")
    assert_same_weights(model, again)
    if layout == "transformers":  # Its settings lay transparency over white, and nothing else.
        assert again.processor.image_processor.get_config() == {
            **images.get_config(),
            "transparency": "white",
        }
    assert_same_processor(model.processor, again.processor, path)


def test_image_settings_that_the_formats_lack(tmp_path):
    plain = ImageProcessor(16)
    model = with_processor(nvlm(), tmp_path / "t", "chatml", "<IMG_CONTEXT>", plain)
    for layout in ("original", "transformers"):
        with pytest.raises(ValueError, match="ImageProcessor"):
            export_internvl(model, tmp_path / "out", layout=layout)
    tiles = InternVLImageProcessor(16)
    model = with_processor(MODELS["llava"](), tmp_path / "t", "vicuna", "<image>", tiles)
    with pytest.raises(ValueError, match="llava cannot prepare images as a InternVLImageProc"):
        export_llava(model, tmp_path / "out")
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def backbones(tmp_path, encoder):
    """Write folders of an encoder and of Qwen2 and return (vision, language, their models)."""
    language = qwen2()
    language.save_pretrained(tmp_path / "language")
    byte_tokenizer(tmp_path / "language")
    kind = "siglip" if encoder is siglip else "clip"
    images = ImageProcessor(16) if encoder is siglip else CenterCropImageProcessor(16)
    if encoder is internvit:
        vision = internvit("6b")
        (tmp_path / "vision").mkdir()
        write_json(tmp_path / "vision/config.json", internvit_config("6b"))
        state = published_internvit(state_of(vision))
        state = {key: np.ascontiguousarray(value) for key, value in state.items()}
        save_file(state, tmp_path / "vision/model.safetensors")
    else:
        vision = encoder()
        vision.save_pretrained(tmp_path / "vision")
    write_json(tmp_path / "vision/preprocessor_config.json", preprocessor_config(images, kind=kind))
    return tmp_path / "vision", tmp_path / "language", vision, language


IMAGES = np.random.default_rng(0).uniform(-1, 1, (2, 16, 16, 3)).astype("float32")


@pytest.mark.parametrize("encoder", [clip, siglip, internvit])
def test_from_backbones(encoder, tmp_path):
    vision, language, their_vision, their_language = backbones(tmp_path, encoder)
    family, more = (GhostVis, {"resampler_config": RESAMPLER})
    if encoder is internvit:
        family, more = NVLM, {"scale_factor": 2}
    model = family.from_backbones(
        vision, language, projector_config={"hidden_dim": 20, "use_layer_norm": False}, **more
    )
    assert type(model) is family and model.tokens_per_image == 4
    assert model.modality_projection.output_dim == 24
    expected = outputs(their_vision, pixel_values=IMAGES.transpose(0, 3, 1, 2))
    if encoder is clip:
        assert model.vision_encoder.depth == their_vision.config.num_hidden_layers - 1
        expected = expected.hidden_states[-2][:, 1:]
    elif encoder is siglip:
        expected = expected.last_hidden_state
    else:
        expected = expected.last_hidden_state[:, 1:]
    got = run(model.vision_encoder, IMAGES)
    np.testing.assert_allclose(got, expected.numpy(), rtol=1e-5, atol=1e-5)
    ids = text_ids(2, 8).astype("int32")
    expected = outputs(their_language, input_ids=ids.astype("int64")).logits.numpy()
    got = logits(model, {"text_tokens": ids})
    np.testing.assert_allclose(got[..., : expected.shape[-1]], expected, rtol=1e-5, atol=1e-5)
    model.save_to_preset(tmp_path / "preset")
    again = family.from_preset(tmp_path / "preset")
    assert_same_weights(model, again)
    path = picture(tmp_path / "a.png")
    assert_same_processor(model.processor, again.processor, path)


@pytest.mark.parametrize("architecture", ["cross_attention", "hybrid"])
def test_from_backbones_with_new_cross_attention(architecture, tmp_path):
    vision, language, _, their_language = backbones(tmp_path, clip)
    arguments = {
        "architecture": architecture,
        "language_config": {"cross_attention_every": 1},
        "projector_config": {"hidden_dim": 20, "use_layer_norm": False},
    }
    with pytest.raises(ValueError, match="needs tiles with tags"):
        NVLM.from_backbones(vision, language, **arguments)
    tiles = NVLMImageProcessor(16, max_num=2)
    model = NVLM.from_backbones(vision, language, image_processor=tiles, **arguments)
    gates = [v for v in model.variables if v.path.endswith("cross_attention/gate")]
    assert len(gates) == len(model.language_decoder.blocks)
    assert all((numpy(gate) == 0).all() for gate in gates)
    special, hybrid = model.processor.tokenizer.special_tokens, architecture == "hybrid"
    assert model.tile_tag_ids == [special[tag] for tag in tiles.tags]
    assert model.image_token_id == (special["<|image|>"] if hybrid else None)
    assert model.processor.placeholder_tiles == ("last" if hybrid else "all")
    ids = text_ids(2, 8).astype("int32")
    expected = outputs(their_language, input_ids=ids.astype("int64")).logits.numpy()
    got = logits(model, {"text_tokens": ids})
    np.testing.assert_allclose(got[..., : expected.shape[-1]], expected, rtol=1e-5, atol=1e-5)
    model.save_to_preset(tmp_path / "preset")
    again = NVLM.from_preset(tmp_path / "preset")
    assert_same_weights(model, again)
    assert_same_processor(model.processor, again.processor, picture(tmp_path / "a.png"))
    question = [{"role": "user", "content": "which?", "images": [str(tmp_path / "a.png")]}]
    assert again.generate(question, 4) == model.generate(question, 4)


def test_from_backbones_refuses_other_families_arguments(tmp_path):
    vision, language, *_ = backbones(tmp_path, clip)
    with pytest.raises(ValueError, match="vision must be a SigLIPVisionTransformer"):
        NanoVLM.from_backbones(vision, language)
    with pytest.raises(ValueError, match="GhostVis has no projection_config"):
        GhostVis.from_backbones(vision, language, projection_config={})
    with pytest.raises(ValueError, match="scale_factor"):
        GhostVis.from_backbones(vision, language, scale_factor=2)
    tiles = NVLMImageProcessor(16, max_num=2)
    model = NVLM.from_backbones(vision, language, image_processor=tiles, load_weights=False)
    assert model.processor.image_processor is tiles and model.tokens_per_image == 4
