"""The small sources: held out by picture, captions that say what is there."""

import json

import numpy as np
import pytest

from dl_techniques.datasets.image_files import content_hash
from dl_techniques.datasets.recipe_sources import open_folder
from dl_techniques.datasets.shapes import ShapesCaptions, caption_of, generate_shapes
from dl_techniques.datasets.shapes_scene import SceneObject
from dl_techniques.datasets.tiny_sources import SPECIAL_TOKENS, write_tiny_sources
from dl_techniques.preprocessing.images import load_image
from dl_techniques.preprocessing.tokenizer import load_tokenizer

pytestmark = pytest.mark.no_backend


def test_a_caption_says_what_stands_where():
    scene = (SceneObject(5, "red", "star", "small"), SceneObject(0, "blue", "cross", "large"))
    assert caption_of(scene) == (
        "a large blue cross at the top left, a small red star at the middle right"
    )
    item = ShapesCaptions("train", 3, seed=1)[2]
    assert item["id"] == "shapes_captions-train-1-2" and item["kinds"] == ["caption"]
    picture = generate_shapes("train", 3, seed=1)[2]["images"][0]
    assert picture.size == item["images"][0].size


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_sources_in_a_folder(tmp_path):
    small = {"captions": 20, "turns": 2, "vocab_size": 450}
    folder = write_tiny_sources(tmp_path / "s", None, **small)
    sources = open_folder(folder, ["captions", "questions", "phrases", "text"])
    (sample,) = sources["captions"][3]
    expected = ShapesCaptions("train", 20)[3]
    assert sample["messages"][1]["content"] == expected["messages"][1]["content"]
    np.testing.assert_array_equal(load_image(sample["images"][0]), expected["images"][0])
    assert all(not s["images"] for i in range(5) for s in sources["phrases"][i])
    assert all(len(s["messages"]) <= 4 for i in range(9) for s in sources["questions"][i])

    def pictures(path):
        return {content_hash(str(p)) for p in (path / "images").iterdir()}

    held_out = pictures(folder / "held_out")
    assert held_out and not held_out & (
        pictures(folder / "captions") | pictures(folder / "questions")
    )
    assert set(SPECIAL_TOKENS) <= set(load_tokenizer(folder / "tokenizer").special_tokens)
    before = (folder / "captions" / "train.jsonl").stat().st_mtime_ns
    write_tiny_sources(folder, None, **small)
    for other in ({"data": tmp_path}, {"seed": 1}):
        with pytest.raises(ValueError, match="made of .* remove it"):
            write_tiny_sources(folder, **{"data": None, **small, **other})
    assert (folder / "captions" / "train.jsonl").stat().st_mtime_ns == before
