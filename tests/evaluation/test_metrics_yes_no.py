"""Yes/no questions: POPE, MME and plain ones."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dl_techniques.evaluation.metrics import (
    mme,
    mme_accuracy,
    mme_answer,
    mme_total,
    pope,
    pope_answer,
    yes_no_accuracy,
    yes_no_answer,
)
from dl_techniques.evaluation.metrics.yes_no import MME_COGNITION, MME_PERCEPTION

PAIRS = st.lists(st.tuples(*[st.sampled_from(["yes", "no"])] * 2), min_size=1, max_size=20)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Yes, it is.", "yes"),
        ("NO", "no"),
        ("true", "yes"),
        ("That is false.", "no"),
        ("yes and no", None),
        ("nothing", None),
        ("", None),
    ],
)
def test_yes_no_answer(text, answer):
    assert yes_no_answer(text) == answer
    assert yes_no_accuracy(text, "yes") == (answer == "yes")
    assert yes_no_accuracy(text, "false") == (answer == "no")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("No, there is none.", "no"),
        ("there is not one", "no"),
        ("Yes. There is no dog.", "yes"),  # The first sentence decides.
        ("nothing here", "yes"),
        ("NO", "yes"),
        ("", "yes"),
    ],
)
def test_pope_looks_for_no(text, answer):
    assert pope_answer(text) == answer


def test_pope_by_hand():
    predictions = ["yes"] * 6 + ["no"] * 4
    answers = ["yes"] * 4 + ["no"] * 2 + ["no"] * 3 + ["yes"]
    assert pope(predictions, answers) == pytest.approx(
        {"accuracy": 0.7, "precision": 2 / 3, "recall": 0.8, "f1": 8 / 11, "yes_ratio": 0.6}
    )


def test_pope_without_a_yes_has_no_precision():
    found = pope(["no", "no"], ["yes", "no"])
    assert found == {"accuracy": 0.5, "precision": 0, "recall": 0, "f1": 0, "yes_ratio": 0}


@given(PAIRS, st.randoms())
def test_pope_has_no_order(pairs, random):
    found = pope(*zip(*pairs, strict=True))
    assert all(0.0 <= value <= 1.0 for value in found.values())
    mixed = random.sample(pairs, len(pairs))
    assert pope(*zip(*mixed, strict=True)) == found


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Yes", "yes"),
        ("yes, it is", "yes"),
        (".N.", "no"),
        ("Y", "yes"),
        ("x", None),
        ("know", "no"),
        ("xyes", "yes"),
        ("I say yes", None),
        ("not", "no"),
    ],
)
def test_mme_reads_four_characters(text, answer):
    assert mme_answer(text) == answer
    assert mme_accuracy(text, "Yes") == (answer == "yes")


def test_mme_counts_questions_and_pictures():
    predictions = ["yes", "no", "yes", "yes", "no", "yes"]
    answers = ["yes", "no"] * 3
    found = mme(predictions, answers, ["a", "a", "b", "b", "c", "c"])
    # Three pictures (1, 1), (1, 0), (0, 0): 50 + 33.33 points.
    assert found == pytest.approx({"acc": 0.5, "acc_plus": 1 / 3})


def test_mme_totals():
    half = {"acc": 0.75, "acc_plus": 0.25}
    assert mme_total(dict.fromkeys(MME_PERCEPTION, half)) == {"perception": 0.5}
    assert mme_total(dict.fromkeys(MME_COGNITION, {"acc": 1, "acc_plus": 1})) == {"cognition": 1}
    assert len(MME_PERCEPTION) == 10 and len(MME_COGNITION) == 4


@pytest.mark.parametrize(
    ("score", "message"),
    [
        (lambda: pope(["yes"], ["maybe"]), "'maybe'"),
        (lambda: pope([], []), "at least 1"),
        (lambda: pope(["yes"], ["yes", "no"]), r"lengths \[1, 2\]"),
        (lambda: yes_no_accuracy("yes", "red"), "neither yes nor no"),
        (lambda: mme(["yes"], ["yes"], ["a"]), "'a' there are 1"),
        (lambda: mme_accuracy("yes", "red"), "not 'red'"),
        (lambda: mme_total({"posters": {}, "OCR": {}}), "lacks the subtasks .'existence'"),
        (lambda: mme_total({"ocr": {}}), r"no subtasks \['ocr'\]"),
    ],
)
def test_errors_name_what_is_wrong(score, message):
    with pytest.raises(ValueError, match=message):
        score()
