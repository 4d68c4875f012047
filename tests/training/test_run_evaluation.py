"""How held-out questions are scored in a run, by one process and by several."""

import numpy as np
from PIL import Image
from tiny_chat import chat_processor

from dl_techniques.datasets.samples import group_by_image, make_sample
from dl_techniques.datasets.shapes import generate_shapes
from dl_techniques.evaluation.question_answering import AnsweredQuestion, sample_questions
from dl_techniques.training import run_evaluation

HELD_OUT = generate_shapes("heldout", 5, image_size=48)
QUESTIONS = sum(len(sample_questions(sample)) for sample in HELD_OUT)


def answering(answer):
    """Return what stands for `answer_questions`: question -> answer of every question."""

    def answer_questions(model, samples, *args):
        questions = [question for sample in samples for question in sample_questions(sample)]
        return [AnsweredQuestion(**question, answer=answer(question)) for question in questions]

    return answer_questions


def test_the_score_of_an_evaluation_is_the_share_of_right_answers(tmp_path, monkeypatch):
    wrong = sample_questions(HELD_OUT[0])[0]["id"]

    def answer(question):
        return "?" if question["id"] == wrong else question["references"][0]

    monkeypatch.setattr(run_evaluation, "answer_questions", answering(answer))
    found = run_evaluation.PeriodicEvaluation(chat_processor(), HELD_OUT, 99, tmp_path)(12, None)
    assert found.score == (QUESTIONS - 1) / QUESTIONS
    assert found.numbers == {"exact_match": found.score}
    with Image.open(tmp_path / "samples" / "step_000012.png") as sheet:
        np.testing.assert_array_equal(found.pictures["samples"], np.asarray(sheet.convert("RGB")))


def test_questions_that_cannot_be_asked_take_no_others_with_them():
    pictures = [np.full((48, 48, 3), value, np.uint8) for value in (0, 9)]
    rows = [("a", 0, "y"), ("b", 0, "y" * 999), ("c", 0, "z"), ("d", 1, "y" * 999)]
    samples = [make_sample(name, "s", [pictures[k]], [("q", text)]) for name, k, text in rows]
    processor = chat_processor()
    processor.max_bad_share = 0.5
    (left,) = run_evaluation.usable(processor, group_by_image(samples))
    assert [question["id"] for question in sample_questions(left)] == ["a", "c"]


def test_each_process_asks_its_share_and_the_first_one_writes(tmp_path, monkeypatch):
    right = {q["id"]: q["references"][0] for s in HELD_OUT for q in sample_questions(s)}
    asked = []

    def answer(question):
        asked[-1].append(question["id"])
        return right[question["id"]]

    monkeypatch.setattr(run_evaluation, "answer_questions", answering(answer))
    monkeypatch.setattr(run_evaluation, "process_count", lambda: 3)
    told = [None] * 3
    for process in (2, 1, 0):
        asked.append([])
        folder = tmp_path / str(process)
        monkeypatch.setattr(run_evaluation, "process_index", lambda process=process: process)
        monkeypatch.setattr(run_evaluation, "is_main_process", lambda process=process: not process)

        def gather(value, process=process):
            told[process] = value
            # What the others will answer does not matter before the first one's turn.
            return [value * 9 if part is None else part for part in told]

        monkeypatch.setattr(run_evaluation, "gather_json", gather)
        evaluate = run_evaluation.PeriodicEvaluation(chat_processor(), HELD_OUT, 99, folder)
        found = evaluate(12, None)
        assert folder.exists() is (process == 0)
    assert sorted(sum(asked, [])) == sorted(right) and min(map(len, asked)) > 0
    assert found.score == 1.0
