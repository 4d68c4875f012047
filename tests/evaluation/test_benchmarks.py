"""The table of benchmarks: rows of the public data sets, what they ask and what scores."""

import pytest
from public_rows import BOX_ROW, LETTER, PHRASE, PICTURE, ROWS

from dl_techniques.evaluation.benchmarks import BENCHMARKS, get_benchmark
from dl_techniques.evaluation.data import open_questions


def read(task, row=None, **changes):
    row = {**(ROWS[task][0] if row is None else row), **changes}
    return get_benchmark(task).read(row, lambda image: image)


def test_the_rows_here_are_of_all_benchmarks():
    assert {*ROWS, "shapes"} == set(BENCHMARKS)


@pytest.mark.parametrize("task", ROWS)
def test_what_is_asked_and_what_scores(task):
    _, prompt, right, wrong = ROWS[task]
    benchmark, question = get_benchmark(task), read(task)[0]
    assert benchmark.prompt(question) == prompt
    assert benchmark.prompt(question, suffix="?") == question.text + "?"
    assert question.images and question.answers
    assert benchmark.metric.score(right, question) == 1.0
    assert benchmark.metric.score(wrong, question) == 0.0
    assert benchmark.metric.parse(right, question) is not None
    assert isinstance(benchmark.metric.parse("", question), str | None)


@pytest.mark.parametrize(
    ("task", "category", "group"),
    [
        ("vqav2", "other", "9"),
        ("textvqa", "", "a1"),
        ("chartqa", "human", ""),
        ("docvqa", "form, layout", "12 3"),
        ("infographicvqa", "single span", "http://x/1.png"),
        ("gqa", "verify", "n1"),
        ("pope", "popular", "COCO_val2014_1"),
        ("mme", "OCR", "OCR code/1.png"),
        ("mmstar", "math", ""),
        ("mmmu", "Art_Theory", ""),
        ("mmbench", "ocr", "42"),
        ("seedbench", "image", "7"),
        ("mathvista", "figure", "images/2.jpg"),
        ("scienceqa", "natural science", ""),
        ("ocrbench", "Regular Text", ""),
        ("nlvr2", "", "dev-850-0"),
        ("refcoco", "", "469306"),
        ("sroie", "total", "0.png"),
    ],
)
def test_categories_and_what_is_not_independent(task, category, group):
    question = read(task)[0]
    assert (question.category, question.group) == (category, group)


def test_pictures_are_found_by_name():
    (question,) = get_benchmark("gqa").read(ROWS["gqa"][0], lambda name: f"folder/{name}")
    assert question.images == ["folder/n1.jpg"]
    official = {"identifier": "dev-850-0-0", "sentence": "Red.", "label": "False"}
    (question,) = get_benchmark("nlvr2").read(official, lambda name: f"folder/{name}")
    assert question.images == ["folder/dev-850-0-img0.png", "folder/dev-850-0-img1.png"]
    assert get_benchmark("nlvr2").metric.score("no", question) == 1.0
    assert len(read("nlvr1")[0].images) == len(read("seedbench")[0].images) == 2


def test_the_official_files_of_pope():
    official = {"question_id": 1, "image": "x.jpg", "text": "Is there a car?", "label": "yes"}
    (question,) = read("pope", official)
    assert (question.text, question.answers) == ("Is there a car?", ["yes"])


def test_charts_of_the_other_layout():
    other = {"image": PICTURE, "query": "How much?", "label": ["1", "2"], "human_or_machine": 1}
    (question,) = read("chartqa", other)
    assert (question.category, question.answers) == ("augmented", ["1", "2"])
    assert get_benchmark("chartqa").metric.score("2", question) == 1.0


def test_open_questions_of_mmmu():
    changes = {"options": "[]", "question_type": "open", "question": "How long?"}
    (question,) = read("mmmu", answer="['3', 'three']", **changes)
    assert get_benchmark("mmmu").prompt(question) == "How long?\n" + PHRASE
    assert get_benchmark("mmmu").metric.score("It is 3.", question) == 1.0
    assert len(question.images) == 1  # Not marked: the first.
    assert len(read("mmmu")[0].images) == 2


def test_choices_of_mathvista():
    changes = {"choices": ["1.1", "1.2"], "question_type": "multi_choice", "answer_type": "text"}
    (question,) = read("mathvista", precision=None, **changes)
    assert get_benchmark("mathvista").metric.score("(B) 1.2", question) == 1.0
    with pytest.raises(ValueError, match="without 'choices'"):
        read("mathvista", question_type="multi_choice")


def test_every_expression_of_a_box_is_a_question():
    questions = read("refcoco")
    assert [q.id for q in questions] == ["469306-0", "469306-1"]
    assert questions[1].text.endswith(": cup on left")
    assert questions[0].answers == ["[0.0000, 0.2000, 0.5000, 0.6000]"]
    with pytest.raises(ValueError, match="'bbox' must be left, top, width and height"):
        read("refcoco", {**BOX_ROW, "bbox": [1, 2, 3]})


def test_options_and_hints_may_be_numbers():
    changes = {"A": 0, "B": 2.5, "C": float("nan"), "hint": 7}
    (question,) = read("mmbench", **changes)
    assert question.text == "7\nWhich?\nA. 0\nB. 2.5" and question.options == ["0", "2.5"]
    (question,) = read("scienceqa", hint=7)
    assert question.text.startswith("Context: 7\n")


def test_handwritten_formulas_are_read_without_blanks():
    (question,) = read("ocrbench", dataset="HME100k", answer=["x ^ 2"])
    assert get_benchmark("ocrbench").metric.score("it is x^2", question) == 1.0


def test_questions_without_pictures_stay():
    (question,) = read("scienceqa", image=None, hint="")
    assert question.images == [] and question.text == "Which?\nA. cat\nB. dog"


@pytest.mark.parametrize(
    ("task", "changes", "message"),
    [
        ("chartqa", {"type": "machine"}, "'human_test' or 'augmented_test', not machine"),
        ("mmmu", {"options": "cat, dog"}, "'options' is no list"),
        ("mmmu", {"options": "{'a': 1}"}, "'options' is no list"),
        ("ai2d", {"answer": "2"}, "'answer' must be 0 to 1, got 2"),
        ("pope", {"image": None}, "no image"),
        ("gqa", {"imageId": None}, "'imageId' must be text"),
        ("mmbench", {"question": None}, "'question' must be text"),
        ("mmbench", {"A": ["cat"]}, "row '1000042': 'A' must be text or a number, got .'cat'."),
        ("mmbench", {"A": "nan"}, r"an empty option before another: the options are \['', 'dog'"),
        ("mmbench", {"D": "bird"}, "an empty option before another"),
    ],
)
def test_malformed_rows_are_refused(task, changes, message):
    with pytest.raises(ValueError, match=message):
        read(task, **changes)


def test_suffixes_are_those_of_lmms_eval():
    assert {b.suffix for b in BENCHMARKS.values()} == {
        "",
        PHRASE,
        LETTER,
        "\n" + LETTER,
        "\nAnswer the question with a single word.",
    }


def test_an_unknown_benchmark_is_refused():
    with pytest.raises(ValueError, match="Unknown benchmark 'vqa'; known are vqav2, textvqa"):
        open_questions("vqa")
