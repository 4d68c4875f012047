"""A row gets what it gets alone, however it is padded, batched or packed."""

import keras
import numpy as np
import pytest
from tiny_models import (
    TOKENS_PER_IMAGE,
    left_padded,
    logits,
    mixed_batch,
    place_images,
    random_ids,
    random_images,
    row_alone,
    run,
    text_batch,
    tiny_nanovlm,
)

CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(scope="module")
def model():
    return tiny_nanovlm()


@pytest.fixture(scope="module")
def prefix_model():
    return tiny_nanovlm("prefix")


def _real(values, mask):
    return [row[real] for row, real in zip(values, mask, strict=True)]


def _assert_rows_close(got, expected):
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_allclose(one, other, **CLOSE)


def test_batched_is_single(model):
    batch = mixed_batch()
    together = _real(logits(model, batch), batch["attention_mask"])
    _assert_rows_close(together, [logits(model, row_alone(batch, row))[0] for row in range(3)])


def test_left_padded_is_right_padded(model):
    right = mixed_batch()
    left = left_padded(right)
    assert not left["attention_mask"][1, 0]
    _assert_rows_close(
        _real(logits(model, left), left["attention_mask"]),
        _real(logits(model, right), right["attention_mask"]),
    )


def test_prefix_rows_are_single_rows(prefix_model):
    batch = text_batch()
    prefix = np.arange(2 * TOKENS_PER_IMAGE) // TOKENS_PER_IMAGE
    for padded in (batch, left_padded(batch)):
        seen = np.concatenate(
            [prefix < batch["num_images"][:, None], padded["attention_mask"]], axis=1
        )
        together = _real(logits(prefix_model, padded), seen)
        for row in range(3):
            alone = logits(prefix_model, row_alone(batch, row))[0]
            np.testing.assert_allclose(together[row], alone, **CLOSE)


def test_packed_is_separate(model):
    # Documents: image + text, text, two neighbouring images + text; then padding.
    one = place_images(random_ids(1, 7, seed=1), [(0, 1)])
    two = random_ids(1, 4, seed=2)
    three = place_images(random_ids(1, 11, seed=3), [(0, 0), (0, 4)])
    images = random_images(1, 3, seed=4)
    packed = {
        "text_tokens": np.concatenate([one, two, three, np.zeros((1, 2), "int32")], axis=1),
        "segment_ids": np.repeat([[1, 2, 3, 0]], [7, 4, 11, 2], axis=1).astype("int32"),
        "images": images,
    }
    expected = [
        logits(model, {"text_tokens": one, "images": images[:, :1]}),
        logits(model, {"text_tokens": two}),
        logits(model, {"text_tokens": three, "images": images[:, 1:]}),
    ]
    got = logits(model, packed)
    np.testing.assert_allclose(got[:, :22], np.concatenate(expected, axis=1), **CLOSE)
    assert np.isfinite(got).all()


def test_prefix_fusion_refuses_packed_rows(prefix_model):
    batch = {**text_batch(), "segment_ids": np.ones((3, 16), "int32")}
    with pytest.raises(ValueError, match="cannot place images in packed rows"):
        prefix_model(batch)


@pytest.mark.parametrize("fusion", ["placeholder", "prefix"])
def test_text_only_batches(fusion, model, prefix_model):
    model = {"placeholder": model, "prefix": prefix_model}[fusion]
    ids = random_ids(3, 16)
    plain = logits(model, {"text_tokens": ids})
    empty = np.zeros((3, 0, 16, 16, 3), "float32")
    np.testing.assert_allclose(logits(model, {"text_tokens": ids, "images": empty}), plain, **CLOSE)
    none = {
        "text_tokens": ids,
        "images": random_images(3, 2),
        "num_images": np.zeros(3, "int32"),
        "attention_mask": np.ones((3, 16), bool),
    }
    np.testing.assert_allclose(logits(model, none)[:, -16:], plain, **CLOSE)
    np.testing.assert_allclose(run(model, ids), plain, **CLOSE)


def test_logits_are_described_before_they_are_computed(model, prefix_model):
    images = {"images": (2, 3, 16, 16, 3)}
    for shapes, prefix in (
        ({}, 0),
        (images, 12),
        ({"images": (2, 16, 16, 3)}, 4),
        ({"vision_embeds": (2, 3, 4, 24)}, 12),
    ):
        shapes = {"text_tokens": (2, 7), **shapes}
        assert model.compute_output_shape(shapes) == (2, 7, 32)
        assert prefix_model.compute_output_shape(shapes) == (2, prefix + 7, 32)
    for unknown in ((2, None, 16, 16, 3), (2, 3, None, 16, 3)):
        shapes = {"text_tokens": (2, 7), "images": unknown}
        assert prefix_model.compute_output_shape(shapes) == (2, None, 32)
    for each in (model, prefix_model):
        assert each(keras.Input((None,), dtype="int32")).shape == (None, None, 32)


