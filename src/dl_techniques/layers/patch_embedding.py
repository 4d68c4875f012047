"""PatchEmbedding: an image as a sequence of patch tokens with positions."""

from numbers import Integral

import keras
from keras import ops

from dl_techniques.layers.configured_layer import ConfiguredLayer, register
from dl_techniques.layers.dense import Dense


@register
class PatchEmbedding(ConfiguredLayer):
    """Projects patches (one strided convolution, computed as its exact matmul), adds positions.

    Args:
        img_size: Height and width in pixels, one number or a pair, of the table of positions.
            Other sizes are accepted: the table is then interpolated (bicubic, antialiased).
            Pixels beyond the last whole patch are dropped, as a "valid" convolution does.
        patch_size: Side of a patch in pixels.
        embed_dim: Width of the tokens.
        class_token: Whether a learned token comes first; it has a position of its own.
        use_bias: A bias on the projection of the patches.
        positions: "learned", or "sincos": a fixed table (see `sincos_positions`) for any size.

    Input: float[B, H, W, 3]. Output: float[B, (H // patch) * (W // patch) (+ 1), embed_dim].

    Raises:
        ValueError: if an image is smaller than one patch or does not have 3 channels, for a patch
            without pixels, or for unknown positions, or sincos ones with a width that is no
            multiple of 4.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        embed_dim: int = 768,
        class_token: bool = False,
        use_bias: bool = True,
        positions: str = "learned",
        **kwargs,
    ):
        super().__init__(**kwargs)
        if positions not in ("learned", "sincos"):
            raise ValueError(f"positions={positions!r} must be 'learned' or 'sincos'.")
        if positions == "sincos" and embed_dim % 4:
            raise ValueError(f"positions='sincos' need a multiple of 4, got embed_dim={embed_dim}.")
        if patch_size < 1:
            raise ValueError(f"patch_size={patch_size} must be at least 1.")
        # A config holds no numbers of NumPy.
        self.img_size = int(img_size) if isinstance(img_size, Integral) else img_size
        self.patch_size = patch_size
        self.embed_dim = embed_dim
        self.class_token = class_token
        self.use_bias = use_bias
        self.positions = positions
        height, width = (img_size,) * 2 if isinstance(img_size, Integral) else img_size
        self.grid = (height // patch_size, width // patch_size)
        if min(self.grid) < 1:
            raise ValueError(f"img_size={img_size} is smaller than patch_size={patch_size}.")
        self.patch_projection = Dense(
            embed_dim, use_bias=use_bias, name="patch_projection", dtype=self.dtype_policy
        )

    def build(self, images_shape):
        self._grid_of(images_shape)
        self.patch_projection.build((None, None, self.patch_size**2 * 3))
        if self.positions == "learned":
            rows, columns = self.grid
            self.position_embedding = self.add_weight(
                name="position_embedding",
                shape=(rows * columns + int(self.class_token), self.embed_dim),
                initializer=keras.initializers.TruncatedNormal(stddev=0.02),
            )
        if self.class_token:
            self.class_embedding = self.add_weight(
                name="class_embedding", shape=(self.embed_dim,), initializer="zeros"
            )

    def call(self, images):
        rows, columns = self._grid_of(images.shape)
        batch, height, width = ops.shape(images)[:3]
        p = self.patch_size
        rows = height // p if rows is None else rows
        columns = width // p if columns is None else columns
        x = images[:, : rows * p, : columns * p]
        x = ops.transpose(ops.reshape(x, (batch, rows, p, columns, p, 3)), (0, 1, 3, 2, 4, 5))
        x = self.patch_projection(ops.reshape(x, (batch, rows * columns, p * p * 3)))
        if self.positions == "sincos":
            x = x + ops.cast(sincos_positions(rows, columns, self.embed_dim), x.dtype)
        else:
            positions = ops.cast(self.position_embedding, x.dtype)
            first = int(self.class_token)
            x = x + self._interpolated(positions[first:], (rows, columns))
        if not self.class_token:
            return x
        token = ops.cast(self.class_embedding, x.dtype)
        token = token + positions[0] if self.positions == "learned" else token
        token = ops.broadcast_to(ops.reshape(token, (1, 1, -1)), (batch, 1, self.embed_dim))
        return ops.concatenate([token, x], axis=1)

    def _interpolated(self, table, grid):
        # The equality of sides that are known only at run time is no Python bool.
        if all(isinstance(side, int) for side in grid) and grid == self.grid:
            return table
        along_rows = resampling_matrix(self.grid[0], grid[0])
        along_columns = resampling_matrix(self.grid[1], grid[1])
        table = ops.reshape(ops.cast(table, "float32"), (*self.grid, self.embed_dim))
        table = ops.einsum("ar,bc,rcd->abd", along_rows, along_columns, table)
        return ops.cast(ops.reshape(table, (-1, self.embed_dim)), self.compute_dtype)

    def compute_output_shape(self, images_shape):
        rows, columns = self._grid_of(images_shape)
        if rows is None or columns is None:
            return images_shape[0], None, self.embed_dim
        return images_shape[0], rows * columns + int(self.class_token), self.embed_dim

    def _grid_of(self, images_shape):
        """Return (rows, columns) of patches, None where a side is unknown."""
        shape = tuple(images_shape)
        # JAX exports unknown sides as expressions, whose size compares with nothing.
        sides = [side if isinstance(side, Integral) else None for side in shape[1:3]]
        small = any(side is not None and side < self.patch_size for side in sides)
        if len(shape) != 4 or shape[-1] != 3 or small:
            raise ValueError(
                f"{self.name} expects images float[B, H, W, 3] with H and W of at least "
                f"patch_size={self.patch_size} pixels, got shape {shape}."
            )
        return tuple(None if side is None else side // self.patch_size for side in sides)


def sincos_positions(rows, columns, width: int):
    """Return float32[rows * columns, width]: sines and cosines of each patch's place.

    The first half of the channels is for the row, the second for the column; each half has the
    sines, then the cosines, of the place over 10000 ** (2 k / half).

    Reference: MoCo v3, https://arxiv.org/abs/2104.02057.
    """
    half = width // 2
    rates = 10000.0 ** (-ops.arange(half // 2, dtype="float32") / (half // 2))

    def waves(count):
        angles = ops.expand_dims(ops.arange(count, dtype="float32"), 1) * rates
        return ops.concatenate([ops.sin(angles), ops.cos(angles)], axis=1)

    by_row = ops.repeat(ops.expand_dims(waves(rows), 1), columns, axis=1)
    by_column = ops.repeat(ops.expand_dims(waves(columns), 0), rows, axis=0)
    return ops.reshape(ops.concatenate([by_row, by_column], axis=-1), (-1, width))


def resampling_matrix(old: int, new):
    """Return float32[new, old] that resizes a line by antialiased bicubic interpolation.

    The kernel is Keys' cubic with a = -0.5, widened when shrinking, as Pillow's BICUBIC.
    """
    scale = old / ops.cast(new, "float32")
    width = ops.maximum(scale, 1.0)
    centres = (ops.cast(ops.arange(new), "float32") + 0.5) * scale
    samples = ops.cast(ops.arange(old), "float32") + 0.5
    x = ops.abs(ops.expand_dims(samples, 0) - ops.expand_dims(centres, 1)) / width
    near = (1.5 * x - 2.5) * x * x + 1.0
    far = ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
    weights = ops.where(x < 1.0, near, ops.where(x < 2.0, far, ops.zeros_like(x)))
    return weights / ops.sum(weights, axis=1, keepdims=True)
