"""Arguments of `NVLM`, from and to the configs of InternVL (both kinds) and of NVLM-D."""

from dl_techniques.checkpoints.config_fields import Fields
from dl_techniques.checkpoints.connector_configs import (
    NORM_EPSILON,
    check_connector,
    decoder_arguments,
    decoder_fields,
)
from dl_techniques.checkpoints.vision_configs import (
    internvit_from_vision_config,
    internvl_from_vision_config,
    vision_config_from_internvit,
    vision_config_from_internvl,
)

INTERNVL_DEFAULTS = {
    "model_type": "internvl",
    "image_token_id": 151667,
    "downsample_ratio": 0.5,
    "projector_hidden_act": "gelu",
    "vision_feature_layer": -1,
    "vision_feature_select_strategy": "default",
    "tie_word_embeddings": True,
}
# Of the classes that come with the original files.
CHAT_DEFAULTS = {
    "downsample_ratio": 0.5,
    "ps_version": "v1",
    "select_layer": -1,
}
INTERNVL_CHAT_TYPE, NVLM_D_TYPE = "internvl_chat", "NVLM_D"
_CHAT_CLASSES = {INTERNVL_CHAT_TYPE: "InternVLChatModel", NVLM_D_TYPE: "NVLM_D_Model"}


def config_from_internvl(config: dict) -> dict:
    """Return arguments of `NVLM` for an `InternVLConfig` of transformers.

    Args:
        config: The JSON object.

    Raises:
        ValueError: naming a field with an unsupported value.
    """
    fields = Fields(config, "config.json", INTERNVL_DEFAULTS)
    fields.require("model_type", "internvl")
    fields.require("projector_hidden_act", "gelu")
    fields.require("vision_feature_layer", -1)
    fields.require("vision_feature_select_strategy", "default")
    vision = vision_config_from_internvl(_vision(fields))
    language, vocab_size = decoder_arguments(fields.get("text_config"), "qwen2")
    # The whole model's flag is the one that counts.
    language["tie_embeddings"] = fields.flag("tie_word_embeddings")
    return _arguments(fields, vision, language, vocab_size, language["hidden_dim"], True)


def config_from_internvl_chat(config: dict) -> dict:
    """Return arguments of `NVLM` for OpenGVLab's own kind of config of InternVL, or for NVLM-D's.

    Args:
        config: The JSON object; with `image_token_id`, which the original files leave to the
            tokenizer (`read_folder` looks there).

    Raises:
        ValueError: naming a field with an unsupported value.
    """
    fields = Fields(config, "config.json", CHAT_DEFAULTS)
    fields.require("model_type", *_CHAT_CLASSES)
    if fields.get("ps_version") != "v2":
        raise fields.error(
            "ps_version",
            "only 'v2' is supported; 'v1', which an absent field means, gives the decoder an "
            "image's tokens column by column",
        )
    fields.require("select_layer", -1)
    vision = vision_config_from_internvit(_vision(fields))
    size = fields.get("force_image_size")
    if size is not None and size != vision["img_size"]:
        raise fields.error(
            "force_image_size",
            f"only that of the vision encoder, {vision['img_size']}, is supported",
        )
    language, vocab_size = decoder_arguments(fields.get("llm_config"), "qwen2")
    if fields.get("model_type") == NVLM_D_TYPE:
        return _arguments(fields, vision, language, vocab_size, language["mlp_dim"], False)
    return _arguments(fields, vision, language, vocab_size, language["hidden_dim"], True)


def _vision(fields: Fields):
    given = fields.get("vision_config")
    return {} if given is None else given


def _arguments(fields, vision, language, vocab_size, hidden_dim, use_bias) -> dict:
    vision["drop_class_token"] = True
    return {
        "architecture": "decoder",
        "vision_config": vision,
        "language_config": language,
        "projector_config": {
            "output_dim": language["hidden_dim"],
            "hidden_dim": hidden_dim,
            "use_layer_norm": False,
            "use_input_norm": True,
            "use_bias": use_bias,
        },
        "scale_factor": _scale_factor(fields),
        "vocab_size": vocab_size,
        "image_token_id": fields.count("image_token_id"),
    }


def _scale_factor(fields: Fields) -> int:
    ratio = fields.number("downsample_ratio")
    factor = round(1 / ratio)
    if factor * ratio != 1:
        raise fields.error("downsample_ratio", "expected one over a whole number, such as 0.5")
    return factor


def internvl_from_config(config: dict) -> dict:
    """Return the `InternVLConfig` of transformers for `NVLM` arguments.

    Args:
        config: The arguments.

    Raises:
        ValueError: naming what the format lacks.
    """
    _check(config, "InternVL", True, config["language_config"]["hidden_dim"])
    vision = internvl_from_vision_config(config["vision_config"])
    text = decoder_fields(config)
    return {
        "architectures": ["InternVLForConditionalGeneration"],
        "model_type": "internvl",
        "vision_config": vision,
        "text_config": text,
        "image_token_id": config["image_token_id"],
        "image_seq_length": _tokens(config, vision["image_size"][0], vision["patch_size"][0]),
        "downsample_ratio": 1 / config["scale_factor"],
        "projector_hidden_act": "gelu",
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "default",
        "tie_word_embeddings": text["tie_word_embeddings"],
    }


def internvl_chat_from_config(config: dict, model_type: str = INTERNVL_CHAT_TYPE) -> dict:
    """Return OpenGVLab's own kind of config of InternVL, or NVLM-D's, for `NVLM` arguments.

    Args:
        config: The arguments.
        model_type: "internvl_chat" or "NVLM_D".

    Raises:
        ValueError: naming what the format lacks.
    """
    language = config["language_config"]
    if model_type == NVLM_D_TYPE:
        _check(config, "NVLM-D", False, language["mlp_dim"])
        if language["tie_embeddings"] or not language["use_qkv_bias"]:
            raise ValueError("NVLM-D's decoder is a Qwen2 with a head of its own, this one is not.")
    else:
        _check(config, "InternVL", True, language["hidden_dim"])
    vision = internvit_from_vision_config(config["vision_config"])
    return {
        "architectures": [_CHAT_CLASSES[model_type]],
        "model_type": model_type,
        "vision_config": {**vision, "architectures": ["InternVisionModel"]},
        "llm_config": decoder_fields(config),
        "downsample_ratio": 1 / config["scale_factor"],
        "ps_version": "v2",
        "select_layer": -1,
        "force_image_size": vision["image_size"],
        "tie_word_embeddings": config["language_config"]["tie_embeddings"],
        # The original programs ask the tokenizer.
        "image_token_id": config["image_token_id"],
    }


def _check(config: dict, format_name: str, use_bias: bool, hidden_dim: int) -> None:
    check_connector(
        config,
        format_name,
        use_input_norm=True,
        use_bias=use_bias,
        hidden_dim=hidden_dim,
        norm_epsilon=NORM_EPSILON,
    )
    if config["scale_factor"] is None:
        raise ValueError(f"scale_factor=None: {format_name} has a pixel shuffle.")
    if not config["vision_config"]["drop_class_token"]:
        raise ValueError(f"drop_class_token=False: {format_name} drops the class token.")


def _tokens(config: dict, image_size: int, patch_size: int) -> int:
    return (image_size // patch_size // config["scale_factor"]) ** 2
