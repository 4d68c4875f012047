"""Packed rows: several documents in one row of a batch, of which none sees another."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dl_techniques.datasets.isolated_turns import IGNORE_INDEX
from dl_techniques.datasets.rows import Row

Key = tuple[str | int, ...]


@dataclass(frozen=True, eq=False)
class Document:
    """What is never cut and never seen from outside: a conversation, a part of one, or a text.

    Attributes:
        ids: int32[n], n >= 1, with a run of placeholders for every tile.
        labels: int32[n]; `labels[t]` is learned at position t, -100 where nothing is.
        images: image sources, in the order of their placeholders.
        tiles: how many tiles the images are cut into.
        may_flip: whether its images may be mirrored; see `Row`.
        sample_id: the id of the sample that it is of.
        key: where the document comes from, so that it can be encoded again: strings and integers,
            such as (source, index, part).

    Raises:
        ValueError: arrays of another kind, fewer tiles than images, or a key that JSON would
            change.
    """

    ids: np.ndarray
    labels: np.ndarray
    images: tuple[Any, ...]
    tiles: int
    key: Key
    may_flip: bool = True
    sample_id: str = ""

    def __post_init__(self):
        if not isinstance(self.key, tuple) or not all(type(k) in (str, int) for k in self.key):
            raise ValueError(f"key must be a tuple of strings and integers, got {self.key!r}.")
        for name, array in (("ids", self.ids), ("labels", self.labels)):
            if not isinstance(array, np.ndarray) or array.dtype != np.int32 or array.ndim != 1:
                found = f"{getattr(array, 'dtype', type(array).__name__)}{list(np.shape(array))}"
                raise ValueError(f"Document {self.key}: {name} must be int32[n], got {found}.")
        if len(self.ids) != len(self.labels) or len(self.ids) == 0:
            raise ValueError(
                f"Document {self.key}: expected as many ids as labels and at least one, got "
                f"{len(self.ids)} and {len(self.labels)}."
            )
        if self.tiles < len(self.images) or (self.tiles and not self.images):
            raise ValueError(
                f"Document {self.key}: {len(self.images)} images cannot become {self.tiles} tiles."
            )

    @classmethod
    def from_row(cls, row: Row, tiles: int, key: Key) -> "Document":
        """Makes a document of an encoded row, its turns in the order given.

        Raises:
            ValueError: the row's turns are isolated from each other, or see the class.
        """
        if row.turn_ids is not None:
            raise ValueError(
                f"Document {key}: rows of isolated turns cannot be packed. Encode them with "
                "isolate_turns=False."
            )
        return cls(*row.tokens(), tuple(row.images), tiles, key, row.may_flip, row.sample_id)

    @property
    def supervised(self) -> int:
        """How many tokens are learned: the first one never is, as nothing comes before it."""
        return int(np.count_nonzero(self.labels[1:] != IGNORE_INDEX))


@dataclass(frozen=True, eq=False)
class PackedRow:
    """Documents that share one row.

    Attributes:
        documents: in the order in which they stand.
        length: S, the row's length in tokens; what the documents leave is padding.
    """

    documents: tuple[Document, ...]
    length: int

    @property
    def images(self) -> list[Any]:
        """The image sources of all documents, in the order of their placeholders."""
        return [image for document in self.documents for image in document.images]

    @property
    def tiles(self) -> int:
        """How many tiles the images are cut into."""
        return sum(document.tiles for document in self.documents)

    @property
    def tokens(self) -> int:
        """How many tokens are not padding."""
        return sum(len(document.ids) for document in self.documents)

    def arrays(self, pad_id: int) -> dict[str, np.ndarray]:
        """Returns the row's arrays, each int32[S].

        `text_tokens`, padded with `pad_id`; `labels`; `segment_ids`, 1, 2, ... per document and 0
        for padding; `positions`, which begin at 0 in every document.
        """
        tokens = np.full(self.length, pad_id, np.int32)
        labels = np.full(self.length, IGNORE_INDEX, np.int32)
        segments = np.zeros(self.length, np.int32)
        positions = np.zeros(self.length, np.int32)
        start = 0
        for number, document in enumerate(self.documents, start=1):
            end = start + len(document.ids)
            tokens[start:end] = document.ids
            # The token before a document's first one belongs to another document, and the loss,
            # which knows no documents, would have it predict the first label.
            labels[start + 1 : end] = document.labels[1:]
            segments[start:end] = number
            positions[start:end] = np.arange(end - start)
            start = end
        return {
            "text_tokens": tokens,
            "labels": labels,
            "segment_ids": segments,
            "positions": positions,
        }


def source_ids(rows: Sequence[PackedRow], segment_ids: np.ndarray, names: Sequence[str]):
    """Returns int32[B, S]: k where a token is of the k-th source, 0 for padding.

    Args:
        rows: packed rows, whose documents' keys begin with the source's name.
        segment_ids: int32[B, S] of their batch; B may be larger.
        names: the sources.
    """
    numbers = {name: k for k, name in enumerate(names, start=1)}
    found = np.zeros_like(segment_ids)
    for place, row in enumerate(rows):
        of_segment = [0, *(numbers[document.key[0]] for document in row.documents)]
        found[place] = np.array(of_segment, np.int32)[segment_ids[place]]
    return found


def collate(
    rows: Sequence[PackedRow], pad_id: int, batch_size: int | None = None
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Joins packed rows to a batch that lacks only the pixels.

    Args:
        rows: at least one, all of one length S.
        pad_id: the id of padding.
        batch_size: B; the batch is filled with empty rows. Default: the number of rows.

    Returns:
        (inputs, labels int32[B, S]); inputs are `text_tokens`, `segment_ids` and `positions`
        int32[B, S], `attention_mask` bool[B, S], and `num_images` int32[B]: tiles count as images.

    Raises:
        ValueError: no rows, rows of several lengths, or more rows than `batch_size`.
    """
    lengths = {row.length for row in rows}
    if len(lengths) != 1:
        raise ValueError(f"Expected rows of one length, got the lengths {sorted(lengths)}.")
    size = len(rows) if batch_size is None else batch_size
    if size < len(rows):
        raise ValueError(f"{len(rows)} rows do not fit into a batch of {size}.")
    rows = [*rows, *[PackedRow((), lengths.pop())] * (size - len(rows))]
    arrays = [row.arrays(pad_id) for row in rows]
    inputs = {name: np.stack([row[name] for row in arrays]) for name in arrays[0]}
    labels = inputs.pop("labels")
    inputs["attention_mask"] = inputs["segment_ids"] > 0
    inputs["num_images"] = np.array([row.tiles for row in rows], np.int32)
    return inputs, labels
