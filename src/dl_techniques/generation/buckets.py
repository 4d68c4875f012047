"""Buckets: the few sizes to which shapes are rounded up, so that little is ever compiled."""

import numpy as np


def bucket(size: int, smallest: int = 1) -> int:
    """Return the first of smallest * (1, 1.5, 2, 3, 4, 6, 8, ...) that is at least `size`.

    At most a third of what is computed is padding. 0 stays 0.
    """
    if size == 0:
        return 0
    power = smallest
    while power < size:
        if power % 2 == 0 and power * 3 // 2 >= size:
            return power * 3 // 2
        power *= 2
    return power


def pad_to(array: np.ndarray, size: int, axis: int, value=0, before: bool = False) -> np.ndarray:
    """Return the array made `size` long on an axis, filled with `value` at the end or before."""
    missing = size - array.shape[axis]
    if missing == 0:
        return array
    shape = list(array.shape)
    shape[axis] = size
    padded = np.full(shape, value, array.dtype)  # np.pad takes many times as long.
    place = [slice(None)] * array.ndim
    place[axis] = slice(missing, None) if before else slice(array.shape[axis])
    padded[tuple(place)] = array
    return padded
