"""GhostVis: the guide's golden conversation, parts, files, counts, LLaVA's form."""

import keras
import numpy as np
import pytest
from tiny_families import family_model
from tiny_models import IMAGE_ID, VOCAB, logits, numpy

from dl_techniques.datasets.vqa_dataset import VQADataProcessor
from dl_techniques.losses import NanoVLMLoss
from dl_techniques.models.ghost_vis import GHOSTVIS_CONFIGS, GhostVis
from dl_techniques.models.model_size import analyze_model_size, without_weights
from dl_techniques.models.vision_encoders import vision_encoder_config
from dl_techniques.preprocessing.chat_templates import GHOSTVIS
from dl_techniques.preprocessing.tokenizer import SentencePieceTokenizer, load_tokenizer

TOKENS = 3
SPECIAL_TOKENS = (*GHOSTVIS.markers, "<|image|>")


def batch(tokens=TOKENS) -> dict:
    rng = np.random.default_rng(0)
    text = rng.integers(1, IMAGE_ID, (2, 20)).astype("int32")
    text[0, 2 : 2 + 2 * tokens] = IMAGE_ID
    text[1, 5 : 5 + tokens] = IMAGE_ID
    images = rng.normal(size=(2, 2, 16, 16, 3)).astype("float32")
    return {"text_tokens": text, "images": images, "num_images": np.array([2, 1], "int32")}


@pytest.fixture(scope="module")
def processor():
    text = ["What is in this image? A cat sitting on a table."] * 4
    tokenizer = SentencePieceTokenizer.train(text, 300, special_tokens=list(SPECIAL_TOKENS))
    return VQADataProcessor(
        16,
        tokenizer=tokenizer,
        template="ghostvis",
        image_token_id=tokenizer.token_to_id("<|image|>"),
        tokens_per_image=TOKENS,
    )


def test_the_guides_conversation(processor):
    conversation = [
        {"role": "user", "content": "<|image|>\nWhat is in this image?", "image": "cat.jpg"},
        {"role": "assistant", "content": "A cat sitting on a table."},
    ]
    tokens, targets, has_image = processor.render_conversation(conversation)
    special, encode = processor.tokenizer.special_tokens, processor.tokenizer.encode
    question = encode("\nWhat is in this image?", continues=True)
    answer = encode("A cat sitting on a table.", continues=True)
    assert tokens == [
        special["<|bos|>"],
        special["<|user_start|>"],
        *[special["<|image|>"]] * 64,
        *question,
        special["<|user_end|>"],
        special["<|assistant_start|>"],
        *answer,
        special["<|assistant_end|>"],
    ]
    learned = [*answer, special["<|assistant_end|>"]]
    assert targets == [-100] * (len(tokens) - len(learned)) + learned
    assert has_image
    prompt = processor.encode_prompt(conversation[:1])
    assert prompt.token_ids[-1] == special["<|assistant_start|>"]
    assert processor.stop_ids[0] == special["<|assistant_end|>"]
    assert not processor.render_conversation([{"role": "user", "content": "Hi"}])[2]


def test_images_change_what_follows_them_and_nothing_else():
    model, inputs = family_model("ghostvis"), batch()
    before = logits(model, inputs)
    images = inputs["images"].copy()
    images[0, 1] += 1.0
    moved = np.abs(logits(model, {**inputs, "images": images}) - before).max(-1) > 1e-5
    assert not moved[1].any() and not moved[0, : 2 + TOKENS].any()
    assert moved[0, 2 + TOKENS :].all()


def test_one_image_encoded_alone():
    model, inputs = family_model("ghostvis"), batch()
    embeds = model.encode_vision(inputs["images"])
    assert embeds.shape == (2, 2, TOKENS, 32) and model.tokens_per_image == TOKENS
    alone = model.encode_vision(inputs["images"][1, :1])
    np.testing.assert_allclose(numpy(embeds)[1, 0], numpy(alone)[0], atol=1e-5)


