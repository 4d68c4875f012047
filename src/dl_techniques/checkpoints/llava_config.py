"""Arguments of `GhostVis`, from and to the config of LLaVA-1.5 (transformers)."""

from dl_techniques.checkpoints.config_fields import Fields
from dl_techniques.checkpoints.connector_configs import (
    check_connector,
    decoder_arguments,
    decoder_fields,
)
from dl_techniques.checkpoints.key_map import Drop
from dl_techniques.checkpoints.vision_configs import (
    clip_from_vision_config,
    vision_config_from_clip,
)
from dl_techniques.checkpoints.vision_key_maps import unread_layers

LLAVA_DEFAULTS = {
    "model_type": "llava",
    "image_token_index": 32000,
    "projector_hidden_act": "gelu",
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
    "multimodal_projector_bias": True,
}
# Of a config without any `vision_config`: CLIP ViT-L/14 at 336 pixels.
_VISION_DEFAULTS = {
    "model_type": "clip_vision_model",
    "intermediate_size": 4096,
    "hidden_size": 1024,
    "patch_size": 14,
    "image_size": 336,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
}
# Theirs -> ours: whether the class token is dropped.
_STRATEGIES = {"default": True, "full": False}
NORM_KEYS = ("post_layernorm.weight", "post_layernorm.bias")


def config_from_llava(config: dict) -> dict:
    """Return arguments of `GhostVis` for a `LlavaConfig`.

    LLaVA reads the output of an earlier layer (`vision_feature_layer`, the last but one): ours has
    no layers behind that.

    Args:
        config: The JSON object.

    Raises:
        ValueError: naming a field with an unsupported value.
    """
    fields = Fields(config, "config.json", LLAVA_DEFAULTS)
    fields.require("model_type", "llava")
    fields.require("projector_hidden_act", "gelu")
    fields.require("vision_feature_select_strategy", *_STRATEGIES)
    language, vocab_size = decoder_arguments(fields.get("text_config"), "llama")
    # Either flag ties, as in transformers.
    language["tie_embeddings"] |= fields.flag("tie_word_embeddings")
    vision = vision_config_from_clip(_vision_fields(fields))
    vision["depth"] = _layers_read(fields, vision["depth"])
    vision["drop_class_token"] = _STRATEGIES[fields.get("vision_feature_select_strategy")]
    width = language["hidden_dim"]
    token = "image_token_id" if fields.get("image_token_id") is not None else "image_token_index"
    return {
        "vision_config": vision,
        "language_config": language,
        "projector_config": {
            "output_dim": width,
            "hidden_dim": width,
            "use_layer_norm": False,
            "use_bias": fields.flag("multimodal_projector_bias"),
        },
        "vocab_size": vocab_size,
        "image_token_id": fields.count(token),
    }


def unread_by_llava(config: dict) -> tuple[Drop, ...]:
    """Return the vision layers of a LLaVA that lie behind the one that it reads."""
    fields = Fields(config, "config.json", LLAVA_DEFAULTS)
    layers = vision_config_from_clip(_vision_fields(fields))["depth"]
    return unread_layers(r"vision_tower\.(vision_model\.)?", _layers_read(fields, layers), layers)


def _vision_fields(fields: Fields) -> dict:
    given = fields.get("vision_config")
    if given is None:
        return _VISION_DEFAULTS
    if isinstance(given, dict):
        return {"model_type": "clip_vision_model", **given}
    return given


def _layers_read(fields: Fields, layers: int) -> int:
    """Return how many layers lie before the output that is read."""
    layer = fields.get("vision_feature_layer")
    if isinstance(layer, bool) or not isinstance(layer, int):
        raise fields.error("vision_feature_layer", "only one layer is supported, as a number")
    # Number 0 is the input of the first layer.
    read = layer if layer >= 0 else layers + 1 + layer
    if not 1 <= read <= layers:
        raise fields.error("vision_feature_layer", f"the vision encoder has {layers} layers")
    return read


def llava_from_config(config: dict) -> dict:
    """Return the `LlavaConfig` of `GhostVis` arguments.

    Our encoder ends with the layer that LLaVA reads, so that `vision_feature_layer` is -1.

    Args:
        config: The arguments.

    Raises:
        ValueError: naming what the format lacks.
    """
    width = config["language_config"]["hidden_dim"]
    projector = check_connector(config, "LLaVA", use_input_norm=False, hidden_dim=width)
    vision = clip_from_vision_config(config["vision_config"])
    text = decoder_fields(config)
    drops_class = config["vision_config"]["drop_class_token"]
    tokens = (vision["image_size"] // vision["patch_size"]) ** 2 + (not drops_class)
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "vision_config": vision,
        "text_config": text,
        "image_token_index": config["image_token_id"],
        "image_seq_length": tokens,
        "projector_hidden_act": "gelu",
        "multimodal_projector_bias": projector["use_bias"],
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "default" if drops_class else "full",
        "tie_word_embeddings": text["tie_word_embeddings"],
    }
