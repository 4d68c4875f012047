"""Rows of images that are cut into tiles, and of templates that begin a conversation."""

import numpy as np
import pytest

from dl_techniques.datasets.augmentation import random_flip
from dl_techniques.datasets.vqa_dataset import VQADataProcessor
from dl_techniques.preprocessing.chat_templates import TEMPLATES
from dl_techniques.preprocessing.image_processors import (
    Idefics3ImageProcessor,
    InternVLImageProcessor,
    NanoVLMImageProcessor,
)
from dl_techniques.preprocessing.images import ImageProcessor
from dl_techniques.preprocessing.tokenizer import CharacterTokenizer

MARKERS = ["<|im_start|>", "<|im_end|>", "<end_of_utterance>", "<|begin_of_text|>", "<image>"]
MARKERS += TEMPLATES["ghostvis"].markers
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


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize(
    "images",
    [
        Idefics3ImageProcessor(TILE, 12),
        NanoVLMImageProcessor(TILE, 8),
        # Of 2 x 3 pixels it makes three tiles, of 3 x 2 one.
        InternVLImageProcessor(TILE, max_num=2),
    ],
    ids=lambda images: images.kind,
)
def test_text_and_tiles_of_several_images_agree(images, cached):
    used = processor(images=images)
    shown = [picture(2, 3), picture(8, 4, 1), picture(4, 8, 2)]
    samples = [sample("a", shown, [("x?", "1")])]
    inputs, _ = used.create_dataset(samples, 1, cache_images=cached)[0]
    tiles = [images.tiles(image, number, 3) for number, image in enumerate(shown)]
    pixels = np.concatenate([images.normalize(each.pixels) for each in tiles])
    # What is cached is rounded to whole grey levels.
    grey_level = 1 / 255 / min(images.std)
    np.testing.assert_allclose(inputs["images"][0], pixels, atol=0.501 * grey_level)
    assert inputs["num_images"].tolist() == [len(pixels)]
    parts = [part for each in tiles for part in each.layout]
    spelt = "".join(p if isinstance(p, str) else "<image>" * TOKENS for p in parts)
    ids = used.encode_prompt([{"role": "user", "content": "x?", "images": shown}]).token_ids
    assert spelt in used.tokenizer.decode(ids)


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("tiled", [True, False])
def test_huge_images_are_refused_by_their_header(cached, tiled):
    kind, arguments = (Idefics3ImageProcessor, (TILE, 8)) if tiled else (ImageProcessor, (TILE,))
    used = processor(images=kind(*arguments, max_pixels=40))
    used.max_bad_share = 0.5
    fine, huge = picture(5, 8), picture(6, 7)
    samples = [sample(name, [image], [("x?", "1")]) for name, image in (("a", fine), ("b", huge))]
    dataset = used.create_dataset(samples, 1, cache_images=cached)
    assert [item.sample_id for item in dataset.report.items] == ["b"]
    if tiled:
        with pytest.raises(ValueError, match="max_pixels=40"):
            used.encode_prompt([{"role": "user", "content": "x?", "image": huge}])


def test_the_images_of_a_row_are_augmented_apart():
    used = processor()

    def darken(pixels, rng):
        return (pixels * rng.uniform()).astype(np.uint8)

    white = [np.full((8, 8, 3), value, np.uint8) for value in (255, 254)]
    samples = [sample("a", white, [("x?", "1")])]
    inputs, _ = used.create_dataset(samples, 1, augment=darken, cache_images=False)[0]
    first, second = inputs["images"][0, :5], inputs["images"][0, 5:]
    assert abs(first.mean() - second.mean()) > 0.05


@pytest.mark.parametrize("shuffled", [False, True])
def test_tensorflow_gets_one_shape_for_all_batches(monkeypatch, shuffled):
    monkeypatch.setattr("keras.backend.backend", lambda: "tensorflow")
    turns = [("x?", "one"), ("a longer one?", "two")]
    samples = [sample("a", [picture(4, 8)], turns), sample("b", [picture(8, 8)], turns[:1])]
    samples.append(sample("c", [], [("w?", "4")]))
    dataset = processor().create_dataset(samples, 1, bucket=1, shuffle_turns=shuffled)
    shapes = [
        {key: value.shape for key, value in dataset[k][0].items()} for k in range(len(dataset))
    ]
    assert shapes[0] == shapes[1] == shapes[2]
    assert shapes[0]["images"][:2] == (1, 5)


def test_images_are_augmented_before_they_are_cut():
    used = processor()
    left_black = np.concatenate([np.zeros((8, 4, 3)), np.full((8, 4, 3), 255)], 1).astype(np.uint8)

    def tiles(question):
        samples = [sample("a", [left_black], [(question, "1")])]
        dataset = used.create_dataset(samples, 1, augment=random_flip(1.0), cache_images=False)
        return dataset[0][0]["images"][0]

    flipped, kept = tiles("what?"), tiles("what is left?")
    np.testing.assert_array_equal(kept, used.preprocess_tiles(left_black))
    np.testing.assert_array_equal(flipped, used.preprocess_tiles(left_black[:, ::-1]))
    assert not np.array_equal(flipped, kept)
    with pytest.raises(ValueError, match="cache_images=False"):
        used.create_dataset([sample("a", [], [("x", "y")])], 1, augment=random_flip(1.0))


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


def test_images_that_are_numbered_belong_into_the_first_turn():
    used = processor("chatml", NanoVLMImageProcessor(TILE, 8))

    def message(text, **images):
        return {"role": "user", "content": text, **images}

    answer = {"role": "assistant", "content": "yes"}
    together = [message("x?", images=[picture(4, 8), picture(8, 8)]), answer, message("y?"), answer]
    apart = [message("x?", image=picture(4, 8)), answer, message("y?", image=picture(8, 8)), answer]
    samples = [{"id": "a", "messages": together}, {"id": "b", "messages": apart}]
    used.max_bad_share = 0.5
    dataset = used.create_dataset(samples, 1, shuffle=False)
    assert [(i.sample_id, i.reason) for i in dataset.report.items] == [
        ("b", "images in several turns")
    ]
    real = dataset[0][0]["attention_mask"][0]
    whole = used.process(samples[0])["text_tokens"]
    np.testing.assert_array_equal(dataset[0][0]["text_tokens"][0][real], whole)
