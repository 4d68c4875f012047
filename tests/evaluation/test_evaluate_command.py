"""`dl-techniques evaluate` and `compare` with a tiny model."""

import json
import shlex

import keras
import pytest
from answering import character_model, write_lines
from command_line import check_one_line_error
from PIL import Image

from dl_techniques.cli_evaluation import parse_shard
from dl_techniques.evaluation.asking import likeliest_letters, prompt_message
from dl_techniques.evaluation.command import weights_digest
from dl_techniques.evaluation.data import open_questions


@pytest.fixture(scope="module")
def model():
    return character_model()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for k in range(4):
        Image.new("RGB", (20, 30), (60 * k, 90, 0)).save(folder / f"{k}.png")
    rows = [
        {"image": f"{k % 4}.png", "question": f"What {k}?", "answer": "red", "type": "open"}
        for k in range(6)
    ]
    write_lines(folder / "easy_vqa" / "train.jsonl", rows)
    write_lines(folder / "cifar10.jsonl", rows[:2])
    return folder


@pytest.fixture
def evaluate(command, model, monkeypatch, data, tmp_path):
    """`evaluate` with the tiny model: flags -> (exit code, stdout, stderr)."""
    monkeypatch.setattr(
        "dl_techniques.training.run_folder.load_model", lambda source, **options: model
    )
    return lambda *flags: command(
        "evaluate", "--model", "tiny", "--images", data, "--output", tmp_path, *flags
    )


def test_scores_are_shown_and_written(evaluate, command, model, data, tmp_path):
    flags = ("--tasks", "easy_vqa,cifar10", "--data", data, "--batch-size", 4)
    code, out, err = evaluate(*flags, "--max-new-tokens", 3, "--blind", "--report")
    assert code == 0, err
    rows = [line.split() for line in out.splitlines() if "accuracy" in line]
    assert [(row[0], row[-2]) for row in rows] == [("easy_vqa", "6"), ("cifar10", "2")]
    results = json.loads((tmp_path / "results.json").read_text())
    assert set(results["tasks"]) == {"easy_vqa", "cifar10"}
    assert results["checkpoint"] == weights_digest(model)
    assert "blind" in results["tasks"]["easy_vqa"]
    _, *records = map(
        json.loads, (tmp_path / "easy_vqa" / "predictions.jsonl").read_text().splitlines()
    )
    question = {"role": "user", "content": "What 5?", "image": data / "1.png"}
    assert records[5]["answer"] == model.generate([question], 3).strip()
    assert (tmp_path / "report.html").read_text().count("<section>") == 8
    code, out, _ = command("compare", tmp_path / "results.json", tmp_path)
    assert code == 0
    assert [line.split()[0] for line in out.splitlines() if "accuracy" in line] == [
        "easy_vqa",
        "cifar10",
    ]
    # Of a shorter run over the same answers: the page is of its questions alone.
    assert evaluate(*flags, "--max-new-tokens", 3, "--limit", 1, "--report")[0] == 0
    assert (tmp_path / "report.html").read_text().count("<section>") == 2


@pytest.mark.parametrize(
    "flags",
    [
        ("--suffix", " It's what?", "--max-new-tokens", 3, "--limit", 4, "--shard", "0/1"),
        ("--held-out", 0.5, "--seed", 3, "--blind", "--max-new-tokens", 2),
    ],
)
def test_the_command_in_the_results_gives_them_again(evaluate, command, data, tmp_path, flags):
    assert evaluate("--tasks", "cifar10,easy_vqa", "--data", data, *flags)[0] == 0
    results = json.loads((tmp_path / "results.json").read_text())
    for task, found in results["tasks"].items():
        setting, program, *arguments = shlex.split(found["asked"]["command"])
        assert setting == f"KERAS_BACKEND={keras.backend.backend()}"
        assert program == "dl-techniques" and "--shard" not in arguments
        code, _, err = command(*arguments, "--output", tmp_path / "again")
        assert code == 0, err
        again = json.loads((tmp_path / "again" / "results.json").read_text())
        for each in (again["tasks"][task], found):
            del each["asked"]["command"]  # Each has an --output of its own.
        assert again["tasks"][task] == found


