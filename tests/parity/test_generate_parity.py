"""Greedy generation gives the ids of transformers' `generate` for the same weights."""

import numpy as np
import pytest
from reference_models import SMOLVLM_IMAGE_ID, smolvlm_of, state_of, tiny_smolvlm

NEW, WIDTH = 28, 24


@pytest.fixture(scope="module")
def both():
    # Of smaller weights the likeliest id would soon be always the same.
    reference = tiny_smolvlm(scale=0.4)
    return reference, smolvlm_of(state_of(reference))


@pytest.fixture(scope="module")
def prompts():
    """Three images; two neighbouring ones; one; none. Rows are padded on the left."""
    generator = np.random.default_rng(0)
    mask = np.arange(WIDTH) >= WIDTH - np.array([[24], [17], [12], [5]])
    ids = generator.integers(1, SMOLVLM_IMAGE_ID, mask.shape).astype("int32")
    for row, start in ((0, 1), (0, 9), (0, 20), (1, 10), (1, 14), (2, 15)):
        ids[row, start : start + 4] = SMOLVLM_IMAGE_ID
    counts = np.array([3, 2, 1, 0], "int32")
    images = generator.uniform(-1, 1, (4, 3, 16, 16, 3)).astype("float32")
    # The reference knows absent images by their zeros.
    images[np.arange(3) >= counts[:, None]] = 0
    return {
        "text_tokens": np.where(mask, ids, 0),
        "attention_mask": mask,
        "images": images,
        "num_images": counts,
    }


def reference_ids(reference, prompts, **options):
    import torch

    new = reference.generate(
        input_ids=torch.from_numpy(prompts["text_tokens"].astype("int64")),
        attention_mask=torch.from_numpy(prompts["attention_mask"].astype("int64")),
        pixel_values=torch.from_numpy(prompts["images"].transpose(0, 1, 4, 2, 3).copy()),
        max_new_tokens=NEW,
        do_sample=False,
        pad_token_id=0,
        # Ours never generates it.
        suppress_tokens=[SMOLVLM_IMAGE_ID],
        **options,
    )
    new = new[:, WIDTH:].numpy()
    return np.pad(new, ((0, 0), (0, NEW - new.shape[1])))


def test_greedy_ids_of_a_ragged_batch_with_images(both, prompts):
    reference, model = both
    expected = reference_ids(reference, prompts)
    assert len(np.unique(expected)) > 8
    np.testing.assert_array_equal(model.generate(prompts, NEW), expected)


def test_greedy_ids_up_to_stop_ids(both, prompts):
    reference, model = both
    stop_ids = model.generate(prompts, NEW)[[0, 1], [5, 9]].tolist()
    expected = reference_ids(reference, prompts, eos_token_id=stop_ids)
    assert (expected[:, -1] == 0).any()
    np.testing.assert_array_equal(model.generate(prompts, NEW, stop_ids=stop_ids), expected)
