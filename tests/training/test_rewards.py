"""Rewards, by tables written by hand."""

import pytest

from dl_techniques.datasets.row_fields import choice_question
from dl_techniques.evaluation.metrics import choice_letter, exact_match
from dl_techniques.training.rewards import (
    multiple_choice_reward,
    numeric_reward,
    parse_number,
    question_reward,
    reward_for,
)


@pytest.mark.parametrize(
    ("answer", "target", "reward"),
    [
        ("red", "red", 1.0),
        ("Red", "red", 1.0),
        ("  light   blue\n", "Light blue", 1.0),
        ("red.", "red", 0.0),
        ("reddish", "red", 0.0),
        ("not red", "red", 0.0),
        ("", "red", 0.0),
    ],
)
def test_exact(answer, target, reward):
    assert exact_match(answer, target) == reward


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("12", 12.0),
        (" 12. ", 12.0),
        ("-3.5", -3.5),
        ("\N{MINUS SIGN}3", -3.0),
        ("+.5", 0.5),
        ("1,000", 1000.0),
        ("12,345,678.9", 12345678.9),
        ("$1,000", 1000.0),
        ("5%", 0.05),
        ("5 %", 0.05),
        ("12.5%.", 0.125),
        ("1e3", 1000.0),
        ("1,00", None),
        ("1,0000", None),
        ("1.2.3", None),
        ("3 4", None),
        ("about 5", None),
        ("five", None),
        ("nan", None),
        ("inf", None),
        ("1e999", None),
        ("%", None),
        ("-", None),
        ("", None),
    ],
)
def test_numbers(text, number):
    assert parse_number(text) == (None if number is None else pytest.approx(number))


@pytest.mark.parametrize(
    ("answer", "target", "reward"),
    [
        ("100", "100", 1.0),
        ("105", "100", 1.0),
        ("95", "100", 1.0),
        ("105.1", "100", 0.0),
        ("94.9", "100", 0.0),
        ("0.95", "1", 1.0),
        ("-100", "100", 0.0),
        ("-98", "-100", 1.0),
        ("1,000", "1000", 1.0),
        ("1000", "1,020", 1.0),
        ("5%", "0.05", 1.0),
        ("5.1%", "5%", 1.0),
        ("5", "5%", 0.0),
        ("3", "4", 0.0),
        ("0", "0", 1.0),
        ("0.01", "0", 0.0),
        ("3 4", "4", 0.0),
        ("four", "4", 0.0),
        ("", "4", 0.0),
    ],
)
def test_numeric(answer, target, reward):
    assert numeric_reward(answer, target) == reward


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        ("b", "B"),
        (" B. ", "B"),
        ("B)", "B"),
        ("(B)", "B"),
        ("( b )", "B"),
        ("B:", "B"),
        ("**B**", "B"),
        ("B. a cat", "B"),
        ("(B) a cat", "B"),
        ("B) a cat", "B"),
        ("The answer is B", "B"),
        ("The answer is B.", "B"),
        ("the answer is (b).", "B"),
        ("The answer is (B) a cat", "B"),
        ("Answer: B", "B"),
        ("The correct option is C", "C"),
        ("Option C", "C"),
        ("I choose (D), as it barks.", "D"),
        ("A. cat? No: the answer is B.", "B"),
        ("A", "A"),
        ("A cat", None),
        ("The answer is a cat", None),
        ("(A) or (B)", None),
        ("A. or (B)", None),
        ("Either (A) or (B)", None),
        ("The answer is A. The answer is B.", None),
        ("A B C D", None),
        ("ABCD", None),
        ("cat", None),
        ("?", None),
        ("", None),
    ],
)
def test_letters(answer, letter):
    assert choice_letter(answer) == letter
    for target in ("B", "(B)", "b."):
        assert multiple_choice_reward(answer, target) == float(letter == "B")


def test_targets_that_are_not_of_their_kind_are_refused():
    with pytest.raises(ValueError, match="'a cat' is no number"):
        numeric_reward("3", "a cat")
    with pytest.raises(ValueError, match="'a cat' names no letter"):
        multiple_choice_reward("B", "a cat")
    with pytest.raises(ValueError, match="'a cat' is no number"):
        reward_for({"kind": "numeric", "answer": "a cat"})
    for sample in ({}, {"answer": " "}, {"references": ["a", None]}, {"references": []}):
        with pytest.raises(ValueError, match="needs accepted answers"):
            reward_for(sample)


CHOICES = choice_question("What is it?", ["a dog", "a cat"])


@pytest.mark.parametrize(
    ("sample", "answer", "reward"),
    [
        ({"kind": "colour", "references": ["red"]}, "Red", 1.0),
        ({"kind": "count", "references": ["20"]}, "21", 1.0),
        ({"kind": "exact", "references": ["20"]}, "21", 0.0),
        ({"question": CHOICES, "references": ["B"]}, "The answer is B", 1.0),
        ({"question": CHOICES, "references": ["B"]}, "(A)", 0.0),
        ({"question": "Which letter is it?", "references": ["B"]}, "The answer is B", 0.0),
        ({"question": CHOICES, "references": ["C"]}, "The answer is C", 0.0),
        ({"kind": "multiple_choice", "answer": "B"}, "The answer is B", 1.0),
        ({"references": ["two", "2"]}, "2.0", 1.0),
        ({"references": ["two", "2"]}, "Two", 1.0),
        ({"references": ["two", "2"]}, "3", 0.0),
        ({"answers": ["x", "y"]}, "y", 1.0),
    ],
)
def test_the_reward_fits_the_question(sample, answer, reward):
    assert reward_for(sample)(answer) == reward
    assert question_reward(sample, answer) == reward
