"""Our vision and language configs, from and to those of SigLIP, Llama and Qwen2 (transformers).

`dropout` acts in training only and is left out of what is written; a reference's own dropout acts
elsewhere than ours, so that a config with one is refused. Fields that do not change what the
weights mean (token ids, initial ranges, versions) are not read.
"""

import inspect

from dl_techniques.checkpoints.config_fields import Fields, positive_number, with_defaults
from dl_techniques.layers.rotary_embedding import LLAMA3_KEYS
from dl_techniques.layers.vision_transformer_siglip import SigLIPVisionTransformer
from dl_techniques.models.language_decoder import LanguageDecoder

SIGLIP_DEFAULTS = {
    "model_type": "siglip_vision_model",
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 16,
    "num_channels": 3,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
    "attention_dropout": 0.0,
}
LLAMA_DEFAULTS = {
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "attention_dropout": 0.0,
}
QWEN2_DEFAULTS = {
    **LLAMA_DEFAULTS,
    "model_type": "qwen2",
    "vocab_size": 151936,
    "intermediate_size": 22016,
    "max_position_embeddings": 32768,
}
DECODER_DEFAULTS = {"llama": LLAMA_DEFAULTS, "qwen2": QWEN2_DEFAULTS}

# Ours, theirs.
VISION_COUNTS = (
    ("img_size", "image_size"),
    ("patch_size", "patch_size"),
    ("embed_dim", "hidden_size"),
    ("depth", "num_hidden_layers"),
    ("num_heads", "num_attention_heads"),
)
LANGUAGE_COUNTS = (
    ("vocab_size", "vocab_size"),
    ("hidden_dim", "hidden_size"),
    ("num_layers", "num_hidden_layers"),
    ("num_heads", "num_attention_heads"),
    ("mlp_dim", "intermediate_size"),
    ("max_positions", "max_position_embeddings"),
)


def arguments_of(layer_class: type) -> dict:
    """Return the constructor arguments of a layer's class with their defaults."""
    parameters = inspect.signature(layer_class.__init__).parameters.values()
    return {p.name: p.default for p in parameters if p.name not in ("self", "kwargs")}


VISION_ARGUMENTS = arguments_of(SigLIPVisionTransformer)
LANGUAGE_ARGUMENTS = arguments_of(LanguageDecoder)


def sizes_from_vision_fields(fields: Fields) -> dict:
    """Return the arguments for sizes of a vision encoder, from the fields all formats have alike.

    Raises:
        ValueError: naming a field that is no positive whole number.
    """
    arguments = {ours: fields.count(theirs) for ours, theirs in VISION_COUNTS}
    arguments["mlp_ratio"] = fields.count("intermediate_size") / arguments["embed_dim"]
    return arguments


def vision_fields_from_sizes(arguments: dict) -> dict:
    """Return the fields for sizes of a vision encoder with these arguments.

    Raises:
        ValueError: if its images are not square.
    """
    theirs = {name: arguments[own] for own, name in VISION_COUNTS}
    if not isinstance(theirs["image_size"], int):
        height, width = theirs["image_size"]
        if height != width:
            raise ValueError(f"img_size={theirs['image_size']}: the format's images are square.")
        theirs["image_size"] = height
    theirs["intermediate_size"] = round(arguments["embed_dim"] * arguments["mlp_ratio"])
    return theirs


def vision_config_from_siglip(config: dict, defaults: dict = SIGLIP_DEFAULTS) -> dict:
    """Return arguments of `SigLIPVisionTransformer` for a `SiglipVisionConfig`.

    Args:
        config: The JSON object; of a whole `SiglipConfig` its `vision_config` is read.
        defaults: For absent fields.

    Raises:
        ValueError: naming a field with an unsupported value.
    """
    if isinstance(config, dict) and config.get("model_type") == "siglip":
        config = config.get("vision_config", {})
    fields = Fields(config, "vision config", defaults)
    fields.require("model_type", defaults["model_type"])
    fields.require("hidden_act", "gelu_pytorch_tanh")
    fields.require("layer_norm_eps", 1e-6)
    fields.require("attention_dropout", 0.0, None)
    fields.require("num_channels", 3)
    return sizes_from_vision_fields(fields)


def siglip_from_vision_config(vision_config: dict, defaults: dict = SIGLIP_DEFAULTS) -> dict:
    """Return the `SiglipVisionConfig` of `SigLIPVisionTransformer` arguments.

    Args:
        vision_config: The arguments.
        defaults: What the fields without a counterpart are.

    Raises:
        ValueError: naming an argument that SigLIP lacks.
    """
    ours = with_defaults(vision_config, VISION_ARGUMENTS, "SigLIPVisionTransformer")
    if ours["class_token"]:
        raise ValueError("class_token=True: SigLIP has no class token.")
    return {**defaults, **vision_fields_from_sizes(ours)}


