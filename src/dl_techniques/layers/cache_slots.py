"""Writing new keys or values into the preallocated slots of a cache."""

import keras
from keras import ops


def write_slots(cache, new, index):
    """Return float[B, max_len, ...] with float[B, T, ...] in the slots index, index + 1, ...

    On PyTorch without gradients `cache` itself is written and returned, as its copy would cost
    more than a decoding step; give up the old cache there, as compiled JAX code does.
    """
    new = ops.cast(new, cache.dtype)
    if keras.backend.backend() == "torch":
        import torch

        slots = torch.arange(new.shape[1], device=cache.device) + index
        write = cache.index_copy if torch.is_grad_enabled() else cache.index_copy_
        return write(1, slots, new)
    return ops.slice_update(cache, (0, index) + (0,) * (len(cache.shape) - 2), new)
