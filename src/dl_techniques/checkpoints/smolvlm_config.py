"""Our vision-language config, from and to that of SmolVLM and Idefics3."""

from dl_techniques.checkpoints.config_fields import Fields
from dl_techniques.checkpoints.configs import (
    SIGLIP_DEFAULTS,
    language_config_from_llama,
    llama_from_language_config,
    siglip_from_vision_config,
    vision_config_from_siglip,
)

SMOLVLM_CLASSES = {
    "smolvlm": "SmolVLMForConditionalGeneration",
    "idefics3": "Idefics3ForConditionalGeneration",
}
SMOLVLM_DEFAULTS = {"image_token_id": 128257, "scale_factor": 2, "use_resampler": False}
SMOLVLM_VISION_DEFAULTS = {
    **SIGLIP_DEFAULTS,
    "hidden_size": 1152,
    "num_attention_heads": 16,
    "patch_size": 32,
}
# Patches per side for which transformers' position ids (fractions that it sorts into buckets in
# float32) are not 0, 1, 2, ...: its model would read other rows of the position table than ours.
UNEQUAL_GRIDS = frozenset([19, 25, 29, 31, 38, 40, 41, 43, 47, 49, 50, 54, 55, 58, 59, 61, 62])
LARGEST_GRID = 64


def bare_projection(vision: dict, language: dict, scale_factor: int) -> dict:
    """Return arguments of the `ModalityProjection` that is one matrix after a pixel shuffle."""
    return {
        "input_dim": vision["embed_dim"],
        "output_dim": language["hidden_dim"],
        "scale_factor": scale_factor,
        "use_gelu": False,
        "use_layer_norm": False,
        "use_bias": False,
    }


def check_exportable(config: dict) -> None:
    """Raise ValueError, naming it, for what neither SmolVLM nor nanoVLM can say."""
    projection = {
        "use_gelu": True,
        "use_layer_norm": True,
        "use_bias": True,
        **config["projection_config"],
    }
    for name in ("use_gelu", "use_layer_norm", "use_bias"):
        if projection[name]:
            raise ValueError(
                f"projection_config: {name}=True: the format's projection is one matrix alone."
            )
    if config.get("bidirectional_images"):
        raise ValueError("bidirectional_images=True: the format's images are causal.")


def config_from_smolvlm(config: dict) -> dict:
    """Return arguments of `NanoVLM` for a `SmolVLMConfig` or `Idefics3Config`.

    Args:
        config: The JSON object.

    Raises:
        ValueError: naming a field with an unsupported value.
    """
    fields = Fields(config, "config.json", SMOLVLM_DEFAULTS)
    fields.require("model_type", *SMOLVLM_CLASSES)
    fields.require("use_resampler", False, None)
    kind = fields.get("model_type")
    defaults = {**SMOLVLM_VISION_DEFAULTS, "model_type": f"{kind}_vision"}
    given = fields.get("vision_config")
    if isinstance(given, dict) and given.get("model_type") == kind:
        # Files of older versions: the part bears the name of the whole.
        given = {**given, "model_type": f"{kind}_vision"}
    vision = vision_config_from_siglip(given, defaults)
    _check_grid(vision["img_size"] // vision["patch_size"])
    text = fields.get("text_config")
    if isinstance(text, dict):
        text = {"model_type": "llama", **text}
    language = language_config_from_llama(text)
    if language.pop("use_qkv_bias"):
        raise Fields(text, "text_config").error("model_type", "only 'llama' is supported")
    # The whole model's flag is the one that counts.
    language["tie_embeddings"] = fields.flag("tie_word_embeddings")
    vocab_size = language.pop("vocab_size")
    return {
        "vision_config": vision,
        "language_config": language,
        "projection_config": bare_projection(vision, language, fields.count("scale_factor")),
        "vocab_size": vocab_size,
        "image_token_id": fields.count("image_token_id"),
    }


def smolvlm_from_config(config: dict, kind: str = "smolvlm") -> dict:
    """Return the `SmolVLMConfig` or `Idefics3Config` of `NanoVLM` arguments.

    Args:
        config: The arguments.
        kind: "smolvlm" or "idefics3".

    Raises:
        ValueError: naming what the format lacks.
    """
    if kind not in SMOLVLM_CLASSES:
        raise ValueError(f"kind={kind!r} must be one of {sorted(SMOLVLM_CLASSES)}.")
    check_exportable(config)
    if config.get("image_token_id") is None:
        raise ValueError(
            "image_token_id=None: SmolVLM places images by a token, this model puts them first."
        )
    defaults = {**SMOLVLM_VISION_DEFAULTS, "model_type": f"{kind}_vision"}
    vision = siglip_from_vision_config(config["vision_config"], defaults)
    _check_grid(vision["image_size"] // vision["patch_size"])
    language = {**config["language_config"], "vocab_size": config["vocab_size"]}
    text = llama_from_language_config(language)
    if text["model_type"] != "llama":
        raise ValueError("use_qkv_bias=True: SmolVLM's decoder has no biases.")
    return {
        "architectures": [SMOLVLM_CLASSES[kind]],
        "model_type": kind,
        "vision_config": vision,
        "text_config": text,
        "scale_factor": config["projection_config"].get("scale_factor", 2),
        "image_token_id": config["image_token_id"],
        "tie_word_embeddings": text["tie_word_embeddings"],
    }


def _check_grid(side: int) -> None:
    if side in UNEQUAL_GRIDS or side > LARGEST_GRID:
        raise ValueError(
            f"image_size gives {side} x {side} patches, for which transformers' SmolVLM reads "
            "other position embeddings than one per patch, in order; 14, 16, 24, 26, 27, 32, 37 "
            "and 64 are among those that agree."
        )