def language_config_from_llama(config: dict) -> dict:
    """Return arguments of `LanguageDecoder` for a `LlamaConfig` or `Qwen2Config`.

    Args:
        config: The JSON object.

    Raises:
        ValueError: naming a field with an unsupported value.
    """
    kind = Fields(config, "language config").get("model_type")
    fields = Fields(config, "language config", DECODER_DEFAULTS.get(str(kind)))
    fields.require("model_type", *DECODER_DEFAULTS)
    fields.require("hidden_act", "silu", "swish")
    fields.require("attention_dropout", 0.0, None)
    # Switches of these and of related models that change the computation.
    switches = ("mlp_bias", "rope_interleaved", "use_sliding_window", "qk_layer_norms")
    for name in (*switches, "attention_bias"):
        fields.require(name, False, None)
    arguments = {ours: fields.count(theirs) for ours, theirs in LANGUAGE_COUNTS}
    layer_types = fields.get("layer_types")
    if layer_types is not None and layer_types != ["full_attention"] * arguments["num_layers"]:
        raise fields.error("layer_types", "only full attention is supported")
    for ours, theirs in (("num_kv_heads", "num_key_value_heads"), ("head_dim", "head_dim")):
        if fields.get(theirs) is not None:
            arguments[ours] = fields.count(theirs)
    return {
        **arguments,
        **_rope_from_llama(fields),
        "norm_epsilon": fields.number("rms_norm_eps"),
        "use_qkv_bias": kind == "qwen2",
        "tie_embeddings": fields.flag("tie_word_embeddings"),
    }


def _rope_from_llama(fields: Fields) -> dict:
    # transformers 5 has everything in rope_parameters, version 4 in rope_theta and rope_scaling.
    name = "rope_parameters" if fields.get("rope_parameters") else "rope_scaling"
    rope = Fields(fields.get(name) or {}, f"{fields.where}: {name}")
    theta = rope.config.get("rope_theta", fields.get("rope_theta"))
    arguments = {"rope_theta": positive_number(10000.0 if theta is None else theta, "rope_theta")}
    for holder in (rope, fields):
        holder.require("partial_rotary_factor", 1.0, None)
    kind = rope.config.get("rope_type", rope.config.get("type", "default"))
    if kind == "default":
        return arguments
    if kind != "llama3":
        raise fields.error(name, f"rope_type {kind!r} is not supported, only default and llama3")
    for key in sorted(LLAMA3_KEYS):
        rope.number(key)
    scaling = {key: rope.get(key) for key in sorted(LLAMA3_KEYS)}
    return {**arguments, "rope_scaling": {"rope_type": "llama3", **scaling}}


def llama_from_language_config(language_config: dict) -> dict:
    """Return the `LlamaConfig` (with q, k, v biases `Qwen2Config`) of a `LanguageDecoder`.

    Args:
        language_config: Its arguments.

    Raises:
        ValueError: naming an argument that both lack.
    """
    ours = with_defaults(language_config, LANGUAGE_ARGUMENTS, "LanguageDecoder")
    if ours["qk_norm"]:
        raise ValueError(f"qk_norm={ours['qk_norm']!r}: Llama and Qwen2 have no query-key norm.")
    kind = "qwen2" if ours["use_qkv_bias"] else "llama"
    theirs = {name: ours[own] for own, name in LANGUAGE_COUNTS}
    head_dim = ours["head_dim"] or ours["hidden_dim"] // ours["num_heads"]
    if kind == "llama":
        if ours["hidden_dim"] % ours["num_heads"]:
            raise ValueError(
                f"hidden_dim={ours['hidden_dim']}: Llama wants a multiple of num_heads."
            )
        theirs |= {"head_dim": head_dim, "attention_bias": False, "mlp_bias": False}
    elif head_dim * ours["num_heads"] != ours["hidden_dim"]:
        raise ValueError(f"head_dim={head_dim}: Qwen2 has hidden_dim / num_heads.")
    return {
        **theirs,
        "model_type": kind,
        "num_key_value_heads": ours["num_kv_heads"] or ours["num_heads"],
        "rms_norm_eps": ours["norm_epsilon"],
        "hidden_act": "silu",
        "attention_dropout": 0.0,
        "tie_word_embeddings": ours["tie_embeddings"],
        # This older spelling is read by every version.
        "rope_theta": ours["rope_theta"],
        "rope_scaling": ours["rope_scaling"],
    }
