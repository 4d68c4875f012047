"""The plug-in of VLMEvalKit; the toy task runs on the package itself where it is installed."""

import base64
import csv
import importlib.metadata
import importlib.util
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from PIL import Image
from tiny_chat import LETTERS, assistant, chat_model, picture, png, user

from dl_techniques.evaluation import vlmevalkit
from dl_techniques.training.run_folder import FINAL_MODEL

PACKAGE = {
    "vlmeval/__init__.py": "",
    "vlmeval/config.py": "supported_VLM = {'taken': None}",
    "vlmeval/vlm/__init__.py": "",
    "vlmeval/vlm/base.py": "class BaseModel: pass",
    "run.py": """
import sys
from vlmeval.config import supported_VLM

calls = []

def main():
    calls.append(sys.argv)
""",
}
# Of the real one: the flags that the toy task takes, its data, and where answers are written.
TOY_LAUNCHER = """
import argparse, ast, base64, csv, os, pathlib
from vlmeval.config import supported_VLM

def main():
    parser = argparse.ArgumentParser()
    for flag in ("--model", "--data", "--mode", "--work-dir"):
        parser.add_argument(flag)
    args = parser.parse_args()
    model = supported_VLM[args.model]()
    out = pathlib.Path(args.work_dir, args.model, "T1")
    out.mkdir(parents=True)
    with open(pathlib.Path(os.environ["LMUData"], args.data + ".tsv")) as file:
        rows = list(csv.DictReader(file, delimiter="\\t"))
    for row in rows:
        images = row.pop("image")
        message = []
        for k, image in enumerate(ast.literal_eval(images) if images[0] == "[" else [images]):
            path = out / f"{row['index']}_{k}.png"
            path.write_bytes(base64.b64decode(image))
            message.append({"type": "image", "value": str(path)})
        message.append({"type": "text", "value": row["question"]})
        row["prediction"] = model.generate_inner(message, args.data)
    with open(out / f"{args.model}_{args.data}.tsv", "w") as file:
        writer = csv.DictWriter(file, rows[0].keys(), delimiter="\\t")
        writer.writeheader()
        writer.writerows(rows)
"""


def write(folder, **changes):
    for name, text in (PACKAGE | changes).items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return folder


@pytest.fixture(autouse=True)
def package(tmp_path, monkeypatch):
    """What our module takes of VLMEvalKit, whose import would set PyTorch for all other tests."""
    monkeypatch.setattr(sys, "argv", sys.argv)
    folder = write(tmp_path / "clone")
    monkeypatch.syspath_prepend(folder)
    yield folder
    for name in [*sys.modules]:
        if name.partition(".")[0] in ("vlmeval", "vlmevalkit_run"):
            del sys.modules[name]


@pytest.fixture(scope="module")
def chat():
    """A model whose answers are letters."""
    model = chat_model()
    head, _ = model.language_decoder.head
    weights = np.array(keras.ops.convert_to_numpy(head))
    weights[:, ~LETTERS] = 0
    head.assign(weights)
    return model


def text(value, **others):
    return {"type": "text", "value": value, **others}


def image(folder, seed):
    path = folder / f"{seed}.png"
    Image.fromarray(picture(seed)).save(path)
    return {"type": "image", "value": str(path)}


class Recorder:
    """Keeps how it was asked."""

    processor = True

    def __init__(self):
        self.asked = []

    def generate(self, conversations, max_new_tokens):
        self.asked.append((conversations, max_new_tokens))
        return [" yes\n"]


def test_the_answer_is_the_models_own(chat, tmp_path):
    plug = vlmevalkit.VLMEvalKitModel(model=chat, max_new_tokens="6")
    answers = [
        plug.generate_inner([image(tmp_path, seed), text("what?")], "MMBench") for seed in range(4)
    ]
    conversations = [[user("what?", picture(seed))] for seed in range(4)]
    assert answers == chat.generate(conversations, 6) and len(set(answers)) > 1
    assert all(len(answer) == 6 for answer in answers)
    assert plug.use_custom_prompt("MMBench") is False


def test_a_conversation_goes_on(chat, tmp_path):
    plug = vlmevalkit.VLMEvalKitModel(model=chat, max_new_tokens=6)
    turns = [
        {"role": "user", "content": [image(tmp_path, 1), text("what?")]},
        {"role": "assistant", "content": [text("a dog")]},
        {"role": "user", "content": [text("where?")]},
    ]
    messages = [user("what?", picture(1)), assistant("a dog"), user("where?")]
    (answer,) = chat.generate([messages], 6)
    assert plug.chat_inner(turns, dataset="MMDU") == answer
    assert [answer] != chat.generate([messages[:1]], 6)


