"""Who sees whom: causality, images, padding."""

import numpy as np
import pytest
from tiny_models import (
    IMAGE_ID,
    TOKENS_PER_IMAGE,
    logits,
    mixed_batch,
    random_images,
    run,
    text_batch,
    tiny_nanovlm,
)

TOLERANCE = 2e-6


@pytest.fixture(scope="module")
def causal():
    return tiny_nanovlm()


@pytest.fixture(scope="module")
def bidirectional():
    return tiny_nanovlm(bidirectional_images=True)


@pytest.fixture(params=["causal", "bidirectional"])
def model(request):
    return request.getfixturevalue(request.param)


def _changed(before, after):
    """Return bool[B, S]: the positions whose logits moved."""
    return np.abs(before - after).max(axis=-1) > TOLERANCE


def test_a_text_token_changes_nothing_before_it(model):
    batch = mixed_batch()
    before = logits(model, batch)
    for column in (0, 8, 9, 11, 15):
        ids = batch["text_tokens"].copy()
        # Row 1's image lies in columns 3 to 6, row 0's images in 1 to 8.
        rows = ids[:, column] != IMAGE_ID
        ids[rows, column] = (ids[rows, column] + 5) % IMAGE_ID
        moved = _changed(before, logits(model, {**batch, "text_tokens": ids}))
        assert not moved[:, :column].any()
        real = batch["attention_mask"]
        assert moved[rows & real[:, column], column].all()
        # Padding is never seen.
        assert not (moved & real)[~real[:, column]].any()


def test_an_image_changes_nothing_before_it_and_no_other_row(model):
    batch = mixed_batch()
    before = logits(model, batch)
    for (row, image), start in {(0, 0): 1, (0, 1): 5, (1, 0): 3}.items():
        images = batch["images"].copy()
        images[row, image] = random_images(seed=9)
        moved = _changed(before, logits(model, {**batch, "images": images}))
        real = batch["attention_mask"][row]
        assert not moved[row, :start].any()
        assert moved[row, start:][real[start:]].all()
        assert not np.delete(moved, row, axis=0).any()


def test_images_that_are_not_there_change_nothing(model):
    batch = mixed_batch()
    images = batch["images"].copy()
    images[1, 1], images[2] = 7.0, -7.0
    assert not _changed(logits(model, batch), logits(model, {**batch, "images": images})).any()


def test_image_tokens_see_their_whole_image_only_where_asked(causal, bidirectional):
    batch = mixed_batch()
    moved = _changed(logits(causal, batch), logits(bidirectional, batch))
    # Every token but an image's last sees more, and what comes after sees that.
    expected = np.zeros_like(moved)
    expected[0, 1:], expected[1, 3:12] = True, True
    np.testing.assert_array_equal(moved & batch["attention_mask"], expected)


@pytest.mark.parametrize("numbered", [True, False])
def test_one_image_token_and_those_before_it(causal, numbered):
    # Two neighbouring images at 1..4 and 5..8; the last token of the first one is changed.
    inputs = np.random.default_rng(0).standard_normal((1, 12, 24)).astype("float32")
    image_ids = np.repeat([[0, 1, 2, 0]], [1, 4, 4, 3], axis=1)

    def decode(x):
        return causal.language_decoder(x, image_ids=image_ids if numbered else None)

    before = run(decode, inputs)
    inputs[0, 4] += 1.0
    moved = _changed(before, run(decode, inputs))[0]
    first = 1 if numbered else 4
    np.testing.assert_array_equal(moved, np.arange(12) >= first)


def test_prefix_fusion_is_causal():
    model, batch = tiny_nanovlm("prefix"), text_batch()
    before = logits(model, batch)
    prefix = 2 * TOKENS_PER_IMAGE
    assert before.shape == (3, prefix + 16, 32)
    ids = batch["text_tokens"].copy()
    ids[:, 4] = (ids[:, 4] + 5) % IMAGE_ID
    moved = _changed(before, logits(model, {**batch, "text_tokens": ids}))
    assert not moved[:, : prefix + 4].any()
    assert moved[:, prefix + 4].all()
    images = batch["images"].copy()
    images[:, 1] = random_images(3, seed=9)
    moved = _changed(before, logits(model, {**batch, "images": images}))
    # Only row 0 has a second image; the prefix of absent images is seen by nobody's text.
    assert not moved[0, :TOKENS_PER_IMAGE].any()
    assert moved[0, TOKENS_PER_IMAGE:].all()
    assert not moved[1:, prefix:].any()
