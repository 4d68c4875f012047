"""What a data set holds: counts, lengths, image sizes and drops."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from dl_techniques.datasets.quarantine import Quarantine
from dl_techniques.datasets.sample_reader import SampleFacts, SampleReader, Shown, fault

if TYPE_CHECKING:
    from dl_techniques.datasets.vqa_dataset import VQADataProcessor

_BAR = 40


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
    shown: list[Shown] = dataclasses.field(default_factory=list)

    def add(self, source: str, facts: SampleFacts) -> None:
        """Count a good sample."""
        self.samples += 1
        self.questions += facts.questions
        self.images += len(facts.sizes)
        self.row_tokens += facts.row_tokens
        self.answer_tokens += facts.answer_tokens
        self.sizes += facts.sizes
        self.sources[source] += sum(facts.answer_tokens)


def inspect_samples(
    samples: Iterable[Any], processor: VQADataProcessor, shown: int = 20
) -> Inspection:
    """Look at samples: encode their text, read their images' headers.

    Args:
        samples: See `SampleReader.read`; a ValueError stands for a row that is none.
        processor: Encodes them.
        shown: How many are kept for the page.
    """
    found, reader = Inspection(), SampleReader(processor)
    for number, raw in enumerate(samples):
        found.report.total += 1
        try:
            if isinstance(raw, ValueError):
                raise raw
            looked, facts = reader.read(raw, number)
        except ValueError as error:
            name = str(raw.get("id", number)) if isinstance(raw, dict) else str(number)
            found.report.add(name, *fault(error))
            continue
        found.add(looked[0]["source"] or "(no source)", facts)
        if len(found.shown) < shown:
            found.shown.append(looked)
    return found


def as_text(found: Inspection) -> str:
    """Return the counts and histograms as lines for a terminal."""
    lines = [_counts(found), str(found.report)]
    if len(found.sources) > 1:
        total = sum(found.sources.values())
        lines += ["", "learned tokens by source"]
        for name, count in found.sources.most_common():
            lines.append(f"  {name:32s} {count:12,} {count / total:7.1%}")
    return "\n".join([*lines, "", histograms(found)])


def _counts(found: Inspection) -> str:
    return (
        f"{found.samples:,} good samples, {found.questions:,} questions, {found.images:,} images, "
        f"{sum(found.row_tokens):,} tokens, {sum(found.answer_tokens):,} of them learned"
    )


def histograms(found: Inspection) -> str:
    """Return the lengths of rows and answers, and the sizes of images, as lines with bars."""
    lines = ["tokens per row", *histogram(found.row_tokens)]
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
