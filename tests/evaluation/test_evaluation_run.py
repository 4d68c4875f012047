"""The runner: batches, resuming, processes, blind answers, results."""

import json

import keras
import pytest
from answering import Oracle, run, write_lines
from PIL import Image
from public_rows import PICTURE, ROWS

from dl_techniques.datasets.row_files import FileRows
from dl_techniques.evaluation.asking import prompt_message
from dl_techniques.evaluation.benchmarks import get_benchmark
from dl_techniques.evaluation.compare import compare_results
from dl_techniques.evaluation.data import Questions, open_questions
from dl_techniques.evaluation.metrics.yes_no import MME_COGNITION, MME_PERCEPTION
from dl_techniques.evaluation.questions import Question
from dl_techniques.evaluation.results import summarise
from dl_techniques.evaluation.run import RunSettings, task_records


class Rows(FileRows):
    """Rows in memory."""

    def __init__(self, rows):
        super().__init__("rows")
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]


def of_rows(task, rows):
    return Questions(get_benchmark(task), Rows(rows), "rows")


@pytest.fixture(scope="module")
def yes_no(tmp_path_factory):
    """Ten questions about five pictures; the answers are yes, no, yes, no, ..."""
    folder = tmp_path_factory.mktemp("yes_no")
    for k in range(5):
        Image.new("RGB", (4, 6), (200, 10 * k, 0)).save(folder / f"{k}.png")
    rows = [
        {"image": f"{k // 2}.png", "question": f"q{k}?", "answer": ("yes", "no")[k % 2],
         "type": ("odd", "even")[k % 3 == 0]}
        for k in range(10)
    ]  # fmt: skip
    write_lines(folder / "dev.jsonl", rows)
    return open_questions("coco_yesno", folder)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_what_is_written(yes_no, tmp_path):
    model = Oracle(**{"q1?": "No, it is not."})
    results = run(model, "coco_yesno", yes_no, tmp_path, batch_size=4)
    assert [len(batch) for batch in model.asked] == [4, 4, 2]
    head, *records = lines(tmp_path / "coco_yesno" / "predictions.jsonl")
    assert head["settings"]["checkpoint"] == "d1" and head["settings"]["blank_images"] is False
    assert records[1] == {
        "row": 1, "part": 0, "parts": 1, "id": "dev-2", "prompt": "q1?",
        "answer": "No, it is not.", "parsed": "no", "score": 1.0, "references": ["no"],
        "options": 0, "category": "odd", "group": "0.png",
    }  # fmt: skip
    figure = results["figures"]["accuracy"]
    assert figure["value"] == 0.6 and figure["low"] < 0.6 < figure["high"]
    assert (results["questions"], results["groups"], results["metric"]) == (10, 5, "accuracy")
    # Even: q0, q3, q6, q9; of these q0 and q6 are right.
    assert results["categories"] == {
        "even": {"questions": 4, "accuracy": 0.5},
        "odd": {"questions": 6, "accuracy": pytest.approx(4 / 6)},
    }
    assert results["asked"]["first_prompt"] == "q0?" and results["asked"]["max_new_tokens"] == 16
    assert results["asked"]["rows"] == "0-9"
    whole = json.loads((tmp_path / "results.json").read_text())
    assert whole["tasks"]["coco_yesno"] == results
    assert whole["model"] == "oracle" and whole["checkpoint"] == "d1"
    assert {"keras", "numpy", "dl_techniques"} <= set(whole["versions"])


class Killed(Oracle):
    """Is gone after some batches."""

    def __init__(self, batches):
        super().__init__()
        self.left = batches

    def generate(self, *arguments, **options):
        if not self.left:
            raise KeyboardInterrupt
        self.left -= 1
        return super().generate(*arguments, **options)


