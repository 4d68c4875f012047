"""NanoVLM: SigLIP + pixel shuffle + SmolLM2, the family of huggingface/nanoVLM.

The first release (222M) puts the image before the text; the later ones splice it in at
`<|image|>` placeholders. Counts are exact and tested.
"""

from dl_techniques.layers.configured_layer import register
from dl_techniques.models.model_size import analyze_model_size
from dl_techniques.models.vision_language_model import VisionLanguageModel

__all__ = [
    "NANOVLM_CONFIGS",
    "NanoVLM",
    "analyze_model_size",
    "create_nanovlm",
    "create_nanovlm_222m",
]


def _siglip(img_size, **changes):
    return {
        "img_size": img_size,
        "patch_size": 16,
        "embed_dim": 768,
        "depth": 12,
        "num_heads": 12,
        "mlp_ratio": 4.0,
        **changes,
    }


def _smollm2(hidden_dim, num_layers, num_heads, num_kv_heads, mlp_dim):
    return {
        "hidden_dim": hidden_dim,
        "num_layers": num_layers,
        "num_heads": num_heads,
        "num_kv_heads": num_kv_heads,
        "mlp_dim": mlp_dim,
        "rope_theta": 100000.0,
        "norm_epsilon": 1e-5,
        "max_positions": 8192,
    }


def _bare_projection(output_dim, scale_factor):
    return {
        "input_dim": 768,
        "output_dim": output_dim,
        "scale_factor": scale_factor,
        "use_gelu": False,
        "use_layer_norm": False,
        "use_bias": False,
    }


_SMOLLM2_135M = _smollm2(576, 30, 9, 3, 1536)
_SMOLLM2_360M = _smollm2(960, 32, 15, 5, 2560)


def _from_scratch(width, depth, heads, mlp_dim):
    """Return the guide's own small models: vision and language alike in width, depth, heads."""
    return {
        "vision_config": {
            "img_size": 224,
            "patch_size": 16,
            "embed_dim": width,
            "depth": depth,
            "num_heads": heads,
            "mlp_ratio": 4.0,
            "dropout": 0.1,
        },
        "language_config": {
            "hidden_dim": width,
            "num_layers": depth,
            "num_heads": heads,
            "mlp_dim": mlp_dim,
            "dropout": 0.1,
        },
        "projection_config": {"input_dim": width, "output_dim": width, "scale_factor": 2},
        "vocab_size": 32000,
    }


NANOVLM_CONFIGS = {
    "nanovlm_mini": {**_from_scratch(384, 6, 6, 1536), "total_params": 38_057_856},
    "nanovlm_base": {**_from_scratch(512, 8, 8, 2048), "total_params": 76_711_424},
    "nanovlm_222m": {
        "vision_config": _siglip(224),
        "language_config": _SMOLLM2_135M,
        "projection_config": _bare_projection(576, 2),
        "vocab_size": 49152,
        "total_params": 222_081_600,
    },
    "nanovlm_450m": {
        "vision_config": _siglip(256),
        "language_config": _SMOLLM2_360M,
        "projection_config": _bare_projection(960, 2),
        "vocab_size": 49153,
        "image_token_id": 49152,
        "total_params": 450_614_400,
    },
    "nanovlm_230m_8k": {
        "vision_config": _siglip(512),
        "language_config": _SMOLLM2_135M,
        "projection_config": _bare_projection(576, 4),
        "vocab_size": 49218,
        "image_token_id": 49152,
        "total_params": 228_063_936,
    },
    "nanovlm_460m_8k": {
        "vision_config": _siglip(512),
        "language_config": _SMOLLM2_360M,
        "projection_config": _bare_projection(960, 4),
        "vocab_size": 49218,
        "image_token_id": 49152,
        "total_params": 460_113_984,
    },
}


@register
class NanoVLM(VisionLanguageModel):
    """The general model under the family's name; see `VisionLanguageModel`."""

    presets = {
        name: {key: value for key, value in config.items() if key != "total_params"}
        for name, config in NANOVLM_CONFIGS.items()
    }
    public_weights = {
        "nanovlm_222m": "hf://lusxvr/nanoVLM-222M",
        "nanovlm_450m": "hf://lusxvr/nanoVLM-450M",
        "nanovlm_230m_8k": "hf://lusxvr/nanoVLM-230M-8k",
        "nanovlm_460m_8k": "hf://lusxvr/nanoVLM-460M-8k",
    }


def create_nanovlm(name: str, **changes) -> NanoVLM:
    """Return a new model with random weights.

    Args:
        name: A key of `NANOVLM_CONFIGS`.
        **changes: Constructor arguments that replace the configuration's.

    Raises:
        ValueError: if the name is unknown.
    """
    return NanoVLM.create(name, **changes)


def create_nanovlm_222m(**changes) -> NanoVLM:
    """Return nanoVLM's first release (SigLIP-B/16-224 + SmolLM2-135M) with random weights."""
    return create_nanovlm("nanovlm_222m", **changes)