def test_guards_have_their_command_too(evaluate, data, monkeypatch, tmp_path):
    def guards(model, names, batch_size, limit):
        return {name: {"value": 0.5, "low": 0.4, "high": 0.6} for name in names}

    monkeypatch.setattr("dl_techniques.evaluation.command.run_guards", guards)
    code, out, _ = evaluate("--tasks", "mmlu", "--data", data, "--limit", 7)
    assert code == 0 and "40.0 to 60.0" in out
    found = json.loads((tmp_path / "results.json").read_text())["guards"]["mmlu"]
    arguments = shlex.split(found["command"])[4:]
    assert arguments == [
        *("tiny", "--tasks", "mmlu", "--batch-size", "8", "--limit", "7"),
        *("--output", f"{tmp_path}-again"),
    ]


@pytest.mark.parametrize("tasks", ["easy_vqa", "text_loss"])
def test_results_of_another_model_are_not_added_to(evaluate, data, monkeypatch, tmp_path, tasks):
    def computed(*args, **kwargs):
        raise AssertionError("This takes hours.")

    for name in ("answer_task", "text_loss"):
        monkeypatch.setattr(f"dl_techniques.evaluation.command.{name}", computed)
    (tmp_path / "a.txt").write_text("To be or not to be")
    flags = ("--tasks", tasks, "--data", data if tasks == "easy_vqa" else tmp_path / "a.txt")
    path = tmp_path / "results.json"
    other = {"model": "other", "checkpoint": "d0", "tasks": {"pope": {}}, "guards": {}}
    for text, message in [
        (json.dumps(other), "results of another model (other, checkpoint d0;"),
        (json.dumps({"exact_match": 1.0}), "is no results.json of `evaluate`"),  # A training's.
    ]:
        path.write_text(text)
        check_one_line_error(evaluate(*flags), str(path), message)
        assert path.read_text() == text


def test_what_is_left_out_is_said(evaluate, data, tmp_path):
    row = {"index": 1, "question": "Which?", "A": "cat", "B": "dog", "answer": "B"}
    write_lines(tmp_path / "dev.jsonl", [{**row, "image": "0.png"}])
    flags = ("--data", tmp_path / "dev.jsonl", "--suffix", "", "--max-new-tokens", 3)
    code, out, err = evaluate("--tasks", "mmbench", *flags)
    assert code == 0, err
    assert "mmbench: Answers are read by rule, not by GPT. Without circular: 1 of 1" in out


def test_processes_wait_for_each_other(evaluate, data):
    flags = ("--tasks", "easy_vqa", "--data", data, "--max-new-tokens", 3)
    code, out, _ = evaluate(*flags, "--shard", "1/2")
    assert code == 0 and "easy_vqa: other processes have not finished." in out
    code, out, _ = evaluate(*flags, "--shard", "0/2")
    assert code == 0 and "not finished" not in out and " 6 " in out


def test_the_likeliest_letter_is_the_models(model, data):
    (question,) = open_questions("easy_vqa", data, images=data)[0]
    messages = [prompt_message(question, text) for text in ("Which?", "What is this?")]
    options = [["a", "b", "c"], ["a", "b"]]
    expected = []
    for message, letters in zip(messages, ("ABC", "AB"), strict=True):
        totals = [model.score([[message]], [letter])[0].total for letter in letters]
        expected.append(letters[totals.index(max(totals))])
    assert likeliest_letters(model, messages, options) == expected


def test_weights_are_told_apart(model):
    before = weights_digest(model)
    bias = model.weights[0]
    value = bias.numpy() if hasattr(bias, "numpy") else bias.value
    bias.assign(bias + 1e-3)
    assert weights_digest(model) != before
    bias.assign(value)
    assert weights_digest(model) == before


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--tasks", "vqa"], "Unknown benchmark 'vqa'"),
        (["--tasks", ","], "--tasks names no benchmark"),
        (["--tasks", "easy_vqa"], "give its folder with --data"),
        (["--tasks", "shapes", "--shard", "2/2"], "got 2 of 2"),
        (["--tasks", "shapes", "--shard", "half"], "--shard is i/n, as 0/4, got 'half'"),
        (["--tasks", "shapes,mmlu", "--shard", "0/2"], "mmlu cannot be shared"),
        (["--tasks", "shapes", "--limit", 3, "--held-out", 0.1], "exclude each other"),
    ],
)
def test_mistakes_are_one_line(evaluate, flags, message):
    check_one_line_error(evaluate(*flags), message)


def test_a_model_needs_its_tokenizer(evaluate, model, monkeypatch, data):
    monkeypatch.setattr(model, "processor", None)
    result = evaluate("--tasks", "easy_vqa", "--data", data)
    check_one_line_error(result, "tiny has no tokenizer")


def test_parse_shard():
    assert parse_shard("3/12") == (3, 12)
