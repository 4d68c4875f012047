"""BatchesAhead: reads the next batch while a step runs on the last one."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any


class BatchesAhead:
    """Takes batches from an iterator on a thread of its own, one ahead.

    Args:
        iterator: Has `get_state`, and may have `sample_ids` and `close`.
    """

    def __init__(self, iterator: Iterator):
        self._iterator = iterator
        self._pool = ThreadPoolExecutor(1)
        self._upcoming = self._pool.submit(self._read)

    def _read(self) -> tuple:
        batch = next(self._iterator, None)
        if batch is None:
            raise ValueError("The data ended before the stage: allow more epochs, or fewer steps.")
        names = getattr(self._iterator, "sample_ids", list)()
        return batch, self._iterator.get_state(), names

    def next(self) -> tuple[tuple, Any, list[str]]:
        """Return (batch, the iterator's state behind it, the ids of its samples).

        Raises:
            ValueError: there is no further batch.
        """
        item = self._upcoming.result()
        self._upcoming = self._pool.submit(self._read)
        return item

    def close(self) -> None:
        """Stop reading."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        close = getattr(self._iterator, "close", None)
        if close is not None:
            close()
