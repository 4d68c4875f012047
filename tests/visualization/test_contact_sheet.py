"""The contact sheet: its size, colours and pictures."""

import numpy as np
import pytest
from PIL import Image

from dl_techniques.evaluation.question_answering import AnsweredQuestion
from dl_techniques.visualization.contact_sheet import INK, RIGHT, WRONG, contact_sheet

BLUE = (0, 0, 255)
CELL = (96 + 24, 96 + 96)


def answered(answer, size=(48, 48), images=True):
    pictures = [Image.new("RGB", size, BLUE)] if images else []
    return AnsweredQuestion("id", "colour", pictures, "What colour?", ["blue"], answer)


def drawn(tmp_path, items, columns=2):
    contact_sheet(items, tmp_path / "sheet.png", columns, picture_size=96)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.format == "PNG"
        return np.asarray(sheet.convert("RGB"))


def cell(sheet, column, row):
    return sheet[row * CELL[1] : (row + 1) * CELL[1], column * CELL[0] : (column + 1) * CELL[0]]


def has(part, colour):
    return bool((part == colour).all(axis=-1).any())


@pytest.mark.parametrize(("count", "rows"), [(1, 1), (2, 1), (3, 2)])
def test_the_sheet_has_a_cell_for_each_question(tmp_path, count, rows):
    sheet = drawn(tmp_path, [answered("blue")] * count)
    assert sheet.shape == (rows * CELL[1], 2 * CELL[0], 3)
    blue = [has(cell(sheet, i % 2, i // 2), BLUE) for i in range(2 * rows)]
    assert blue == [i < count for i in range(2 * rows)]


def test_right_answers_are_green_and_wrong_ones_red(tmp_path):
    sheet = drawn(tmp_path, [answered("Blue"), answered("red"), answered("")])
    for place, right in (((0, 0), True), ((1, 0), False), ((0, 1), False)):
        part = cell(sheet, *place)
        assert has(part, INK)  # the question
        assert has(part, RIGHT) == right
        assert has(part, WRONG) != right


@pytest.mark.parametrize("size", [(48, 48), (96, 96), (300, 150), (20, 10), (20, 500)])
def test_pictures_fit_their_cell_and_stay_as_they_are(tmp_path, size):
    item = answered("blue", size)
    sheet = drawn(tmp_path, [item])
    assert item.images[0].size == size
    rows, columns = np.nonzero((sheet == BLUE).all(axis=-1))
    assert rows.min() >= 12 and rows.max() < 12 + 96
    assert columns.min() >= 12 and columns.max() < 12 + 96
    if size == (48, 48):  # Enlarged to twice its size; its frame covers two edges.
        assert rows.max() - rows.min() >= 93


def test_questions_without_a_picture_are_shown_too(tmp_path):
    sheet = drawn(tmp_path, [answered("blue", images=False)])
    assert has(sheet, RIGHT) and not has(sheet, BLUE)


def test_long_texts_stay_in_their_cell(tmp_path):
    item = answered("blue")
    item.question = "Is there " + "a very long question " * 20
    item.answer = "an answer that goes on " * 20
    sheet = drawn(tmp_path, [item, answered("blue", images=False)])
    alone = drawn(tmp_path, [answered("blue"), answered("blue", images=False)])
    np.testing.assert_array_equal(cell(sheet, 1, 0), cell(alone, 1, 0))
