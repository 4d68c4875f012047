"""Multiple choice, free answers and boxes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dl_techniques.evaluation.metrics import (
    box_accuracy,
    box_iou,
    choice_accuracy,
    choice_letter,
    likeliest_choice,
    mathvista_accuracy,
    mathvista_answer,
    mmmu_accuracy,
    mmmu_choice,
    mmmu_open_accuracy,
    mmstar_accuracy,
    option_letter,
    parse_box,
)

ANIMALS = ["a cat", "a dog", "a bird"]


@pytest.mark.parametrize(
    ("prediction", "chosen"),
    [
        ("A", "A"),
        ("b.", "B"),
        ("(C) because", "C"),
        ("Option A", "A"),
        ("The answer is B", "B"),
        ("A dog runs", "A"),
        ("\n A", "A"),
        ("The answer is: B", None),
        ("I choose A", None),
        ("", None),
        ("(", None),
    ],
)
def test_mmstar_reads_the_beginning(prediction, chosen):
    for letter in "ABC":
        assert mmstar_accuracy(prediction, letter) == (letter == chosen)


@pytest.mark.parametrize(
    ("prediction", "chosen"),
    [
        ("B", "B"),
        ("I think A or B", "B"),
        ("(B) or rather (A)", "A"),
        ("A (B)", "B"),
        ("A.", "A"),
        ("so it is B.C", "C"),  # Only "C " is there: the blank that is put around the text.
        ("well the picture shows clearly a bird", "C"),
        ("well the picture shows a bird but then a dog", "B"),
        ("it is HAPPY B", "B"),
        ("A.cat or so", "A"),
        ("C.x B.y", "B"),  # Neither stands alone: the first letter.
    ],
)
def test_mmmu_takes_the_last_of_the_best_marked(prediction, chosen):
    assert {mmmu_choice(prediction, ANIMALS, seed) for seed in range(9)} == {chosen}
    assert mmmu_accuracy(prediction, chosen.lower(), ANIMALS) == 1.0


@pytest.mark.parametrize(
    "prediction", ["b", "this is a bird", "", "no idea at all what this may be"]
)
def test_mmmu_draws_by_its_seed_where_nothing_is_named(prediction):
    drawn = [mmmu_choice(prediction, ANIMALS, seed) for seed in range(60)]
    assert drawn == [mmmu_choice(prediction, ANIMALS, seed) for seed in range(60)]
    assert min(map(drawn.count, "ABC")) > 8
    assert mmmu_choice(prediction, ANIMALS, "q1") in "ABC"


@pytest.mark.parametrize(
    ("prediction", "chosen"),
    [
        ("b", "B"),
        ("B. a dog", "B"),
        ("The correct answer is **C**.", "C"),
        ("I see a dog.", "B"),
        ("A Dog", "B"),
        ("a dog or a bird", None),
        ("E", None),
        ("a doghouse", None),
        ("", None),
    ],
)
def test_option_letter_guesses_nothing(prediction, chosen):
    assert option_letter(prediction, ANIMALS) == chosen
    for letter in "ABC":
        assert choice_accuracy(prediction, letter, ANIMALS) == (letter == chosen)


@pytest.mark.no_backend
@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("Answer: B\nThe cat sits.", "B"),
        ("Answer:\nb\nThe cat sits.", "B"),
        ("B\nThe cat sits.", "B"),
        ("**B**\n\nThe", "B"),
        ("The cat sits.\n(B)", "B"),
        ("B, because it sits", "B"),
        ("The answer is B, because", "B"),
        ("The answer is b, I think", "B"),
        ("The answer is B; it sits", "B"),
        ("The answer is B because it sits", "B"),
        ("The answer is B and it sits", "B"),
        ("The choice would be: C as it sits", "C"),
        ("Option B is correct.", "B"),
        ("Option A is correct.", "A"),
        ("The answer is A, because", "A"),
        ("The answer is A because it sits", "A"),
        ("The answer is option B because it sits", "B"),
        ("The correct option is (B) and not (A).", "B"),
        ("Option B is right, option C is wrong", "B"),
        ("B. It sits, while option C shows a dog.", "B"),
        ("B\nOption A is wrong", "B"),
        ("The answer is A cat", None),
        ("The answer I give is a cat", None),
        ("Option A cat", None),
        ("I, as a model, see a cat", None),
        ("The answer is b because it sits", None),
        ("The answer is Because", None),
        ("The answer is U.S. soil", None),
        ("The answer is X-ray", None),
        ("The answer is B or C", None),
        ("The answer is (A) or (B).", None),
        ("The answer is B, C or D.", None),
        ("The answer is B, or A.", None),
        ("Option B is not correct.", None),
        ("Option B isn't it", None),
        ("A, B", None),
        ("A\nB\nC", None),
        ("Option B shows a cat, option C a dog", None),
        ("Option B is correct, as (A) shows a dog", None),
    ],
)
def test_choice_letter_within_sentences(text, letter):
    assert choice_letter(text) == letter


def test_option_letter_takes_the_longer_of_nested_options():
    assert option_letter("a red car", ["red", "a red car"]) == "B"
    assert option_letter("it is red", ["red", "a red car"]) == "A"


def test_choices_without_options_go_by_letters():
    assert choice_accuracy("(D)", "D") == 1.0
    assert choice_accuracy("A cat", "A") == 0.0


@pytest.mark.parametrize(
    ("score", "message"),
    [
        (lambda: mmstar_accuracy("A", "AB"), "a letter, not 'AB'"),
        (lambda: choice_accuracy("A", "D", ANIMALS), "one of A, B, C, not 'D'"),
        (lambda: mmmu_accuracy("A", "1", ANIMALS), "not '1'"),
        (lambda: mmmu_choice("A", ["one"]), "2 to 26 options"),
        (lambda: option_letter("A", "ABC"), "2 to 26 options"),
        (lambda: likeliest_choice([]), "per option"),
        (lambda: likeliest_choice([float("nan"), 1.0]), "per option"),
        (lambda: likeliest_choice([-1.0, -2.0], [1, 0]), "2 positive lengths"),
        (lambda: mathvista_answer("1", "number"), "not 'number'"),
        (lambda: mathvista_answer("1", "float"), "precision"),
        (lambda: mathvista_accuracy("a", "c", "text", ["a", "b"]), "none of the choices"),
        (lambda: box_accuracy("[0,0,1,1]", (10, 10, 60, 50)), "shares of the picture"),
        (lambda: box_accuracy("[0,0,1,1]", (0.5, 0.5, 0.5, 1.0)), "left < right"),
    ],
)
def test_errors_name_what_is_wrong(score, message):
    with pytest.raises(ValueError, match=message):
        score()


def test_likeliest_choice():
    assert likeliest_choice([-4.0, -2.0, -3.0]) == 1
    assert likeliest_choice([-2.0, -2.0]) == 0
    assert likeliest_choice([-6.0, -2.0], lengths=[6, 1]) == 0


@pytest.mark.parametrize(
    ("prediction", "answers", "value"),
    [
        ("42", "42", 1.0),
        ("So the result is 3.14159", "3.14", 1.0),
        ("The total is 1,000 dollars", "1000", 1.0),
        ("First 7.\nTherefore x = 9", "9", 1.0),
        ("First 7.\nTherefore x = 9", "7", 0.0),  # Not the end of a key sentence.
        ("it is 7\nx = 9", "9", 1.0),
        ("x = 7\nso it is 9", "7", 0.0),  # "=" counts in the last sentence alone.
        ("The capital is Paris", ["Rome", "paris"], 1.0),
        ("cat", "a", 0.0),  # A lone letter needs a blank beside it.
        ("plan a", "a", 1.0),
        ("no idea", "42", 0.0),
    ],
)
def test_mmmu_open(prediction, answers, value):
    assert mmmu_open_accuracy(prediction, answers) == value


@pytest.mark.parametrize(
    ("prediction", "kind", "options", "answer"),
    [
        ("14", "integer", {}, "14"),
        ("The number missing is 14.", "integer", {}, "14"),
        ("The answer is 7 since 3 + 4 = 7 < 9", "integer", {}, "7"),
        ("3 + 4 = 7", "integer", {}, "7"),
        ("1,200", "integer", {}, "1200"),
        ("3.0", "integer", {}, "3"),
        ("none", "integer", {}, None),
        ("about 0.6", "float", {"precision": 1}, "0.6"),
        ("1.449", "float", {"precision": 2}, "1.45"),
        ('The answer is "Paris".', "text", {}, "Paris"),
        ("between [2007, 2008]", "list", {}, "[2007, 2008]"),
        ("Answer: (B) 8/11", "text", {"choices": ["3/11", "8/11"]}, "8/11"),
        ("B", "text", {"choices": ["3/11", "8/11"]}, "8/11"),
        ("8/1", "text", {"choices": ["3/11", "8/11"]}, "8/11"),
        ("", "text", {"choices": ["3/11", "8/11"]}, None),
    ],
)
def test_mathvista(prediction, kind, options, answer):
    assert mathvista_answer(prediction, kind, **options) == answer
    if answer is not None:
        assert mathvista_accuracy(prediction, answer, kind, **options) == 1.0


@pytest.mark.parametrize(
    ("text", "box"),
    [
        ("It is at [0.1, .2, 0.5,1].", (0.1, 0.2, 0.5, 1.0)),
        ("(10,20,30,40) or [1,2,3,4]", (10, 20, 30, 40)),
        ("[1, 2, 3]", None),
        ("0.1, 0.2, 0.5, 1", None),
    ],
)
def test_parse_box(text, box):
    assert parse_box(text) == box


def test_box_iou():
    assert box_iou((0, 0, 2, 2), (1, 1, 3, 3)) == pytest.approx(1 / 7)
    assert box_iou((0, 0, 1, 1), (2, 2, 3, 3)) == 0.0
    assert box_iou((0, 0, 0, 0), (0, 0, 0, 0)) == 0.0
    assert box_iou((2, 2, 0, 0), (0, 0, 2, 2)) == 0.0  # Corners the wrong way round.


def test_box_accuracy_asks_for_half():
    box = (0.0, 0.0, 0.5, 1.0)
    assert box_accuracy("[0, 0, 1, 1]", box) == 1.0  # An IoU of just 0.5.
    assert box_accuracy("[0, 0, 1, 1]", box, threshold=0.51) == 0.0
    assert box_accuracy("[0, 0, 500, 1000]", box, scale=1000) == 1.0
    assert box_accuracy("on the left", box) == 0.0


SIDES = st.tuples(*[st.floats(0, 1)] * 4)


@given(SIDES, SIDES)
def test_iou_is_symmetric(a, b):
    assert 0.0 <= box_iou(a, b) == box_iou(b, a) <= 1.0
