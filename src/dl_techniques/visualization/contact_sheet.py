"""A contact sheet: pictures with questions, the model's answers and the right ones."""

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from dl_techniques.evaluation.question_answering import AnsweredQuestion
from dl_techniques.preprocessing.images import load_image

RIGHT, WRONG, INK = (0, 120, 40), (190, 20, 20), (30, 30, 30)


def contact_sheet(
    answered: list[AnsweredQuestion], path: str | Path, columns: int = 4, picture_size: int = 192
) -> None:
    """Write a PNG of the given questions, right answers in green and wrong ones in red.

    Args:
        answered: What to show, one cell each, with its first image if it has one.
        path: The file.
        columns: Cells per row.
        picture_size: Side in pixels to which pictures are scaled.
    """
    font = ImageFont.load_default(size=13)
    width, height = picture_size + 24, picture_size + 96
    rows = -(-len(answered) // columns)
    sheet = Image.new("RGB", (columns * width, rows * height), "white")
    draw = ImageDraw.Draw(sheet)
    for i, item in enumerate(answered):
        left, top = i % columns * width + 12, i // columns * height + 12
        if item.images:
            picture = _fitted(load_image(item.images[0]), picture_size)
            sheet.paste(picture, (left, top))
            right, bottom = left + picture.width, top + picture.height
            draw.rectangle((left, top, right, bottom), outline="lightgrey")
        lines = _wrapped(item.question, font, picture_size)[:3]
        y = top + picture_size + 4
        for line in lines:
            draw.text((left, y), line, font=font, fill=INK)
            y += 17
        text = item.answer if item.correct else f"{item.answer} (right: {item.references[0]})"
        line = _wrapped(text, font, picture_size)[0]
        draw.text((left, y), line, font=font, fill=RIGHT if item.correct else WRONG)
    sheet.save(path)


def _fitted(picture: Image.Image, size: int) -> Image.Image:
    """Return a copy that fits the square: smoothly shrunk, or enlarged to whole blocks."""
    scale = size // max(picture.size)
    if scale > 1:
        larger = (picture.width * scale, picture.height * scale)
        return picture.resize(larger, Image.Resampling.NEAREST)
    picture = picture.copy()  # The sample's own picture stays as it is.
    picture.thumbnail((size, size))
    return picture


def _wrapped(text: str, font, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
