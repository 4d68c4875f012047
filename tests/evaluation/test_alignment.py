"""Alignment of pictures and captions: ranks by hand, and the vectors of single samples."""

import numpy as np
import pytest
from answering import character_model
from tiny_models import IMAGE_SIZE, numpy

from dl_techniques.evaluation.alignment import alignment, pair_vectors

CAPTIONS = ("red", "a blue one", "red and blue", "")


class Samples:
    """Three pictures with a caption, and a text."""

    def __len__(self):
        return len(CAPTIONS)

    def __getitem__(self, index):
        picture = np.full((IMAGE_SIZE, IMAGE_SIZE, 3), 60 * index, "uint8")
        messages = [
            {"role": "user", "content": "q?"},
            {"role": "assistant", "content": CAPTIONS[index] or "text"},
        ]
        images = [picture] if CAPTIONS[index] else []
        return {"id": str(index), "source": "", "images": images, "messages": messages}


def test_vectors_are_those_of_each_sample_alone():
    model = character_model()
    pictures, captions = pair_vectors(model, Samples(), 48, batch_size=2)
    assert pictures.shape == captions.shape == (3, model.language_decoder.hidden_dim)
    expected = []
    for index in range(3):
        made = model.processor.process(Samples()[index])
        embeds = numpy(model.encode_vision(made["images"]))
        text = made["text_tokens"] != model.image_token_id
        states = numpy(model.language_decoder(made["text_tokens"][text][None], return_hidden=True))[
            0
        ]
        learned = (made["labels"] != -100)[text]
        expected.append((embeds.mean((0, 1)), states[learned].mean(0)))
    order = [int(np.argmin(np.abs(pictures - e).sum(1))) for e, _ in expected]
    assert sorted(order) == [0, 1, 2]
    for place, (picture, caption) in zip(order, expected, strict=True):
        np.testing.assert_allclose(pictures[place], picture, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(captions[place], caption, rtol=1e-4, atol=1e-5)


def test_ranks_by_hand():
    pictures = np.array([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
    captions = np.array([[0.9, 0.1], [1.0, 0.2], [3.0, 3.0]])
    found = alignment(pictures, captions, at=(1, 2, 3, 4))
    # The second picture's own caption is the farthest but one; the others' are the nearest.
    assert found["image_to_text@1"] == pytest.approx(2 / 3)
    assert found["image_to_text@2"] == 1.0 and "image_to_text@4" not in found
    # The second caption lies nearer to the first and the third picture than to its own.
    assert found["text_to_image@1"] == found["text_to_image@2"] == pytest.approx(2 / 3)
    assert found["text_to_image@3"] == 1.0
    cosines = (pictures / np.linalg.norm(pictures, axis=1)[:, None]) @ (
        captions / np.linalg.norm(captions, axis=1)[:, None]
    ).T
    assert found["cosine"] == pytest.approx(np.trace(cosines) / 3)
    assert found["cosine_of_others"] == pytest.approx((cosines.sum() - np.trace(cosines)) / 6)


def test_the_same_caption_twice_is_no_mistake():
    captions = np.array([[1.0, 0.3], [1.0, 0.3], [0.0, 1.0]])
    assert alignment(captions + 0.01, captions, at=(1,))["image_to_text@1"] == 1.0


def test_what_is_refused():
    with pytest.raises(ValueError, match="two or more pairs"):
        alignment(np.ones((1, 2)), np.ones((1, 2)))
    with pytest.raises(ValueError, match="two or more pairs"):
        alignment(np.ones((3, 2)), np.ones((3, 4)))

    class Text(Samples):
        def __getitem__(self, index):
            return super().__getitem__(3)

    with pytest.raises(ValueError, match="No sample"):
        pair_vectors(character_model(), Text(), 48)