def test_parts_keep_their_order_and_role():
    model = Recorder()
    plug = vlmevalkit.VLMEvalKitModel(model=model, use_vllm=False)
    message = [
        text("Be short.", role="system"),
        text("from"),
        {"type": "image", "value": "a.png"},
        text("to"),
        {"type": "image", "value": "b.jpg"},
    ]
    assert plug.generate_inner(message) == "yes"
    content = [
        {"type": "text", "text": "from"},
        {"type": "image", "image": "a.png"},
        {"type": "text", "text": "to"},
        {"type": "image", "image": "b.jpg"},
    ]
    system = {"role": "system", "content": [{"type": "text", "text": "Be short."}]}
    assert model.asked == [([[system, {"role": "user", "content": content}]], 512)]
    assert plug.INTERLEAVE is True


def test_what_is_not_supported_is_refused():
    model = Recorder()
    plug = vlmevalkit.VLMEvalKitModel(model=model)
    with pytest.raises(ValueError, match="not about a video: film.mp4"):
        plug.generate_inner([{"type": "video", "value": "film.mp4"}, text("what?")])
    assert model.asked == []
    with pytest.raises(ValueError, match="There is no folder .*nowhere"):
        vlmevalkit.VLMEvalKitModel("./nowhere")
    with pytest.raises(AttributeError, match="no attribute 'Other'"):
        vlmevalkit.Other  # noqa: B018


def test_the_launcher_registers_and_passes_on(package):
    others = ["--data", "MME", "POPE", "--judge-args", '{"a": 1}', "--reuse"]
    vlmevalkit.main([*others, "--model-path", "runs/demo/"])
    run = sys.modules["vlmevalkit_run"]
    assert run.calls == [[str(package / "run.py"), "--model", "dl_techniques-demo", *others]]
    made = run.supported_VLM["dl_techniques-demo"]
    assert made.func.__name__ == "VLMEvalKitModel"
    assert made.keywords == {
        "pretrained": "runs/demo/",
        "tokenizer": None,
        "max_new_tokens": 512,
    }
    vlmevalkit.main(
        ["--model-path", "hf://a/b", "--model", "mine", "--tokenizer", "t", "--max-new-tokens=9"]
    )
    run = sys.modules["vlmevalkit_run"]
    assert [arguments[1:] for arguments in run.calls] == [["--model", "mine"]]
    assert run.supported_VLM["mine"].keywords == {
        "pretrained": "hf://a/b",
        "tokenizer": "t",
        "max_new_tokens": 9,
    }


def test_what_the_launcher_refuses(package, monkeypatch, capsys):
    def error(*arguments):
        with pytest.raises(SystemExit) as stopped:
            vlmevalkit.main(["--model-path", "FOLDER", *arguments])
        assert stopped.value.code == 2
        return capsys.readouterr().err

    assert "has a model taken of its own" in error("--model", "taken")
    write(package, **{"run.py": "raise SystemError('of somebody else')"})
    assert f"no run.py of VLMEvalKit in {package}" in error()
    (package / "run.py").unlink()
    assert f"no run.py of VLMEvalKit in {package}" in error()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "VLMEvalKit is not installed" in error()


@pytest.mark.no_backend
def test_a_toy_task(chat, package, tmp_path):
    chat.save(tmp_path / FINAL_MODEL)
    chat.processor.save(tmp_path)
    pictures = [[picture(0)], [picture(1), picture(2)], [picture(3)]]
    questions = ["what?", "which?", "what?"]
    with open(tmp_path / "toy.tsv", "w", newline="") as file:
        writer = csv.writer(file, delimiter="\t")
        writer.writerow(["index", "image", "question", "answer"])
        for k, (question, images) in enumerate(zip(questions, pictures, strict=True)):
            codes = [base64.b64encode(png(array)).decode() for array in images]
            writer.writerow([k, codes[0] if len(codes) == 1 else codes, question, "yes"])
    environment = os.environ | {"LMUData": str(tmp_path), "PRED_FORMAT": "tsv"}
    try:
        importlib.metadata.version("vlmeval")
    except importlib.metadata.PackageNotFoundError:
        environment["PYTHONPATH"] = str(write(package, **{"run.py": TOY_LAUNCHER}))
    flags = ["--model-path", str(tmp_path), "--model", "mine", "--max-new-tokens", "6"]
    task = ["--data", "toy", "--mode", "infer", "--work-dir", str(tmp_path / "out")]
    command = [sys.executable, "-m", "dl_techniques.evaluation.vlmevalkit", *flags, *task]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    (answers,) = (tmp_path / "out" / "mine").glob("T*/mine_toy.tsv")
    with open(answers, newline="") as file:
        found = [row["prediction"] for row in csv.DictReader(file, delimiter="\t")]
    prompts = [[user(q, *images)] for q, images in zip(questions, pictures, strict=True)]
    assert found == chat.generate(prompts, 6)
    assert len(set(found)) > 1
