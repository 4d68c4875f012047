"""Patterns of what is trained: last blocks."""

import pytest
from tiny_models import tiny_nanovlm

from dl_techniques.models.lora import train_only
from dl_techniques.training.freezing import last_blocks


@pytest.fixture(scope="module")
def model():
    return tiny_nanovlm()


def trained(model):
    return {v.path for v in model.trainable_variables}


def below(model, *parts):
    return {v.path for v in model.weights if any(part in v.path for part in parts)}


def test_the_last_blocks_of_a_part(model):
    pattern = last_blocks(model, "language_decoder", 1)
    train_only(model, [pattern])
    assert trained(model) == below(model, "language_decoder/block_1/")
    train_only(model, [last_blocks(model, "vision_encoder", 2)])
    assert trained(model) == below(model, "vision_encoder/block_")
    for count in (0, 3):
        with pytest.raises(ValueError, match="covers 2 blocks"):
            last_blocks(model, "language_decoder", count)
    with pytest.raises(ValueError, match="covers 0 blocks"):
        last_blocks(model, "modality_projection", 1)
    with pytest.raises(ValueError, match="one part"):
        last_blocks(model, "vision_encoder|language_decoder", 1)
