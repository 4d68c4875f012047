"""The whole model against SmolVLM: vision, pixel shuffle, projection, splicing, decoding."""

import numpy as np
from reference_models import SMOLVLM_IMAGE_ID, run_reference, smolvlm_of, state_of, tiny_smolvlm
from tiny_models import logits


def test_logits_with_two_images_one_and_none():
    reference = tiny_smolvlm()
    model = smolvlm_of(state_of(reference))
    generator = np.random.default_rng(0)
    ids = generator.integers(1, SMOLVLM_IMAGE_ID, (3, 16)).astype("int32")
    # Row 0 has two neighbouring images, row 1 one, row 2 none.
    ids[0, 1:9] = ids[1, 6:10] = SMOLVLM_IMAGE_ID
    images = generator.uniform(-1, 1, (3, 2, 16, 16, 3)).astype("float32")
    counts = np.array([2, 1, 0], "int32")
    # The reference knows absent images by their zeros.
    images[np.arange(2) >= counts[:, None]] = 0
    expected = run_reference(
        reference,
        input_ids=ids.astype("int64"),
        attention_mask=np.ones((3, 16), "int64"),
        pixel_values=images.transpose(0, 1, 4, 2, 3),
    )
    got = logits(model, {"text_tokens": ids, "images": images, "num_images": counts})
    np.testing.assert_allclose(got, expected.logits.numpy(), rtol=1e-5, atol=1e-5)
    assert np.abs(got).mean() > 0.1
