"""Models that the tests of generation share, so that little is compiled twice."""

import pytest
from tiny_chat import chat_model
from tiny_models import tiny_config, tiny_nanovlm


@pytest.fixture(scope="session")
def models():
    """Models of ids without a processor, with room for 64 new tokens; do not change them."""
    language = tiny_config()["language_config"] | {"max_positions": 128, "tie_embeddings": False}
    return {
        "placeholder": tiny_nanovlm(seed=3, bidirectional_images=True, language_config=language),
        "prefix": tiny_nanovlm("prefix", seed=3, language_config=language),
    }


@pytest.fixture(scope="session")
def chat():
    """A model with a processor; do not change it."""
    return chat_model()
