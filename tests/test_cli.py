"""The command line: what it prints, and that mistakes are one line."""

import json

import keras
import numpy as np
import pytest
from command_line import check_one_line_error
from PIL import Image
from tiny_models import IMAGE_SIZE, tiny_nanovlm

from dl_techniques import __version__
from dl_techniques.datasets.vqa_dataset import VQADataProcessor
from dl_techniques.evaluation.question_answering import answer_questions
from dl_techniques.models.families import TOTAL_PARAMS
from dl_techniques.models.nano_vlm import NANOVLM_CONFIGS
from dl_techniques.preprocessing.tokenizer import CharacterTokenizer
from dl_techniques.training import run
from dl_techniques.training.recipes import RECIPES, get_recipe


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A checkpoint folder and its model and processor."""
    folder = tmp_path_factory.mktemp("checkpoint")
    tokenizer = CharacterTokenizer(128)
    image_id = tokenizer.add_special_tokens(["<|image|>"])[0]
    processor = VQADataProcessor(
        IMAGE_SIZE, 64, tokenizer=tokenizer, image_token_id=image_id, tokens_per_image=4
    )
    model = tiny_nanovlm(vocab_size=processor.vocab_size, image_token_id=image_id)
    model.save(folder / "nanovlm_final.keras")
    processor.save(folder)
    model.processor = processor
    return folder, model, processor


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "picture.png"
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), "uint8")
    Image.fromarray(pixels).save(path)
    return path


def test_info_names_versions_and_models(command, monkeypatch):
    names = ("nanovlm_mini", "ghostvis_mini", "nvlm_mini_x")
    monkeypatch.setattr("dl_techniques.training.model_table.MODEL_NAMES", names)
    code, out, _ = command("info")
    assert code == 0
    assert f"dl_techniques {__version__}, keras {keras.__version__}" in out
    assert f"backend {keras.backend.backend()}" in out
    for name in names:
        (line,) = [line for line in out.splitlines() if line.startswith(f"{name} ")]
        assert f" {TOTAL_PARAMS[name]:,} " in line


def test_info_counts_the_parts_of_a_model(command, monkeypatch):
    code, out, _ = command("info", "nanovlm_mini")
    rows = {line.split()[0]: line.split() for line in out.splitlines()}
    assert code == 0
    counts = [int(rows[name][1].replace(",", "")) for name in list(rows)[1:]]
    assert list(rows)[1:] == ["vision_encoder", "modality_projection", "language_decoder", "total"]
    assert counts[-1] == sum(counts[:-1]) == NANOVLM_CONFIGS["nanovlm_mini"]["total_params"]


def test_info_counts_the_parts_of_a_checkpoint(command, checkpoint):
    folder, model, _ = checkpoint
    code, out, _ = command("info", folder)
    assert code == 0
    assert f" {model.count_params():,} " in out.splitlines()[-1]


def test_generate_prints_the_models_answer(command, checkpoint, picture):
    folder, model, processor = checkpoint
    sample = {"id": "x", "images": [picture], "messages": [{"role": "user", "content": "Why?"}]}
    sample["messages"].append({"role": "assistant", "content": "?"})
    for length in (5, 32):
        (expected,) = answer_questions(model, [sample], 1, length)
        flags = [] if length == 32 else ["--max-new-tokens", length]
        code, out, err = command("generate", folder, picture, "Why?", *flags)
        assert (code, out, err) == (0, expected.answer + "\n", "")


def test_generate_names_what_is_wrong(command, checkpoint, picture, tmp_path):
    folder, *_ = checkpoint
    missing = tmp_path / "no.png"
    check_one_line_error(command("generate", folder, missing, "Why?"), str(missing))
    broken = tmp_path / "broken.png"
    broken.write_bytes(picture.read_bytes()[:200])
    check_one_line_error(command("generate", folder, broken, "Why?"), str(broken), "truncated")
    text = tmp_path / "text.png"
    text.write_text("no picture")
    check_one_line_error(command("generate", folder, text, "Why?"), str(text))
    check_one_line_error(command("generate", folder, tmp_path, "Why?"), str(tmp_path))
    nowhere = tmp_path / "nowhere"
    expected = (str(nowhere), "There is no folder")
    check_one_line_error(command("generate", nowhere, picture, "Why?"), *expected)
    check_one_line_error(command("info", "nanovlm_giga"), "There is no 'nanovlm_giga'")
    long = "Why? " * 20
    check_one_line_error(command("generate", folder, picture, long), "max_positions=64")


def test_generate_refuses_damaged_checkpoints(command, checkpoint, picture, tmp_path):
    folder, *_ = checkpoint
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    model = tmp_path / "nanovlm_final.keras"
    model.write_bytes(model.read_bytes()[:1000])
    check_one_line_error(command("generate", tmp_path, picture, "Why?"), "nanovlm_final.keras")
    model.write_bytes((folder / model.name).read_bytes())
    (tmp_path / "preprocessor_config.json").unlink()
    check_one_line_error(command("generate", tmp_path, picture, "Why?"), "preprocessor_config.json")


@pytest.fixture
def trained(monkeypatch):
    """The config and the switches that `train` would run with."""
    calls = []
    monkeypatch.setattr(
        run, "run_training", lambda config, **switches: calls.append((config, switches))
    )
    return calls


def test_train_flags_change_the_recipe(command, trained):
    flags = ["--recipe", "demo", "--epochs", "7", "--batch-size=4", "--resume"]
    flags += ["--data", "2024", "--tokenizer", "some/folder", "--augment", '["flip"]']
    flags += ["--learning_rates", '{"vision": 1e-3, "language": 2e-3, "projection": 3e-3}']
    flags += ["--max_turns", "null", "--output_dir", "a=b"]
    code, _, err = command("train", *flags)
    assert (code, err) == (0, "")
    changes = {
        "epochs": 7,
        "batch_size": 4,
        "data": "2024",
        "tokenizer": "some/folder",
        "augment": ["flip"],
        "learning_rates": {"vision": 1e-3, "language": 2e-3, "projection": 3e-3},
        "max_turns": None,
        "output_dir": "a=b",
    }
    assert trained == [({**get_recipe("demo"), **changes}, {"resume": True})]


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("mixture", '{"a": 0.5, "b": 0.5}', {"a": 0.5, "b": 0.5}),
        ("mixture", "null", None),
        ("mixture", "vision_sft_minimal", "vision_sft_minimal"),
        ("tokenizer", "2024", "2024"),
        ("tokenizer", "null", None),
        ("vision_backbone", "null", None),
        ("steps", "7", 7),
    ],
)
def test_values_are_of_a_type_that_the_setting_may_have(key, text, value, command, trained):
    assert command("train", "--recipe", "nanovlm", f"--{key}={text}")[0] == 0
    assert trained == [({**get_recipe("nanovlm"), key: value}, {})]


def test_train_without_flags_is_the_default_recipe(command, trained):
    assert command("train")[0] == 0
    assert trained == [(get_recipe("default"), {})]


def test_help_lists_recipes_and_the_settings_as_they_would_be(command, trained):
    code, out, _ = command("train", "--recipe", "demo", "--batch_size", "7", "--help")
    settings = {**get_recipe("demo"), "batch_size": 7}
    lines = out.splitlines()
    assert code == 0 and trained == []
    assert "  --batch_size 7" in lines and "  --ema_decay null" in lines
    assert [line.split()[0] for line in lines[-len(settings) :]] == [f"--{key}" for key in settings]
    assert all(name in lines[1] for name in RECIPES)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--epoch", "3"], "Unknown settings ['epoch']; there are: model,"),
        (["epochs", "3"], "Expected --KEY VALUE, got 'epochs'"),
        (["--epochs"], "Expected --KEY VALUE, got '--epochs'"),
        (["--epochs", "3", "4"], "Expected --KEY VALUE, got '4'"),
        (["--recipe", "dmeo"], "Unknown recipe 'dmeo': choose from"),
    ],
)
def test_wrong_train_flags_are_refused(command, trained, flags, message):
    check_one_line_error(command("train", *flags), message)
    assert trained == []


def test_wrong_settings_are_one_line_too(command, tmp_path):
    flags = ["train", "--recipe", "demo", "--output_dir", tmp_path / "run"]
    check_one_line_error(command(*flags, "--epochs", "many"), "epochs", "'many'")
    rates = command(*flags, "--learning_rates", '{"vision": "1e-4"}')
    check_one_line_error(rates, "learning rate '1e-4' of 'vision_encoder'")
    check_one_line_error(command(*flags, "--data", tmp_path / "none"), str(tmp_path / "none"))
    assert not (tmp_path / "run").exists()


def test_ctrl_c_says_how_to_go_on(command, monkeypatch):
    def stop(config):
        raise KeyboardInterrupt("Stopped after step 3 of 9; resume to go on.")

    monkeypatch.setattr(run, "run_training", stop)
    code, _, err = command("train", "--recipe", "demo")
    assert (code, err) == (130, "Stopped after step 3 of 9; resume to go on.\n")


def test_wrong_usage_shows_the_usage(command):
    code, _, err = command("generate", "folder")
    assert code == 2
    assert "Usage:" in err and "image" in err


def test_data_inspect_shows_counts_faults_and_a_page(command, tmp_path, picture):
    rows = [
        {"id": str(k), "image": picture.name, "question": f"What is {k}?", "answer": "red <b>"}
        for k in range(5)
    ]
    rows.append({"id": "bad", "image": "none.png", "question": "?", "answer": "x"})
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = tmp_path / "page.html"
    flags = ["--images", tmp_path, "--page", page]
    code, out, err = command("data", "inspect", tmp_path / "train.jsonl", *flags)
    assert (code, err) == (0, "")
    assert "6 rows" in out and "5 good samples, 5 questions, 5 images" in out
    assert "1 of 6 samples are bad (missing image: 1)" in out
    assert "most frequent: 30 x 20 (5)" in out
    text = page.read_text()
    assert "<mark> red &lt;b&gt;&lt;eos&gt;</mark>" in text
    assert "[64 image tokens]" in text and text.count("data:image/jpeg;base64,") == 5
    check_one_line_error(command("data", "inspect", tmp_path / "nothing"), "nothing")
