"""Bootstrap intervals and the paired test."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dl_techniques.evaluation import intervals
from dl_techniques.evaluation.intervals import (
    bootstrap_interval,
    mean_table,
    paired_comparison,
)
from dl_techniques.evaluation.metrics.captions import bleu_counts, bleu_from_counts
from dl_techniques.evaluation.metrics.yes_no import pope_counts, pope_from_counts


def coins(number, share, seed=0):
    return (np.random.default_rng(seed).random(number) < share).astype(float)


def test_the_interval_of_a_mean_is_the_normal_one():
    scores = coins(400, 0.3)
    found = bootstrap_interval(mean_table(scores))
    assert found.value == scores.mean()
    half = 1.96 * scores.std() / 20
    assert found.low == pytest.approx(scores.mean() - half, abs=0.006)
    assert found.high == pytest.approx(scores.mean() + half, abs=0.006)
    narrow = bootstrap_interval(mean_table(scores), level=0.5)
    assert found.low < narrow.low < narrow.high < found.high


def test_intervals_hold_the_truth_as_often_as_they_say():
    held = 0
    for seed in range(200):
        found = bootstrap_interval(mean_table(coins(80, 0.4, seed)), resamples=300)
        held += found.low <= 0.4 <= found.high
    assert 0.89 <= held / 200 <= 0.99


def test_questions_of_one_picture_are_drawn_together():
    scores = coins(50, 0.5)
    alone = bootstrap_interval(mean_table(scores))
    # Each score four times: no more is known than before.
    table, groups = mean_table(np.repeat(scores, 4)), np.repeat(np.arange(50), 4)
    together = bootstrap_interval(table, groups=groups.tolist())
    assert (together.low, together.high) == (alone.low, alone.high)
    apart = bootstrap_interval(table)
    assert apart.high - apart.low < 0.7 * (alone.high - alone.low)


def test_any_figure_of_sums_has_an_interval():
    said, right = coins(300, 0.5), coins(300, 0.8, seed=1)
    words = {0.0: "no", 1.0: "yes"}
    answers = [words[s if r else 1 - s] for s, r in zip(said, right, strict=True)]
    table = np.array([pope_counts(words[s], a) for s, a in zip(said, answers, strict=True)])
    found = bootstrap_interval(table, lambda totals: pope_from_counts(totals)["f1"])
    tp, fp, _, fn = table.sum(axis=0)
    assert found.value == pytest.approx(2 * tp / (2 * tp + fp + fn))
    assert found.low < found.value < found.high
    captions = np.array([bleu_counts("a cat", ["a cat sat"]), bleu_counts("a dog", ["the dog"])])
    found = bootstrap_interval(captions, lambda totals: bleu_from_counts(totals)["bleu_1"])
    assert found.low == pytest.approx(0.5)  # Twice the second caption.
    assert found.high == pytest.approx(math.exp(1 - 3 / 2))


def test_draws_depend_on_the_seed_alone(monkeypatch):
    table = mean_table(coins(60, 0.5))
    found = bootstrap_interval(table, seed=3)
    assert found == bootstrap_interval(table, seed=3)
    assert found != bootstrap_interval(table, seed=4)
    monkeypatch.setattr(intervals, "_CHUNK", 60 * 7)
    assert found == bootstrap_interval(table, seed=3)


def tables(both, only_a, only_b, neither):
    a = [1] * both + [1] * only_a + [0] * only_b + [0] * neither
    b = [1] * both + [0] * only_a + [1] * only_b + [0] * neither
    return mean_table(a), mean_table(b)


def mcnemar(only_a, only_b):
    n = only_a + only_b
    tail = sum(math.comb(n, k) for k in range(min(only_a, only_b) + 1)) / 2**n
    return min(1.0, 2 * tail)


@pytest.mark.parametrize(("only_a", "only_b"), [(9, 1), (0, 6), (3, 3), (0, 0), (7, 5)])
def test_right_and_wrong_give_mcnemars_exact_test(only_a, only_b):
    found = paired_comparison(*tables(20, only_a, only_b, 10))
    assert found.p_value == pytest.approx(mcnemar(only_a, only_b))
    assert found.difference.value == pytest.approx((only_a - only_b) / (30 + only_a + only_b))
    assert (found.groups, found.differing) == (30 + only_a + only_b, only_a + only_b)


def test_many_differences_are_sampled():
    found = paired_comparison(*tables(100, 60, 35, 100))
    assert found.p_value == pytest.approx(mcnemar(60, 35), abs=0.006)
    assert found.difference.low < 0.0848 < found.difference.high
    clear = paired_comparison(*tables(0, 200, 0, 0), resamples=999)
    assert clear.p_value == pytest.approx(1 / 1000)  # Never 0.


def test_alike_models_seldom_differ():
    rng, seen = np.random.default_rng(0), []
    for _ in range(100):
        a, b = rng.random((2, 40))
        seen.append(paired_comparison(mean_table(a), mean_table(b), resamples=200).p_value)
    assert np.mean(np.array(seen) <= 0.1) == pytest.approx(0.1, abs=0.08)
    assert np.mean(seen) == pytest.approx(0.5, abs=0.1)


def test_pairs_tell_more_than_two_intervals():
    a = coins(300, 0.5)
    b = a.copy()
    b[:12] = 1 - b[:12]
    found = paired_comparison(mean_table(a), mean_table(b)).difference
    apart = bootstrap_interval(mean_table(a))
    assert found.high - found.low < 0.6 * (apart.high - apart.low)


def test_groups_are_exchanged_together():
    a, b = tables(0, 4, 0, 0)
    assert paired_comparison(a, b).p_value == pytest.approx(2 / 16)
    assert paired_comparison(a, b, groups=["x", "x", "y", "y"]).p_value == pytest.approx(2 / 4)


@settings(max_examples=30)
@given(st.lists(st.tuples(*[st.floats(0, 1)] * 2), min_size=1, max_size=8))
def test_the_other_way_round_is_the_opposite(pairs):
    a, b = (mean_table(scores) for scores in zip(*pairs, strict=True))
    there, back = paired_comparison(a, b, resamples=50), paired_comparison(b, a, resamples=50)
    assert there.difference.value == -back.difference.value
    assert there.p_value == pytest.approx(back.p_value)
    assert 0.0 < there.p_value <= 1.0
    assert paired_comparison(a, a, resamples=50).p_value == 1.0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bootstrap_interval(np.zeros((0, 2))), "N >= 1"),
        (lambda: bootstrap_interval(np.zeros(3)), r"float\[N, C\]"),
        (lambda: bootstrap_interval(mean_table([math.nan])), "not finite"),
        (lambda: bootstrap_interval(mean_table([1.0]), level=95), "level < 1"),
        (lambda: bootstrap_interval(mean_table([1.0]), resamples=0), "resamples >= 1"),
        (lambda: bootstrap_interval(mean_table([1.0]), groups=["a", "b"]), "1 questions, got 2"),
        (lambda: paired_comparison(np.zeros((3, 2)), np.zeros((4, 2))), "same questions"),
    ],
)
def test_errors_name_what_is_wrong(call, message):
    with pytest.raises(ValueError, match=message):
        call()