def test_llavas_form_has_neither_resampler_nor_norm():
    model = family_model(
        "ghostvis",
        resampler_config=None,
        projector_config={"output_dim": 32, "hidden_dim": 64, "use_layer_norm": False},
    )
    paths = {v.path.split("/", 1)[1] for v in model.modality_projection.variables}
    layers = {f"vision_projector/{fc}/{w}" for fc in ("fc1", "fc2") for w in ("kernel", "bias")}
    assert {p.split("modality_projection/")[-1] for p in paths} == layers
    assert model.tokens_per_image == 16


def test_alignment_moves_the_connector_alone_and_text_stays_bit_identical():
    model, inputs = family_model("ghostvis"), batch()
    text = {"text_tokens": inputs["text_tokens"] % (VOCAB - 1)}
    before = numpy(model(text))
    kept = {v.path: numpy(v.value) for v in model.variables}
    model.vision_encoder.trainable = model.language_decoder.trainable = False
    model.compile(keras.optimizers.SGD(0.1), NanoVLMLoss())
    model.train_on_batch(inputs, np.where(inputs["text_tokens"] == IMAGE_ID, -100, 9))
    moved = {v.path for v in model.weights if not np.array_equal(kept[v.path], numpy(v.value))}
    trainable = {v.path for v in model.modality_projection.trainable_variables}
    assert moved and moved <= trainable
    assert {p for p in trainable - moved if "k_proj/bias" not in p} == set()
    np.testing.assert_array_equal(numpy(model(text)), before)


def test_a_file_gives_the_model_back(tmp_path):
    model, inputs = family_model("ghostvis"), batch()
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras", compile=False)
    assert again.arguments() == model.arguments()
    np.testing.assert_array_equal(numpy(again(inputs)), numpy(model(inputs)))


def test_a_generated_answer_equals_reading_everything_again():
    model, inputs = family_model("ghostvis"), batch()
    new = model.generate(inputs, max_new_tokens=3, stop_ids=[])
    text = inputs["text_tokens"]
    for column in range(3):
        scores = logits(model, {**inputs, "text_tokens": text})[:, -1]
        scores[:, IMAGE_ID] = -np.inf
        np.testing.assert_array_equal(new[:, column], scores.argmax(-1))
        text = np.concatenate([text, new[:, column : column + 1]], axis=1)


def test_names_of_models_and_encoders():
    assert GHOSTVIS_CONFIGS["ghostvis_mini"]["total_params"] <= 5e6
    with pytest.raises(ValueError, match="no public vision encoder 'siglip_vit_l14'.*clip_vit_l14"):
        vision_encoder_config("siglip_vit_l14")
    with pytest.raises(ValueError, match="Unknown model 'ghostvis_7b'"):
        GhostVis.create("ghostvis_7b")
    assert vision_encoder_config("clip_vit_l14", img_size=448)["img_size"] == 448


# Of transformers' classes. CLIP's have one block more and a norm of the pooled token.
CLIP_BLOCK_AND_NORM = 12_596_224 + 2 * 1024
PUBLISHED_SIZES = {
    "siglip_base_patch16_224": 85_797_120,
    "siglip2_base_patch16_512": 86_433_024,
    "clip_vit_l14": 303_179_776 - CLIP_BLOCK_AND_NORM,
    "clip_vit_l14_336": 303_507_456 - CLIP_BLOCK_AND_NORM,
    "internvit_300m_patch14_448": 304_012_288,
    "internvit_6b_patch14_448": 5_536_496_000,
}


@pytest.mark.parametrize("name", PUBLISHED_SIZES)
def test_encoders_have_the_published_sizes(name):
    config = GhostVis.presets["ghostvis_mini"] | {"vision_config": vision_encoder_config(name)}
    config["resampler_config"] = {"num_tokens": 16, "mode": "avgpool"}
    size = analyze_model_size(without_weights(lambda: GhostVis(**config)))
    assert size["vision_encoder"].parameters == PUBLISHED_SIZES[name]


@pytest.mark.data
def test_the_image_token_of_the_large_models_is_qwens_next_free_id(data_folder):
    tokenizer = load_tokenizer(data_folder / "tokenizers" / "qwen2.5")
    *_, image = tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    assert image == GHOSTVIS_CONFIGS["ghostvis_1_5b"]["image_token_id"]
