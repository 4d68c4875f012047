"""Arrays in, ids out: rows, seeds, samplers, processors of logits."""

import numpy as np
import pytest
from keras import ops
from tiny_chat import (
    count_programs,
    log_softmax,
)
from tiny_models import (
    IMAGE_ID,
    left_padded,
    logits,
    mixed_batch,
    random_ids,
    row_alone,
    text_batch,
    tiny_nanovlm,
)

from dl_techniques.generation import BeamSearch, Sampler

LONG = 64
NEW = 12
SAMPLER = Sampler(temperature=1.3, top_k=20, top_p=0.95)
PENALISED = Sampler(temperature=1.3, min_p=0.02, repetition_penalty=1.5)


def prompts_of(fusion):
    return mixed_batch() if fusion == "placeholder" else text_batch()


@pytest.mark.parametrize(
    ("fusion", "sampler"),
    [("placeholder", "greedy"), ("placeholder", SAMPLER), ("prefix", "greedy")],
    ids=["greedy", "sampled", "prefix"],
)
def test_a_ragged_batch_gives_each_row_what_it_gets_alone(models, fusion, sampler):
    model, prompts = models[fusion], prompts_of(fusion)
    together = model.generate(prompts, LONG, sampler, seed=5)
    assert together.shape == (3, LONG) and together.dtype == np.int32
    assert all(len(np.unique(row)) > 3 for row in together)
    moved = model.generate(left_padded(prompts), LONG, sampler, seed=5)
    np.testing.assert_array_equal(moved, together)
    for row in range(3):
        alone = model.generate(row_alone(prompts, row), LONG, sampler, seed=5 + row)
        np.testing.assert_array_equal(alone[0], together[row])


def test_rows_with_the_same_seed_are_the_same_wherever_they_stand(models):
    model, ids = models["placeholder"], np.repeat(random_ids(1, 9), 3, axis=0)
    same = model.generate(ids, NEW, PENALISED, seed=[4, 4, 4])
    np.testing.assert_array_equal(same, same[[0, 0, 0]])
    other = model.generate(ids, NEW, PENALISED, seed=np.array([9, 4, 5]))
    np.testing.assert_array_equal(other[1], same[0])
    np.testing.assert_array_equal(model.generate(ids, NEW, PENALISED, seed=4)[0], same[0])


def test_seeds_decide(models):
    model, prompts = models["placeholder"], mixed_batch()
    first = model.generate(prompts, NEW, "sample", seed=1)
    np.testing.assert_array_equal(model.generate(prompts, NEW, "sample", seed=1), first)
    others = [model.generate(prompts, NEW, "sample", seed=seed) for seed in (11, 21)]
    assert all((other != first).any(axis=1).all() for other in others)
    # Greedy draws nothing.
    greedy = [model.generate(prompts, NEW, seed=seed) for seed in (1, 2)]
    np.testing.assert_array_equal(*greedy)


@pytest.mark.parametrize("fusion", ["placeholder", "prefix"])
def test_vision_embeds_take_the_place_of_images(models, fusion, monkeypatch):
    model, prompts = models[fusion], prompts_of(fusion)
    expected = model.generate(prompts, NEW)
    counts = count_programs(monkeypatch, model)
    embeds = model.encode_vision(ops.convert_to_tensor(prompts["images"]))
    without = {name: value for name, value in prompts.items() if name != "images"}
    np.testing.assert_array_equal(model.generate(without, NEW, vision_embeds=embeds), expected)
    inside = without | {"vision_embeds": ops.convert_to_numpy(embeds)}
    np.testing.assert_array_equal(model.generate(inside, NEW), expected)
    assert counts["encode"] == 0 and counts["prefill"] == 2


def test_lists_and_tensors_are_arrays_too(models):
    model, ids = models["placeholder"], random_ids(2, 9)
    expected = model.generate(ids, NEW)
    for same in (ids.tolist(), ops.convert_to_tensor(ids), {"text_tokens": ids.tolist()}):
        np.testing.assert_array_equal(model.generate(same, NEW), expected)


@pytest.mark.parametrize("sampler", ["greedy", SAMPLER, PENALISED], ids=str)
def test_log_probabilities_are_those_of_uncached_logits(models, sampler):
    model, prompts = models["placeholder"], mixed_batch()
    ids, logprobs = model.generate(prompts, NEW, sampler, return_logprobs=True)
    for row in range(3):
        alone = row_alone(prompts, row)
        width = alone["text_tokens"].shape[1]
        whole = np.concatenate([alone["text_tokens"], ids[row : row + 1]], axis=1)
        scores = log_softmax(logits(model, alone | {"text_tokens": whole}))[0, width - 1 : -1]
        expected = scores[np.arange(NEW), ids[row]]
        np.testing.assert_allclose(logprobs[row], expected, atol=1e-5)


