"""GhostVis: a frozen ViT, a resampler and an MLP before a Qwen2.5 decoder.

Without resampler and last norm it is LLaVA-1.5. Counts are exact and tested.
"""

from dl_techniques.layers.configured_layer import register
from dl_techniques.layers.vision_connector import VisionConnector
from dl_techniques.layers.vision_transformer import VisionTransformer
from dl_techniques.models.vision_encoders import vision_encoder_config
from dl_techniques.models.vision_language_model import VisionLanguageModel

# <|image|>, behind the 151,665 ids of Qwen2.5 and the nine markers of the template "ghostvis"; the
# table has rows for them.
_QWEN_IMAGE_TOKEN = 151665 + 9


def _qwen2_5(hidden_dim, num_layers, num_heads, mlp_dim):
    return {
        "hidden_dim": hidden_dim,
        "num_layers": num_layers,
        "num_heads": num_heads,
        "num_kv_heads": 2,
        "mlp_dim": mlp_dim,
        "max_positions": 32768,
        "rope_theta": 1e6,
        "use_qkv_bias": True,
        "norm_epsilon": 1e-6,
    }


GHOSTVIS_CONFIGS = {
    "ghostvis_1_5b": {
        "vision_config": vision_encoder_config("clip_vit_l14_336"),
        "resampler_config": {"num_tokens": 64, "mode": "perceiver", "depth": 2, "num_heads": 8},
        "projector_config": {"output_dim": 1536, "hidden_dim": 2048},
        "language_config": _qwen2_5(1536, 28, 12, 8960),
        "vocab_size": 151936,
        "image_token_id": _QWEN_IMAGE_TOKEN,
        "total_params": 1_865_137_152,
    },
    "ghostvis_0_5b": {
        "vision_config": vision_encoder_config("siglip2_base_patch16_512"),
        "resampler_config": {"num_tokens": 64, "mode": "perceiver", "depth": 2, "num_heads": 8},
        "projector_config": {"output_dim": 896, "hidden_dim": 2048},
        "language_config": _qwen2_5(896, 24, 14, 4864),
        "vocab_size": 151936,
        "image_token_id": _QWEN_IMAGE_TOKEN,
        "total_params": 598_107_904,
    },
    "llava_1_5_7b": {
        "vision_config": vision_encoder_config("clip_vit_l14_336"),
        "resampler_config": None,
        "projector_config": {"output_dim": 4096, "hidden_dim": 4096, "use_layer_norm": False},
        "language_config": {
            "hidden_dim": 4096,
            "num_layers": 32,
            "num_heads": 32,
            "mlp_dim": 11008,
            "max_positions": 4096,
            "tie_embeddings": False,
        },
        "vocab_size": 32064,
        "image_token_id": 32000,
        "total_params": 7_050_828_800,
    },
    "ghostvis_mini": {
        "vision_config": {
            "img_size": 64,
            "patch_size": 8,
            "embed_dim": 128,
            "depth": 4,
            "num_heads": 4,
        },
        # Small models that start from nothing learn through means much sooner than by queries.
        "resampler_config": {"num_tokens": 16, "mode": "avgpool"},
        "projector_config": {"output_dim": 160, "hidden_dim": 256},
        "language_config": {
            "hidden_dim": 160,
            "num_layers": 6,
            "num_heads": 5,
            "num_kv_heads": 1,
            "mlp_dim": 448,
            "max_positions": 1024,
            "use_qkv_bias": True,
            "norm_epsilon": 1e-6,
        },
        "vocab_size": 2048,
        "image_token_id": 9,
        "total_params": 2_890_688,
    },
}


@register
class GhostVis(VisionLanguageModel):
    """Vision encoder -> (resampler ->) projector -> decoder, images at their placeholders.

    Args:
        vision_config: Keyword arguments of `VisionTransformer`; see `vision_encoder_config`.
        language_config: Keyword arguments of `LanguageDecoder` but `vocab_size`.
        projector_config: Keyword arguments of `VisionProjector`.
        resampler_config: Keyword arguments of `VisionResampler`; None for none.
        vocab_size, image_token_id, bidirectional_images: See `VisionLanguageModel`.

    The layers are `vision_resampler` and `vision_projector` of `modality_projection`.
    """

    vision_class = VisionTransformer
    projection_class = VisionConnector
    presets = {
        name: {key: value for key, value in config.items() if key != "total_params"}
        for name, config in GHOSTVIS_CONFIGS.items()
    }

    def __init__(
        self,
        vision_config: dict,
        language_config: dict,
        projector_config: dict,
        resampler_config: dict | None = None,
        vocab_size: int = 151936,
        image_token_id: int = _QWEN_IMAGE_TOKEN,
        bidirectional_images: bool = False,
        **kwargs,
    ):
        self.projector_config = dict(projector_config)
        self.resampler_config = resampler_config
        super().__init__(
            vision_config,
            language_config,
            {"projector_config": projector_config, "resampler_config": resampler_config},
            vocab_size,
            "placeholder",
            image_token_id,
            bidirectional_images,
            **kwargs,
        )

    def arguments(self) -> dict:
        """Return the constructor's arguments."""
        return {
            "vision_config": self.vision_config,
            "language_config": self.language_config,
            "projector_config": self.projector_config,
            "resampler_config": self.resampler_config,
            "vocab_size": self.vocab_size,
            "image_token_id": self.image_token_id,
            "bidirectional_images": self.bidirectional_images,
        }
