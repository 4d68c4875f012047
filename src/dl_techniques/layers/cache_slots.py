"""Writing new keys or values into the preallocated slots of a cache."""

import keras
from keras import ops


def write_slots(cache, new, index):
    """Return float[B, max_len, ...] with float[B, T, ...] in the slots index, index + 1, ...

    `index` is int32[], or int32[B] with a beginning for every row.

    On PyTorch without gradients `cache` itself is written and returned, as its copy would cost
    more than a decoding step; give up the old cache there, as compiled JAX code does.
    """
    new = ops.cast(new, cache.dtype)
    if len(getattr(index, "shape", ())) == 1:
        return _write_rows(cache, new, index)
    if keras.backend.backend() == "torch":
        import torch

        slots = torch.arange(new.shape[1], device=cache.device) + index
        write = cache.index_copy if torch.is_grad_enabled() else cache.index_copy_
        return write(1, slots, new)
    return ops.slice_update(cache, (0, index) + (0,) * (len(cache.shape) - 2), new)


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