def test_greedy_ids_under_a_repetition_penalty_are_those_of_uncached_logits(models):
    model, prompt = models["placeholder"], random_ids(1, 9)
    got = model.generate(prompt, NEW, Sampler(temperature=0, repetition_penalty=4.0))[0]
    row = prompt[0].tolist()
    for token in got:
        scores = logits(model, {"text_tokens": np.array([row + [0] * (9 + NEW - len(row))])})
        scores = scores[0, len(row) - 1].astype("float64")
        held = np.unique(row)
        scores[held] = np.where(scores[held] > 0, scores[held] / 4, scores[held] * 4)
        scores[IMAGE_ID] = -np.inf
        assert token == scores.argmax()
        row.append(int(token))
    assert (got != model.generate(prompt, NEW)[0]).any()


def test_samplers_and_their_numbers_share_one_program(models):
    model, prompts = models["placeholder"], mixed_batch()
    model.generate(prompts, NEW, SAMPLER)
    before = model.generation_stats()["compilations"]
    for sampler in (Sampler(), Sampler(0.5 + 0.5), Sampler(top_k=1), Sampler(min_p=0.3, top_k=3)):
        model.generate(prompts, NEW, sampler, seed=3)
    assert model.generation_stats()["compilations"] == before
    likeliest = model.generate(prompts, NEW, Sampler(top_k=1))
    np.testing.assert_array_equal(likeliest, model.generate(prompts, NEW))


@pytest.mark.parametrize("sampler", ["greedy", SAMPLER, PENALISED, BeamSearch(2)], ids=str)
def test_the_placeholder_is_never_chosen(placeholder_lover, sampler):
    model, prompts = placeholder_lover
    assert logits(model, prompts)[0, -1].argmax() == IMAGE_ID
    assert IMAGE_ID not in model.generate(prompts, NEW, sampler)


def test_no_processor_can_choose_the_placeholder(placeholder_lover):
    model, prompts = placeholder_lover

    def favour(logits, ids, i):
        return ops.where(ops.arange(32) == IMAGE_ID, 1e9, logits)

    for sampler in ("greedy", SAMPLER):
        ids = model.generate(prompts, NEW, sampler, logits_processors=[favour])
        assert IMAGE_ID not in ids


@pytest.fixture(scope="module")
def placeholder_lover():
    """A model whose logit of the placeholder is by far the largest, and a prompt."""
    model, prompts = tiny_nanovlm(), mixed_batch()
    table = model.language_decoder.token_embedding.embeddings
    rows = ops.convert_to_numpy(table.value).copy()
    best = logits(model, prompts)[0, -1].argmax()
    rows[IMAGE_ID] = 50 * rows[best]
    table.assign(rows)
    return model, prompts


def only_even(logits, ids, i):
    return ops.where(ops.arange(32) % 2 == 0, logits, -1e9)


def count_up(logits, ids, i):
    """After the first token, one more than the token before."""
    before = ops.take(ids, ops.maximum(i - 1, 0), axis=1)
    wanted = ops.equal(ops.arange(32), ops.expand_dims((before + 1) % 30, 1))
    return ops.where(ops.logical_or(ops.equal(i, 0), wanted), logits, -1e9)


def test_logits_processors_are_applied_in_order(models):
    model, prompts = models["placeholder"], mixed_batch()
    for sampler in ("greedy", SAMPLER):
        even = model.generate(prompts, NEW, sampler, logits_processors=[only_even])
        assert (even % 2 == 0).all() and len(np.unique(even)) > 3
    ids = model.generate(prompts, NEW, SAMPLER, logits_processors=[count_up])
    np.testing.assert_array_equal(ids, (ids[:, :1] + np.arange(NEW)) % 30)

    def one(logits, ids, i):
        return ops.where(ops.arange(32) == 1, 1e3, logits)

    def two(logits, ids, i):
        return ops.where(ops.arange(32) == 2, ops.max(logits, axis=1, keepdims=True) + 1, logits)

    assert (model.generate(prompts, 2, logits_processors=[one, two]) == 2).all()
    assert (model.generate(prompts, 2, logits_processors=[two, one]) == 1).all()
