"""Drawn ids have the distribution that an independent NumPy reference gives."""

import functools

import numpy as np
import pytest
from keras import ops
from tiny_models import run

from dl_techniques.generation import BeamSearch, Sampler
from dl_techniques.generation.sampling import (
    SAMPLERS,
    draw,
    filtered_weights,
    penalised,
    uniform_numbers,
)

SETTINGS = [
    Sampler(top_k=0),
    Sampler(temperature=0.5, top_k=0),
    Sampler(temperature=2.5, top_k=0),
    Sampler(top_k=1),
    Sampler(top_k=4),
    Sampler(top_k=1000),
    Sampler(top_k=0, top_p=0.7),
    Sampler(top_k=0, top_p=1e-6),
    Sampler(top_k=0, min_p=0.2),
    Sampler(top_k=0, min_p=1.0),
    Sampler(temperature=1.7, top_k=7, top_p=0.8),
    Sampler(temperature=2.0, top_k=6, top_p=0.95, min_p=0.15),
]


@functools.cache
def of_tensors(function):
    return lambda *args: function(*map(ops.convert_to_tensor, args))


def compute(function, *args):
    """Return function(*args) for arrays, as arrays."""
    return run(of_tensors(function), *args)


def names(sampler):
    return f"{sampler.temperature}-{sampler.top_k}-{sampler.top_p}-{sampler.min_p}"


def random_logits(*shape, seed=0):
    return (2 * np.random.default_rng(seed).standard_normal(shape)).astype("float32")


def reference(logits, sampler):
    """Probabilities of one row: every filter by its definition, one after the other."""
    logits = logits.astype("float64") / sampler.temperature
    probabilities = np.exp(logits) / np.exp(logits).sum()
    order = np.argsort(-probabilities)
    if sampler.top_k:
        probabilities[order[sampler.top_k :]] = 0
        probabilities /= probabilities.sum()
    if sampler.top_p < 1:
        held = 0.0
        for token in order:
            if held >= sampler.top_p:
                probabilities[token] = 0
            held += probabilities[token]
        probabilities /= probabilities.sum()
    probabilities[probabilities < sampler.min_p * probabilities.max()] = 0
    return probabilities / probabilities.sum()


@pytest.mark.parametrize("sampler", SETTINGS, ids=names)
def test_filters_are_those_of_the_reference(sampler):
    logits = random_logits(50, 23)
    weights = compute(filtered_weights, logits, sampler.settings())
    expected = np.stack([reference(row, sampler) for row in logits])
    np.testing.assert_array_equal(weights > 0, expected > 0)
    got = weights / weights.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(got, expected, rtol=2e-5, atol=1e-7)


def test_ids_as_probable_as_the_last_one_kept_are_kept():
    logits = np.log(np.array([[0.1, 0.2, 0.4, 0.2, 0.1]], "float32"))
    weights = compute(filtered_weights, logits, Sampler(top_k=2).settings())
    np.testing.assert_allclose(weights[0], [0, 0.5, 1, 0.5, 0], atol=1e-6)
    weights = compute(filtered_weights, logits, Sampler(top_k=0, top_p=0.5).settings())
    np.testing.assert_allclose(weights[0], [0, 0.5, 1, 0.5, 0], atol=1e-6)


@pytest.mark.parametrize("temperature", [1e-30, 1e-3])
def test_almost_no_temperature_is_greedy(temperature):
    logits = random_logits(20, 23)
    logits[:, 5] = -np.inf
    settings = Sampler(temperature=temperature, top_k=0).settings()
    drawn = compute(draw, logits, settings, uniform_numbers(np.arange(20), 1)[:, 0])
    np.testing.assert_array_equal(drawn, logits.argmax(axis=1))


@pytest.mark.parametrize("source", ["rows", "places"])
@pytest.mark.parametrize("sampler", [SETTINGS[i] for i in (0, 4, 6, 8, 10, 11)], ids=names)
def test_draws_have_the_reference_distribution(sampler, source):
    number = 20_000
    logits = 0.5 * random_logits(1, 12, seed=5)
    if source == "rows":  # Neighbouring seeds must be as good as independent.
        uniform = uniform_numbers(np.arange(number), 4)[:, 3]
    else:
        uniform = uniform_numbers(np.array([11]), number)[0]
    drawn = compute(draw, np.repeat(logits, number, axis=0), sampler.settings(), uniform)
    counts = np.bincount(drawn, minlength=12)
    expected = number * reference(logits[0], sampler)
    possible = expected > 0
    assert counts[~possible].sum() == 0
    chi_square = ((counts - expected)[possible] ** 2 / expected[possible]).sum()
    freedom = possible.sum() - 1
    # Five standard deviations above the mean.
    assert freedom >= 2 and chi_square < freedom + 5 * np.sqrt(2 * freedom)