def test_a_killed_run_goes_on_where_it_was(yes_no, tmp_path):
    whole = run(Oracle(), "coco_yesno", yes_no, tmp_path / "whole", batch_size=3)
    with pytest.raises(KeyboardInterrupt):
        run(Killed(2), "coco_yesno", yes_no, tmp_path / "part", batch_size=3)
    path = tmp_path / "part" / "coco_yesno" / "predictions.jsonl"
    assert len(lines(path)) == 1 + 6
    path.write_bytes(path.read_bytes()[:-7])  # The last line was not written to its end.
    model = Oracle()
    assert run(model, "coco_yesno", yes_no, tmp_path / "part", batch_size=3) == whole
    assert model.asked == [["q5?", "q6?", "q7?"], ["q8?", "q9?"]]
    assert lines(path) == lines(tmp_path / "whole" / "coco_yesno" / "predictions.jsonl")
    assert run(Oracle(), "coco_yesno", yes_no, tmp_path / "part") == whole


def test_a_longer_run_asks_only_the_rest(yes_no, tmp_path):
    run(Oracle(), "coco_yesno", yes_no.limited(4), tmp_path)
    model = Oracle()
    assert run(model, "coco_yesno", yes_no.limited(6), tmp_path)["questions"] == 6
    assert model.asked == [["q4?", "q5?"]]
    # Answers beyond the limit stay, and do not count.
    assert run(Oracle(), "coco_yesno", yes_no.limited(4), tmp_path)["questions"] == 4


def test_answers_of_other_settings_are_not_mixed(yes_no, tmp_path):
    run(Oracle(), "coco_yesno", yes_no.limited(2), tmp_path)
    with pytest.raises(ValueError, match="checkpoint was 'd1', is 'd2'.*another folder"):
        run(Oracle(), "coco_yesno", yes_no, tmp_path, digest="d2")
    with pytest.raises(ValueError, match="suffix was None, is '!'"):
        run(Oracle(), "coco_yesno", yes_no, tmp_path, suffix="!")
    (tmp_path / "coco_yesno" / "predictions.jsonl").unlink()
    with pytest.raises(ValueError, match="another model .oracle, checkpoint d1; this one is d2"):
        run(Oracle(), "coco_yesno", yes_no, tmp_path, digest="d2")


def test_damaged_files_are_named(yes_no, tmp_path):
    run(Oracle(), "coco_yesno", yes_no.limited(3), tmp_path)
    path = tmp_path / "coco_yesno" / "predictions.jsonl"
    first, second, *rest = path.read_text().splitlines(keepends=True)
    path.write_text("".join([first, second[:9] + "\n", *rest]))
    with pytest.raises(ValueError, match="predictions.jsonl, line 2: no JSON"):
        run(Oracle(), "coco_yesno", yes_no, tmp_path)
    path.write_text("".join([second, *rest]))
    with pytest.raises(ValueError, match="does not begin with its settings"):
        run(Oracle(), "coco_yesno", yes_no, tmp_path)


def test_processes_share_the_rows(yes_no, tmp_path):
    whole = run(Oracle(), "coco_yesno", yes_no, tmp_path / "one")
    models = [Oracle() for _ in range(3)]
    found = [
        run(model, "coco_yesno", yes_no, tmp_path / "three", shard=(k, 3))
        for k, model in enumerate(models)
    ]
    assert found == [None, None, whole]
    assert models[1].asked == [["q1?", "q4?", "q7?"]]
    assert task_records(tmp_path / "three", "coco_yesno") == task_records(
        tmp_path / "one", "coco_yesno"
    )
    with pytest.raises(ValueError, match="answer the question 'dev-1'.*other numbers of processes"):
        run(Oracle(), "coco_yesno", yes_no, tmp_path / "three")


def test_blind_answers_are_kept_apart(yes_no, tmp_path):
    model = Oracle()
    run(model, "coco_yesno", yes_no, tmp_path, blank_images=True)
    results = run(model, "coco_yesno", yes_no, tmp_path)
    assert results["figures"]["accuracy"]["value"] == 0.5
    records = task_records(tmp_path, "coco_yesno", blank_images=True)
    assert {record["answer"] for record in records} == {"no"}
    assert results["blind"]["accuracy"]["value"] == 0.5
    assert "blind" not in run(model, "coco_yesno", yes_no, tmp_path / "seen")


