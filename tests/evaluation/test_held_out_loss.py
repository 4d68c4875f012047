"""The loss of held-out documents against the loss of each document alone."""

import numpy as np
import pytest
from tiny_families import family_model
from tiny_models import IMAGE_ID, IMAGE_SIZE, logits

from dl_techniques.datasets.vqa_dataset import VQADataProcessor
from dl_techniques.evaluation.held_out_loss import held_out_loss
from dl_techniques.preprocessing.tokenizer import CharacterTokenizer

CHARACTERS = 128
LETTERS = ("a", "b", "no", "yes!")


@pytest.fixture(scope="module")
def model():
    model = family_model("ghostvis", vocab_size=CHARACTERS + 1, image_token_id=CHARACTERS)
    tokenizer = CharacterTokenizer(CHARACTERS)
    tokenizer.add_special_tokens(["<|image|>"])
    model.processor = VQADataProcessor(
        IMAGE_SIZE,
        40,
        tokenizer=tokenizer,
        image_token_id=CHARACTERS,
        tokens_per_image=model.tokens_per_image,
    )
    assert IMAGE_ID < CHARACTERS
    return model


class Samples:
    """A source of as many samples as there are answers; the pictures are of one colour each."""

    def __len__(self):
        return len(LETTERS)

    def __getitem__(self, index):
        picture = np.full((IMAGE_SIZE, IMAGE_SIZE, 3), 60 * index, "uint8")
        messages = [
            {"role": "user", "content": "q?"},
            {"role": "assistant", "content": LETTERS[index]},
        ]
        return {"id": str(index), "source": "", "images": [picture], "messages": messages}


def by_hand(model, blank):
    """Return the mean of -log p of all learned tokens, one document after the other."""
    losses = []
    for index in range(len(LETTERS)):
        made = model.processor.process(Samples()[index])
        images = made["images"] * (not blank)
        scores = logits(model, {"text_tokens": made["text_tokens"][None], "images": images[None]})[
            0
        ].astype("float64")
        scores -= np.log(np.exp(scores).sum(-1, keepdims=True))
        for place in np.flatnonzero(made["labels"] != -100):
            losses.append(-scores[place - 1, made["labels"][place]])
    return np.mean(losses)


@pytest.mark.parametrize("blank", [False, True])
def test_mean_of_all_learned_tokens(model, blank):
    expected = by_hand(model, blank)
    assert abs(expected - by_hand(model, not blank)) > 1e-3
    for batch_size in (1, 3):  # Packed: two documents fit a row.
        found = held_out_loss(model, Samples(), 40, batch_size, blank_images=blank)
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_an_empty_source_is_an_error(model):
    class Nothing(Samples):
        def __len__(self):
            return 0

    with pytest.raises(ValueError, match="are empty"):
        held_out_loss(model, Nothing(), 40)
