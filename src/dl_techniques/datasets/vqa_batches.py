"""VQADataset: batches of questions about images for `fit` on any backend."""

import logging
import operator
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import keras
import numpy as np

from dl_techniques.datasets.augmentation import Augmentation, without_flip
from dl_techniques.datasets.batches import pad_tokens, padded_length
from dl_techniques.datasets.image_store import ImageStore
from dl_techniques.datasets.quarantine import Quarantine
from dl_techniques.datasets.rows import IGNORE_INDEX, BadSampleError, Row, RowEncoder
from dl_techniques.datasets.samples import Sample, normalize_sample, parts_of, with_parts
from dl_techniques.preprocessing.images import BaseImageProcessor

logger = logging.getLogger(__name__)


class VQADataset(keras.utils.PyDataset):
    """Batches of conversations about images; made by `VQADataProcessor.create_dataset`.

    Batch i is `(inputs, labels)`: `images` float32[B, I, H, W, 3] and `num_images` int32[B] (both
    absent when no row has an image), `text_tokens` int32[B, S], `attention_mask` bool[B, S],
    `turn_ids` int32[B, S] if the encoder isolates turns, and labels int32[B, S], -100 where nothing
    is learned. S is the longest row rounded up to a multiple of `bucket`. The last batch is filled
    with empty rows, so that B never changes and no row is dropped. Reading a batch changes nothing:
    the same epoch and i give the same arrays.

    Samples are checked, and their text encoded, once, here; of samples that `group_by_image` joined
    to one, the bad ones alone are left out. `fit(shuffle=True)`, Keras' default, draws the order of
    whole batches from Python's global generator on top of this one's order; give `shuffle=False` to
    repeat a run exactly. `fit` also advances the epoch once before the
    first one when it has to build the model: call `set_epoch` in a callback's `on_epoch_begin`
    where the epoch must be the same after a resume.

    Args:
        encoder: cuts and encodes samples.
        image_processor: decodes, resizes and normalises images.
        samples: rows, see `samples.normalize_sample`.
        pad_id: the id of padding.
        max_length: the longest row in tokens.
        max_bad_share: the largest tolerated share of bad samples.
        batch_size: B.
        shuffle: whether each epoch has its own order of rows.
        seed: order and augmentation are functions of (seed, epoch, row).
        augment: uint8[H, W, 3], Generator -> uint8[H, W, 3]. Rows whose text speaks of left, right
            or reading are never flipped. Images that are cut into tiles are augmented before, which
            needs `cache_images=False`.
        cache_images: decode every image now and keep its tiles as uint8; otherwise only headers
            are checked, and images are decoded for each batch.
        shuffle_turns: whether each epoch has its own order of the questions in a row.
        bucket: lengths are rounded up to multiples of it.
        **kwargs: `workers` etc. of `keras.utils.PyDataset`.

    Attributes:
        report: the samples that were left out, and why (`Quarantine`).
        rows: the encoded rows.
        supervised_tokens: how many tokens are learned, per source.

    Raises:
        ValueError: a number out of range, too many bad samples, or no usable one.
    """

    def __init__(
        self,
        encoder: RowEncoder,
        image_processor: BaseImageProcessor,
        samples: Iterable[dict[str, Any]],
        *,
        pad_id: int,
        max_length: int,
        max_bad_share: float,
        batch_size: int = 32,
        shuffle: bool = True,
        seed: int = 0,
        augment: Augmentation | None = None,
        cache_images: bool = True,
        shuffle_turns: bool = False,
        bucket: int = 32,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        if batch_size < 1 or bucket < 1 or seed < 0:
            raise ValueError(
                "Expected batch_size >= 1, bucket >= 1 and seed >= 0, got "
                f"{batch_size}, {bucket} and {seed}."
            )
        if augment is not None and cache_images and image_processor.max_tiles > 1:
            raise ValueError("Tiles cannot be augmented once cut: give cache_images=False.")
        self.batch_size = batch_size
        self.report = Quarantine()
        self.epoch = 0
        self._processor = image_processor
        self._pad_id = pad_id
        self._max_length = max_length
        self._shuffle = shuffle
        self._seed = seed
        self._augment = augment
        self._shuffle_turns = shuffle_turns
        self._bucket = bucket
        self._order: tuple[int, np.ndarray] | None = None
        self._store = ImageStore(image_processor, cache_images)
        encoded = self._encode(encoder, samples)
        self._store.check()
        self.rows = self._keep_good(encoded)
        self._finish_report(max_bad_share)
        self._slots = max(map(self.count_tiles, self.rows))
        self._longest = max(len(row.tokens()[0]) for row in self.rows)
        if shuffle_turns:
            self._longest = min(max_length, max(_longest_order(row) for row in self.rows))
        self.supervised_tokens = self._count_supervised()

    def _encode(
        self, encoder: RowEncoder, samples: Iterable[dict[str, Any]]
    ) -> list[tuple[Sample, list[Row]]]:
        """Encodes samples; the rows' images become numbers in the store."""
        encoded = []
        for index, raw in enumerate(samples):
            try:
                sample = normalize_sample(raw, index)
            except ValueError as error:
                self.report.total += 1
                name = str(raw.get("id", index)) if isinstance(raw, dict) else str(index)
                self.report.add(name, "malformed sample", str(error))
                continue
            self.report.total += len(parts_of(sample))
            sample, rows = self._good_rows(encoder, sample)
            for row in rows:
                row.images = [self._store.add(source) for source in row.images]
            encoded.append((sample, rows))
        return encoded

    def _good_rows(self, encoder: RowEncoder, sample: Sample) -> tuple[Sample, list[Row]]:
        """Returns the sample without its bad parts, and its rows."""
        try:
            return sample, encoder.rows(sample)
        except BadSampleError as error:
            if len(parts_of(sample)) == 1:
                self.report.add(sample["id"], error.reason, str(error))
                return sample, []

        def good(part: Sample) -> bool:
            try:
                encoder.rows(part)
            except BadSampleError as error:
                self.report.add(part["id"], error.reason, str(error))
                return False
            return True

        rest = with_parts(sample, good)
        return (sample, []) if rest is None else (rest, encoder.rows(rest))

    def _keep_good(self, encoded: list[tuple[Sample, list[Row]]]) -> list[Row]:
        kept = []
        for sample, rows in encoded:
            errors = (self._store.error(number) for row in rows for number in row.images)
            error = next((error for error in errors if error is not None), None)
            if error is None:
                kept += rows
                continue
            for part in parts_of(sample):
                self.report.add(part["id"], error.reason, str(error))
        return kept

    def count_tiles(self, row: Row) -> int:
        """Returns into how many tiles the images of one of `rows` are cut, together."""
        return sum(self._store.tiles(number) for number in row.images)

    def _finish_report(self, max_bad_share: float):
        self.report.check(max_bad_share)
        if not self.rows:
            raise ValueError(f"There is no usable sample: {self.report}.")
        if len(self.report):
            names = ", ".join(item.sample_id for item in self.report.items[:10])
            logger.warning("%s; left out: %s", self.report, names)

    def _count_supervised(self) -> dict[str, int]:
        counts: Counter = Counter()
        for row in self.rows:
            counts[row.source] += int((row.tokens()[1] != IGNORE_INDEX).sum())
        return dict(counts)

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the images in pixels."""
        return self._processor.image_size

    def __len__(self) -> int:
        return -(-len(self.rows) // self.batch_size)

    def __getitem__(self, index: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
        index = operator.index(index)
        if not 0 <= index < len(self):
            raise IndexError(f"Batch {index} of {len(self)}.")
        start = index * self.batch_size
        return self.batch(self._row_order()[start : start + self.batch_size], self.batch_size)

    def batch(
        self, indices: Sequence[int], batch_size: int | None = None
    ) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Returns the batch of the given rows, filled with empty rows up to `batch_size`."""
        epoch, size = self.epoch, batch_size or len(indices)
        tokens = [
            self.rows[i].tokens(self._rng(epoch, i, 0) if self._shuffle_turns else None)
            for i in indices
        ]
        longest, slots = max(len(ids) for ids, _ in tokens), None
        if keras.backend.backend() == "tensorflow":
            # There Keras takes the shapes of all batches from the first two.
            longest, slots = self._longest, self._slots
        length = padded_length(longest, self._bucket, self._max_length)
        text, mask, labels = pad_tokens(tokens, size, length, self._pad_id)
        inputs = {"text_tokens": text, "attention_mask": mask}
        if self.rows[0].turn_ids is not None:
            inputs["turn_ids"] = np.zeros_like(text)
            for place, index in enumerate(indices):
                turn_ids = self.rows[index].turn_ids
                inputs["turn_ids"][place, : len(turn_ids)] = turn_ids
        if self._slots:
            inputs["images"], inputs["num_images"] = self._image_batch(indices, size, slots, epoch)
        return inputs, labels

    def _image_batch(
        self, indices: Sequence[int], size: int, slots: int | None, epoch: int
    ) -> tuple[np.ndarray, np.ndarray]:
        counts = np.zeros(size, np.int32)
        counts[: len(indices)] = [self.count_tiles(self.rows[i]) for i in indices]
        slots = slots or max(1, int(counts.max()))
        pixels = np.zeros((size, slots, *self._processor.image_size, 3), np.uint8)
        for place, index in enumerate(indices):
            for slot, tile in enumerate(self._row_tiles(index, epoch)):
                pixels[place, slot] = tile
        images = self._processor.normalize(pixels)
        for place in np.flatnonzero(counts < slots):
            images[place, counts[place] :] = 0.0
        return images, counts

    def _row_tiles(self, index: int, epoch: int) -> Iterator[np.ndarray]:
        row, augment = self.rows[index], self._augment
        if augment is not None and not row.may_flip:
            augment = without_flip(augment)
        for place, number in enumerate(row.images):
            rng = None if augment is None else self._rng(epoch, index, 1 + place)
            yield from self._store.pixels(number, row.sample_id, augment, rng)

    def _rng(self, epoch: int, index: int, stream: int) -> np.random.Generator:
        return np.random.default_rng([self._seed, epoch, int(index), stream])

    def sample_ids(self, index: int) -> list[str]:
        """Return the ids of the samples in a batch of this epoch."""
        start = index * self.batch_size
        rows = self._row_order()[start : start + self.batch_size]
        return [self.rows[row].sample_id for row in rows]

    def _row_order(self) -> np.ndarray:
        if not self._shuffle:
            return np.arange(len(self.rows))
        order = self._order
        if order is None or order[0] != self.epoch:
            rng = np.random.default_rng([self._seed, self.epoch])
            order = self._order = (self.epoch, rng.permutation(len(self.rows)))
        return order[1]

    def on_epoch_end(self):
        """Advances the epoch; Keras calls it."""
        self.epoch += 1

    def set_epoch(self, epoch: int):
        """Sets the epoch, to go on where a run stopped.

        Args:
            epoch: number of epochs done.
        """
        if epoch < 0:
            raise ValueError(f"epoch must be at least 0, got {epoch}.")
        self.epoch = epoch


def _longest_order(row: Row) -> int:
    if not row.following:
        return len(row.opening[0][0])
    extra = max(len(a[0]) - len(b[0]) for a, b in zip(row.opening, row.following, strict=True))
    return extra + sum(len(b[0]) for b in row.following)
