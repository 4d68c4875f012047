"""Arguments of `VisionTransformer`, from and to the configs of CLIP and InternViT.

`dropout` and `drop_class_token` are the caller's: the formats' encoders return all tokens, and
`dropout` acts in training only. A reference's own dropout acts elsewhere than ours, so that a
config with one is refused.
"""

from dl_techniques.checkpoints.config_fields import Fields, positive_number, square, with_defaults
from dl_techniques.checkpoints.configs import (
    arguments_of,
    sizes_from_vision_fields,
    vision_fields_from_sizes,
)
from dl_techniques.layers.vision_transformer import VisionTransformer

CLIP_DEFAULTS = {
    "model_type": "clip_vision_model",
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 32,
    "num_channels": 3,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "attention_dropout": 0.0,
}
# Theirs, ours.
CLIP_ACTIVATIONS = {"quick_gelu": "quick_gelu", "gelu": "gelu"}
# What every CLIP encoder has.
CLIP_ARGUMENTS = {
    "class_token": True,
    "norm_type": "layer",
    "use_qkv_bias": True,
    "qk_norm": False,
    "layer_scale": None,
    "use_patch_bias": False,
    "use_pre_norm": True,
    "use_final_norm": False,
}

# Those of the 6B model at 224 pixels.
INTERNVIT_DEFAULTS = {
    "model_type": "intern_vit_6b",
    "hidden_size": 3200,
    "intermediate_size": 12800,
    "num_hidden_layers": 48,
    "num_attention_heads": 25,
    "image_size": 224,
    "patch_size": 14,
    "num_channels": 3,
    "hidden_act": "gelu",
    "norm_type": "rms_norm",
    "layer_norm_eps": 1e-6,
    "qkv_bias": False,
    "qk_normalization": True,
    "initializer_factor": 0.1,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "drop_path_rate": 0.0,
    "use_flash_attn": True,
}
INTERNVIT_NORMS = {"rms_norm": "rms", "layer_norm": "layer"}
INTERNVIT_ARGUMENTS = {
    "class_token": True,
    "activation": "gelu",
    "use_patch_bias": True,
    "use_pre_norm": False,
    "use_final_norm": False,
}

# transformers' config of InternViT.
INTERNVL_VISION_DEFAULTS = {
    "model_type": "internvl_vision",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": [448, 448],
    "patch_size": [14, 14],
    "num_channels": 3,
    "hidden_act": "gelu",
    "norm_type": "layer_norm",
    "layer_norm_eps": 1e-6,
    "attention_bias": False,
    "use_qk_norm": False,
    "layer_scale_init_value": 0.1,
    "hidden_dropout_prob": 0.0,
    "attention_dropout": 0.0,
    "projection_dropout": 0.0,
    "use_absolute_position_embeddings": True,
    "use_mask_token": False,
    "use_mean_pooling": True,
}


def vision_config_from_clip(config: dict) -> dict:
    """Return arguments of `VisionTransformer` for a `CLIPVisionConfig`.

    Args:
        config: The JSON object; of a whole `CLIPConfig` its `vision_config` is read.

    Raises:
        ValueError: naming a field with an unsupported value.
    """
    if isinstance(config, dict) and config.get("model_type") == "clip":
        # transformers lets an older spelling of the part, where there is one, override the newer.
        older = config.get("vision_config_dict")
        config = config.get("vision_config", {}) if older is None else older
    fields = Fields(config, "vision config", CLIP_DEFAULTS)
    fields.require("model_type", CLIP_DEFAULTS["model_type"])
    fields.require("hidden_act", *CLIP_ACTIVATIONS)
    fields.require("attention_dropout", 0.0, None)
    fields.require("num_channels", 3)
    return {
        **sizes_from_vision_fields(fields),
        **CLIP_ARGUMENTS,
        "activation": CLIP_ACTIVATIONS[fields.get("hidden_act")],
        "norm_epsilon": fields.number("layer_norm_eps"),
    }


def clip_from_vision_config(vision_config: dict) -> dict:
    """Return the `CLIPVisionConfig` of `VisionTransformer` arguments.

    Args:
        vision_config: The arguments.

    Raises:
        ValueError: naming an argument that CLIP lacks.
    """
    ours = _checked(vision_config, "CLIP", CLIP_ARGUMENTS)
    return {
        **CLIP_DEFAULTS,
        **vision_fields_from_sizes(ours),
        "hidden_act": _theirs(CLIP_ACTIVATIONS, ours, "activation", "CLIP"),
        "layer_norm_eps": ours["norm_epsilon"],
    }


