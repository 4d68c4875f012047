"""What a typed line means, and what tab makes of it."""

import re
from pathlib import Path

import pytest
from PIL import Image

from dl_techniques.serving.terminal_input import (
    as_path,
    completions,
    image_file,
    images_and_text,
    words,
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name in ("cat.png", "car.jpg", "my dog.PNG", "notes.txt", ".hidden.png"):
        Image.new("RGB", (3, 2)).save(tmp_path / name, "PNG")
    (tmp_path / "cave").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("line", "images", "text"),
    [
        ("what is it?", [], "what is it?"),
        ("what is cat.png ?", ["cat.png"], "what is ?"),
        ("cat.png car.jpg which?", ["cat.png", "car.jpg"], "which?"),
        ("see 'my dog.PNG'", ["my dog.PNG"], "see"),
        ('see "my dog.PNG" now', ["my dog.PNG"], "see now"),
        (r"see my\ dog.PNG", ["my dog.PNG"], "see"),
        ("it's a 'quote, in notes.txt", [], "it's a 'quote, in notes.txt"),
        # Beside punctuation; that of a sentence stays.
        ("what is in ./cat.png?", ["cat.png"], "what is in?"),
        ("(./cat.png) what?", ["cat.png"], "what?"),
        (r"cat.png, my\ dog.PNG: which?", ["cat.png", "my dog.PNG"], "which?"),
        ("is it ('my dog.PNG')? Or \"cat.png\"!", ["my dog.PNG", "cat.png"], "is it? Or!"),
        ("see .hidden.png.", [".hidden.png"], "see."),
        ("first line\n  second cat.png line\n  third", ["cat.png"], None),
        # As shells quote an apostrophe.
        (r"'it'\''s.png' ?", ["it's.png"], "?"),
        ("it's cat.png and it's car.jpg", ["cat.png", "car.jpg"], "it's and it's"),
        # These name no image.
        (
            "are there ~5 objects of the .png format?",
            [],
            "are there ~5 objects of the .png format?",
        ),
        ("see a.png.txt, (.jpg), d.png/notes", [], "see a.png.txt, (.jpg), d.png/notes"),
    ],
)
def test_image_files_in_a_message(folder, line, images, text):
    Image.new("RGB", (3, 2)).save("it's.png")
    text = "first line\n  second line\n  third" if text is None else text
    assert images_and_text(line) == ([Path(image) for image in images], text)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("what is other.png?", "No such image: other.png?"),
        ("cat.png's colour", "No such image: cat.png's"),
        ("cat.png and /tmp/nothere.WebP", "No such image: /tmp/nothere.WebP"),
        ("what is in dir.png", "No such image: dir.png"),
        ("~nouser/x.png", "No such image: ~nouser/x.png"),
        ("see https://example.org/a.png?b=c ?", "Images are not fetched: save https://example.org"),
    ],
)
def test_an_image_that_is_not_there(folder, line, message):
    (folder / "dir.png").mkdir()
    with pytest.raises(ValueError, match=re.escape(message)):
        images_and_text(line)


def test_absolute_paths_and_file_urls(folder):
    assert images_and_text(f"file://{folder}/cat.png ?") == ([folder / "cat.png"], "?")
    assert image_file(f"file://{folder}/my%20dog.PNG") == folder / "my dog.PNG"
    assert [as_path(word) for word in words(f"'{folder}/my dog.PNG' '' {folder}/cat.png")] == [
        folder / "my dog.PNG",
        folder / "cat.png",
    ]


def test_homes(monkeypatch):
    monkeypatch.setenv("HOME", "/home/of/somebody")
    assert as_path("~/x") == Path("/home/of/somebody/x")
    assert as_path("~nouser/x") == Path("~nouser/x")


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
        ("/image ~nouser/x", []),
        ("see 'my d", ["'my dog.PNG' "]),
        ("it's \"my", ['"my dog.PNG" ']),
        ("'my dog.PNG' 'ca", ["'car.jpg' ", "'cat.png' ", "'cave/"]),
        ("/image './cav", ["'./cave/"]),
    ],
)
def test_completion(folder, line, found):
    assert completions(line, ["/image", "/set"], ["temperature", "seed"]) == found


def test_completion_of_absolute_paths(folder):
    assert completions(f"/image {folder}/cat", [], []) == [f"{folder}/cat.png "]
    assert completions("/tm", ["/image"], []) == ["/tmp/"]
