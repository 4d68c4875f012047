"""ModalityProjection: from vision tokens to the decoder's embedding space."""

import keras

from dl_techniques.layers.configured_layer import ConfiguredLayer, register
from dl_techniques.layers.dense import Dense
from dl_techniques.layers.feed_forward import ACTIVATIONS
from dl_techniques.layers.pixel_shuffle import PixelShuffle


@register
class ModalityProjection(ConfiguredLayer):
    """Pixel shuffle -> Dense -> exact GELU -> LayerNorm.

    Args:
        input_dim: Width of the vision tokens.
        output_dim: Width of the decoder.
        scale_factor: See `PixelShuffle`.
        use_gelu: Whether GELU follows the Dense layer.
        use_layer_norm: Whether a LayerNorm (epsilon 1e-6) closes.
        use_bias: Whether the Dense layer has a bias.

    nanoVLM's own projection has `use_gelu=use_layer_norm=use_bias=False`.

    Input: float[B, N, input_dim]. Output: float[B, N / scale_factor^2, output_dim]; a class token
    is kept, as in `PixelShuffle`.
    """

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        scale_factor: int = 2,
        use_gelu: bool = True,
        use_layer_norm: bool = True,
        use_bias: bool = True,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.input_dim = input_dim
        self.output_dim = output_dim
        self.scale_factor = scale_factor
        self.use_gelu = use_gelu
        self.use_layer_norm = use_layer_norm
        self.use_bias = use_bias
        self.pixel_shuffle = PixelShuffle(
            scale_factor, name="pixel_shuffle", dtype=self.dtype_policy
        )
        self.proj = Dense(output_dim, use_bias=use_bias, name="proj", dtype=self.dtype_policy)
        self.layer_norm = None
        if use_layer_norm:
            self.layer_norm = keras.layers.LayerNormalization(
                epsilon=1e-6, name="layer_norm", dtype=self.dtype_policy
            )

    def build(self, x_shape):
        if x_shape[-1] != self.input_dim:
            raise ValueError(
                f"{self.name} expects vision tokens of width input_dim={self.input_dim}, "
                f"got shape {tuple(x_shape)}."
            )
        self.proj.build((None, None, self.input_dim * self.scale_factor**2))
        if self.use_layer_norm:
            self.layer_norm.build((None, None, self.output_dim))

    def call(self, x):
        x = self.proj(self.pixel_shuffle(x))
        if self.use_gelu:
            x = ACTIVATIONS["gelu"](x)
        return self.layer_norm(x) if self.use_layer_norm else x

    def compute_output_shape(self, x_shape):
        return (*self.pixel_shuffle.compute_output_shape(x_shape)[:2], self.output_dim)