def vision_config_from_internvit(config: dict) -> dict:
    """Return arguments of `VisionTransformer` for an `InternVisionConfig` of OpenGVLab/InternVL.

    `drop_path_rate` acts in training only and is not read, for published configs differ in it.

    Args:
        config: The JSON object.

    Raises:
        ValueError: naming a field with an unsupported value.
    """
    fields = Fields(config, "vision config", INTERNVIT_DEFAULTS)
    fields.require("model_type", INTERNVIT_DEFAULTS["model_type"])
    fields.require("hidden_act", INTERNVIT_ARGUMENTS["activation"])
    fields.require("norm_type", *INTERNVIT_NORMS)
    fields.require("num_channels", 3)
    for name in ("dropout", "attention_dropout"):
        fields.require(name, 0.0, None)
    fields.require("use_moe", False, None)
    return {
        **sizes_from_vision_fields(fields),
        **INTERNVIT_ARGUMENTS,
        "norm_epsilon": fields.number("layer_norm_eps"),
        "norm_type": INTERNVIT_NORMS[fields.get("norm_type")],
        "use_qkv_bias": fields.flag("qkv_bias"),
        "qk_norm": "width" if fields.flag("qk_normalization") else False,
        "layer_scale": fields.number("initializer_factor"),
    }


def vision_config_from_internvl(config: dict) -> dict:
    """Return arguments of `VisionTransformer` for an `InternVLVisionConfig` of transformers.

    Args:
        config: The JSON object.

    Raises:
        ValueError: naming a field with an unsupported value.
    """
    fields = Fields(config, "vision config", INTERNVL_VISION_DEFAULTS)
    fields.require("model_type", INTERNVL_VISION_DEFAULTS["model_type"])
    fields.require("hidden_act", INTERNVIT_ARGUMENTS["activation"])
    fields.require("norm_type", *INTERNVIT_NORMS)
    fields.require("num_channels", 3)
    for name in ("hidden_dropout_prob", "attention_dropout", "projection_dropout"):
        fields.require(name, 0.0, None)
    fields.require("use_absolute_position_embeddings", True)
    fields.require("use_mask_token", False, None)
    # With it there is no norm behind the last layer.
    fields.require("use_mean_pooling", True)
    sides = {name: square(fields, name) for name in ("image_size", "patch_size")}
    return {
        **sizes_from_vision_fields(Fields({**fields.config, **sides}, fields.where)),
        **INTERNVIT_ARGUMENTS,
        "norm_epsilon": fields.number("layer_norm_eps"),
        "norm_type": INTERNVIT_NORMS[fields.get("norm_type")],
        "use_qkv_bias": fields.flag("attention_bias"),
        "qk_norm": "width" if fields.flag("use_qk_norm") else False,
        "layer_scale": fields.number("layer_scale_init_value"),
    }


def internvl_from_vision_config(vision_config: dict) -> dict:
    """Return the `InternVLVisionConfig` of transformers for `VisionTransformer` arguments.

    Args:
        vision_config: The arguments.

    Raises:
        ValueError: naming an argument that InternViT lacks.
    """
    theirs = internvit_from_vision_config(vision_config)
    shared = set(theirs) & set(INTERNVL_VISION_DEFAULTS) - {"model_type"}
    return {
        **INTERNVL_VISION_DEFAULTS,
        **{name: theirs[name] for name in sorted(shared)},
        "image_size": [theirs["image_size"]] * 2,
        "patch_size": [theirs["patch_size"]] * 2,
        "attention_bias": theirs["qkv_bias"],
        "use_qk_norm": theirs["qk_normalization"],
        "layer_scale_init_value": theirs["initializer_factor"],
    }


def internvit_from_vision_config(vision_config: dict) -> dict:
    """Return the `InternVisionConfig` of `VisionTransformer` arguments.

    Args:
        vision_config: The arguments.

    Raises:
        ValueError: naming an argument that InternViT lacks.
    """
    ours = _checked(vision_config, "InternViT", INTERNVIT_ARGUMENTS)
    if ours["qk_norm"] not in (False, "width"):
        raise ValueError("qk_norm=True: InternViT normalises queries and keys over their width.")
    if ours["layer_scale"] is None:
        raise ValueError("layer_scale=None: InternViT scales what every layer adds.")
    return {
        **INTERNVIT_DEFAULTS,
        **vision_fields_from_sizes(ours),
        "layer_norm_eps": ours["norm_epsilon"],
        "norm_type": _theirs(INTERNVIT_NORMS, ours, "norm_type", "InternViT"),
        "qkv_bias": ours["use_qkv_bias"],
        "qk_normalization": ours["qk_norm"] == "width",
        "initializer_factor": positive_number(ours["layer_scale"], "layer_scale"),
    }


def _checked(vision_config: dict, format_name: str, fixed: dict) -> dict:
    ours = with_defaults(vision_config, arguments_of(VisionTransformer), "VisionTransformer")
    for name, value in fixed.items():
        if ours[name] != value:
            raise ValueError(f"{name}={ours[name]!r}: {format_name} has {name}={value!r}.")
    return ours


def _theirs(names: dict, ours: dict, argument: str, format_name: str) -> str:
    for their_name, our_name in names.items():
        if ours[argument] == our_name:
            return their_name
    known = " or ".join(repr(name) for name in names.values())
    raise ValueError(f"{argument}={ours[argument]!r}: {format_name} has {known}.")
