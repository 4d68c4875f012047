"""BatchesAhead: reads the next batch while a step runs on the last one."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import keras


class BatchesAhead:
    """Takes batches from an iterator on a thread of its own, one ahead, images on the device.

    Args:
        iterator: Has `get_state`, and may have `sample_ids` and `close`.
    """

    def __init__(self, iterator: Iterator):
        self._iterator = iterator
        self._pool = ThreadPoolExecutor(1)
        self._upcoming = self._pool.submit(self._read)

    def _read(self) -> tuple | None:
        batch = next(self._iterator, None)
        if batch is None:
            return None
        names = getattr(self._iterator, "sample_ids", list)()
        return _with_images_on_device(batch), self._iterator.get_state(), names

    def next(self) -> tuple[tuple, Any, list[str]] | None:
        """Return (batch, the iterator's state behind it, the ids of its samples); None at the end.

        Nothing may be asked for after the end.
        """
        item = self._upcoming.result()
        if item is not None:
            self._upcoming = self._pool.submit(self._read)
        return item

    def close(self) -> None:
        """Stop reading."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        close = getattr(self._iterator, "close", None)
        if close is not None:
            close()


def _with_images_on_device(batch: tuple) -> tuple:
    """Return (inputs, labels), the images copied already to where the step will run.

    Several devices share a batch in the step itself. The small arrays stay: the host checks them.
    """
    inputs, labels = batch
    alone = keras.backend.backend() != "tensorflow" and keras.distribution.distribution() is None
    if not alone or inputs.get("images") is None:
        return batch
    return {**inputs, "images": keras.ops.convert_to_tensor(inputs["images"])}, labels
