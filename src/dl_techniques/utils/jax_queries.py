"""Questions to JAX that have an answer, "no", on the other backends too."""

import keras


def jax_platform() -> str | None:
    """Return "cpu", "gpu" or "tpu"; None on another backend."""
    if keras.backend.backend() != "jax":
        return None
    import jax

    return jax.default_backend()


def is_traced_by_jax(x) -> bool:
    """Return whether x stands for values that JAX will know later."""
    if keras.backend.backend() != "jax":
        return False
    import jax

    return isinstance(x, jax.core.Tracer)
