"""Public vision encoders by name, as keyword arguments of `VisionTransformer`.

The values are those of the published checkpoints. CLIP encoders end one block early and without a
last norm, which gives the penultimate features that LLaVA reads.
"""

import copy

_SIGLIP = {"patch_size": 16, "embed_dim": 768, "depth": 12, "num_heads": 12, "mlp_ratio": 4.0}
_CLIP = {
    "patch_size": 14,
    "embed_dim": 1024,
    "depth": 23,
    "num_heads": 16,
    "mlp_ratio": 4.0,
    "class_token": True,
    "drop_class_token": True,
    "activation": "quick_gelu",
    "norm_epsilon": 1e-5,
    "use_patch_bias": False,
    "use_pre_norm": True,
    "use_final_norm": False,
}
_INTERNVIT = {
    "img_size": 448,
    "patch_size": 14,
    "mlp_ratio": 4.0,
    "class_token": True,
    "drop_class_token": True,
    "activation": "gelu",
    "layer_scale": 0.1,
    "use_final_norm": False,
}

VISION_ENCODERS = {
    "siglip_base_patch16_224": {"img_size": 224, **_SIGLIP},
    "siglip2_base_patch16_512": {"img_size": 512, **_SIGLIP},
    "siglip_so400m_patch14_384": {
        "img_size": 384,
        "patch_size": 14,
        "embed_dim": 1152,
        "depth": 27,
        "num_heads": 16,
        "mlp_ratio": 4304 / 1152,
    },
    "clip_vit_l14": {"img_size": 224, **_CLIP},
    "clip_vit_l14_336": {"img_size": 336, **_CLIP},
    "internvit_300m_patch14_448": {**_INTERNVIT, "embed_dim": 1024, "depth": 24, "num_heads": 16},
    "internvit_6b_patch14_448": {
        **_INTERNVIT,
        "embed_dim": 3200,
        "depth": 45,
        "num_heads": 25,
        "norm_type": "rms",
        "use_qkv_bias": False,
        "qk_norm": "width",
    },
}


def vision_encoder_config(name: str, **changes) -> dict:
    """Return the arguments of `VisionTransformer` for a public encoder.

    Args:
        name: A key of `VISION_ENCODERS`.
        **changes: Arguments that replace the encoder's own, such as `img_size`: the weights'
            table of positions is then interpolated.

    Raises:
        ValueError: if there is no such encoder.
    """
    if name not in VISION_ENCODERS:
        raise ValueError(
            f"There is no public vision encoder {name!r}: choose from {sorted(VISION_ENCODERS)}."
        )
    return {**copy.deepcopy(VISION_ENCODERS[name]), **changes}
