"""PixelShuffle: fewer, wider vision tokens."""

import math

from keras import ops

from dl_techniques.layers.configured_layer import ConfiguredLayer, register, require_fixed


@register
class PixelShuffle(ConfiguredLayer):
    """Joins each s x s block of a square grid of tokens into one token (space to depth).

    Args:
        scale_factor: s.
        class_token: Whether token 0 is a class token, which is kept and tiled to the new width.
            None infers it: N a square -> none; N - 1 a square -> token 0. It must be given when
            the number of tokens is unknown (None).

    Input: float[B, N, C], rows of the grid one after the other. Output: float[B, N / s^2, C * s^2]
    (the class token comes on top), channels in the order (dy, dx, c).

    Raises:
        ValueError: if the grid is not square or its side is no multiple of s.

    Reference: https://arxiv.org/abs/1609.05158 (its inverse); the form of Idefics3 and nanoVLM.
    """

    def __init__(self, scale_factor: int = 2, class_token: bool | None = None, **kwargs):
        super().__init__(**kwargs)
        if scale_factor < 1:
            raise ValueError(f"scale_factor={scale_factor} must be at least 1.")
        self.scale_factor = scale_factor
        self.class_token = class_token
        self.built = True

    def call(self, x):
        has_class_token, _ = self._grid(x.shape[1])
        s, channels = self.scale_factor, x.shape[-1]
        batch, length = ops.shape(x)[:2]
        grid = x[:, 1:] if has_class_token else x
        if x.shape[1] is None:
            cells = ops.cast(length - int(has_class_token), "float32")
            side = ops.cast(ops.round(ops.sqrt(cells)), "int32")
        else:
            side = math.isqrt(length - int(has_class_token))
        grid = ops.reshape(grid, (batch, side // s, s, side // s, s, channels))
        grid = ops.transpose(grid, (0, 1, 3, 2, 4, 5))
        grid = ops.reshape(grid, (batch, (side // s) * (side // s), s * s * channels))
        if not has_class_token:
            return grid
        return ops.concatenate([ops.tile(x[:, :1], (1, 1, s * s)), grid], axis=1)

    def compute_output_shape(self, input_shape):
        batch, length, channels = input_shape
        has_class_token, out_length = self._grid(length)
        if out_length is not None:
            out_length += int(has_class_token)
        return batch, out_length, channels * self.scale_factor**2

    def _grid(self, length):
        """Return (is there a class token, number of tokens of the coarse grid)."""
        if length is None:
            if self.class_token is None:
                raise ValueError(
                    "PixelShuffle cannot infer class_token while the number of tokens is None: "
                    "pass class_token=True or class_token=False."
                )
            return self.class_token, None
        require_fixed(length, "PixelShuffle's number of tokens")
        square = math.isqrt(length) ** 2 == length
        has_class_token = not square if self.class_token is None else self.class_token
        cells = length - int(has_class_token)
        side = math.isqrt(max(cells, 0))
        if cells < 1 or side * side != cells:
            beside = {None: ", with or without", True: " and", False: " without"}[self.class_token]
            raise ValueError(
                f"PixelShuffle needs a square grid of tokens{beside} a class token, got {length} "
                f"tokens with class_token={self.class_token}."
            )
        if side % self.scale_factor:
            raise ValueError(
                f"PixelShuffle cannot divide a {side} x {side} grid by "
                f"scale_factor={self.scale_factor}."
            )
        return has_class_token, (side // self.scale_factor) ** 2
