"""Writing new keys or values into the preallocated slots of a cache."""

import keras
import numpy as np
from keras import ops

from dl_techniques.utils.traced_once import is_traced


def write_slots(cache, new, index):
    """Return float[B, max_len, ...] with float[B, T, ...] in the slots index, index + 1, ...

    `index` is int32[], or int32[B] with a beginning for every row.

    On PyTorch without gradients `cache` itself is written and returned, as its copy would cost
    more than a decoding step; give up the old cache there, as compiled JAX code does.

    Raises:
        ValueError: if the cache has no such slots; IndexError for a tensor of PyTorch. An index
            that compiled code computes cannot raise: see `nan_without_slots`.
    """
    _check_room(cache.shape[1], new.shape[1], index)
    new = ops.cast(new, cache.dtype)
    if len(getattr(index, "shape", ())) == 1:
        return _write_rows(cache, new, index)
    if keras.backend.backend() == "torch":
        import torch

        slots = torch.arange(new.shape[1], device=cache.device) + index
        write = cache.index_copy if torch.is_grad_enabled() else cache.index_copy_
        return write(1, slots, new)
    return ops.slice_update(cache, (0, index) + (0,) * (len(cache.shape) - 2), new)


def nan_without_slots(x, slots, num_slots):
    """Return float[B, T, D] with NaN in the rows whose last token has no slot in the cache.

    In a compiled program `write_slots` would put it over earlier ones. On PyTorch it raises, and x
    is returned as it is.

    Args:
        x: float[B, T, D].
        slots: int[B or 1, T], the tokens' slots.
        num_slots: How many the cache has.
    """
    if keras.backend.backend() == "torch":
        return x
    fits = ops.expand_dims(slots[:, -1:] < num_slots, -1)
    return ops.where(fits, x, ops.cast(float("nan"), x.dtype))


def _check_room(num_slots, length, index):
    is_number = isinstance(index, int | np.integer | np.ndarray)
    if not is_number and (keras.backend.backend() == "torch" or is_traced(index)):
        return
    last = int(np.max(index))
    if isinstance(num_slots, int) and isinstance(length, int) and last + length > num_slots:
        raise ValueError(
            f"A cache of {num_slots} slots has no room for {length} tokens from slot {last} on: "
            "make it longer (`make_cache(batch_size, max_length)`)."
        )


def _write_rows(cache, new, index):
    batch, length = ops.shape(new)[:2]
    slots = ops.expand_dims(index, 1) + ops.arange(length, dtype="int32")
    rows = ops.broadcast_to(ops.expand_dims(ops.arange(batch, dtype="int32"), 1), (batch, length))
    if keras.backend.backend() == "torch":
        import torch

        write = cache.index_put if torch.is_grad_enabled() else cache.index_put_
        return write((rows, slots), new)
    places = ops.reshape(ops.stack([rows, slots], axis=-1), (-1, 2))
    return ops.scatter_update(cache, places, ops.reshape(new, (-1, *new.shape[2:])))
