"""The smallest models of the families with connectors and cross-attention, and their batches."""

import numpy as np
from tiny_models import IMAGE_ID, VOCAB, fill, random_ids, random_images

from dl_techniques.models.ghost_vis import GhostVis
from dl_techniques.models.nvlm import NVLM

TAGS = [3, 4]
_VISION = {
    "img_size": 16,
    "patch_size": 4,
    "embed_dim": 16,
    "depth": 1,
    "num_heads": 4,
    "mlp_ratio": 2.0,
}
_LANGUAGE = {
    "hidden_dim": 32,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "mlp_dim": 64,
    "max_positions": 64,
}
_CROSS = {**_LANGUAGE, "cross_attention_every": 2}
_PROJECTOR = {"output_dim": 32, "hidden_dim": 64}
_COMMON = {"vision_config": _VISION, "vocab_size": VOCAB}
_SPLICED = {**_COMMON, "language_config": _LANGUAGE, "image_token_id": IMAGE_ID}

# Name -> class, arguments, image tokens.
FAMILY_CASES = {
    "ghostvis": (
        GhostVis,
        {
            **_SPLICED,
            "projector_config": _PROJECTOR,
            "resampler_config": {"num_tokens": 3, "depth": 2, "num_heads": 2},
        },
        3,
    ),
    "ghostvis_pooled": (
        GhostVis,
        {
            **_SPLICED,
            "projector_config": _PROJECTOR,
            "resampler_config": {"num_tokens": 4, "mode": "avgpool"},
        },
        4,
    ),
    "nvlm_d": (
        NVLM,
        {
            **_SPLICED,
            "architecture": "decoder",
            "projector_config": {**_PROJECTOR, "num_layers": 3},
            "scale_factor": None,
            "compressor_config": {"input_dim": 16, "num_queries": 5, "num_heads": 2},
        },
        5,
    ),
    "nvlm_x": (
        NVLM,
        {
            **_COMMON,
            "architecture": "cross_attention",
            "language_config": _CROSS,
            "projector_config": {**_PROJECTOR, "use_input_norm": True},
            "tile_tag_ids": TAGS,
        },
        4,
    ),
    "nvlm_h": (
        NVLM,
        {
            **_COMMON,
            "architecture": "hybrid",
            "language_config": _CROSS,
            "projector_config": _PROJECTOR,
            "tile_tag_ids": TAGS,
            "image_token_id": IMAGE_ID,
        },
        4,
    ),
}


def family_model(case: str, **changes):
    """Return a model with filled weights, gates open."""
    family, arguments, _ = FAMILY_CASES[case]
    return fill(family(**{**arguments, **changes}))


def family_batch(case: str, rows: int = 2, length: int = 16, seed: int = 0):
    """Return inputs with two images a row, and labels int32[rows, length]."""
    family, arguments, tokens = FAMILY_CASES[case]
    ids = random_ids(rows, length, seed=seed)
    ids[np.isin(ids, TAGS)] = 5
    used = 2 * tokens
    if "tile_tag_ids" in arguments:
        ids[:, :2] = TAGS
        used = 2
    if arguments["architecture" if family is NVLM else "vocab_size"] == "hybrid":
        used = 2 + tokens
        ids[:, 2:used] = IMAGE_ID
    elif "tile_tag_ids" not in arguments:
        ids[:, :used] = IMAGE_ID
    labels = ids.copy()
    labels[:, :used] = -100
    return {"text_tokens": ids, "images": random_images(rows, 2, seed=seed)}, labels
