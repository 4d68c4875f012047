"""Where answers end: stop ids, stop strings."""

import numpy as np
import pytest
from keras import ops
from tiny_chat import (
    CHARACTERS,
    letters,
    user,
)
from tiny_models import (
    mixed_batch,
)

from dl_techniques.generation import Sampler

LONG = 64
SAMPLER = Sampler(temperature=1.3, top_k=20, top_p=0.95)


def ended_by(ids, stop_ids, pad):
    """Return ids with padding behind each row's first stop id."""
    ends = np.isin(ids, stop_ids)
    after = np.cumsum(ends, axis=1) - ends > 0
    return np.where(after, pad, ids), after


@pytest.mark.parametrize("sampler", ["greedy", SAMPLER], ids=["greedy", "sampled"])
def test_everything_behind_a_stop_id_is_padding(models, sampler):
    model, prompts = models["placeholder"], mixed_batch()
    free, free_logprobs = model.generate(prompts, LONG, sampler, return_logprobs=True)
    stop_ids = [int(free[0, 3]), int(free[1, 20])]
    expected, after = ended_by(free, stop_ids, 2)
    assert after[0].any()
    options = {"sampler": sampler, "stop_ids": stop_ids, "pad_token_id": 2}
    ids, logprobs = model.generate(prompts, LONG, **options, return_logprobs=True)
    np.testing.assert_array_equal(ids, expected)
    np.testing.assert_allclose(logprobs, np.where(after, 0, free_logprobs), atol=1e-5)
    assert (logprobs[after] == 0).all()
    columns = list(model.generate(prompts, LONG, **options, stream=True))
    np.testing.assert_array_equal(np.stack(columns, axis=1), ids[:, : len(columns)])


def test_decoding_ends_when_all_rows_have_ended(models):
    model, prompts = models["placeholder"], mixed_batch()
    first = model.generate(prompts, 3)
    before = model.generation_stats()["new_tokens"]
    ids = model.generate(prompts, 60, stop_ids=first[:, 2].tolist())
    lengths = (~ended_by(ids, first[:, 2], 0)[1]).sum(axis=1)
    assert lengths.max() <= 3
    # The first token is the prefill's.
    assert model.generation_stats()["new_tokens"] - before <= 3 * (lengths.max() - 1)
    columns = list(model.generate(prompts, 60, stop_ids=first[:, 2].tolist(), stream=True))
    assert len(columns) == lengths.max()


def spelled(text):
    """Return a logits processor that makes every row say a text, then end."""
    ids = np.array([ord(c) for c in text] + [2], "int32")

    def processor(logits, chosen, i):
        token = ops.take(ids, ops.minimum(i, len(ids) - 1))
        return ops.where(ops.arange(CHARACTERS + 1) == token, 1e3, logits)

    return processor


SAYS = spelled(" it is. question: what? ")


def test_stop_strings_end_a_row_and_are_not_part_of_its_text(chat):
    options = {"max_new_tokens": 30, "logits_processors": [SAYS]}
    assert chat.generate("hm?", **options) == "it is. question: what?"
    assert chat.generate("hm?", stop_strings=["question:"], **options) == "it is."
    assert chat.generate("hm?", stop_strings=["what", "s. q"], **options) == "it i"
    assert chat.generate("hm?", stop_strings=["no such"], **options) == "it is. question: what?"
    stream = list(chat.generate("hm?", stop_strings=["question:"], stream=True, **options))
    assert stream == ["i", "t", " i", "s", "."]
    # Ids end with the token that completes the stop string.
    ids = np.array([chat.processor.encode_prompt([user("hm?")]).token_ids])
    options |= {"stop_strings": ["quest"], "return_logprobs": True}
    row, logprobs = chat.generate(ids, **options)
    said = " it is. quest"
    assert row[0].tolist() == [*map(ord, said), *[0] * (30 - len(said))]
    assert (logprobs[0, : len(said)] != 0).all() and (logprobs[0, len(said) :] == 0).all()
    del options["return_logprobs"]
    columns = list(chat.generate(ids, stream=True, **options))
    assert [int(column[0]) for column in columns] == [*map(ord, said)]


def test_rows_stop_by_text_on_their_own(chat):
    questions = ["what is it?", "how many are there?", "why?"]
    options = {"max_new_tokens": 20, "logits_processors": [letters]}
    free = chat.generate(questions, **options)
    stop = free[0][5:7]
    stopped = chat.generate(questions, stop_strings=[stop], **options)
    assert stopped == [text.split(stop)[0] for text in free]
    assert stopped[0] != free[0] and stopped[1:] != ["", ""]
    streamed = ["", "", ""]
    for pieces in chat.generate(questions, stop_strings=[stop], stream=True, **options):
        streamed = [text + piece for text, piece in zip(streamed, pieces, strict=True)]
    assert streamed == stopped
