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
from dl_techniques.preprocessing.image_processors import (
    CenterCropImageProcessor,
    Idefics3ImageProcessor,
    NanoVLMImageProcessor,
)
from dl_techniques.preprocessing.images import ImageProcessor, load_image
from dl_techniques.serving.engine import ServingEngine
from dl_techniques.serving.requests import ChatRequest

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
            # Ours never generates it.
            suppress_tokens=[tokenizer.convert_tokens_to_ids(markers["image_token"])],
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
    images = ImageProcessor(16, mean=[0.4, 0.5, 0.6], std=0.3, resample="bilinear")
    model = tiny_model(tmp_path / "tokenizer", fusion, template, images=images, kind=kind)
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
        again = NanoVLM.from_preset(tmp_path / "out")
        assert again.image_token_id == model.image_token_id
        assert again.stop_ids == tuple(config["eos_token_id"])
        assert again.processor.encode_prompt(asked).token_ids == expected_prompt
        assert again.processor.template == model.processor.template
        images = again.processor.image_processor
        assert (type(images), images.resample) == (ImageProcessor, "bilinear")
        assert (images.mean, images.std) == ((0.5,) * 3, (0.5,) * 3)
    else:
        # The token was added to a copy.
        assert "<image>" not in model.processor.tokenizer.special_tokens


def test_the_serving_engine_answers_as_transformers_does(tmp_path):
    images = ImageProcessor(16, mean=[0.4, 0.5, 0.6], std=0.3, resample="bilinear")
    model = tiny_model(tmp_path / "tokenizer", images=images)
    export_smolvlm(model, tmp_path / "out")
    pictures = picture(tmp_path / "a.png"), picture(tmp_path / "b.png", 1, (9, 30))
    asked = [question(*pictures), question(pictures[0]), question(*pictures)]
    engine = ServingEngine(NanoVLM.from_preset(tmp_path / "out"), rows=2)
    try:
        tickets = [engine.submit(ChatRequest(each, NEW_TOKENS)) for each in asked]
        served = [[token for event in ticket for token in event.ids] for ticket in tickets]
    finally:
        engine.close()
    expected = [theirs(tmp_path / "out", each)[1] for each in asked[:2]]
    assert served == [*expected, expected[0]] and served[0] != served[1]


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
    # 9 x 30 becomes 4 x 2 tiles.
    longer = [
        *asked,
        {"role": "assistant", "content": "x"},
        *question(picture(tmp_path / "b.png", 2, (9, 30))),
    ]
    assert again.generate(longer, 4, session=session) == model.generate(longer, 4)
    assert session.reused > 13 * again.tokens_per_image
    assert again.vision_cache.stats()["entries"] == 2


def read(path):
    return json.loads(path.read_text())


def test_generation_settings_name_every_end_of_an_answer(tmp_path):
    model = tiny_model(tmp_path / "tokenizer", template="question_answer", kind="sentencepiece")
    model.stop_ids = (7,)
    export_smolvlm(model, tmp_path / "out")
    processor = model.processor
    assert read(tmp_path / "out/generation_config.json") == {
        "eos_token_id": [*processor.stop_ids, 7],
        "pad_token_id": processor.pad_token_id,
        "bos_token_id": processor.bos_token_id,
    }
    assert NanoVLM.from_preset(tmp_path / "out").stop_ids == (*processor.stop_ids, 7)


@pytest.mark.parametrize("kind", ["smolvlm", "idefics3"])
def test_images_that_transformers_cannot_prepare(tmp_path, kind):
    own = NanoVLMImageProcessor(16, 32) if kind == "smolvlm" else ImageProcessor(16, std=0.3)
    model = tiny_model(tmp_path / "tokenizer", images=own)
    export_smolvlm(model, tmp_path / "out", kind=kind)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert not any("processor" in name for name in names)
    tokens = read(tmp_path / "out/tokenizer_config.json")
    assert "processor_class" not in tokens
    assert tokens["extra_special_tokens"] == {"image_token": "<|image|>"}
    card = (tmp_path / "out/README.md").read_text()
    assert "library_name: transformers" in card and "cuts images otherwise" in card


IDEFICS3_TOKENS = [
    "<|begin_of_text|>",
    "<end_of_utterance>",
    "<fake_token_around_image>",
    "<image>",
]


