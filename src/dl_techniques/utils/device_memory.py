"""The most memory that a GPU has held, as the backend's allocator counts it."""

from collections.abc import Callable

import keras


def gpu_peak_counter() -> tuple[Callable[[], int] | None, str]:
    """Return a function that reads the peak in bytes, and what it reads; (None, "") on a CPU.

    The peak is that from this call on; on JAX that since the process began.
    """
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        device = jax.local_devices()[0]
        if device.platform == "cpu":
            return None, ""
        return lambda: device.memory_stats()["peak_bytes_in_use"], "jax memory_stats"
    if backend == "torch":
        import torch

        if not torch.cuda.is_available():
            return None, ""
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.max_memory_allocated, "torch.cuda.max_memory_allocated"
    import tensorflow as tf

    if not tf.config.list_physical_devices("GPU"):
        return None, ""
    tf.config.experimental.reset_memory_stats("GPU:0")
    info = tf.config.experimental.get_memory_info
    return lambda: info("GPU:0")["peak"], "tf get_memory_info"
