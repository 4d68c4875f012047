"""NVLM's named configurations: the paper's, the guide's ladder, and small ones."""

from dl_techniques.models.vision_encoders import vision_encoder_config

_QWEN2_72B = {
    "hidden_dim": 8192,
    "num_layers": 80,
    "num_heads": 64,
    "num_kv_heads": 8,
    "mlp_dim": 29568,
    "max_positions": 32768,
    "rope_theta": 1e6,
    "use_qkv_bias": True,
    "norm_epsilon": 1e-6,
    "tie_embeddings": False,
}
# NVLM-D: a norm of the shuffled tokens (4 x 3200 wide), then two layers without biases.
NVLM_PROJECTOR = {
    "hidden_dim": 29568,
    "use_layer_norm": False,
    "use_input_norm": True,
    "use_bias": False,
}
_TWO_LAYERS = {"output_dim": 8192, **NVLM_PROJECTOR}
_PLACEHOLDER = 151654  # <|vision_pad|> of Qwen2.
# Tags of one token each, in rows of the table that Qwen2's own tokens leave free.
_TILE_TAGS = list(range(151665, 151665 + 7))


def _72b(architecture, projector, **more):
    language = {**_QWEN2_72B}
    if architecture != "decoder":
        language["cross_attention_every"] = 8
    return {
        "architecture": architecture,
        "vision_config": vision_encoder_config("internvit_6b_patch14_448"),
        "language_config": language,
        "projector_config": projector,
        "scale_factor": 2,
        "vocab_size": 152064,
        **more,
    }


def _ladder(hidden_dim, num_layers, num_heads, mlp_dim):
    """Return one of the guide's models: ViT-L/14 at 384 pixels, 729 tokens, three layers."""
    return {
        "architecture": "decoder",
        "vision_config": {
            "img_size": 384,
            "patch_size": 14,
            "embed_dim": 1024,
            "depth": 24,
            "num_heads": 16,
        },
        "language_config": {
            "hidden_dim": hidden_dim,
            "num_layers": num_layers,
            "num_heads": num_heads,
            "mlp_dim": mlp_dim,
            "max_positions": 2048,
        },
        "projector_config": {
            "output_dim": hidden_dim,
            "hidden_dim": hidden_dim,
            "num_layers": 3,
            "use_layer_norm": False,
        },
        "scale_factor": None,
        "vocab_size": 32000,
        "image_token_id": 31999,
        "bidirectional_images": True,
    }


# The small models' tokenizers begin with their special tokens, at fixed ids.
MINI_PLACEHOLDER = 4
MINI_TILE_TAGS = list(range(5, 10))


def _mini(architecture, **more):
    language = {
        "hidden_dim": 160,
        "num_layers": 6,
        "num_heads": 5,
        "num_kv_heads": 1,
        "mlp_dim": 448,
        "max_positions": 1024,
        "use_qkv_bias": True,
        "norm_epsilon": 1e-6,
    }
    if architecture != "decoder":
        language["cross_attention_every"] = 2
    return {
        "architecture": architecture,
        # A picture of 64 pixels becomes four such tiles and a thumbnail, 4 tokens each.
        "vision_config": {
            "img_size": 32,
            "patch_size": 4,
            "embed_dim": 96,
            "depth": 3,
            "num_heads": 4,
            "qk_norm": "width",
            "norm_type": "rms",
            "layer_scale": 0.1,
        },
        "language_config": language,
        "projector_config": {"output_dim": 160, "hidden_dim": 320, "use_layer_norm": False},
        "scale_factor": 4,
        "vocab_size": 2048,
        **more,
    }


NVLM_CONFIGS = {
    "nvlm_d_72b": {
        **_72b("decoder", _TWO_LAYERS, image_token_id=_PLACEHOLDER),
        "total_params": 78_863_416_704,
    },
    "nvlm_x_72b": {
        **_72b(
            "cross_attention",
            {"output_dim": 8192, "num_layers": 1, "use_layer_norm": False, "use_bias": False},
            tile_tag_ids=_TILE_TAGS,
        ),
        "total_params": 79_857_588_618,
    },
    "nvlm_h_72b": {
        **_72b("hybrid", _TWO_LAYERS, image_token_id=_PLACEHOLDER, tile_tag_ids=_TILE_TAGS),
        "total_params": 80_373_448_074,
    },
    "nvlm_3b": {**_ladder(3200, 26, 32, 8640), "total_params": 3_651_501_056},
    "nvlm_7b": {**_ladder(4096, 32, 32, 11008), "total_params": 6_948_765_696},
    "nvlm_13b": {**_ladder(5120, 48, 40, 13824), "total_params": 15_751_008_256},
    "nvlm_34b": {**_ladder(8192, 80, 64, 22016), "total_params": 65_469_808_640},
    "nvlm_mini_d": {**_mini("decoder", image_token_id=MINI_PLACEHOLDER), "total_params": 2_880_224},
    "nvlm_mini_x": {
        **_mini("cross_attention", tile_tag_ids=MINI_TILE_TAGS),
        "total_params": 3_065_027,
    },
    "nvlm_mini_h": {
        **_mini("hybrid", image_token_id=MINI_PLACEHOLDER, tile_tag_ids=MINI_TILE_TAGS),
        "total_params": 3_065_027,
    },
}
