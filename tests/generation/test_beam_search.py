"""Beam search finds what trying all continuations finds."""

import itertools

import numpy as np
import pytest
from tiny_chat import log_softmax
from tiny_models import logits, place_images, random_images, tiny_nanovlm

from dl_techniques.generation import BeamSearch

VOCAB, IMAGE_ID, LENGTH = 7, 6, 3
ENOUGH = (VOCAB - 1) ** (LENGTH - 1)  # Every continuation that is open before the last token.


@pytest.fixture(scope="module")
def tiny():
    return tiny_nanovlm(vocab_size=VOCAB, image_token_id=IMAGE_ID)


@pytest.fixture(scope="module")
def prompts():
    """Two images; one image; none; padded on the right."""
    ids = np.random.default_rng(0).integers(0, IMAGE_ID, (3, 12)).astype("int32")
    ids = place_images(np.where(ids == IMAGE_ID, 0, ids), [(0, 1), (0, 6), (1, 2)])
    ids = np.where(ids == 31, IMAGE_ID, ids)  # `place_images` writes the id of other tests.
    mask = np.arange(12) < np.array([[12], [9], [5]])
    return {
        "text_tokens": np.where(mask, ids, 0),
        "attention_mask": mask,
        "images": random_images(3, 2),
        "num_images": np.array([2, 1, 0], "int32"),
    }


@pytest.fixture(scope="module")
def everything(tiny, prompts):
    """All continuations and, for every row, the log-probabilities of their tokens."""
    lines = np.array(list(itertools.product(range(IMAGE_ID), repeat=LENGTH)), "int32")
    found = []
    for row in range(3):
        real = prompts["attention_mask"][row]
        prompt = prompts["text_tokens"][row][real]
        ids = np.concatenate([np.tile(prompt, (len(lines), 1)), lines], axis=1)
        images = np.repeat(prompts["images"][row : row + 1], len(lines), axis=0)
        counts = np.repeat(prompts["num_images"][row], len(lines))
        scores = logits(tiny, {"text_tokens": ids, "images": images, "num_images": counts})
        scores = log_softmax(scores[:, len(prompt) - 1 : -1])
        found.append(np.take_along_axis(scores, lines[..., None], axis=2)[..., 0])
    return lines, found


def best(lines, logprobs, stop_ids, penalty):
    """The best continuation of a row, cut behind its first stop id."""
    scored = {}
    for line, values in zip(lines.tolist(), logprobs, strict=True):
        ends = [i for i, token in enumerate(line) if token in stop_ids]
        length = ends[0] + 1 if ends else LENGTH
        scored[tuple(line[:length])] = (values[:length].sum() / length**penalty, values[:length])
    line = max(scored, key=lambda line: scored[line][0])
    return line, scored[line][1]


@pytest.mark.parametrize("penalty", [-1.0, 0.0, 1.0, 3.0])
@pytest.mark.parametrize("stop_ids", [(), (2, 5), (0, 1, 3, 4)])
def test_beam_search_is_brute_force(tiny, prompts, everything, stop_ids, penalty):
    search = BeamSearch(ENOUGH, penalty)
    ids, logprobs = tiny.generate(
        prompts, LENGTH, search, stop_ids=stop_ids, pad_token_id=1, return_logprobs=True
    )
    assert ids.dtype == np.int32 and logprobs.dtype == np.float32
    for row, values in enumerate(everything[1]):
        line, expected = best(everything[0], values, stop_ids, penalty)
        padding = LENGTH - len(line)
        assert ids[row].tolist() == [*line, *[1] * padding]
        np.testing.assert_allclose(logprobs[row], [*expected, *[0] * padding], atol=1e-5)


def test_the_length_penalty_matters(everything):
    lines, found = everything
    lengths = {
        penalty: [len(best(lines, values, (0, 1, 3, 4), penalty)[0]) for values in found]
        for penalty in (-1.0, 0.0, 3.0)
    }
    assert sum(lengths[-1.0]) <= sum(lengths[0.0]) < sum(lengths[3.0])


@pytest.mark.parametrize("penalty", [-1.0, 1.0, 3.0])
def test_one_beam_is_greedy(models, penalty):
    from tiny_models import mixed_batch

    model, prompts = models["placeholder"], mixed_batch()
    free = model.generate(prompts, 9)
    for stop_ids in ((), (int(free[0, 3]), int(free[1, 5]))):
        options = {"stop_ids": stop_ids, "return_logprobs": True}
        expected = model.generate(prompts, 9, **options)
        got = model.generate(prompts, 9, BeamSearch(1, penalty), **options)
        np.testing.assert_array_equal(got[0], expected[0])
        np.testing.assert_allclose(got[1], expected[1], atol=1e-5)


@pytest.mark.parametrize("beams", [2, 5])
def test_rows_do_not_depend_on_their_neighbours(tiny, prompts, beams):
    options = {"sampler": BeamSearch(beams), "stop_ids": [2, 5]}
    together = tiny.generate(prompts, 6, **options)
    for row in range(3):
        alone = {name: values[row : row + 1] for name, values in prompts.items()}
        np.testing.assert_array_equal(tiny.generate(alone, 6, **options)[0], together[row])


def test_row_counts_of_one_bucket_share_programs(tiny, prompts):
    five, six = (
        {name: np.resize(values, (rows, *values.shape[1:])) for name, values in prompts.items()}
        for rows in (5, 6)
    )
    first = tiny.generate(six, 4, BeamSearch(2))
    before = tiny.generation_stats()["compilations"]
    np.testing.assert_array_equal(tiny.generate(five, 4, BeamSearch(2)), first[:5])
    assert tiny.generation_stats()["compilations"] == before


def test_more_beams_than_continuations(tiny, prompts, everything):
    ids = tiny.generate(prompts, 1, BeamSearch(50))
    expected = [
        best(everything[0][:, :1], values[:, :1], (), 0.0)[0][0] for values in everything[1]
    ]
    assert ids[:, 0].tolist() == expected


def test_the_placeholder_is_never_found():
    model = tiny_nanovlm(vocab_size=VOCAB, image_token_id=IMAGE_ID)
    table = model.language_decoder.token_embedding.embeddings
    rows = table.numpy()
    ids = np.array([[1, 2, 3, 4]], "int32")
    rows[IMAGE_ID] = 50 * rows[logits(model, {"text_tokens": ids})[0, -1].argmax()]
    table.assign(rows)
    assert logits(model, {"text_tokens": ids})[0, -1].argmax() == IMAGE_ID
    assert IMAGE_ID not in model.generate(ids, 4, BeamSearch(3))


def test_what_does_not_go_with_beam_search(chat):
    for name, value in (
        ("stream", True),
        ("stop_strings", ["x"]),
        ("logits_processors", [lambda logits, ids, i: logits]),
    ):
        with pytest.raises(ValueError, match=rf"Beam search does not go with \['{name}'\]"):
            chat.generate("what?", 4, BeamSearch(), **{name: value})


def test_texts_are_found_too(chat):
    ids = chat.processor.encode_prompt([{"role": "user", "content": "what?"}]).token_ids
    options = {"sampler": BeamSearch(2), "max_new_tokens": 6}
    found = chat.generate(np.array([ids]), **options)[0].tolist()
    ends = [i for i, token in enumerate(found) if token in chat.processor.stop_ids]
    assert (
        chat.generate("what?", **options)
        == chat.processor.decode(found[: (ends or [6])[0]]).strip()
    )
