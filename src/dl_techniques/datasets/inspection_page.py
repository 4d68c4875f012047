"""A page of samples to look at: their images, and their text with what is learned marked."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from dl_techniques.datasets.page_style import PAGE_START
from dl_techniques.datasets.rows import IGNORE_INDEX, Row
from dl_techniques.datasets.sample_reader import Shown, own_images
from dl_techniques.preprocessing.image_modes import ImageError
from dl_techniques.preprocessing.images import load_image

if TYPE_CHECKING:
    from dl_techniques.datasets.vqa_dataset import VQADataProcessor

_THUMBNAIL = 320
_MOST_IMAGES = 6
_MOST_ROWS = 4
_MOST_CHARACTERS = 2000
_READ, _LEARNED, _NOTE = range(3)
Piece = tuple[int, str]


def as_html(
    groups: Mapping[str, Iterable[Shown]], processor: VQADataProcessor, title: str, text: str
) -> str:
    """Return a page of samples.

    A sample shows 6 images and 4 rows of 2000 characters at most, and says what is left out.

    Args:
        groups: Heading -> samples with their rows; the heading may be "".
        processor: Encoded the rows.
        title: Of the page.
        text: Stands above the samples, as it is spaced.
    """
    parts = []
    for heading, shown in groups.items():
        if heading:
            parts.append(f"<h2>{html.escape(heading)}</h2>")
        parts += [_card(*each, processor) for each in shown]
    return _PAGE.format(title=html.escape(title), text=html.escape(text), cards="\n".join(parts))


_PAGE = (
    PAGE_START
    + """\
pre {{ background: #f6f6f4; padding: 1rem; overflow-x: auto; font-size: 13px; line-height: 1.35; }}
p + p {{ border-top: 1px dashed #ccc; padding-top: .75rem; }}
mark {{ background: #bde5b8; color: inherit; border-radius: 2px; }}
i {{ color: #777; }}
</style></head><body>
<h1>{title}</h1>
<pre>{text}</pre>
<p><mark>Marked text</mark> is learned; the rest is read.</p>
{cards}
</body></html>
"""
)


def _card(sample: Mapping[str, Any], rows: list[Row], processor: VQADataProcessor) -> str:
    name = html.escape(f"{sample['source']} {sample['id']}".strip())
    texts = [f"<p>{_row_html(row, processor)}</p>" for row in rows[:_MOST_ROWS]]
    if len(rows) > _MOST_ROWS:
        texts.append(f"<p><i>[{len(rows) - _MOST_ROWS:,} more rows]</i></p>")
    return (
        f'<section><h3>{name}</h3><div class="sample">{images_html(own_images(rows))}'
        f'<div class="texts">{"".join(texts)}</div></div></section>'
    )


def images_html(images: list[Any]) -> str:
    """Return some images as HTML, each small and inside of the page."""
    if not images:
        return ""
    pieces = [_image_html(image) for image in images[:_MOST_IMAGES]]
    if len(images) > _MOST_IMAGES:
        pieces.append(f"<i>[{len(images) - _MOST_IMAGES:,} more images]</i>")
    kind = "images many" if len(images) > 1 else "images"
    return f'<div class="{kind}">{"".join(pieces)}</div>'


def _image_html(source: Any) -> str:
    try:
        image = load_image(source).copy()
    except ImageError as error:
        return f'<div class="broken">{html.escape(str(error))}</div>'
    image.thumbnail((_THUMBNAIL, _THUMBNAIL), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=85)
    data = base64.b64encode(file.getvalue()).decode()
    return f'<img alt="" src="data:image/jpeg;base64,{data}">'


def _row_html(row: Row, processor: VQADataProcessor) -> str:
    """Return a row's text; runs of learned tokens are marked, runs of placeholders counted."""
    tags = {_READ: "{}", _LEARNED: "<mark>{}</mark>", _NOTE: "<i>{}</i>"}
    return "".join(tags[kind].format(html.escape(text)) for kind, text in _pieces(row, processor))


def _pieces(row: Row, processor: VQADataProcessor) -> list[Piece]:
    ids, labels = row.tokens()
    learned = labels != IGNORE_INDEX
    learned[0] = False  # Nothing comes before the first token.
    kinds = np.where(ids == processor.image_token_id, _NOTE, np.where(learned, _LEARNED, _READ))
    starts = np.flatnonzero(np.diff(kinds, prepend=-1))
    pieces = []
    for start, end in zip(starts, [*starts[1:], len(ids)], strict=True):
        text = f"[{end - start} image tokens]"
        if kinds[start] != _NOTE:
            text = processor.tokenizer.decode(ids[start:end].tolist())
        pieces.append((int(kinds[start]), text))
    return _shortened(pieces)


def _shortened(pieces: list[Piece]) -> list[Piece]:
    """Return the beginning and the end of a long text, where the answer often is."""
    left_out = sum(len(text) for _, text in pieces) - _MOST_CHARACTERS
    if left_out <= 0:
        return pieces
    start, end = _MOST_CHARACTERS // 2, _MOST_CHARACTERS // 2 + left_out
    shortened, position = [], 0
    for kind, text in pieces:
        shortened.append((kind, text[: max(0, start - position)]))
        if position <= start < position + len(text):
            shortened.append((_NOTE, f" [{left_out:,} characters left out] "))
        shortened.append((kind, text[max(0, end - position) :]))
        position += len(text)
    return [(kind, text) for kind, text in shortened if text]
