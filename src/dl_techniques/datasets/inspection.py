"""What a data set holds: counts, lengths, image sizes, drops, and a page of samples to look at."""

from __future__ import annotations

import base64
import dataclasses
import html
import io
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from dl_techniques.datasets.quarantine import Quarantine
from dl_techniques.datasets.rows import IGNORE_INDEX, BadSampleError, Row, RowEncoder
from dl_techniques.datasets.samples import Sample, normalize_sample, question_ids
from dl_techniques.preprocessing.image_modes import ImageError
from dl_techniques.preprocessing.images import image_size_of, load_image

if TYPE_CHECKING:
    from dl_techniques.datasets.vqa_dataset import VQADataProcessor

_BAR = 40
_THUMBNAIL = 320


@dataclasses.dataclass
class Inspection:
    """What was found in the samples that were looked at.

    Attributes:
        samples: How many were good.
        questions: Turns of users in them.
        images: Images in them.
        row_tokens: Tokens of every row, image placeholders included.
        answer_tokens: Learned tokens of every row.
        sizes: (width, height) of every image, in pixels.
        sources: Learned tokens per source.
        report: The bad samples, and why.
        shown: (sample, its rows) of the first good ones.
    """

    samples: int = 0
    questions: int = 0
    images: int = 0
    row_tokens: list[int] = dataclasses.field(default_factory=list)
    answer_tokens: list[int] = dataclasses.field(default_factory=list)
    sizes: list[tuple[int, int]] = dataclasses.field(default_factory=list)
    sources: Counter = dataclasses.field(default_factory=Counter)
    report: Quarantine = dataclasses.field(default_factory=Quarantine)
    shown: list[tuple[Sample, list[Row]]] = dataclasses.field(default_factory=list)


def inspect_samples(
    samples: Iterable[Any], processor: VQADataProcessor, shown: int = 20
) -> Inspection:
    """Look at samples: encode their text, read their images' headers.

    Args:
        samples: See `samples.normalize_sample`; a ValueError stands for a row that is none.
        processor: Encodes them.
        shown: How many are kept for the page.
    """
    found = Inspection()
    encoder = RowEncoder(processor.encode, processor.max_text_length)
    for number, raw in enumerate(samples):
        found.report.total += 1
        name = str(raw.get("id", number)) if isinstance(raw, dict) else str(number)
        try:
            if isinstance(raw, ValueError):
                raise raw
            sample = normalize_sample(raw, number)
            rows = encoder.rows(sample)
            sizes = [image_size_of(image) for row in rows[:1] for image in row.images]
        except (BadSampleError, ImageError) as error:
            found.report.add(name, error.reason, str(error))
            continue
        except ValueError as error:
            found.report.add(name, "malformed sample", str(error))
            continue
        _count(found, sample, rows, sizes)
        if len(found.shown) < shown:
            found.shown.append((sample, rows))
    return found


def _count(found: Inspection, sample: Sample, rows: list[Row], sizes: list) -> None:
    found.samples += 1
    found.questions += len(question_ids(sample))
    found.images += len(sizes)
    found.sizes += sizes
    for row in rows:
        ids, labels = row.tokens()
        learned = int((labels != IGNORE_INDEX).sum())
        found.row_tokens.append(len(ids))
        found.answer_tokens.append(learned)
        found.sources[sample["source"] or "(no source)"] += learned


def as_text(found: Inspection) -> str:
    """Return the counts and histograms as lines for a terminal."""
    total = sum(found.sources.values())
    lines = [
        f"{found.samples:,} good samples, {found.questions:,} questions, {found.images:,} images, "
        f"{sum(found.row_tokens):,} tokens, {total:,} of them learned",
        str(found.report),
    ]
    if len(found.sources) > 1:
        lines += ["", "learned tokens by source"]
        for name, count in found.sources.most_common():
            lines.append(f"  {name:32s} {count:12,} {count / total:7.1%}")
    lines += ["", "tokens per row", *histogram(found.row_tokens)]
    lines += ["", "learned tokens per row", *histogram(found.answer_tokens)]
    if found.sizes:
        lines += ["", "longer side of the images, pixels", *histogram(map(max, found.sizes))]
        shapes = Counter(found.sizes).most_common(5)
        lines.append("  most frequent: " + ", ".join(f"{w} x {h} ({n})" for (w, h), n in shapes))
    return "\n".join(lines)


def histogram(values: Iterable[int], bins: int = 10) -> list[str]:
    """Return lines with bars; the bins have equal widths."""
    values = np.fromiter(values, np.int64)
    if not len(values):
        return ["  none"]
    low, high = int(values.min()), int(values.max()) + 1
    edges = np.unique(np.linspace(low, high, bins + 1).astype(np.int64))
    counts, _ = np.histogram(values, edges)
    lines = []
    for start, end, count in zip(edges[:-1], edges[1:], counts, strict=True):
        bar = "#" * -(-_BAR * int(count) // int(counts.max()))
        lines.append(f"  {start:>7,} - {end - 1:>7,} {count:>9,} {bar}".rstrip())
    median = float(np.median(values))
    lines.append(f"  median {median:,.0f}, mean {values.mean():,.1f}, largest {high - 1:,}")
    return lines


def as_html(found: Inspection, processor: VQADataProcessor, title: str) -> str:
    """Return a page of the kept samples: images, and text with what is learned highlighted."""
    cards = []
    for sample, rows in found.shown:
        images = [_image_html(image) for row in rows[:1] for image in row.images]
        texts = [f"<p>{_row_html(row, processor)}</p>" for row in rows]
        name = html.escape(f"{sample['source']} {sample['id']}")
        cards.append(f"<section><h2>{name}</h2>{''.join(images)}{''.join(texts)}</section>")
    return _PAGE.format(
        title=html.escape(title), counts=html.escape(as_text(found)), cards="\n".join(cards)
    )


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; }}
section {{ border-top: 1px solid #ccc; padding: 1rem 0; }}
h2 {{ font-size: 1rem; }}
img {{ max-width: 320px; max-height: 240px; margin-right: .5rem; }}
p {{ white-space: pre-wrap; overflow-wrap: anywhere; }}
mark {{ background: #bde5b8; }}
i {{ color: #777; }}
</style></head><body>
<h1>{title}</h1>
<pre>{counts}</pre>
<p><mark>Marked text</mark> is learned; the rest is read.</p>
{cards}
</body></html>
"""


def _image_html(source: Any) -> str:
    try:
        image = load_image(source)
    except ImageError as error:
        return f"<i>{html.escape(str(error))}</i>"
    image.thumbnail((_THUMBNAIL, _THUMBNAIL))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=80)
    data = base64.b64encode(file.getvalue()).decode()
    return f'<img alt="" src="data:image/jpeg;base64,{data}">'


def _row_html(row: Row, processor: VQADataProcessor) -> str:
    """Return a row's text; runs of learned tokens are marked, runs of placeholders counted."""
    ids, labels = row.tokens()
    kinds = np.where(ids == processor.image_token_id, 2, labels != IGNORE_INDEX).astype(int)
    starts = np.flatnonzero(np.diff(kinds, prepend=-1))
    pieces = []
    for start, end in zip(starts, [*starts[1:], len(ids)], strict=True):
        if kinds[start] == 2:
            pieces.append(f"<i>[{end - start} image tokens]</i>")
            continue
        text = html.escape(processor.tokenizer.decode(ids[start:end].tolist()))
        pieces.append(f"<mark>{text}</mark>" if kinds[start] else text)
    return "".join(pieces)
