"""Where questions are: files and folders, the hub, generated pictures."""

import json

import datasets
import pytest
from PIL import Image
from public_rows import ROWS, png

from dl_techniques.datasets.readers import read_samples
from dl_techniques.datasets.samples import group_by_image, split_by_image
from dl_techniques.evaluation.data import open_questions
from dl_techniques.preprocessing.images import load_image


def write_lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def own_rows(count):
    return [{"image": f"{k}.png", "question": f"q{k}?", "answer": "a"} for k in range(count)]


def asked(questions):
    return [question.text for row in questions.chosen for question in questions[row]]


def test_a_folder_of_the_benchmarks_name(tmp_path):
    write_lines(tmp_path / "easy_vqa" / "train.jsonl", own_rows(3))
    write_lines(tmp_path / "cifar10.jsonl", own_rows(1))
    for data in (tmp_path, tmp_path / "easy_vqa", tmp_path / "easy_vqa" / "train.jsonl"):
        questions = open_questions("easy_vqa", data)
        assert asked(questions) == ["q0?", "q1?", "q2?"]
    assert asked(questions.limited(2)) == ["q0?", "q1?"]
    assert asked(open_questions("cifar10", tmp_path)) == ["q0?"]


def test_names_of_rows_and_pictures(tmp_path):
    write_lines(tmp_path / "dev.jsonl", own_rows(2))
    (tmp_path / "dev_images").mkdir()
    (question,) = open_questions("coco_yesno", tmp_path)[1]
    assert (question.id, question.group) == ("dev-2", "1.png")
    assert question.images == [str(tmp_path / "dev_images" / "1.png")]
    elsewhere = tmp_path / "pictures"
    elsewhere.mkdir()
    (question,) = open_questions("coco_yesno", tmp_path, images=elsewhere)[0]
    assert question.images == [str(elsewhere / "0.png")]


def test_conversations_are_asked_turn_by_turn(tmp_path):
    turns = [("user", "q0?"), ("assistant", "a"), ("user", "q1?"), ("assistant", "b")]
    messages = [{"role": role, "content": text} for role, text in turns]
    write_lines(tmp_path / "train.jsonl", [{"image": "0.png", "messages": messages}])
    found = open_questions("easy_vqa", tmp_path)[0]
    assert [(q.id, q.text, q.answers) for q in found] == [
        ("train-1-0", "q0?", ["a"]),
        ("train-1-1", "q1?", ["b"]),
    ]
    assert {q.group for q in found} == {"0.png"}


def test_a_malformed_row_is_named(tmp_path):
    write_lines(tmp_path / "train.jsonl", [*own_rows(1), {"question": "q?"}])
    with pytest.raises(ValueError, match=r"train.jsonl, line 2: .*'answer' must be a string"):
        open_questions("easy_vqa", tmp_path)[1]


def test_rows_that_training_held_out(tmp_path):
    for k in range(8):
        Image.new("RGB", (4, 4), (30 * k, 0, 0)).save(tmp_path / f"{k}.png")
    rows = [{**row, "question": f"{row['question']} {n}"} for row in own_rows(8) for n in (0, 1)]
    write_lines(tmp_path / "train.jsonl", rows)
    questions = open_questions("easy_vqa", tmp_path)
    held_out = questions.held_out(0.25, seed=3)
    assert len(held_out.chosen) == 4  # Two pictures of two questions.
    pictures = {held_out[row][0].group for row in held_out.chosen}
    assert len(pictures) == 2
    # As a training run splits them.
    samples = split_by_image(group_by_image(read_samples(tmp_path)), 0.25, 3)[1]
    assert {str(s["images"][0]) for s in samples} == {str(tmp_path / name) for name in pictures}
    with pytest.raises(ValueError, match="holds out no picture"):
        questions.held_out(0.01, seed=3)


def test_parquet_files_hold_their_pictures(tmp_path):
    names = ("id", "question_id", "question", "answer", "image_source", "category")
    features = {name: datasets.Value("string") for name in names} | {"image": datasets.Image()}
    rows = [{**ROWS["pope"][0], "id": str(k)} for k in range(3)]
    data = datasets.Dataset.from_list(rows, features=datasets.Features(features))
    (tmp_path / "pope").mkdir()
    data.to_parquet(tmp_path / "pope" / "test-00000.parquet")
    questions = open_questions("pope", tmp_path)
    assert [questions[row][0].id for row in questions.chosen] == [f"popular {k}" for k in range(3)]
    assert load_image(questions[2][0].images[0]).size == (8, 6)


@pytest.fixture
def hub(monkeypatch):
    """Record what is loaded; configurations of pictures have these, others GQA's rows."""
    calls = []

    def load_dataset(path, **options):
        calls.append((path, options.get("name"), options["split"]))
        if str(options.get("name")).endswith("_images"):
            rows = [{"id": f"n{k}", "image": {"bytes": png(k + 1), "path": None}} for k in range(3)]
            features = datasets.Features(
                {"id": datasets.Value("string"), "image": datasets.Image()}
            )
            return datasets.Dataset.from_list(rows, features=features)
        rows = [{**ROWS["gqa"][0], "imageId": f"n{k}"} for k in (2, 0, 5)]
        return datasets.Dataset.from_list(rows)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return calls


def test_the_hub_is_where_nothing_else_is_said(hub):
    questions = open_questions("gqa")
    assert hub == [
        ("lmms-lab/GQA", "testdev_balanced_instructions", "testdev"),
        ("lmms-lab/GQA", "testdev_balanced_images", "testdev"),
    ]
    assert questions.name == "hf://lmms-lab/GQA, testdev"
    assert load_image(questions[0][0].images[0]).size == (3, 6)
    with pytest.raises(ValueError, match="row 3: there is no picture of the id 'n5'"):
        questions[2]


def test_a_mirror_on_the_hub(hub, tmp_path):
    questions = open_questions("gqa", "hf://other/GQA", split="val", images=tmp_path)
    assert hub == [("other/GQA", "testdev_balanced_instructions", "val")]
    assert questions[0][0].images == [str(tmp_path / "n2.jpg")]


def test_shapes_are_generated():
    questions = open_questions("shapes").limited(2)
    found = [question for row in questions.chosen for question in questions[row]]
    assert len(questions.chosen) == 2 and len({q.group for q in found}) == 2
    assert all(q.id.startswith("shapes-heldout-0-") and q.category for q in found)
    assert load_image(found[0].images[0]).size == (64, 64)
    with pytest.raises(ValueError, match="give no data"):
        open_questions("shapes", "folder")


def test_a_local_set_needs_its_folder():
    with pytest.raises(ValueError, match="easy_vqa is no data set of the hub"):
        open_questions("easy_vqa")
