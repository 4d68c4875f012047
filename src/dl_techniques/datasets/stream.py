"""TrainingStream: packed batches without end, in one order, that can stop and go on anywhere."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import multiprocessing
from collections import deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import grain
import numpy as np

from dl_techniques.datasets.augmentation import Augmentation, without_flip
from dl_techniques.datasets.image_store import augmented_tiles, whole_tiles
from dl_techniques.datasets.mixture import Mixture
from dl_techniques.datasets.packed_rows import Document, PackedRow, collate
from dl_techniques.datasets.planning import Planner
from dl_techniques.datasets.quarantine import BadSample, Quarantine
from dl_techniques.datasets.rows import RowEncoder
from dl_techniques.preprocessing.image_modes import ImageError
from dl_techniques.preprocessing.images import ImageProcessor, image_size_of

if TYPE_CHECKING:
    from dl_techniques.datasets.vqa_dataset import VQADataProcessor

_BATCHES_AHEAD = 2
_CHECKED_FROM = 100  # A share of fewer samples says little.


@dataclasses.dataclass(frozen=True)
class StreamSettings:
    """What decides which rows there are and in which order.

    Attributes:
        length: Tokens per row.
        batch_size: Rows per batch, of this process.
        max_tiles: The most tiles in a row; None: any number.
        lookahead: How many documents the packer chooses from; see `Packer`.
        seed: Of the augmentation.
        process_index: This process's number in a distributed run.
        process_count: How many there are; each gets every so many-th row of the one order.
        max_bad_share: The stream ends with an error when more samples than this share are bad.
    """

    length: int
    batch_size: int
    max_tiles: int | None = None
    lookahead: int = 64
    seed: int = 0
    process_index: int = 0
    process_count: int = 1
    max_bad_share: float = 0.05

    def __post_init__(self):
        if self.length < 2 or self.batch_size < 1 or self.lookahead < 1 or self.seed < 0:
            raise ValueError(f"Sizes must be positive, length at least 2: {self}.")
        if not 0 <= self.process_index < self.process_count:
            raise ValueError(f"process_index must be below process_count: {self}.")
        if not 0.0 <= self.max_bad_share <= 1.0:
            raise ValueError(f"max_bad_share must be in [0, 1]: {self}.")


class TrainingStream(grain.IterDataset):
    """Batches of packed conversations for `fit`, from a mixture of sources.

    Texts are encoded and packed in one order, whatever the number of workers; images are decoded
    ahead by workers. Give `fit` shuffle=False: the order is mixed here. Iterators are grain's:
    `get_state` and `set_state` go on from any batch, with the same sources and settings and any
    number of workers.

    A batch is (inputs, labels) with `text_tokens`, `attention_mask`, `segment_ids`, `positions`
    [B, length], `images` float32[B, I, H, W, 3], `num_images` int32[B] and labels int32[B, length].
    I is rounded up to one of a few sizes, 0 for batches without images. The last batch is filled
    with empty rows.

    Args:
        sources: Random-access sequences by name; an element is a sample or a list of samples.
        processor: Encodes texts, prepares images; needs placeholders for images.
        mixture: Which source comes next, and how often each is repeated.
        settings: See `StreamSettings`.
        augment: uint8[H, W, 3], Generator -> uint8[H, W, 3]; see `VQADataset`.
        workers: Threads or processes that prepare images; 0: none.
        worker_kind: "thread" or "process".

    Raises:
        ValueError: contradicting arguments.
    """

    def __init__(
        self,
        sources: Mapping[str, Sequence[Any]],
        processor: VQADataProcessor,
        mixture: Mixture,
        settings: StreamSettings,
        augment: Augmentation | None = None,
        workers: int = 2,
        worker_kind: str = "thread",
    ):
        super().__init__()
        if worker_kind not in ("thread", "process") or workers < 0:
            raise ValueError(
                f"worker_kind must be 'thread' or 'process' and workers at least 0, got "
                f"{worker_kind!r} and {workers}."
            )
        if processor.image_token_id is None:
            raise ValueError(
                "Rows can only be packed where images have placeholders: the processor has no "
                "image_token_id."
            )
        self.sources = dict(sources)
        self.processor = processor
        self.mixture = mixture
        self.settings = settings
        self.augment = augment
        self.workers = workers
        self.worker_kind = worker_kind

    def __iter__(self) -> TrainingIterator:
        return TrainingIterator(self)


class TrainingIterator(grain.DatasetIterator):
    """One pass over a `TrainingStream`."""

    def __init__(self, stream: TrainingStream):
        super().__init__()
        self._stream = stream
        self._loader = RowLoader(stream.processor, stream.augment, stream.settings.seed)
        self._pool = _pool(stream.workers, stream.worker_kind)
        self._begin()

    def _begin(self) -> None:
        stream, settings = self._stream, self._stream.settings
        self._planner = Planner(
            stream.sources,
            RowEncoder(stream.processor.encode, settings.length),
            stream.processor.tokenizer,
            stream.mixture,
            settings.length,
            settings.lookahead,
            self._loader.count_tiles,
            settings.max_tiles,
        )
        self._rows_planned = 0
        self._ended = False
        self._ahead: deque[_PlannedBatch] = deque()
        self._state = self._plan_state()
        self._bad_images: list[BadSample] = []

    def __next__(self):
        self._assert_not_closed()
        while len(self._ahead) < (_BATCHES_AHEAD if self._pool else 1) and not self._ended:
            self._plan_batch()
        if not self._ahead:
            raise StopIteration
        planned = self._ahead.popleft()
        rows, pixels = zip(
            *(self._loaded(row, future) for row, future in planned.rows), strict=True
        )
        self._state = planned.state_after
        self._check_faults()
        return self._batch(rows, pixels)

    def _plan_batch(self) -> None:
        settings = self._stream.settings
        rows = []
        while len(rows) < settings.batch_size:
            row = self._planner.next_row()
            if row is None:
                self._ended = True
                break
            if self._rows_planned % settings.process_count == settings.process_index:
                future = None if self._pool is None else self._pool.submit(self._loader, row)
                rows.append((row, future))
            self._rows_planned += 1
        if rows:
            self._ahead.append(_PlannedBatch(rows, self._plan_state()))

    def _plan_state(self) -> dict[str, Any]:
        return {"planner": self._planner.state(), "rows": self._rows_planned}

    def _loaded(self, row: PackedRow, future) -> tuple[PackedRow, np.ndarray]:
        """Return a row and its pixels; documents with broken images are left out."""
        try:
            pixels, faults = self._loader(row) if future is None else future.result()
        except concurrent.futures.BrokenExecutor as error:
            keys = [document.key for document in row.documents]
            raise RuntimeError(
                "A worker process of the data pipeline died (killed, or out of memory?) while it "
                f"prepared the documents {keys}."
            ) from error
        self._bad_images += faults.values()
        good = tuple(d for number, d in enumerate(row.documents) if number not in faults)
        return PackedRow(good, row.length), pixels

    def _check_faults(self) -> None:
        report = self.report()
        if report.total >= _CHECKED_FROM or self._ended:
            report.check(self._stream.settings.max_bad_share)

    def _batch(
        self, rows: Sequence[PackedRow], pixels: Sequence[np.ndarray]
    ) -> tuple[dict[str, np.ndarray], np.ndarray]:
        size, processor = self._stream.settings.batch_size, self._stream.processor
        inputs, labels = collate(rows, processor.pad_token_id, size)
        slots = _slots(int(inputs["num_images"].max()))
        shape = (size, slots, *processor.image_processor.image_size, 3)
        inputs["images"] = np.zeros(shape, np.float32)
        for place, tiles in enumerate(pixels):
            if len(tiles):
                normal = processor.image_processor.normalize(tiles)
                inputs["images"][place, : len(tiles)] = normal
        return inputs, labels

    def report(self) -> Quarantine:
        """Return the samples that could not be used so far, and why."""
        report = Quarantine()
        report.total = self._planner.report.total
        for item in (*self._planner.report.items, *self._bad_images):
            report.add(*item)
        return report

    def shares(self) -> dict[str, dict[str, float]]:
        """Return what was planned so far of each source; see `MixtureRun.shares`."""
        return self._planner.shares()

    def get_state(self) -> dict[str, Any]:
        """Return the state after the last batch that was given out, JSON-ready."""
        return {**self._state, "bad_images": [list(item) for item in self._bad_images]}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go on behind the batch after which the state was taken.

        Raises:
            ValueError: if the sources do not hold what the state names.
        """
        self._begin()
        self._planner.restore(state["planner"])
        self._rows_planned = state["rows"]
        self._bad_images = [BadSample(*item) for item in state["bad_images"]]
        self._state = {"planner": state["planner"], "rows": state["rows"]}

    def close(self) -> None:
        """End the workers."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
        super().close()


@dataclasses.dataclass(frozen=True)
class _PlannedBatch:
    rows: list[tuple[PackedRow, concurrent.futures.Future | None]]
    state_after: dict[str, Any]


class RowLoader:
    """Decodes the images of packed rows; may run in another process.

    Args:
        processor: Prepares images.
        augment: See `TrainingStream`.
        seed: Of the augmentation, which depends on the document and the image's number too.
    """

    def __init__(self, processor: VQADataProcessor, augment: Augmentation | None, seed: int):
        self._images = processor.image_processor
        self._augment = augment
        self._seed = seed

    def count_tiles(self, source: Any) -> int:
        """Return into how many tiles an image is cut, from its header if that is needed."""
        if isinstance(self._images, ImageProcessor):
            return 1
        return self._images.grid(*image_size_of(source, self._images.max_pixels)).count

    def __call__(self, row: PackedRow) -> tuple[np.ndarray, dict[int, BadSample]]:
        """Return a row's tiles uint8[n, H, W, 3], and what is wrong with a document by its number.

        The tiles of documents with a fault are left out.
        """
        tiles, faults = [np.zeros((0, *self._images.image_size, 3), np.uint8)], {}
        for number, document in enumerate(row.documents):
            try:
                tiles += [self._tiles(document, k) for k in range(len(document.images))]
            except ImageError as error:
                name = "/".join(map(str, document.key[:2]))
                faults[number] = BadSample(name, error.reason, str(error))
        return np.concatenate(tiles), faults

    def _tiles(self, document: Document, number: int) -> np.ndarray:
        source, augment = document.images[number], self._augment
        if augment is None:
            return whole_tiles(self._images, source)
        if not document.may_flip:
            augment = without_flip(augment)
        name = repr((document.key, number)).encode()
        rng = np.random.default_rng([self._seed, *name])
        return augmented_tiles(self._images, source, augment, rng)


def _pool(workers: int, kind: str) -> concurrent.futures.Executor | None:
    if not workers:
        return None
    if kind == "thread":  # Pillow decodes outside Python's lock.
        return concurrent.futures.ThreadPoolExecutor(workers)
    # A forked child of a process that runs a backend's threads may hang.
    context = multiprocessing.get_context("spawn")
    return concurrent.futures.ProcessPoolExecutor(workers, mp_context=context)


def _slots(tiles: int) -> int:
    """Return the number of image slots: few different ones, so that few shapes are compiled."""
    if tiles <= 4:
        return tiles
    step = 1 << max(1, tiles.bit_length() - 3)
    return -(-tiles // step) * step
