"""TrainingStream: packed batches without end, in one order, that can stop and go on anywhere."""

from __future__ import annotations

import dataclasses
import os
from collections import deque
from collections.abc import Mapping
from concurrent.futures import BrokenExecutor, Executor, Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import grain
import numpy as np

from dl_techniques.datasets.augmentation import Augmentation
from dl_techniques.datasets.mixture import Mixture
from dl_techniques.datasets.packed_rows import PackedRow, collate, source_ids
from dl_techniques.datasets.planning import Planner
from dl_techniques.datasets.quarantine import BadSample, Quarantine
from dl_techniques.datasets.row_loader import RowLoader
from dl_techniques.datasets.rows import RowEncoder
from dl_techniques.datasets.tile_cache import TileCache
from dl_techniques.datasets.worker_pool import worker_pool

if TYPE_CHECKING:
    from dl_techniques.datasets.vqa_dataset import VQADataProcessor

_BATCHES_AHEAD = 2
_CHECKED_FROM = 100  # A share of fewer samples says little.
LONG_SAMPLES = ("split", "drop")

# (inputs, labels), see `TrainingStream`.
Batch = tuple[dict[str, np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class StreamSettings:
    """What decides which rows there are and in which order.

    Attributes:
        length: Tokens per row.
        batch_size: Rows per batch, of this process.
        max_tiles: The most tiles in a row; None: any number.
        lookahead: How many documents the packer chooses from; see `Packer`.
        max_documents: The most documents in a row; None: any number. A contrastive loss needs 1.
        long_samples: What becomes of conversations longer than a row: "split" between turns, each
            part with the images that it needs, or "drop". A single turn that is too long is
            dropped, plain text is always split. What is dropped is in the quarantine.
        seed: Of the augmentation.
        process_index: This process's number in a distributed run.
        process_count: How many there are; each gets every so many-th row of the one order. Their
            batches are of one shape, and their states are the same.
        max_bad_share: The stream ends with an error when more samples than this share are bad.
    """

    length: int
    batch_size: int
    max_tiles: int | None = None
    lookahead: int = 64
    max_documents: int | None = None
    long_samples: str = "split"
    seed: int = 0
    process_index: int = 0
    process_count: int = 1
    max_bad_share: float = 0.05

    def __post_init__(self):
        if self.length < 2 or self.batch_size < 1 or self.lookahead < 1 or self.seed < 0:
            raise ValueError(f"Sizes must be positive, length at least 2: {self}.")
        if self.long_samples not in LONG_SAMPLES:
            raise ValueError(f"long_samples must be one of {LONG_SAMPLES}: {self}.")
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

    A batch is (inputs, labels) with `text_tokens`, `attention_mask`, `segment_ids`, `positions`,
    `source_ids` (k for the k-th of the sources, 0 for padding) [B, length], `images`
    float32[B, I, H, W, 3], `num_images` int32[B] and labels int32[B, length]. I is rounded up to
    one of a few sizes, 0 for batches without images. The last batch is filled with empty rows.

    Args:
        sources: By name: random-access sequences (`open_source`), of which an element is a sample
            or a list of samples, or streams (`open_source(..., streaming=True)`), which come in
            their own order; every process of a distributed run then reads the whole stream.
        processor: Encodes texts, prepares images; needs placeholders for images.
        mixture: Which source comes next, and how often each is repeated.
        settings: See `StreamSettings`.
        augment: uint8[H, W, 3], Generator -> uint8[H, W, 3]; see `VQADataset`.
        workers: Threads or processes that prepare images; 0: none.
        worker_kind: "thread" or "process".
        cache: A folder in which prepared images are kept for later epochs and runs; see
            `TileCache`. For slow files and large pictures, where the disk is not short.
        quarantine: A JSONL file that names every bad sample; see `Quarantine`. Each process of a
            distributed run needs its own.

    Raises:
        ValueError: contradicting arguments.
    """

    def __init__(
        self,
        sources: Mapping[str, Any],
        processor: VQADataProcessor,
        mixture: Mixture,
        settings: StreamSettings,
        augment: Augmentation | None = None,
        workers: int = 2,
        worker_kind: str = "thread",
        cache: str | os.PathLike | None = None,
        quarantine: str | os.PathLike | None = None,
    ):
        super().__init__()
        if worker_kind not in ("thread", "process") or workers < 0:
            raise ValueError(
                f"worker_kind must be 'thread' or 'process' and workers at least 0, got "
                f"{worker_kind!r} and {workers}."
            )
        if not processor.marks_images:
            raise ValueError(
                "Rows can only be packed where images have placeholders or tags: the processor has "
                "no image_token_id."
            )
        self.sources = dict(sources)
        self.processor = processor
        self.mixture = mixture
        self.settings = settings
        self.workers = workers
        self.worker_kind = worker_kind
        self.quarantine = quarantine
        kept = None if cache is None else TileCache(cache)
        self.loader = RowLoader(processor, augment, settings.seed, kept)

    def __iter__(self) -> TrainingIterator:
        return TrainingIterator(self)

    @property
    def ends(self) -> bool:
        """Whether there is a last batch: every source has a limit of epochs."""
        return self.mixture.ends(self.sources)

    def planner(self, sources: Mapping[str, Any], mixture: Mixture) -> Planner:
        """Return what plans rows as this stream does, of any sources in any mixture."""
        settings = self.settings
        return Planner(
            sources,
            RowEncoder(
                self.processor.encode, settings.length, split=settings.long_samples == "split"
            ),
            self.processor.tokenizer,
            mixture,
            settings.length,
            settings.lookahead,
            self.loader.count_tiles,
            settings.max_tiles,
            settings.max_documents,
        )


@dataclasses.dataclass
class _PlannedBatch:
    """A batch whose rows are settled.

    Attributes:
        rows: And who prepares their pixels: a worker, or None.
        slots: Of images, of all processes.
        bad: Samples that were found to be bad since the batch before.
        samples: How many samples were looked at by then.
        state_after: Of the plan.
        result: The batch in the making; None: without workers.
    """

    rows: list[tuple[PackedRow, Future | None]]
    slots: int
    bad: list[BadSample]
    samples: int
    state_after: dict[str, Any]
    result: Future | None = None


class TrainingIterator(grain.DatasetIterator):
    """One pass over a `TrainingStream`."""

    def __init__(self, stream: TrainingStream):
        super().__init__()
        self._stream = stream
        self._pool: Executor | None = worker_pool(stream.workers, stream.worker_kind)
        # Joins and normalises the next batch while a step runs on this one.
        self._assembler = None if self._pool is None else ThreadPoolExecutor(1)
        self._begin()

    def _begin(self) -> None:
        stream = self._stream
        self._planner = stream.planner(stream.sources, stream.mixture)
        self._ended = False
        self._ahead: deque[_PlannedBatch] = deque()
        self._quarantine = Quarantine(stream.quarantine)
        self._state = self._plan_state()
        self._sample_ids: list[str] = []

    def __next__(self) -> Batch:
        self._assert_not_closed()
        while len(self._ahead) < (_BATCHES_AHEAD if self._pool else 1) and not self._ended:
            self._plan_batch()
        planned = self._ahead.popleft() if self._ahead else None
        if planned is None:  # What was found behind the last row.
            self._note(self._planner.take_bad(), self._planner.samples)
            self._quarantine.check(self._stream.settings.max_bad_share)
            raise StopIteration
        if planned.result is None:
            batch, faults = self._assemble(planned.rows, planned.slots)
        else:
            batch, faults = planned.result.result()
        self._state = planned.state_after
        self._sample_ids = [
            f"{document.key[0]}/{document.sample_id or document.key[1]}"
            for row, _ in planned.rows
            for document in row.documents
        ]
        self._note(planned.bad + faults, planned.samples)
        return batch

    def _plan_batch(self) -> None:
        settings, loader = self._stream.settings, self._stream.loader
        of_all: list[PackedRow] = []
        while len(of_all) < settings.batch_size * settings.process_count:
            row = self._planner.next_row()
            if row is None:
                self._ended = True
                break
            of_all.append(row)
        if not of_all:
            return
        rows = [
            (row, None if self._pool is None else self._pool.submit(loader, row))
            for row in of_all[settings.process_index :: settings.process_count]
        ]
        slots = _slots(max(row.tiles for row in of_all))
        bad, samples = self._planner.take_bad(), self._planner.samples
        planned = _PlannedBatch(rows, slots, bad, samples, self._plan_state())
        if self._assembler is not None:
            planned.result = self._assembler.submit(self._assemble, rows, slots)
        self._ahead.append(planned)

    def _plan_state(self) -> dict[str, Any]:
        return {"planner": self._planner.state()}

    def _assemble(
        self, rows: list[tuple[PackedRow, Future | None]], slots: int
    ) -> tuple[Batch, list[BadSample]]:
        """Return the batch of these rows, and the samples whose images are broken."""
        loaded = [self._loaded(row, future) for row, future in rows]
        faults = [fault for _, _, found in loaded for fault in found]
        batch = self._batch([row for row, _, _ in loaded], [p for _, p, _ in loaded], slots)
        return batch, faults

    def _loaded(
        self, row: PackedRow, future: Future | None
    ) -> tuple[PackedRow, np.ndarray, list[BadSample]]:
        """Return a row, its pixels and faults; documents with broken images are left out."""
        try:
            pixels, faults = self._stream.loader(row) if future is None else future.result()
        except BrokenExecutor as error:
            keys = [document.key for document in row.documents]
            raise RuntimeError(
                "A worker process of the data pipeline died (killed, or out of memory?) while it "
                f"prepared the documents {keys}."
            ) from error
        good = tuple(d for number, d in enumerate(row.documents) if number not in faults)
        return PackedRow(good, row.length), pixels, list(faults.values())

    def _batch(self, rows: list[PackedRow], pixels: list[np.ndarray], slots: int) -> Batch:
        settings, processor = self._stream.settings, self._stream.processor
        size = settings.batch_size
        rows = rows or [PackedRow((), settings.length)]
        inputs, labels = collate(rows, processor.pad_token_id, size)
        names = list(self._stream.sources)
        inputs["source_ids"] = source_ids(rows, inputs["segment_ids"], names)
        shape = (size, slots, *processor.image_processor.image_size, 3)
        inputs["images"] = np.zeros(shape, np.float32)
        for place, tiles in enumerate(pixels):
            if len(tiles):
                normal = processor.image_processor.normalize(tiles)
                inputs["images"][place, : len(tiles)] = normal
        return inputs, labels

    def _note(self, bad: list[BadSample], samples: int) -> None:
        """Put bad samples into the quarantine, with a name and the places of their rows."""
        named = []
        for item in bad:
            where = getattr(self._stream.sources[item.source], "where", lambda row: "")
            name = item.sample_id or f"{item.source}/{item.row}"
            named.append(dataclasses.replace(item, sample_id=name, place=where(item.row)))
        self._quarantine.total = samples
        self._quarantine.record(named)
        if samples >= _CHECKED_FROM:
            self._quarantine.check(self._stream.settings.max_bad_share)

    def report(self) -> Quarantine:
        """Return the samples that could not be used so far, and why."""
        return self._quarantine

    def sample_ids(self) -> list[str]:
        """Return "source/id" of the samples in the batch that was given out last."""
        return self._sample_ids

    def shares(self) -> dict[str, dict[str, float]]:
        """Return what was planned so far of each source; see `MixtureRun.shares`."""
        return self._planner.shares()

    @property
    def utilisation(self) -> float:
        """Share of the tokens in the rows planned so far that are not padding."""
        return self._planner.utilisation

    def get_state(self) -> dict[str, Any]:
        """Return the state after the last batch that was given out, JSON-ready."""
        return {**self._state, "quarantine": self._quarantine.state()}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go on behind the batch after which the state was taken.

        Raises:
            ValueError: if the sources do not hold what the state names.
        """
        self._begin()
        self._planner.restore(state["planner"])
        self._quarantine.restore(state["quarantine"])
        self._state = {"planner": state["planner"]}

    def close(self) -> None:
        """End the workers."""
        for pool in (self._assembler, self._pool):
            if pool is not None:
                pool.shutdown(wait=False, cancel_futures=True)
        super().close()


def _slots(tiles: int) -> int:
    """Return the number of image slots: few different ones, so that few shapes are compiled."""
    if tiles <= 4:
        return tiles
    step = 1 << max(1, tiles.bit_length() - 3)
    return -(-tiles // step) * step