def test_several_questions_of_a_row_are_resumed_one_by_one(tmp_path):
    row = {"messages": [], "image": PICTURE["bytes"]}
    for k in range(3):
        row["messages"] += [{"role": "user", "content": f"q{k}?"},
                            {"role": "assistant", "content": "yes"}]  # fmt: skip
    questions = of_rows("coco_yesno", [row, row])
    with pytest.raises(KeyboardInterrupt):
        run(Killed(1), "coco_yesno", questions, tmp_path, batch_size=4)
    model = Oracle()
    assert run(model, "coco_yesno", questions, tmp_path, batch_size=4)["questions"] == 6
    assert model.asked == [["q1?", "q2?"]]
    assert len({record["id"] for record in task_records(tmp_path, "coco_yesno")}) == 6


def test_figures_of_pope(tmp_path):
    row = ROWS["pope"][0]
    answers = ["yes"] * 4 + ["no"] * 2 + ["no"] * 3 + ["yes"]
    rows = [
        {**row, "id": str(k), "question": f"q{k}", "answer": a, "image_source": k}
        for k, a in enumerate(answers)
    ]
    said = {f"q{k}": "Yes" if k < 6 else "No" for k in range(10)}
    results = run(Oracle(**said), "pope", of_rows("pope", rows), tmp_path, suffix="")
    values = {name: figure["value"] for name, figure in results["figures"].items()}
    assert values == pytest.approx(
        {"f1": 8 / 11, "accuracy": 0.7, "precision": 2 / 3, "recall": 0.8, "yes_ratio": 0.6}
    )
    assert results["metric"] == "f1" and set(results["categories"]) == {"popular"}


def test_figures_of_mme(tmp_path):
    row = ROWS["mme"][0]
    rows = [
        {**row, "question_id": f"{k // 2}.png", "question": f"q{k}", "answer": ("Yes", "No")[k % 2]}
        for k in range(6)
    ]
    said = {f"q{k}": answer for k, answer in enumerate(["Yes", "No", "Yes", "Yes", "No", "Yes"])}
    results = run(Oracle(**said), "mme", of_rows("mme", rows), tmp_path, suffix="")
    values = {name: figure["value"] for name, figure in results["figures"].items()}
    assert values == pytest.approx({"score": 83.3333333 / 200, "acc": 0.5, "acc_plus": 1 / 3})
    assert results["groups"] == 3 and results["totals"] == {} and "note" not in results
    # A pair of which one question is asked is not both right.
    results = run(Oracle(**said), "mme", of_rows("mme", rows).limited(5), tmp_path, suffix="")
    assert set(results["figures"]) == {"acc"} == {results["metric"]}
    assert set(results["categories"]["OCR"]) == {"questions", "acc"} and results["totals"] == {}
    assert "Without score and acc_plus: 1 of 3 groups" in results["note"]
    (compared,) = compare_results(tmp_path, tmp_path)
    assert (compared.metric, compared.questions) == ("acc", 5)


def test_cut_pairs_of_all_subtasks_of_mme_have_no_totals():
    records = [
        {"score": 1.0, "group": f"{category} {k // 2}", "category": category}
        for category in (*MME_PERCEPTION, *MME_COGNITION)
        for k in range(4)
    ]
    results = summarise(get_benchmark("mme"), records)
    assert results["totals"] == {"perception": 1.0, "cognition": 1.0}
    assert summarise(get_benchmark("mme"), records[:-1])["totals"] == {}


def test_mmbench_asks_in_circles(tmp_path):
    row = ROWS["mmbench"][0]
    rows = [
        {**row, "index": circle * 1_000_000 + k, "question": f"q{k}{circle}"}
        for k in range(2)
        for circle in range(3)
    ]
    wrong = {"Look.\nq12\nA. cat\nB. dog": "A"}
    right = {f"Look.\nq{k}{circle}\nA. cat\nB. dog": "B" for k in range(2) for circle in range(3)}
    results = run(
        Oracle(**{**right, **wrong}), "mmbench", of_rows("mmbench", rows), tmp_path, suffix=""
    )
    assert results["figures"]["circular"]["value"] == 0.5
    assert results["figures"]["accuracy"]["value"] == pytest.approx(5 / 6)
    assert "not by GPT" in results["note"]
    # Each question once, or not as often as it has options: no circles.
    for chosen, count in (([0, 3], 2), ([0, 1, 2, 3], 1)):
        questions = Questions(get_benchmark("mmbench"), Rows(rows), "rows", chosen=chosen)
        cut = run(Oracle(), "mmbench", questions, tmp_path, suffix="")
        assert set(cut["figures"]) == {"accuracy"} == {cut["metric"]}
        assert f"Without circular: {count} of 2 groups of questions" in cut["note"]


