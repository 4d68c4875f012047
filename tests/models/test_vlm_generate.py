"""Greedy generation with a cache gives what recomputing everything gives."""

import keras
import numpy as np
import pytest
from tiny_models import (
    IMAGE_ID,
    fill,
    left_padded,
    logits,
    mixed_batch,
    random_ids,
    row_alone,
    run,
    text_batch,
    tiny_nanovlm,
)

NEW = 5


@pytest.fixture(scope="module")
def models():
    return {
        "placeholder": tiny_nanovlm(bidirectional_images=True),
        "prefix": tiny_nanovlm("prefix"),
    }


def _prompts(fusion):
    return mixed_batch() if fusion == "placeholder" else text_batch()


def _recomputed(model, prompts):
    """Return the greedy continuation, every token from one call on the whole right-padded row."""
    rows, width = prompts["text_tokens"].shape
    ids = np.zeros((rows, width + NEW), "int32")
    ids[:, :width] = prompts["text_tokens"]
    ends = prompts["attention_mask"].sum(axis=1)
    for step in range(NEW):
        mask = np.arange(width + NEW) < (ends + step)[:, None]
        batch = {**prompts, "text_tokens": ids, "attention_mask": mask}
        scores = logits(model, batch)[:, -(width + NEW) :]
        scores = scores[np.arange(rows), ends + step - 1]
        if model.image_token_id is not None:
            scores[:, model.image_token_id] = -np.inf
        ids[np.arange(rows), ends + step] = scores.argmax(axis=-1)
    return np.stack([row[end : end + NEW] for row, end in zip(ids, ends, strict=True)])


@pytest.mark.parametrize("fusion", ["placeholder", "prefix"])
def test_generation_is_recomputation_however_rows_are_padded(fusion, models):
    model, prompts = models[fusion], _prompts(fusion)
    expected = _recomputed(model, prompts)
    assert len(np.unique(expected)) > 4
    np.testing.assert_array_equal(model.generate(prompts, NEW), expected)
    np.testing.assert_array_equal(model.generate(left_padded(prompts), NEW), expected)


@pytest.mark.parametrize("fusion", ["placeholder", "prefix"])
def test_batched_is_single(fusion, models):
    model, prompts = models[fusion], _prompts(fusion)
    together = model.generate(prompts, NEW)
    for row in (0, 2):
        alone = model.generate(row_alone(prompts, row), NEW)
        np.testing.assert_array_equal(alone[0], together[row])


def test_a_row_ends_with_its_stop_id(models):
    model, prompts = models["placeholder"], mixed_batch()
    free = model.generate(prompts, NEW)
    stop = int(free[0, 1])
    stopped = model.generate(prompts, NEW, stop_ids=[stop], pad_token_id=2)
    for row in range(3):
        hits = np.flatnonzero(free[row] == stop)
        length = hits[0] + 1 if len(hits) else NEW
        np.testing.assert_array_equal(stopped[row, :length], free[row, :length])
        np.testing.assert_array_equal(stopped[row, length:], 2)
    assert (stopped[0, 2:] == 2).all()


def test_the_placeholder_is_never_generated(models):
    model, prompts = tiny_nanovlm(), mixed_batch()
    table = model.language_decoder.token_embedding.embeddings
    # The placeholder's score becomes 50 times that of the likeliest id.
    best = models["placeholder"].generate(prompts, 1)[0, 0]
    rows = table.numpy()
    rows[IMAGE_ID] = 50 * rows[best]
    table.assign(rows)
    assert logits(model, prompts)[0, -1].argmax() == IMAGE_ID
    assert IMAGE_ID not in model.generate(prompts, NEW)


def test_generation_sees_new_weights():
    model, prompts = tiny_nanovlm(), mixed_batch()
    before = model.generate(prompts, NEW)
    fill(model, seed=1)
    after = model.generate(prompts, NEW)
    assert (before != after).any()
    np.testing.assert_array_equal(after, _recomputed(model, prompts))


def test_refused_prompts(models):
    model = models["placeholder"]
    ids = random_ids(1, 16)
    with pytest.raises(ValueError, match=r"16 prompt positions \+ max_new_tokens=49 .*=64"):
        model.generate(ids, 49)
    with pytest.raises(ValueError, match="max_new_tokens=0"):
        model.generate(ids, 0)
    with pytest.raises(ValueError, match=r"cannot be packed: remove \['segment_ids'\]"):
        model.generate({"text_tokens": ids, "segment_ids": np.ones_like(ids)}, 1)
    with pytest.raises(ValueError, match="pad_token_id=31 .* not be the image placeholder 31"):
        model.generate(ids, 1, pad_token_id=IMAGE_ID)
    with pytest.raises(ValueError, match=r"24 prompt positions \+ max_new_tokens=41"):
        models["prefix"].generate(text_batch(), 41)


@pytest.mark.parametrize("policy", ["mixed_float16", "bfloat16"])
def test_low_precision(policy, models):
    model, prompts = tiny_nanovlm(bidirectional_images=True, dtype=policy), mixed_batch()
    exact = logits(models["placeholder"], prompts)
    kinds = []

    def call(batch):
        out = model(batch)
        kinds.append(keras.backend.standardize_dtype(out.dtype))
        return out

    rough = run(call, prompts)
    assert kinds == [model.compute_dtype]
    assert np.abs(rough - exact).max() <= (0.15 if "bfloat16" in policy else 0.02)
    # With a cache in half precision, the likeliest ids stay close to the likeliest.
    chosen = model.generate(prompts, 1)[:, 0]
    ends = prompts["attention_mask"].sum(axis=1) - 1
    last = exact[np.arange(3), ends, :IMAGE_ID]
    assert (last[np.arange(3), chosen] >= last.max(axis=-1) - 0.3).all()
