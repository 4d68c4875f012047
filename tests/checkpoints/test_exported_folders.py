"""Exported folders, loaded and run by transformers alone."""

import json

import numpy as np
import pytest
from references import loaded_by_transformers
from tiny_presets import assert_same_weights, picture, question, tiny_model

from dl_techniques.checkpoints import (
    export_decoder,
    export_nanovlm,
    export_smolvlm,
    export_vision_encoder,
)
from dl_techniques.generation import Session, VisionCache
from dl_techniques.models.nano_vlm import NanoVLM
from dl_techniques.preprocessing.image_processors import Idefics3ImageProcessor
from dl_techniques.preprocessing.images import load_image

NEW_TOKENS = 8


def theirs(folder, conversation):
    """Return the prompt and the greedy ids of transformers for a question about pictures."""
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    images = transformers.AutoImageProcessor.from_pretrained(folder)
    settings = json.loads((folder / "processor_config.json").read_text())
    config = json.loads((folder / "tokenizer_config.json").read_text())
    markers = config["extra_special_tokens"]
    (message,) = conversation
    parts = [{"type": "image"}] * len(message["images"])
    parts.append({"type": "text", "text": message["content"]})
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": parts}], tokenize=False, add_generation_prompt=True
    )
    # What the processor's class does, which needs packages that are not here.
    assert settings["processor_class"] == config["processor_class"] == "SmolVLMProcessor"
    around = markers["fake_image_token"]
    one = markers["image_token"] * settings["image_seq_len"]
    text = text.replace(
        markers["image_token"], around + markers["global_image_token"] + one + around
    )
    ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)
    pixels = images([load_image(i) for i in message["images"]], return_tensors="pt")
    architecture = json.loads((folder / "config.json").read_text())["architectures"][0]
    model = loaded_by_transformers(getattr(transformers, architecture), folder)
    with torch.no_grad():
        out = model.generate(
            input_ids=ids["input_ids"],
            attention_mask=ids["attention_mask"],
            pixel_values=pixels["pixel_values"],
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
        )
    prompt = ids["input_ids"][0].tolist()
    return prompt, out[0, len(prompt) :].tolist(), tokenizer


def ours(model, conversation):
    """Return our prompt and our greedy ids."""
    encoded = model.processor.encode_prompt(conversation)
    tiles = [model.processor.preprocess_tiles(image) for image in encoded.images]
    batch = {
        "text_tokens": np.array([encoded.token_ids], "int32"),
        "images": np.concatenate(tiles)[None],
    }
    ids = model.generate(batch, NEW_TOKENS, stop_ids=[])
    return encoded.token_ids, np.asarray(ids)[0].tolist()


@pytest.mark.parametrize(
    ("fusion", "template", "kind"),
    [
        ("placeholder", "chatml", "bytes"),
        ("placeholder", "question_answer", "sentencepiece"),
        ("prefix", "question_answer", "bytes"),
    ],
)
def test_transformers_runs_an_exported_model_by_itself(tmp_path, fusion, template, kind):
    model = tiny_model(tmp_path / "tokenizer", fusion, template, kind=kind)
    export_smolvlm(model, tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "README.md",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "processor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "video_preprocessor_config.json",
    }
    asked = question(picture(tmp_path / "a.png"), picture(tmp_path / "b.png", 1, (9, 30)))
    prompt, answer, tokenizer = theirs(tmp_path / "out", asked)
    expected_prompt, expected = ours(model, asked)
    count = 2 * model.tokens_per_image
    if fusion == "prefix":
        image_token_id = tokenizer.convert_tokens_to_ids("<image>")
        assert image_token_id == model.vocab_size
        expected_prompt = [image_token_id] * count + expected_prompt
    assert prompt == expected_prompt
    stops = model.processor.stop_ids
    end = next((i + 1 for i, token in enumerate(expected) if token in stops), NEW_TOKENS)
    assert answer == expected[:end]
    config = json.loads((tmp_path / "out/generation_config.json").read_text())
    assert set(config["eos_token_id"]) == set(stops)
    assert ("suppress_tokens" in config) == (fusion == "prefix")
    assert "AutoModelForImageTextToText" in (tmp_path / "out/README.md").read_text()
    if fusion == "placeholder":
        again = NanoVLM.from_preset(tmp_path / "out", processor=None)
        assert again.image_token_id == model.image_token_id
        assert again.stop_ids == tuple(config["eos_token_id"])


