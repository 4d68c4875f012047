"""What samples give a training run: rows of tokens, what of them is learned, sizes of images."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from dl_techniques.datasets.image_files import ZipMember
from dl_techniques.datasets.isolated_turns import IGNORE_INDEX
from dl_techniques.datasets.rows import BadSampleError, Row, RowEncoder
from dl_techniques.datasets.samples import Sample, normalize_sample, question_ids
from dl_techniques.datasets.text_rows import text_rows
from dl_techniques.preprocessing.image_modes import ImageError
from dl_techniques.preprocessing.images import image_size_of

if TYPE_CHECKING:
    from dl_techniques.datasets.vqa_dataset import VQADataProcessor

Shown = tuple[Sample, list[Row]]


@dataclasses.dataclass(frozen=True)
class SampleFacts:
    """The numbers of one sample, or of the samples of one row of a source.

    Attributes:
        questions: Turns of users.
        row_tokens: Tokens of every training row, image placeholders included.
        answer_tokens: Learned tokens of every training row.
        sizes: (width, height) of every image, in pixels.
    """

    questions: int = 0
    row_tokens: tuple[int, ...] = ()
    answer_tokens: tuple[int, ...] = ()
    sizes: tuple[tuple[int, int], ...] = ()

    def __add__(self, other: SampleFacts) -> SampleFacts:
        return SampleFacts(
            self.questions + other.questions,
            self.row_tokens + other.row_tokens,
            self.answer_tokens + other.answer_tokens,
            self.sizes + other.sizes,
        )


class SampleReader:
    """Encodes the text of samples and reads the headers of their images; no pixel is decoded.

    Args:
        processor: Encodes them. Its `max_text_length` is the longest row, in tokens.
    """

    def __init__(self, processor: VQADataProcessor):
        self._tokenizer = processor.tokenizer
        self._length = processor.max_text_length
        self._encoder = RowEncoder(processor.encode, self._length)
        self._sizes: dict[str | ZipMember, tuple[int, int]] = {}

    def read(self, raw: Any, number: int) -> tuple[Shown, SampleFacts]:
        """Return a sample with its rows, and its numbers.

        Args:
            raw: See `samples.normalize_sample`; or a plain text: a dict with `text`.
            number: Names the sample if it has no id.

        Raises:
            ValueError: The sample cannot be used; `fault` says why.
        """
        sample, rows = self._rows(raw, number)
        facts = SampleFacts(
            questions=len(question_ids(sample)),
            row_tokens=tuple(len(row.tokens()[0]) for row in rows),
            answer_tokens=tuple(_learned(row) for row in rows),
            sizes=tuple(self._size(image) for image in own_images(rows)),
        )
        return (sample, rows), facts

    def _size(self, image: Any) -> tuple[int, int]:
        """Return an image's size; that of a file, which many questions may share, is read once."""
        if not isinstance(image, (str, ZipMember)):
            return image_size_of(image)
        if image not in self._sizes:
            self._sizes[image] = image_size_of(image)
        return self._sizes[image]

    def _rows(self, raw: Any, number: int) -> Shown:
        if not isinstance(raw, dict) or "text" not in raw:
            sample = normalize_sample(raw, number)
            return sample, self._encoder.rows(sample)
        sample = normalize_sample({"messages": [], **raw}, number)
        return sample, text_rows(sample, number, self._tokenizer, self._length)


def own_images(rows: list[Row]) -> list[Any]:
    """Return the images of a sample, from its rows, of which each repeats what its turns need."""
    return rows[-1].images if rows else []


def fault(error: ValueError) -> tuple[str, str]:
    """Return the kind of fault that an error of `SampleReader.read` tells, and the full message."""
    if isinstance(error, (BadSampleError, ImageError)):
        return error.reason, str(error)
    return "malformed sample", str(error)


def _learned(row: Row) -> int:
    """Return how many tokens are learned: never the first, before which nothing comes."""
    return int(np.count_nonzero(row.tokens()[1][1:] != IGNORE_INDEX))
