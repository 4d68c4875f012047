"""Shares of attention on the places of images, for every way in which images are read."""

import numpy as np
import pytest
from keras import ops
from tiny_families import FAMILY_CASES, family_batch, family_model
from tiny_models import IMAGE_ID, TOKENS_PER_IMAGE, fill, mixed_batch, numpy, run, tiny_nanovlm

from dl_techniques.layers import GroupedQueryAttention
from dl_techniques.visualization import image_attention as module
from dl_techniques.visualization.image_attention import image_attention, query_maps


def one_row(batch, row=0):
    return {name: value[row : row + 1] for name, value in batch.items()}


@pytest.mark.parametrize("rope_theta", [None, 100.0])
def test_weights_are_those_of_the_call(rope_theta):
    layer = GroupedQueryAttention(16, 4, 2, rope_theta=rope_theta)
    layer.build((None, None, 16))
    fill(layer)
    x = np.random.default_rng(0).standard_normal((2, 5, 16)).astype("float32")
    mask = np.tril(np.ones((5, 5), bool))[None, None]
    mask = np.repeat(mask, 2, axis=0)
    mask[1, :, 2] = False  # Looks nowhere.

    def attended(x, mask):
        weights = layer.attention_weights(x, attention_mask=mask)
        value = ops.repeat(layer.project_context(x)[1], 2, axis=2)
        out = ops.einsum("bnts,bsnh->btnh", weights, value)
        return layer.o_proj(ops.reshape(out, (2, 5, 16))), weights, layer(x, attention_mask=mask)

    by_weights, weights, expected = run(attended, x, mask)
    np.testing.assert_allclose(by_weights, expected, rtol=1e-5, atol=1e-5)
    assert (weights[~np.broadcast_to(mask, weights.shape)] == 0).all()
    sums = weights.sum(-1)
    np.testing.assert_allclose(sums, np.broadcast_to(mask.any(-1), sums.shape), atol=1e-6)


def test_images_in_the_sequence_are_seen_from_behind_alone():
    model, batch = tiny_nanovlm(), one_row(mixed_batch())
    for name in ("text_tokens", "attention_mask"):  # No bucket: what pads it is not seen.
        batch[name] = batch[name][:, :13]
    found = image_attention(model, batch)
    assert found.shape == (13, 2, 2, 2)
    (own,) = run(lambda inputs: module._decoder_attention(model, inputs), batch)
    places = np.flatnonzero(batch["text_tokens"][0] == IMAGE_ID)
    np.testing.assert_allclose(found.reshape(13, -1), own[:, places], rtol=1e-4)
    np.testing.assert_allclose(own.sum(-1), 1, rtol=1e-5)
    for image, start in enumerate((1, 5)):
        assert (found[:start, image] == 0).all()
        assert (found[start + TOKENS_PER_IMAGE :, image] > 0).all()


def test_images_before_the_text():
    model, batch = tiny_nanovlm("prefix"), one_row(mixed_batch())
    batch["text_tokens"] = np.where(batch["text_tokens"] == IMAGE_ID, 5, batch["text_tokens"])
    found = image_attention(model, batch)
    assert found.shape == (16, 2, 2, 2) and (found > 0).all()
    # Later tokens have more text to look at beside the images, and all of it is at most 1.
    assert (found.sum((1, 2, 3)) < 1).all()


@pytest.mark.parametrize("case", FAMILY_CASES)
def test_every_family(case):
    model, (batch, _) = family_model(case), family_batch(case)
    batch = one_row(batch)
    found = image_attention(model, batch)
    assert found.shape[:2] == (batch["text_tokens"].shape[1], batch["images"].shape[1])
    assert np.isfinite(found).all() and (found >= 0).all() and found[-1].sum() > 0
    maps = query_maps(model, ops.convert_to_tensor(batch["images"][0]))
    tokens = model.tokens_per_image
    if case in ("ghostvis", "nvlm_d"):
        assert maps.shape == (batch["images"].shape[1], tokens, 4, 4)
        np.testing.assert_allclose(maps.sum((2, 3)), 1, rtol=1e-5)
        assert found.shape[2:] == (4, 4)
    else:
        assert maps is None and found.shape[2:] == (2, 2)


