"""What a typed line means, and what tab makes of it."""

import pytest
from PIL import Image

from dl_techniques.serving.terminal_input import as_path, completions, parts_of, words


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name in ("cat.png", "car.jpg", "my dog.PNG", "notes.txt", ".hidden.png"):
        Image.new("RGB", (3, 2)).save(tmp_path / name, "PNG")
    (tmp_path / "cave").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def text(content):
    return {"type": "text", "text": content}


def image(path):
    return {"type": "image", "image": str(path)}


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("what is it?", [text("what is it?")]),
        ("what is cat.png ?", [text("what is"), image("cat.png"), text("?")]),
        ("cat.png car.jpg which?", [image("cat.png"), image("car.jpg"), text("which?")]),
        ("see 'my dog.PNG'", [text("see"), image("my dog.PNG")]),
        ('see "my dog.PNG" now', [text("see"), image("my dog.PNG"), text("now")]),
        (r"see my\ dog.PNG", [text("see"), image("my dog.PNG")]),
        ("other.png and notes.txt", [text("other.png and notes.txt")]),
        ("it's a 'quote", [text("it's a 'quote")]),
    ],
)
def test_image_files_in_a_message(folder, line, parts):
    assert parts_of(line) == parts


def test_absolute_paths_and_file_urls(folder):
    assert parts_of(f"file://{folder}/cat.png ?") == [image(folder / "cat.png"), text("?")]
    assert [as_path(word) for word in words(f"'{folder}/my dog.PNG' {folder}/cat.png")] == [
        folder / "my dog.PNG",
        folder / "cat.png",
    ]


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("/i", ["/image "]),
        ("/se", ["/set "]),
        ("/set te", ["temperature "]),
        ("/image ca", ["car.jpg ", "cat.png ", "cave/"]),
        ("/image my", [r"my\ dog.PNG "]),
        (r"/image my\ d", [r"my\ dog.PNG "]),
        ("/image ./cat", ["./cat.png "]),
        ("what is .h", [".hidden.png "]),
        ("what is no", []),
        ("/image none/x", []),
    ],
)
def test_completion(folder, line, found):
    assert completions(line, ["/image", "/set"], ["temperature", "seed"]) == found


def test_completion_of_absolute_paths(folder):
    assert completions(f"/image {folder}/cat", [], []) == [f"{folder}/cat.png "]
    assert completions("/tm", ["/image"], []) == ["/tmp/"]
