"""Scores of texts: answer lists, equality, edit distance, containment, likelihood."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dl_techniques.evaluation.metrics import (
    anls,
    bits_per_byte,
    chartqa,
    edit_distance,
    exact_match,
    gqa_accuracy,
    normalise_vqa,
    ocrbench_accuracy,
    perplexity,
    relaxed_accuracy,
    textvqa_accuracy,
    vqa_accuracy,
)

TEXTS = st.text(alphabet="aby sY.,'15?-\n", max_size=8)


def ten(matches, answer="red"):
    return [answer] * matches + [f"other{i}" for i in range(10 - matches)]


@pytest.mark.parametrize("score", [vqa_accuracy, textvqa_accuracy])
@pytest.mark.parametrize(
    ("matches", "value"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (9, 1.0)]
)
def test_vqa_leaves_one_answer_out(score, matches, value):
    assert score("red", ten(matches)) == pytest.approx(value)


def test_vqa_normalises_only_where_answers_differ():
    assert vqa_accuracy("Yes.", ["yes"] * 10) == 0.0
    assert vqa_accuracy("yes", ["yes"] * 10) == 1.0
    assert vqa_accuracy("yes\n", ["yes"] * 10) == 1.0
    assert vqa_accuracy("Yes.", ["yes"] * 9 + ["no"]) == 1.0
    assert vqa_accuracy("Yes.", ["yes"] * 10, always_normalise=True) == 1.0


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("1,000", "1000"),
        ("black-and-white", "black and white"),
        ("black -and-white", "black andwhite"),  # One mark beside a blank decides for all of it.
        ("U.S.A.", "usa"),
        ("3.5 or .5", "3.5 or .5"),
        ("None", "0"),
        ("ten", "10"),
        ("eleven", "eleven"),
        ("dont know", "don't know"),
        ("couldntve couldnt've", "couldntve couldn't've"),
        ("somebody'd somebodyd've", "somebodyd somebody'd've"),
        ("lets", "lets"),
        ("The cat on a mat", "cat on mat"),
        ("1,2 (b)", "12 b"),
    ],
)
def test_vqa_normalisation(text, normal):
    assert normalise_vqa(text) == normal


def test_textvqa():
    assert textvqa_accuracy("Nokia", ten(3, "nokia")) == pytest.approx(0.9)
    assert textvqa_accuracy("Yes.", ["yes"] * 10) == 1.0
    assert textvqa_accuracy("joe's", ["joe 's"] * 10) == 1.0
    assert vqa_accuracy("joe's", ["joe 's"] * 9 + ["x"]) == 0.0
    assert textvqa_accuracy("ab,c", ["abc"] * 10) == 1.0


@pytest.mark.parametrize("score", [vqa_accuracy, textvqa_accuracy])
@pytest.mark.parametrize("answers", [["red"] * 3, [], "red or blue"])
def test_vqa_needs_answers_enough(score, answers):
    with pytest.raises(ValueError, match="at least 4 answers"):
        score("red", answers)


@given(TEXTS, st.lists(TEXTS, min_size=4, max_size=10), st.randoms())
def test_answer_lists_have_no_order(prediction, answers, random):
    mixed = random.sample(answers, len(answers))
    for score in (vqa_accuracy, textvqa_accuracy, anls, exact_match, gqa_accuracy):
        assert 0.0 <= score(prediction, answers) == score(prediction, mixed) <= 1.0
        assert score(answers[0], [answers[0]] * 4) == 1.0


@pytest.mark.parametrize(
    ("prediction", "answers", "value"),
    [
        ("Red", "red", 1.0),
        ("  two\n cats", ["no", "Two cats"], 1.0),
        ("red.", "red", 0.0),
        ("", "red", 0.0),
    ],
)
def test_exact_match(prediction, answers, value):
    assert exact_match(prediction, answers) == value


def test_gqa_ignores_punctuation():
    assert gqa_accuracy("Yes.", "yes") == 1.0
    assert gqa_accuracy("yes it is", "yes") == 0.0


@pytest.mark.parametrize(
    ("prediction", "target", "value"),
    [
        ("105", "100", 1.0),
        ("105.01", "100", 0.0),
        ("95", "100", 1.0),
        ("94.99", "100", 0.0),
        ("-95", "-100", 1.0),
        ("95", "-100", 0.0),
        ("5%", "5", 0.0),
        ("5%", "0.05", 1.0),
        ("1,000", "1000", 0.0),
        ("1,000", "1,000", 1.0),
        ("0.0", "0", 0.0),
        ("0", "0", 1.0),
        ("Yes", "yes", 1.0),
        ("yes.", "yes", 0.0),
    ],
)
def test_chartqa_is_relaxed_about_numbers(prediction, target, value):
    assert relaxed_accuracy(prediction, target) == value


def test_chartqa_splits():
    kinds = ["human_test", "augmented", "human"]
    found = chartqa(["5", "7", "no"], ["5", "8", "No"], kinds)
    assert found == {"human": 1.0, "augmented": 0.0, "overall": pytest.approx(2 / 3)}
    assert chartqa(["5"], ["5"], ["human"]) == {"human": 1.0, "overall": 1.0}
    with pytest.raises(ValueError, match="'human' or 'augmented', not 'machine'"):
        chartqa(["5"], ["5"], ["machine"])
    with pytest.raises(ValueError, match=r"lengths \[2, 1, 1\]"):
        chartqa(["5", "6"], ["5"], ["human"])
    with pytest.raises(ValueError, match="at least 1"):
        chartqa([], [], [])


@pytest.mark.parametrize(
    ("prediction", "answers", "value"),
    [
        ("helo world", "Hello World", 10 / 11),
        ("12/05/2021", "12/05/2020", 0.9),
        ("abxy", "abcd", 0.0),  # A distance of the threshold.
        ("abcxy", "abcde", 0.6),
        ("two  Cats ", ["dogs", "two cats"], 1.0),
        ("abcdefgh", "abcde", 0.625),  # The longer text counts.
        ("", "a", 0.0),
        ("", "", 1.0),
    ],
)
def test_anls(prediction, answers, value):
    assert anls(prediction, answers) == pytest.approx(value)


def test_anls_with_another_threshold():
    assert anls("abxy", "abcd", threshold=0.6) == 0.5


@pytest.mark.parametrize(
    ("a", "b", "distance"),
    [("kitten", "sitting", 3), ("", "abc", 3), ("flaw", "lawn", 2), ("ab", "ba", 2)],
)
def test_edit_distance(a, b, distance):
    assert edit_distance(a, b) == edit_distance(b, a) == distance


@pytest.mark.parametrize(
    ("prediction", "answers", "formula", "value"),
    [
        ("The word is CENTRE.", "centre", False, 1.0),
        ("centre", ["theatre", "Centre"], False, 1.0),
        ("cen\ntre", "cen tre", False, 1.0),
        ("cen tre", "centre", False, 0.0),
        ("\uff21\uff22\u30001", "ab 1", False, 1.0),
        ("x ^ { 2 }", "x^{2}", True, 1.0),
        ("X^2", "x^2", True, 0.0),
    ],
)
def test_ocrbench_looks_for_the_answer_within(prediction, answers, formula, value):
    assert ocrbench_accuracy(prediction, answers, handwritten_formula=formula) == value


@pytest.mark.parametrize("score", [exact_match, gqa_accuracy, anls, ocrbench_accuracy])
def test_no_answer_is_an_error(score):
    with pytest.raises(ValueError, match="at least one accepted answer"):
        score("a", [])


def test_likelihood():
    # Four tokens of probability 1/8 each, for six bytes.
    total = 4 * math.log(1 / 8)
    assert perplexity(total, 4) == pytest.approx(8.0)
    assert bits_per_byte(total, 6) == pytest.approx(12 / 6)
    for wrong in ((1.0, 3), (-1.0, 0), (math.nan, 3)):
        with pytest.raises(ValueError, match="at least one of the tokens"):
            perplexity(*wrong)
    with pytest.raises(ValueError, match="bytes"):
        bits_per_byte(-1.0, 0)