def test_figures_of_captions(tmp_path):
    row = ROWS["flickr30k"][0]
    captions = [["a cat on a mat", "a cat"], ["two dogs run in snow", "dogs"]]
    rows = [{**row, "caption": each} for each in captions]
    model = Oracle(**{"Provide a one-sentence caption for the provided image.": "a cat on a mat"})
    results = run(model, "flickr30k", of_rows("flickr30k", rows), tmp_path)
    values = {name: figure["value"] for name, figure in results["figures"].items()}
    assert list(values) == ["cider", "rouge_l", "bleu_1", "bleu_2", "bleu_3", "bleu_4"]
    assert values["rouge_l"] == 0.5 and values["bleu_1"] == pytest.approx(0.5)
    assert 0 < values["cider"] < 5


def test_the_likeliest_letter(tmp_path):
    rows = [ROWS["ai2d"][0]] * 2
    asked = "Which?\nA. cat\nB. dog"
    questions = of_rows("ai2d", rows)
    settings = {"suffix": "", "likelihood": True}
    results = run(Oracle(**{asked: "B"}), "ai2d", questions, tmp_path / "b", **settings)
    assert results["figures"]["accuracy"]["value"] == 1.0
    results = run(Oracle(**{asked: "A"}), "ai2d", questions, tmp_path / "a", **settings)
    assert results["figures"]["accuracy"]["value"] == 0.0
    assert results["asked"]["likelihood"] is True
    with pytest.raises(ValueError, match="questions 0 cannot be asked: .*2 to 26 options"):
        run(Oracle(), "pope", of_rows("pope", [{**ROWS["pope"][0], "category": ""}]),
            tmp_path / "pope", likelihood=True)  # fmt: skip


def test_chance_in_mmmu_does_not_depend_on_the_run(tmp_path):
    rows = [{**ROWS["mmmu"][0], "id": f"validation_Art_{k}"} for k in range(12)]
    model = Oracle(**{"image_and_text": ""})
    model._answer = lambda messages: "no idea"
    questions = of_rows("mmmu", rows)
    run(model, "mmmu", questions, tmp_path / "one")
    for k in range(2):
        run(model, "mmmu", questions, tmp_path / "two", shard=(k, 2), batch_size=1)
    one, two = (task_records(tmp_path / name, "mmmu") for name in ("one", "two"))
    assert one == two and len({record["parsed"] for record in one}) > 1


def test_answers_of_another_backend_are_not_gone_on_with(yes_no, tmp_path):
    run(Oracle(), "coco_yesno", yes_no, tmp_path)
    path = tmp_path / "coco_yesno" / "predictions.jsonl"
    here = f'"backend": "{keras.backend.backend()}"'
    text = path.read_text()
    assert here in text
    path.write_text(text.replace(here, '"backend": "numpy"'))
    with pytest.raises(ValueError, match="backend"):
        run(Oracle(), "coco_yesno", yes_no, tmp_path)


def test_pictures_stand_where_the_text_marks_them():
    question = Question("q", ["a.png", "b.png"], "", ["x"])
    content = prompt_message(question, "<image 1> or <image 2>?")["content"]
    assert [part.get("image") or part["text"] for part in content] == [
        "a.png",
        " or ",
        "b.png",
        "?",
    ]
    content = prompt_message(question, "Is <image 1> <|image|>?")["content"]
    assert [part.get("image") or part["text"] for part in content] == [
        "a.png",
        "b.png",
        "Is <image 1> <|image|>?",
    ]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shard": (2, 2)}, "got 2 of 2"),
        ({"shard": (-1, 2)}, "got -1 of 2"),
        ({"batch_size": 0}, "at least 1"),
        ({"max_new_tokens": 0}, "at least 1"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        RunSettings(**settings)
