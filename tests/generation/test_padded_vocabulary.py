"""Tables of embeddings often have more rows than the tokenizer has ids; such ids have no text."""

from dataclasses import replace

import numpy as np
import pytest
from test_rolling_batch import SAMPLED, join, request, row_of
from tiny_chat import CHARACTERS, chat_model, picture, user
from tiny_models import numpy

from dl_techniques.generation import BeamSearch
from dl_techniques.generation.rolling_batch import RollingBatch

KNOWN = CHARACTERS + 1
MESSAGES = [user("what?", picture(0))]


@pytest.fixture(scope="module")
def padded():
    """A model that always likes one of its two ids without text best."""
    model = chat_model(vocab_size=KNOWN + 2)
    head = model.language_decoder.token_embedding.reverse_embeddings
    columns = np.array(numpy(head))
    columns[:, -2:] = 100 * np.random.default_rng(0).standard_normal((len(columns), 1))
    columns[:, -1] *= -1
    head.assign(columns)
    return model


@pytest.mark.parametrize(
    "sampler", ["greedy", SAMPLED, BeamSearch(2)], ids=["greedy", "drawn", "beams"]
)
def test_ids_without_text_are_not_chosen(padded, sampler):
    ids = padded.generate(row_of(padded, MESSAGES), 6, sampler, stop_ids=())
    assert ids.max() < KNOWN
    assert isinstance(padded.generate(MESSAGES, 6, sampler), str)


def test_ids_without_text_are_not_told(padded):
    wanted = replace(request(6, SAMPLED, stop_ids=()), top_logprobs=5)
    seat = join(
        padded, RollingBatch(padded.generation_engine(), 1), row_of(padded, MESSAGES), wanted
    )
    assert max(token for token, _ in seat.top_logprobs[0]) < KNOWN
    assert seat.top_logprobs[0][0][1] < -10  # The others' share is counted all the same.


def test_answers_are_greedy_though_ids_without_text_are_likelier(padded):
    prompt = row_of(padded, MESSAGES)
    ids = padded.generate(prompt, 6, stop_ids=())
    (score,) = padded.score(prompt, ids.tolist())
    assert score.greedy and score.total < -60  # The others' share is counted all the same.
    ids[0, -1] = KNOWN
    assert not padded.score(prompt, ids.tolist())[0].greedy


def test_without_a_processor_all_ids_are_choosable(padded):
    batch, processor = row_of(padded, MESSAGES), padded.processor
    padded.processor = None
    try:
        assert padded.generate(batch, 3, stop_ids=(), pad_token_id=0).min() >= KNOWN
    finally:
        padded.processor = processor
