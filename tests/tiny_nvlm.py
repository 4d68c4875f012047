"""Tiny NVLM models of the three architectures and batches for them."""

import numpy as np
from tiny_models import fill

from dl_techniques.models.nvlm import NVLM

VOCAB, PLACEHOLDER, TAG_IDS, TOKENS = 40, 4, [5, 6, 7], 4
LANGUAGE = {
    "hidden_dim": 24,
    "num_layers": 4,
    "num_heads": 4,
    "num_kv_heads": 2,
    "mlp_dim": 32,
    "max_positions": 128,
    "use_qkv_bias": True,
}


def tiny_nvlm(architecture: str, gates: float | None = 0.7, **changes) -> NVLM:
    """Return a model with values by path; X and H look at images in their blocks 1 and 3."""
    language = dict(LANGUAGE)
    arguments = {}
    if architecture != "decoder":
        language["cross_attention_every"] = 2
        arguments["tile_tag_ids"] = TAG_IDS
    if architecture != "cross_attention":
        arguments["image_token_id"] = PLACEHOLDER
    model = NVLM(
        architecture,
        **{
            "vision_config": {
                "img_size": 16,
                "patch_size": 4,
                "embed_dim": 16,
                "depth": 1,
                "num_heads": 2,
            },
            "language_config": language,
            "projector_config": {
                "output_dim": 24,
                "hidden_dim": 32,
                "use_layer_norm": False,
                "use_input_norm": True,
            },
            "scale_factor": 2,
            "vocab_size": VOCAB,
            **arguments,
            **changes,
        },
    )
    fill(model)
    for gate in gates_of(model):
        gate.assign([0.0 if gates is None else gates])
    return model


def gates_of(model) -> list:
    """Return the gates of the cross-attention."""
    return [v for v in model.variables if v.path.endswith("cross_attention/gate")]


def batch(architecture: str) -> dict:
    """Return two rows of 20: three images, and two images behind left padding."""
    rng = np.random.default_rng(3)
    text = rng.integers(8, VOCAB, (2, 20)).astype("int32")
    mask = np.ones((2, 20), bool)
    mask[1, :2] = False
    if architecture == "decoder":
        text[0, 1:13], text[1, 4:12] = PLACEHOLDER, PLACEHOLDER
    else:
        text[0, [2, 4, 8]], text[1, [3, 6]] = TAG_IDS, TAG_IDS[:2]
    if architecture == "hybrid":
        text[0, 9:13], text[1, 7:11] = PLACEHOLDER, PLACEHOLDER
    return {
        "text_tokens": text,
        "images": rng.normal(size=(2, 3, 16, 16, 3)).astype("float32"),
        "num_images": np.array([3, 2], "int32"),
        "attention_mask": mask,
    }
