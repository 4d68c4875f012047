"""Our vision-language config, from and to `VLMConfig` of huggingface/nanoVLM."""

from dl_techniques.checkpoints.config_fields import Fields, with_defaults
from dl_techniques.checkpoints.configs import (
    LANGUAGE_ARGUMENTS,
    VISION_ARGUMENTS,
    siglip_from_vision_config,
)
from dl_techniques.checkpoints.smolvlm_config import bare_projection, check_exportable

# Ours, nanoVLM's.
NANOVLM_VISION_COUNTS = (
    ("img_size", "vit_img_size"),
    ("patch_size", "vit_patch_size"),
    ("embed_dim", "vit_hidden_dim"),
    ("depth", "vit_n_blocks"),
    ("num_heads", "vit_n_heads"),
)
NANOVLM_LANGUAGE_COUNTS = (
    ("hidden_dim", "lm_hidden_dim"),
    ("num_layers", "lm_n_blocks"),
    ("num_heads", "lm_n_heads"),
    ("num_kv_heads", "lm_n_kv_heads"),
    ("mlp_dim", "lm_inter_dim"),
    ("max_positions", "lm_max_position_embeddings"),
)
TILE_TOKENS = 66


def config_from_nanovlm(config: dict) -> dict:
    """Return arguments of `NanoVLM` for a `VLMConfig` of huggingface/nanoVLM.

    Args:
        config: The JSON object; all releases. Without `vlm_extra_tokens` it is the first, whose
            images come before the text.

    Raises:
        ValueError: naming a field with an unsupported value.
    """
    fields = Fields(config, "config.json")
    fields.require("vit_ln_eps", 1e-6)
    for name in ("vit_cls_flag", "vit_dropout", "lm_dropout"):
        fields.require(name, 0, None)
    fields.require("lm_attn_scaling", 1.0, None)
    fields.require("lm_tie_weights", True, False)
    vision = {ours: fields.count(theirs) for ours, theirs in NANOVLM_VISION_COUNTS}
    vision["mlp_ratio"] = fields.count("vit_inter_dim") / vision["embed_dim"]
    language = {ours: fields.count(theirs) for ours, theirs in NANOVLM_LANGUAGE_COUNTS}
    language["rope_theta"] = fields.number("lm_re_base")
    language["norm_epsilon"] = fields.number("lm_rms_eps")
    language["tie_embeddings"] = fields.flag("lm_tie_weights")
    return {
        "vision_config": vision,
        "language_config": language,
        "projection_config": bare_projection(
            vision, language, fields.count("mp_pixel_shuffle_factor")
        ),
        "vocab_size": fields.count("lm_vocab_size"),
        "image_token_id": _nanovlm_image_token(fields),
    }


def _nanovlm_image_token(fields: Fields) -> int | None:
    extra = fields.get("vlm_extra_tokens")
    if extra is None:
        fields.require("extra_token_amount", 0, None)
        return None
    if not isinstance(extra, dict) or "image_token" not in extra:
        raise fields.error("vlm_extra_tokens", "expected an object with an image_token")
    # The extra tokens follow the base vocabulary in this order.
    token = fields.count("lm_base_vocab_size") + list(extra).index("image_token")
    if token >= fields.count("lm_vocab_size"):
        raise fields.error("lm_vocab_size", f"the image token has the id {token}")
    return token


def nanovlm_from_config(
    config: dict, image_tokens: int, tokenizer: str = "HuggingFaceTB/SmolLM2-360M-Instruct"
) -> dict:
    """Return the `VLMConfig` of `NanoVLM` arguments.

    Args:
        config: The arguments.
        image_tokens: Decoder tokens per image.
        tokenizer: What nanoVLM is to load as tokenizer: a hub name or a folder.

    Raises:
        ValueError: naming what the format lacks.
    """
    check_exportable(config)
    vision = with_defaults(config["vision_config"], VISION_ARGUMENTS, "vision_config")
    siglip_from_vision_config(vision)
    known = {**LANGUAGE_ARGUMENTS, "vocab_size": config["vocab_size"]}
    language = with_defaults(config["language_config"], known, "language_config")
    language["num_kv_heads"] = language["num_kv_heads"] or language["num_heads"]
    head_dim = language["head_dim"] or language["hidden_dim"] // language["num_heads"]
    if head_dim * language["num_heads"] != language["hidden_dim"]:
        raise ValueError(f"head_dim={head_dim}: nanoVLM has hidden_dim / num_heads.")
    for name in ("rope_scaling", "use_qkv_bias", "qk_norm"):
        if language[name]:
            raise ValueError(f"{name}={language[name]!r}: nanoVLM's decoder lacks this.")
    theirs = {name: vision[own] for own, name in NANOVLM_VISION_COUNTS}
    theirs |= {name: language[own] for own, name in NANOVLM_LANGUAGE_COUNTS}
    if not isinstance(theirs["vit_img_size"], int):
        theirs["vit_img_size"] = theirs["vit_img_size"][0]
    return {
        **theirs,
        "vit_inter_dim": round(vision["embed_dim"] * vision["mlp_ratio"]),
        "vit_dropout": 0.0,
        "vit_ln_eps": 1e-6,
        "vit_cls_flag": False,
        "vit_model_type": f"google/siglip2-base-patch16-{theirs['vit_img_size']}",
        "lm_rms_eps": language["norm_epsilon"],
        "lm_re_base": language["rope_theta"],
        "lm_vocab_size": config["vocab_size"],
        "lm_dropout": 0.0,
        "lm_attn_scaling": 1.0,
        "lm_max_length": language["max_positions"] - image_tokens,
        "lm_use_tokens": False,
        "lm_tie_weights": language["tie_embeddings"],
        "lm_model_type": tokenizer,
        "lm_tokenizer": tokenizer,
        "mp_pixel_shuffle_factor": config["projection_config"].get("scale_factor", 2),
        "vlm_load_backbone_weights": False,
        "vlm_checkpoint_path": "checkpoints",
        **_nanovlm_extra_tokens(config, image_tokens),
    }


def _nanovlm_extra_tokens(config: dict, image_tokens: int) -> dict:
    image_token = config.get("image_token_id")
    if image_token is None:
        return {}
    amount = config["vocab_size"] - image_token
    tokens = {"image_token": "<|image|>"}
    if amount == TILE_TOKENS:
        tokens["global_image_token"] = "<|global_image|>"
        grid = [(row, column) for row in range(1, 9) for column in range(1, 9)]
        tokens |= {f"r{row}c{column}": f"<row_{row}_col_{column}>" for row, column in grid}
    return {
        "lm_base_vocab_size": image_token,
        "extra_token_amount": amount,
        "vlm_extra_tokens": tokens,
        "mp_image_token_length": image_tokens,
    }
