"""Keras layers of vision-language models; each one works alone in any Keras model."""

from dl_techniques.layers.attention import GroupedQueryAttention
from dl_techniques.layers.feed_forward import MLP, SwiGLU
from dl_techniques.layers.modality_projection import ModalityProjection
from dl_techniques.layers.patch_embedding import PatchEmbedding
from dl_techniques.layers.pixel_shuffle import PixelShuffle
from dl_techniques.layers.rotary_embedding import RotaryEmbedding
from dl_techniques.layers.transformer_blocks import (
    DecoderBlock,
    EncoderBlock,
    GatedCrossAttentionBlock,
)
from dl_techniques.layers.vision_connector import VisionConnector
from dl_techniques.layers.vision_projector import VisionProjector
from dl_techniques.layers.vision_resampler import VisionResampler, VisionTokenCompressor
from dl_techniques.layers.vision_transformer import VisionTransformer
from dl_techniques.layers.vision_transformer_siglip import SigLIPVisionTransformer

__all__ = [
    "MLP",
    "DecoderBlock",
    "EncoderBlock",
    "GatedCrossAttentionBlock",
    "GroupedQueryAttention",
    "ModalityProjection",
    "PatchEmbedding",
    "PixelShuffle",
    "RotaryEmbedding",
    "SigLIPVisionTransformer",
    "SwiGLU",
    "VisionConnector",
    "VisionProjector",
    "VisionResampler",
    "VisionTokenCompressor",
    "VisionTransformer",
]
