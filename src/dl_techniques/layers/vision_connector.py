"""VisionConnector: from an encoder's tokens to a decoder's, by the parts that a family names."""

from dl_techniques.layers.configured_layer import ConfiguredLayer, register
from dl_techniques.layers.pixel_shuffle import PixelShuffle
from dl_techniques.layers.vision_projector import VisionProjector
from dl_techniques.layers.vision_resampler import VisionResampler, VisionTokenCompressor


@register
class VisionConnector(ConfiguredLayer):
    """(Pixel shuffle ->) (resampler or compressor ->) projector.

    Args:
        projector_config: Keyword arguments of `VisionProjector`.
        resampler_config: Keyword arguments of `VisionResampler`; None for none.
        compressor_config: Keyword arguments of `VisionTokenCompressor`; None for none.
        scale_factor: Of `PixelShuffle`; None for none. The tokens must not have a class token.

    Input: float[B, N, D]. Output: float[B, M, output_dim of the projector].

    Raises:
        ValueError: if there are both a resampler and a compressor.
    """

    def __init__(
        self,
        projector_config: dict,
        resampler_config: dict | None = None,
        compressor_config: dict | None = None,
        scale_factor: int | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if resampler_config is not None and compressor_config is not None:
            raise ValueError("Give resampler_config or compressor_config, not both.")
        self.projector_config = dict(projector_config)
        self.resampler_config = resampler_config
        self.compressor_config = compressor_config
        self.scale_factor = scale_factor
        self.pixel_shuffle = self.vision_resampler = self.vision_compressor = None
        if scale_factor is not None:
            self.pixel_shuffle = PixelShuffle(
                scale_factor, class_token=False, name="pixel_shuffle", dtype=self.dtype_policy
            )
        if resampler_config is not None:
            self.vision_resampler = VisionResampler(
                **resampler_config, name="vision_resampler", dtype=self.dtype_policy
            )
        if compressor_config is not None:
            self.vision_compressor = VisionTokenCompressor(
                **compressor_config, name="vision_compressor", dtype=self.dtype_policy
            )
        self.vision_projector = VisionProjector(
            **projector_config, name="vision_projector", dtype=self.dtype_policy
        )

    @property
    def output_dim(self) -> int:
        """Width of the output."""
        return self.vision_projector.output_dim

    @property
    def _parts(self):
        parts = (self.pixel_shuffle, self.vision_resampler, self.vision_compressor)
        return [*(part for part in parts if part is not None), self.vision_projector]

    def build(self, tokens_shape):
        for part in self._parts:
            part.build(tokens_shape)
            tokens_shape = part.compute_output_shape(tokens_shape)

    def call(self, tokens, training=None):
        for part in self._parts[:-1]:
            tokens = part(tokens)
        return self.vision_projector(tokens, training=training)

    def compute_output_shape(self, tokens_shape):
        for part in self._parts:
            tokens_shape = part.compute_output_shape(tokens_shape)
        return tokens_shape
