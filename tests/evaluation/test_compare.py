"""Comparing two evaluations, and the page of one."""

import json

import pytest
from answering import Oracle, run, write_lines
from PIL import Image

from dl_techniques.evaluation.compare import compare_results
from dl_techniques.evaluation.data import open_questions
from dl_techniques.evaluation.report import RIGHT, WRONG, evaluation_page, shown_records
from dl_techniques.evaluation.results import parse_rows, spell_rows
from dl_techniques.evaluation.run import task_records


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    Image.new("RGB", (4, 6), (200, 0, 0)).save(folder / "0.png")
    rows = [
        {"image": "0.png" if k else "gone.png", "question": f"q{k}?", "answer": "yes",
         "type": ("<a>", "b")[k % 2]}
        for k in range(12)
    ]  # fmt: skip
    write_lines(folder / "dev.jsonl", rows[1:])
    write_lines(folder / "broken" / "dev.jsonl", rows[:2])
    return folder


@pytest.fixture(scope="module")
def two(data, tmp_path_factory):
    """Folders of two evaluations: the first answers all, the second all but six."""
    folder, questions = tmp_path_factory.mktemp("two"), open_questions("coco_yesno", data)
    run(Oracle(), "coco_yesno", questions, folder / "a")
    wrong = {f"q{k}?": "<no>" for k in range(1, 7)}
    run(Oracle(**wrong), "coco_yesno", questions, folder / "b")
    return folder


def test_two_models(two):
    (found,) = compare_results(two / "a" / "results.json", two / "b")
    assert (found.task, found.metric, found.questions) == ("coco_yesno", "accuracy", 11)
    assert (found.a, found.b) == (1.0, pytest.approx(5 / 11))
    # All questions are about one picture, which is one group: nothing can be told.
    assert (found.result.groups, found.result.p_value) == (1, 1.0)
    (same,) = compare_results(two / "a", two / "a")
    assert same.result.difference.value == 0.0 and same.result.differing == 0


def test_other_questions_are_not_compared(two, data, tmp_path):
    run(Oracle(), "coco_yesno", open_questions("coco_yesno", data).limited(5), tmp_path / "c")
    with pytest.raises(ValueError, match=r"different questions \(11 and 5\)"):
        compare_results(two / "a", tmp_path / "c")
    (tmp_path / "d").mkdir()
    path = tmp_path / "d" / "results.json"
    path.write_text(json.dumps({"tasks": {"pope": {"asked": {"rows": "0-4"}}}}))
    with pytest.raises(ValueError, match="no benchmark in common.*has coco_yesno.*has pope"):
        compare_results(two / "a", tmp_path / "d")
    with pytest.raises(ValueError, match="holds no predictions"):
        compare_results(tmp_path / "d", tmp_path / "d")
    path.write_text(json.dumps({"tasks": {"pope": {"asked": {}}}}))
    with pytest.raises(
        ValueError, match="does not say of which rows its pope is.*the answers stay"
    ):
        compare_results(tmp_path / "d", tmp_path / "d")


def test_answers_beyond_the_results_are_not_compared(data, tmp_path):
    questions = open_questions("coco_yesno", data)
    for folder in ("a", "b"):
        model = Oracle(**{"q3?": "no"} if folder == "a" else {})
        for limit in (9, 3):
            run(model, "coco_yesno", questions.limited(limit), tmp_path / folder)
    run(Oracle(), "coco_yesno", questions.limited(3), tmp_path / "c")
    assert len(task_records(tmp_path / "b", "coco_yesno")) == 9
    for other in ("b", "c"):
        (found,) = compare_results(tmp_path / "a", tmp_path / other)
        assert (found.questions, found.a, found.b) == (3, pytest.approx(2 / 3), 1.0)


@pytest.mark.no_backend
@pytest.mark.parametrize(
    ("rows", "text"), [(range(9), "0-8"), ([4], "4"), ([0, 1, 2, 5, 7, 8, 20], "0-2,5,7-8,20")]
)
def test_rows_as_text(rows, text):
    assert spell_rows(rows) == text and parse_rows(text) == set(rows)


@pytest.mark.parametrize(
    ("text", "message"),
    [(None, "does not exist"), ("{", "is no JSON"), ("[]", "no results.json"), ("{}", "'tasks'")],
)
def test_what_is_no_results_file(two, tmp_path, text, message):
    path = tmp_path / "results.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=message):
        compare_results(two / "a", path)


def test_the_page_shows_errors_first(two, data):
    questions = open_questions("coco_yesno", data)
    results = json.loads((two / "b" / "results.json").read_text())["tasks"]["coco_yesno"]
    results["blind"] = {"accuracy": {"value": 0.125, "low": 0.0, "high": 1.0}}
    records = task_records(two / "b", "coco_yesno")
    page = evaluation_page("A <model>", {"coco_yesno": (results, records, questions)})
    assert "<h1>A &lt;model&gt;</h1>" in page and "<td>45.5</td>" in page and "12.5" in page
    assert page.count("data:image/jpeg;base64,") == 11
    assert '<p class="wrong">&lt;no&gt; (read: no)</p>' in page
    # The categories with the most errors first.
    values = {name: part["accuracy"] for name, part in results["categories"].items()}
    worst, best = sorted(values, key=values.get)
    names = {"<a>": "<td>&lt;a&gt;</td>", "b": "<td>b</td>"}
    assert 0 < page.index(names[worst]) < page.index(names[best])
    assert page.index('class="wrong"') < page.index('class="right"')


def test_a_picture_that_is_gone_is_said(data):
    questions = open_questions("coco_yesno", data / "broken")
    record = {"row": 0, "part": 0, "id": "x", "category": "", "prompt": "q?", "answer": "yes",
              "parsed": "yes", "score": 1.0, "references": ["yes", "yes"]}  # fmt: skip
    results = {"metric": "accuracy", "questions": 1, "figures": {}, "categories": {}}
    page = evaluation_page("x", {"coco_yesno": (results, [record], questions)})
    assert "gone.png" in page and "right: yes; score 1.00" in page


def test_few_of_many_are_shown():
    records = [{"score": float(k % 10 == 0), "category": str(k % 3)} for k in range(1000)]
    shown = shown_records(records)
    wrong = [record for record in shown if record["score"] == 0]
    assert WRONG // 2 < len(wrong) <= WRONG and RIGHT // 2 < len(shown) - len(wrong) <= RIGHT
    assert [record["category"] for record in wrong] == sorted(r["category"] for r in wrong)
