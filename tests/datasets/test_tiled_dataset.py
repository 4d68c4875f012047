"""Rows of images that are cut into tiles, and of templates that begin a conversation."""

import numpy as np
import pytest

from dl_techniques.datasets.vqa_dataset import VQADataProcessor
from dl_techniques.preprocessing.chat_templates import TEMPLATES
from dl_techniques.preprocessing.image_processors import Idefics3ImageProcessor
from dl_techniques.preprocessing.tokenizer import CharacterTokenizer

MARKERS = ["<|im_start|>", "<|im_end|>", "<end_of_utterance>", "<|begin_of_text|>", "<image>"]
TILE, TOKENS = 4, 3


def processor(template="smolvlm", images=None):
    tokenizer = CharacterTokenizer(200)
    tokenizer.add_special_tokens(MARKERS)
    return VQADataProcessor(
        max_text_length=2048,
        tokenizer=tokenizer,
        template=template,
        image_token_id=tokenizer.token_to_id("<image>"),
        tokens_per_image=TOKENS,
        image_processor=images or Idefics3ImageProcessor(TILE, 8),
        max_bad_share=0.0,
    )


def picture(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def sample(name, images, turns):
    messages = []
    for question, answer in turns:
        messages += [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ]
    return {"id": name, "images": images, "messages": messages}


@pytest.mark.parametrize("cached", [True, False])
def test_every_tile_has_its_pixels_and_its_placeholders(cached):
    used = processor()
    wide, square = picture(4, 8), picture(8, 8, 1)
    samples = [
        sample("a", [wide], [("x?", "1"), ("y?", "2")]),
        sample("b", [square, wide], [("z?", "3")]),
        sample("c", [], [("w?", "4")]),
    ]
    dataset = used.create_dataset(samples, 3, shuffle=False, cache_images=cached)
    inputs, _ = dataset[0]
    # 8 x 4 gives two tiles, 8 x 8 four; each image is there once more as a whole.
    assert inputs["num_images"].tolist() == [3, 8, 0]
    placeholders = (inputs["text_tokens"] == used.image_token_id).sum(axis=1)
    assert placeholders.tolist() == [3 * TOKENS, 8 * TOKENS, 0]
    expected = [used.preprocess_tiles(wide)]
    expected.append(np.concatenate([used.preprocess_tiles(square), expected[0]]))
    for row, tiles in enumerate(expected):
        np.testing.assert_array_equal(inputs["images"][row, : len(tiles)], tiles)
        assert not inputs["images"][row, len(tiles) :].any()
    whole = used.process(samples[1])
    np.testing.assert_array_equal(whole["images"], expected[1])
    real = inputs["attention_mask"][1]
    np.testing.assert_array_equal(inputs["text_tokens"][1][real], whole["text_tokens"])
    with pytest.raises(ValueError, match="becomes 3 tiles"):
        used.preprocess_image(wide)


def test_all_tiles_of_an_image_are_augmented_alike():
    used = processor()

    def darken(pixels, rng):
        return (pixels * rng.uniform()).astype(np.uint8)

    samples = [sample("a", [np.full((8, 8, 3), 200, np.uint8)], [("x?", "1")])]
    inputs, _ = used.create_dataset(samples, 1, augment=darken)[0]
    tiles = inputs["images"][0]
    assert len(tiles) == 5 and len(np.unique(tiles)) == 1 and tiles.max() < 0.5


@pytest.mark.parametrize("template", sorted(TEMPLATES))
@pytest.mark.parametrize("shuffled", [False, True])
def test_turns_encoded_one_by_one_are_the_whole_conversation(template, shuffled):
    used = processor(template)
    turns = [("x?", "one"), ("y?", "two"), ("z?", "three")]
    samples = [sample("a", [picture(4, 8)], turns), sample("b", [], turns)]
    dataset = used.create_dataset(samples, 2, shuffle=False, shuffle_turns=shuffled)
    inputs, labels = dataset[0]
    for row, item in enumerate(samples):
        real = inputs["attention_mask"][row]
        whole = used.process(item)
        if not shuffled:
            np.testing.assert_array_equal(inputs["text_tokens"][row][real], whole["text_tokens"])
            np.testing.assert_array_equal(labels[row][real], whole["labels"])
        assert real.sum() == len(whole["text_tokens"])