@pytest.mark.parametrize("kind", ["smolvlm", "idefics3"])
def test_another_programs_folder_has_the_template_of_its_tokens(tmp_path, kind):
    special = (
        IDEFICS3_TOKENS[:-1] if kind == "idefics3" else ["<|im_start|>", *IDEFICS3_TOKENS[1:3]]
    )
    images = Idefics3ImageProcessor(16, 32, mean=[0.4, 0.5, 0.6])
    model = tiny_model(tmp_path / "tokenizer", "placeholder", kind, special, "<image>", images)
    folder = tmp_path / "out"
    export_smolvlm(model, folder, kind=kind)
    settings = read(folder / "preprocessor_config.json")
    name = {"smolvlm": "SmolVLM", "idefics3": "Idefics3"}[kind]
    assert settings["processor_class"] == f"{name}Processor"
    assert settings["image_processor_type"] == f"{name}ImageProcessor"
    assert settings["image_mean"] == [0.5] * 3
    assert (folder / "video_preprocessor_config.json").exists() == (kind == "smolvlm")
    assert read(folder / "tokenizer_config.json")["extra_special_tokens"] == {
        "image_token": "<image>",
        "fake_image_token": "<fake_token_around_image>",
        "global_image_token": "<global-img>",
    }
    for text in ("{{ messages }}", None):
        if text is None:
            (folder / "chat_template.jinja").unlink()
        else:
            (folder / "chat_template.jinja").write_text(text)
        again = NanoVLM.from_preset(folder)
        assert again.processor.template.name == kind
        assert isinstance(again.processor.image_processor, Idefics3ImageProcessor)
    settings["max_image_size"] = {"longest_edge": 32}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=r"image settings give \(32, 32\) pixels.*made for"):
        NanoVLM.from_preset(folder)


def test_parts_with_their_tokenizer_and_image_settings(tmp_path):
    import transformers

    model = tiny_model(tmp_path / "tokenizer")
    options = {"processor": model.processor, "eos_token_id": 5, "hidden_act": "swish"}
    export_decoder(model.language_decoder, tmp_path / "llama", **options)
    config = read(tmp_path / "llama/config.json")
    assert (config["eos_token_id"], config["hidden_act"]) == (5, "swish")
    assert config["dtype"] == "float32"
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "llama")
    asked = [{"role": "user", "content": "Why?"}]
    expected = model.processor.encode_prompt(asked).token_ids
    got = tokenizer.apply_chat_template(asked, add_generation_prompt=True)["input_ids"]
    assert got == expected
    generation = json.loads((tmp_path / "llama/generation_config.json").read_text())
    assert generation["eos_token_id"] == model.processor.stop_ids
    options = {"processor": model.processor, "dtype": "bfloat16"}
    export_vision_encoder(model.vision_encoder, tmp_path / "siglip", **options)
    assert read(tmp_path / "siglip/config.json")["dtype"] == "bfloat16"
    images = transformers.AutoImageProcessor.from_pretrained(tmp_path / "siglip")
    path = picture(tmp_path / "a.png")
    pixels = images(load_image(path), return_tensors="np")["pixel_values"][0]
    mine = model.processor.preprocess_image(path)
    np.testing.assert_allclose(pixels.transpose(1, 2, 0), mine, atol=1e-6)
    model.processor.image_processor = CenterCropImageProcessor(16)
    with pytest.raises(ValueError, match="CenterCropImageProcessor"):
        export_vision_encoder(model.vision_encoder, tmp_path / "cut", processor=model.processor)


def test_nanovlm_gets_its_tokenizer_too(tmp_path):
    model = tiny_model(tmp_path / "tokenizer")
    export_nanovlm(model, tmp_path / "out", vlm_checkpoint_path="elsewhere")
    config = read(tmp_path / "out/config.json")
    assert config["vlm_checkpoint_path"] == "elsewhere"
    assert "library_name: nanovlm" in (tmp_path / "out/README.md").read_text()
    assert config["lm_tokenizer"] == str(tmp_path / "out")
    assert NanoVLM.from_preset(tmp_path / "out", tokenizer=tmp_path / "out").processor is not None
    model.processor = None
    with pytest.raises(ValueError, match="tokenizer='OWNER/NAME'"):
        export_nanovlm(model, tmp_path / "no", image_mean=0, image_std=1)
    assert not (tmp_path / "no").exists()
