"""Pictures of how a model reads an image."""

import numpy as np
import pytest
from command_line import check_one_line_error
from PIL import Image
from tiny_chat import chat_model, picture, png
from tiny_models import numpy
from tiny_nvlm_chat import nvlm_chat_model

from dl_techniques.visualization import answer_attention
from dl_techniques.visualization import look as module
from dl_techniques.visualization.look import look


@pytest.fixture(scope="module")
def chat():
    return chat_model()


def pixels_of(path):
    return np.asarray(Image.open(path).convert("RGB"))


def test_the_answer_and_its_pictures(chat, tmp_path):
    image = png(picture(1))
    answer, paths = look(chat, image, "what is it?", tmp_path / "new" / "look", 5)
    message = {"role": "user", "content": "what is it?", "image": image}
    assert answer == chat.generate([message], 5)
    assert [path.name for path in paths] == ["tiles.png", "attention.png", "words.png"]
    left, size = module.MARGIN, module.CELL
    shown = pixels_of(paths[0])[left : left + size, left : left + size]
    np.testing.assert_array_equal(shown, np.kron(picture(1), np.ones((12, 12, 1), np.uint8)))


def test_tiles_and_queries(tmp_path, monkeypatch):
    model = nvlm_chat_model("decoder", compressor=True)
    monkeypatch.setattr(type(model.processor), "stop_ids", [])
    wide = np.concatenate([picture(0), picture(1)], axis=1)
    _, paths = look(model, wide, "which?", tmp_path, 3)
    assert [path.stem for path in paths] == ["tiles", "attention", "words", "queries"]
    # Two tiles and the thumbnail in a line; below each other: all tokens together, then each.
    step = module.CELL + module.MARGIN
    assert pixels_of(paths[0]).shape[1] == module.MARGIN + 3 * step
    assert pixels_of(paths[1]).shape == (
        module.MARGIN + 4 * (step + module.LINE),
        module.MARGIN + 3 * step,
        3,
    )


def test_a_token_looks_from_the_place_where_it_was_chosen(chat, tmp_path, monkeypatch):
    monkeypatch.setattr(type(chat.processor), "stop_ids", [])
    sheet, shown = module._attention_sheet, []

    def places(model, inputs):
        count = inputs["text_tokens"].shape[1]
        return np.arange(count, dtype="float32")[:, None, None, None] * np.ones((1, 1, 2, 2))

    def watched(tiles, attention, tokens):
        shown.extend([attention[:, 0, 0, 0].tolist(), tokens])
        return sheet(tiles, attention, tokens)

    monkeypatch.setattr(answer_attention, "image_attention", places)
    monkeypatch.setattr(module, "_attention_sheet", watched)
    look(chat, picture(0), "which?", tmp_path, 3)
    message = {"role": "user", "content": "which?", "image": picture(0)}
    last = len(chat.processor.encode_prompt([message]).token_ids) - 1
    assert shown[0] == [last, last + 1, last + 2] and len(shown[1]) == 3


def test_heat_is_where_the_attention_is():
    tile = np.full((16, 16, 3), 200, np.uint8)
    heat = np.zeros((2, 2))
    heat[0, 1] = 1.0
    pixels = np.asarray(answer_attention.heated(tile, heat, module.CELL)).astype(int)
    half = module.CELL // 2
    red = pixels[..., 0] - pixels[..., 1]
    assert (red[:half, half:] > 100).all()
    assert (red[half:] == 0).all() and (red[:, :half] == 0).all()


def test_the_nearest_word_is_the_token_itself(chat):
    table = chat.language_decoder.token_embedding.embeddings
    ids = [ord(c) for c in "xyz!"]
    words = module._nearest_words(chat, 3.0 * numpy(table)[None, ids])
    assert words == [["x", "y", "z", "!"]]


def test_the_command(chat, tmp_path, command):
    chat.save(tmp_path / "nanovlm_final.keras")
    chat.processor.save(tmp_path)
    Image.fromarray(picture(0)).save(tmp_path / "a.png")
    arguments = [str(tmp_path), str(tmp_path / "a.png"), "--prompt", "what?"]
    out = tmp_path / "out"
    code, printed, _ = command("look", *arguments, "--output", str(out), "--max-new-tokens", "4")
    assert code == 0 and f"{out / 'attention.png'} written." in printed
    assert (out / "words.png").is_file()
    missing = [str(tmp_path), str(tmp_path / "none.png"), "--prompt", "what?"]
    check_one_line_error(command("look", *missing), "none.png")