@pytest.mark.parametrize("sampler", SETTINGS, ids=names)
def test_extreme_numbers_draw_nothing_filtered(sampler):
    logits = random_logits(50, 23, seed=1)
    logits[:, 7] = -np.inf
    possible = compute(filtered_weights, logits, sampler.settings()) > 0
    assert not possible[:, 7].any()
    for number in (0.0, 0.5, 1 - 2**-24):
        drawn = compute(draw, logits, sampler.settings(), np.full(50, number, "float32"))
        assert possible[np.arange(50), drawn].all()


def test_repetition_penalty():
    logits = np.array([[2.0, -2.0, 0.0, 3.0], [2.0, -2.0, -np.inf, 3.0]], "float32")
    held = np.array([[True, True, True, False], [False, False, True, True]])
    got = compute(penalised, logits, held, np.float32(1.6))
    expected = [[1.25, -3.2, 0.0, 3.0], [2.0, -2.0, -np.inf, 1.875]]
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_random_numbers_depend_on_seed_and_place_alone():
    whole = uniform_numbers(np.array([3, 0, 3, 9]), 40)
    assert whole.shape == (4, 40) and whole.dtype == np.float32
    assert (whole >= 0).all() and (whole < 1).all()
    np.testing.assert_array_equal(whole[0], whole[2])
    np.testing.assert_array_equal(uniform_numbers(np.array([9]), 12), whole[3:, :12])
    np.testing.assert_array_equal(uniform_numbers(np.array([0, 9]), 3), whole[[1, 3], :3])
    assert len(np.unique(whole[[0, 1, 3]])) == 120


def test_numbers_and_draws_are_the_same_on_every_backend():
    uniform = uniform_numbers(np.array([0, 7, 2**40]), 4)
    golden = [
        [0.011546754278242588, 0.24154919385910034, 0.11142585426568985, 0.5644146203994751],
        [0.8720734715461731, 0.2953653931617737, 0.420097678899765, 0.40539225935935974],
        [0.8606998324394226, 0.09878423064947128, 0.4097679853439331, 0.8386284708976746],
    ]
    np.testing.assert_array_equal(uniform, np.array(golden, "float32"))
    logits = random_logits(3, 12, seed=5)
    settings = Sampler(temperature=1.5, top_k=9, top_p=0.9).settings()
    drawn = [compute(draw, logits, settings, column).tolist() for column in uniform.T]
    assert drawn == [[3, 9, 8], [4, 1, 0], [4, 1, 1], [9, 1, 8]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -0.1}, "temperature=-0.1 must be >= 0"),
        ({"temperature": float("nan")}, "temperature=nan must be >= 0"),
        ({"temperature": float("inf")}, "temperature=inf must be >= 0"),
        ({"top_k": -1}, "top_k=-1 must be a whole number >= 0"),
        ({"top_k": 2.5}, "top_k=2.5 must be a whole number >= 0"),
        ({"top_k": 2**31}, "top_k=2147483648 must be a whole number >= 0"),
        ({"temperature": 1e39}, "temperature=1e[+]39 must be >= 0 in float32"),
        ({"repetition_penalty": 1e39}, "repetition_penalty=1e[+]39 must be > 0 in float32"),
        ({"top_k": float("inf")}, "top_k=inf must be a whole number >= 0"),
        ({"top_p": 0.0}, r"top_p=0.0 must be in \(0, 1\]"),
        ({"top_p": 1.1}, r"top_p=1.1 must be in \(0, 1\]"),
        ({"min_p": -0.1}, r"min_p=-0.1 must be in \[0, 1\]"),
        ({"min_p": 1.1}, r"min_p=1.1 must be in \[0, 1\]"),
        ({"repetition_penalty": 0.0}, "repetition_penalty=0.0 must be > 0"),
        ({"repetition_penalty": float("inf")}, "repetition_penalty=inf must be > 0"),
    ],
)
def test_settings_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Sampler(**options)


def test_names_of_samplers():
    assert SAMPLERS["greedy"].is_greedy and not SAMPLERS["sample"].is_greedy
    assert Sampler(repetition_penalty=1.1).penalises and not Sampler().penalises
    with pytest.raises(ValueError, match="num_beams=0 must be at least 1"):
        BeamSearch(num_beams=0)