def test_one_image_may_come_without_the_axis_of_images(model):
    ids = place_images(random_ids(2, 9), [(0, 0), (1, 5)])
    images = random_images(2)
    with_axis = logits(model, {"text_tokens": ids, "images": images[:, None]})
    without = logits(model, {"text_tokens": ids, "images": images})
    np.testing.assert_array_equal(without, with_axis)


def test_each_image_lands_in_its_own_run(model):
    batch = mixed_batch()
    embeddings = run(lambda b: model.embed(b)["inputs"], batch)
    vision = run(model.encode_vision, batch["images"])
    assert vision.shape == (3, 2, TOKENS_PER_IMAGE, 24)
    for row, image, start in ((0, 0, 1), (0, 1, 5), (1, 0, 3)):
        run_of_image = embeddings[row, start : start + TOKENS_PER_IMAGE]
        np.testing.assert_allclose(run_of_image, vision[row, image], **CLOSE)
    table = model.language_decoder.token_embedding.embeddings.numpy()
    text = batch["text_tokens"] != model.image_token_id
    np.testing.assert_allclose(embeddings[text], table[batch["text_tokens"][text]], **CLOSE)
    alone = run(model.encode_vision, batch["images"][:, 1])
    np.testing.assert_allclose(alone, vision[:, 1], **CLOSE)


def test_swapped_neighbours_swap_their_embeddings_and_change_the_answer(model):
    batch = mixed_batch()
    swapped = {**batch, "images": batch["images"][:, ::-1].copy()}
    swapped["images"][1] = batch["images"][1]
    before, after = (run(lambda b: model.embed(b)["inputs"], b) for b in (batch, swapped))
    np.testing.assert_allclose(after[0, 1:5], before[0, 5:9], **CLOSE)
    np.testing.assert_allclose(after[0, 5:9], before[0, 1:5], **CLOSE)
    change = np.abs(logits(model, swapped) - logits(model, batch)).max(axis=-1)
    assert change[0, 1:].min() > 1e-4
    assert change[0, 0] < 1e-6
    assert change[1:].max() < 1e-6


def test_images_of_another_size_bring_their_own_number_of_tokens(model):
    # 24 pixels: a 6 x 6 grid of patches, 9 tokens.
    assert model.count_image_tokens(24, 24) == 9
    images = np.random.default_rng(0).uniform(-1, 1, (1, 1, 24, 24, 3)).astype("float32")
    ids = random_ids(1, 12)
    ids[0, 1:10] = model.image_token_id
    embeddings = run(lambda b: model.embed(b)["inputs"], {"text_tokens": ids, "images": images})
    vision = run(model.encode_vision, images[:, 0])
    np.testing.assert_allclose(embeddings[0, 1:10], vision[0], **CLOSE)
    with pytest.raises(ValueError, match="has 4 placeholders .* expected 9 = 1 images x 9"):
        model({"text_tokens": place_images(random_ids(1, 12), [(0, 1)]), "images": images})


@pytest.mark.parametrize("fusion", ["placeholder", "prefix"])
def test_isolated_turns_are_turns_alone(fusion, model, prefix_model):
    model = {"placeholder": model, "prefix": prefix_model}[fusion]
    start = random_ids(1, 6, seed=1)
    if fusion == "placeholder":
        start = place_images(start, [(0, 1)])
    turns = [random_ids(1, 4, seed=2), random_ids(1, 3, seed=3)]
    images = random_images(1, 1, seed=4)
    row = {
        "text_tokens": np.concatenate([start, *turns, np.zeros((1, 3), "int32")], axis=1),
        "turn_ids": np.repeat([[0, 1, 2, 0]], [6, 4, 3, 3], axis=1).astype("int32"),
        "attention_mask": np.arange(16)[None] < 13,
        "images": images,
    }
    together = logits(model, row)[:, -16:]
    for turn, end in zip(turns, (10, 13), strict=True):
        ids = np.concatenate([start, turn], axis=1)
        alone = logits(model, {"text_tokens": ids, "images": images})
        length = turn.shape[1]
        np.testing.assert_allclose(together[:, end - length : end], alone[:, -length:], **CLOSE)