def test_smolvlm_folders_go_there_and_back(tmp_path):
    """SmolVLM's own layout, tiles and template."""
    special = ["<|endoftext|>", "<|im_start|>", "<fake_token_around_image>", "<global-img>"]
    special += [f"<row_{r}_col_{c}>" for r in range(1, 5) for c in range(1, 5)]
    special += ["<image>", "<end_of_utterance>"]
    model = tiny_model(
        tmp_path / "tokenizer",
        template="smolvlm",
        special=special,
        image_token="<image>",
        images=Idefics3ImageProcessor(16, 64),
    )
    export_smolvlm(model, tmp_path / "out")
    again = NanoVLM.from_preset(tmp_path / "out")
    assert_same_weights(again, model)
    assert again.processor.get_config() == model.processor.get_config()
    asked = question(picture(tmp_path / "a.png"))
    # 20 x 13 becomes 64 x 42, thus 4 x 3 tiles, and the whole.
    tokens = again.processor.encode_prompt(asked).token_ids
    assert tokens.count(again.image_token_id) == 13 * again.tokens_per_image
    assert again.generate(asked, 4) == model.generate(asked, 4)
    export_smolvlm(again, tmp_path / "again")
    for path in set((tmp_path / "out").iterdir()) - {tmp_path / "out/README.md"}:
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes(), path.name

    expected = again.generate(asked, 4)
    again.vision_cache = VisionCache()
    session = Session()
    first = again.generate(asked, 4, session=session)
    assert first == expected
    longer = [
        *asked,
        {"role": "assistant", "content": "x"},
        *question(picture(tmp_path / "b.png", 2)),
    ]
    assert again.generate(longer, 4, session=session) == model.generate(longer, 4)
    assert session.reused > 13 * again.tokens_per_image
    assert again.vision_cache.stats()["entries"] == 2


def test_parts_with_their_tokenizer_and_image_settings(tmp_path):
    import transformers

    model = tiny_model(tmp_path / "tokenizer")
    export_decoder(model.language_decoder, tmp_path / "llama", processor=model.processor)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "llama")
    asked = [{"role": "user", "content": "Why?"}]
    expected = model.processor.encode_prompt(asked).token_ids
    got = tokenizer.apply_chat_template(asked, add_generation_prompt=True)["input_ids"]
    assert got == expected
    generation = json.loads((tmp_path / "llama/generation_config.json").read_text())
    assert generation["eos_token_id"] == model.processor.stop_ids
    export_vision_encoder(model.vision_encoder, tmp_path / "siglip", processor=model.processor)
    images = transformers.AutoImageProcessor.from_pretrained(tmp_path / "siglip")
    path = picture(tmp_path / "a.png")
    pixels = images(load_image(path), return_tensors="np")["pixel_values"][0]
    mine = model.processor.preprocess_image(path)
    np.testing.assert_allclose(pixels.transpose(1, 2, 0), mine, atol=1e-6)


def test_nanovlm_gets_its_tokenizer_too(tmp_path):
    model = tiny_model(tmp_path / "tokenizer")
    export_nanovlm(model, tmp_path / "out")
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["lm_tokenizer"] == str(tmp_path / "out")
    assert NanoVLM.from_preset(tmp_path / "out", tokenizer=tmp_path / "out").processor is not None
    model.processor = None
    with pytest.raises(ValueError, match="tokenizer='OWNER/NAME'"):
        export_nanovlm(model, tmp_path / "no", image_mean=0, image_std=1)
    assert not (tmp_path / "no").exists()
