"""EpochStream: an indexable data set as one stream of batches that can go on from any of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np


class EpochStream:
    """The batches of a data set, epoch after epoch, without end.

    Iterators have `get_state` and `set_state`, as those of `TrainingStream`.

    Args:
        dataset: Batches `(inputs, labels)` by number, with `set_epoch`, such as `VQADataset`.
        part: Is applied to each batch: what this process has of it. Default: all.
    """

    def __init__(self, dataset: Any, part: Callable = lambda batch: batch):
        self.dataset, self.part = dataset, part

    def __iter__(self) -> EpochIterator:
        return EpochIterator(self.dataset, self.part)


class EpochIterator(Iterator):
    """One pass over an `EpochStream`."""

    def __init__(self, dataset: Any, part: Callable):
        self._dataset, self._part = dataset, part
        self._given = 0
        self._data = {"batches_per_epoch": len(dataset), "first_batch": _digest(dataset)}

    def __next__(self) -> tuple[dict[str, np.ndarray], np.ndarray]:
        epoch, number = divmod(self._given, len(self._dataset))
        self._dataset.set_epoch(epoch)
        batch = self._part(self._dataset[number])
        self._given += 1
        return batch

    def sample_ids(self) -> list[str]:
        """Return the ids of the samples in the batch that was given out last."""
        names = getattr(self._dataset, "sample_ids", None)
        return [] if names is None else names((self._given - 1) % len(self._dataset))

    def get_state(self) -> dict[str, Any]:
        """Return the state after the last batch that was given out, JSON-ready."""
        return {"given": self._given, **self._data}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go on behind the batch after which the state was taken.

        Raises:
            ValueError: The state is that of other data.
        """
        saved = {name: state.get(name) for name in self._data}
        if saved != self._data:
            raise ValueError(
                f"The run to resume was on other data: {saved}, this is {self._data}. Give the "
                "same data, batch size and seed."
            )
        self._given = state["given"]


def _digest(dataset: Any) -> str:
    """Return what tells this data, order and batch size from others: a hash of some labels."""
    dataset.set_epoch(0)
    labels = np.ascontiguousarray(dataset[0][1])
    return hashlib.blake2b(repr(labels.shape).encode() + labels.tobytes()).hexdigest()[:32]
