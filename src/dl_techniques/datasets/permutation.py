"""Keyed permutations: a shuffled order of any number of rows that needs no table of them.

A table of shuffled indices would need memory for every row of every source, and NumPy does not
promise the same shuffle in its next version; this one is a function, the same everywhere.
"""

import hashlib
import json
import math

import numpy as np

# With fewer, some orders of a handful of rows are visibly more frequent than others.
_ROUNDS = 12
_MASK = 2**64 - 1
# So many blocks are open at a time: their rows are mixed.
OPEN_BLOCKS = 4


def stream_key(*parts: int | str) -> int:
    """Returns 64 bits that name a random stream: other parts, another stream."""
    digest = hashlib.blake2b(json.dumps(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def permuted(position: int, length: int, key: int) -> int:
    """Returns the index that stands at a position of the shuffled order of `range(length)`.

    A Feistel network on a grid with at least `length` cells; a walk that leaves the range goes on
    until it is inside again, which keeps it a permutation.

    Args:
        position: in `range(length)`.
        length: number of rows, at least 1.
        key: from `stream_key`; another key gives another order.

    Raises:
        ValueError: the position is outside the range.
    """
    if not 0 <= position < length:
        raise ValueError(f"position must be in [0, {length}), got {position}.")
    columns = math.isqrt(length - 1) + 1
    rows = -(-length // columns)
    while True:
        row, column = divmod(position, columns)
        for number in range(0, _ROUNDS, 2):
            row = (row + _random_bits(key, _ROUNDS * column + number)) % rows
            column = (column + _random_bits(key, _ROUNDS * row + number + 1)) % columns
        position = row * columns + column
        if position < length:
            return position


def _random_bits(key: int, counter: int) -> int:
    """Returns element `counter` of the SplitMix64 stream that starts at `key`."""
    bits = (key + (counter + 1) * 0x9E3779B97F4A7C15) & _MASK
    bits = ((bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    bits = ((bits ^ (bits >> 27)) * 0x94D049BB133111EB) & _MASK
    return bits ^ (bits >> 31)


class BlockOrder:
    """A shuffled order of rows that lie in blocks, each of which is read whole for any of its rows.

    The blocks come in a shuffled order, `OPEN_BLOCKS` of them at a time, and the rows of these in a
    shuffled order: whoever keeps the open blocks reads each once an epoch.

    Args:
        ends: int[n], the number of rows in each block and those before it.
    """

    def __init__(self, ends: np.ndarray):
        ends = np.asarray(ends, np.int64)
        sizes = np.diff(ends, prepend=0)
        self._starts, self._sizes = (ends - sizes)[sizes > 0], sizes[sizes > 0]
        self.digest = stream_key(*self._sizes.tolist())
        self._key: int | None = None

    def index(self, position: int, key: int) -> int:
        """Returns the index that stands at a position; see `permuted`."""
        if key != self._key:
            self._shuffle(key)
        window = int(np.searchsorted(self._window_ends, position, side="right"))
        first = int(self._window_ends[window - 1]) if window else 0
        length = int(self._window_ends[window]) - first
        inside = permuted(position - first, length, stream_key(key, window))
        blocks = self._order[window * OPEN_BLOCKS : (window + 1) * OPEN_BLOCKS]
        for block in blocks:
            if inside < self._sizes[block]:
                return int(self._starts[block]) + inside
            inside -= int(self._sizes[block])
        raise AssertionError("a window has as many rows as its blocks")

    def _shuffle(self, key: int):
        count = len(self._sizes)
        blocks = stream_key(key, "blocks")
        self._order = np.array([permuted(k, count, blocks) for k in range(count)])
        ends = np.cumsum(self._sizes[self._order])
        last = np.minimum(
            np.arange(OPEN_BLOCKS - 1, count + OPEN_BLOCKS - 1, OPEN_BLOCKS), count - 1
        )
        self._window_ends, self._key = ends[last], key