def test_a_tag_looks_at_its_own_tile():
    model, (batch, _) = family_model("nvlm_x"), family_batch("nvlm_x")
    batch = one_row(batch)
    found = image_attention(model, batch).sum((2, 3))
    tags = [int(np.flatnonzero(batch["text_tokens"][0] == tag)[0]) for tag in model.tile_tag_ids]
    for image, place in enumerate(tags):
        np.testing.assert_allclose(found[place].sum(), found[place, image], rtol=1e-6)
        assert found[place, image] == pytest.approx(1, rel=1e-5)
    assert (found[: tags[0]] == 0).all() and (found[tags[1] + 1 :] > 0).all()


@pytest.mark.parametrize("case", ["ghostvis_pooled", "nvlm_x", "nvlm_h"])
def test_weights_are_those_with_which_the_model_answers(case, monkeypatch):
    language = FAMILY_CASES[case][1]["language_config"]
    if case != "ghostvis_pooled":  # So that a later block sees what an earlier one read.
        language = language | {"cross_attention_every": 1}
    model, (batch, _) = family_model(case, language_config=language), family_batch(case)
    batch, call, seen = one_row(batch), GroupedQueryAttention.call, {"own": [], "crossed": []}

    def watched(self, x, positions=None, attention_mask=None, **options):
        if "language_decoder" in self.path:
            keys_values = options.get("keys_values")
            weights = self.attention_weights(x, positions, attention_mask, keys_values)
            kind = "own" if keys_values is None else "crossed"
            seen[kind].append(numpy(weights)[0].mean(axis=0))
        return call(self, x, positions, attention_mask, **options)

    with monkeypatch.context() as patch:
        patch.setattr(GroupedQueryAttention, "call", watched)
        model(batch)
    found = image_attention(model, batch)
    text, tokens = batch["text_tokens"][0], model.tokens_per_image
    expected = np.zeros((len(text), 2, tokens))
    places = np.flatnonzero(text == model.image_token_id)
    own = np.mean(seen["own"], axis=0)[:, places]
    if case == "ghostvis_pooled":
        expected += own.reshape(expected.shape)
    elif case == "nvlm_x":
        expected += np.mean(seen["crossed"], axis=0).reshape(expected.shape)
    else:  # The second image is in the sequence; before the first one's tokens stands its tag.
        expected[:, 1] = own
        expected[:, 0] = np.mean(seen["crossed"], axis=0)[:, 1 : tokens + 1]
    assert len(seen["own"]) == 2 and (case == "ghostvis_pooled") is not bool(seen["crossed"])
    np.testing.assert_allclose(found.reshape(expected.shape), expected, rtol=1e-4, atol=1e-6)


def test_grids():
    shares = np.arange(2 * 6.0).reshape(2, 6)
    np.testing.assert_array_equal(module._as_grid(shares, (2, 3))[1], [[6, 7, 8], [9, 10, 11]])
    np.testing.assert_array_equal(module._as_grid(shares, (4, 6)), shares.reshape(2, 2, 3))
    with_class_token = np.arange(5.0)
    np.testing.assert_array_equal(module._as_grid(with_class_token, (4, 4)), [[1, 2], [3, 4]])
    np.testing.assert_array_equal(module._as_grid(np.arange(9.0), (7, 7)).shape, (3, 3))
    with pytest.raises(ValueError, match="7 image tokens are no grid"):
        module._as_grid(np.arange(7.0), (4, 4))


def test_what_is_refused():
    model, batch = tiny_nanovlm(), mixed_batch()
    for wrong in (batch, {"text_tokens": np.ones((1, 4), "int32")}):
        with pytest.raises(ValueError, match="one row with at least one image"):
            image_attention(model, wrong)
    packed = one_row(batch) | {"segment_ids": np.ones((1, 16), "int32")}
    with pytest.raises(ValueError, match="cannot be packed"):
        image_attention(model, packed)
