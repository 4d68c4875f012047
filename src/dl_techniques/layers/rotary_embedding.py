"""Rotary position embedding (rotate-half form, as in the Llama family)."""

import functools
import math

import keras
import numpy as np
from keras import ops

from dl_techniques.layers.configured_layer import ConfiguredLayer, register
from dl_techniques.utils.jax_queries import jax_platform

LLAMA3_KEYS = {
    "factor",
    "low_freq_factor",
    "high_freq_factor",
    "original_max_position_embeddings",
}


@register
class RotaryEmbedding(ConfiguredLayer):
    """Rotates each pair of channels (i, i + head_dim / 2) by position x frequency_i.

    Args:
        head_dim: Channels per head, even.
        theta: Base of the geometric series of frequencies.
        scaling: None, or Llama 3's frequency scaling: `{"rope_type": "llama3", "factor": 32.0,
            "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192}`.

    Input: `x` float[B, T, H, head_dim] and `positions` int[B or 1, T]. Output: as `x`. The rotation
    is computed in float32.

    Raises:
        ValueError: if `head_dim` is odd or `scaling` is of another type or lacks a key, or for
            inputs of other axes.

    Reference: RoFormer, https://arxiv.org/abs/2104.09864.
    """

    def __init__(
        self, head_dim: int, theta: float = 10000.0, scaling: dict | None = None, **kwargs
    ):
        super().__init__(**kwargs)
        if head_dim < 2 or head_dim % 2:
            raise ValueError(f"head_dim={head_dim} must be a positive even number.")
        self.head_dim = head_dim
        self.theta = theta
        self.scaling = scaling
        _check_scaling(scaling)
        self.built = True

    @functools.cached_property
    def _frequencies(self):
        # Not by the constructor: a layer that is only looked at may claim any size.
        return rotary_frequencies(self.head_dim, self.theta, self.scaling)

    def call(self, x, positions):
        if len(x.shape) != 4 or x.shape[-1] != self.head_dim or len(positions.shape) != 2:
            raise ValueError(
                f"{self.name} expects x float[B, T, H, head_dim={self.head_dim}] and positions "
                f"int[B, T], got shapes {tuple(x.shape)} and {tuple(positions.shape)}: give "
                "positions that all rows share as positions[None]."
            )
        frequencies = ops.convert_to_tensor(self._frequencies)
        angles = ops.expand_dims(ops.cast(positions, "float32"), -1) * frequencies
        cos = ops.expand_dims(_computed_once(ops.cos(angles)), 2)
        sin = ops.expand_dims(_computed_once(ops.sin(angles)), 2)
        first, second = ops.split(ops.cast(x, "float32"), 2, axis=-1)
        rotated = ops.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
        return ops.cast(rotated, self.compute_dtype)

    def compute_output_shape(self, x_shape, positions_shape=None):
        return x_shape


def _computed_once(x):
    """Return x of [-1, 1], for XLA on CPUs as something that it computes once.

    It takes sines for so cheap that it computes those of all positions again for the queries and
    the keys of each layer. A remainder it does not; that of x by 2 is x, to the bit.
    """
    if jax_platform() == "cpu":
        import jax

        return jax.lax.rem(x, jax.numpy.full_like(x, 2.0))
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        if not tf.config.list_physical_devices("GPU"):
            return tf.truncatemod(x, 2.0)
    return x


def rotary_frequencies(head_dim: int, theta: float, scaling: dict | None = None) -> np.ndarray:
    """Return the float32[head_dim / 2] angular frequencies per position."""
    exponents = np.arange(0, head_dim, 2, dtype="float32") / np.float32(head_dim)
    frequencies = (np.float32(1.0) / np.float32(theta) ** exponents).astype("float32")
    _check_scaling(scaling)
    return frequencies if scaling is None else _llama3_scaled(frequencies, scaling)


def _check_scaling(scaling: dict | None) -> None:
    if scaling is None:
        return
    kind = scaling.get("rope_type", scaling.get("type"))
    missing = LLAMA3_KEYS - set(scaling)
    if kind != "llama3" or missing:
        raise ValueError(
            f"rope scaling must have rope_type 'llama3' and the keys {sorted(LLAMA3_KEYS)}; "
            f"got {dict(scaling)}."
        )


def _llama3_scaled(frequencies: np.ndarray, scaling: dict) -> np.ndarray:
    # Short wavelengths stay, long ones are slowed by `factor`, those between are blended.
    factor, low, high = (scaling[k] for k in ("factor", "low_freq_factor", "high_freq_factor"))
    turns = scaling["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    share = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return ((1 - share) * frequencies / factor + share * frequencies).astype("float32")
