"""What the configs of LLaVA, InternVL and NVLM-D have alike: decoder, projector, refusals."""

from dl_techniques.checkpoints.config_fields import with_defaults
from dl_techniques.checkpoints.configs import (
    arguments_of,
    language_config_from_llama,
    llama_from_language_config,
)
from dl_techniques.layers.vision_projector import VisionProjector

# Of PyTorch's LayerNorm, which no config of these formats names.
NORM_EPSILON = 1e-5
_ARCHITECTURES = {"LlamaForCausalLM": "llama", "Qwen2ForCausalLM": "qwen2"}


def decoder_arguments(text, default: str) -> tuple[dict, int]:
    """Return (arguments of `LanguageDecoder` but `vocab_size`, `vocab_size`).

    Args:
        text: The config of a decoder within that of a whole model; None: its defaults.
        default: The model type that it has if it names none.

    Raises:
        ValueError: naming a field with an unsupported value.
    """
    text = {} if text is None else text
    if isinstance(text, dict) and "model_type" not in text:
        named = [n for n in text.get("architectures") or () if isinstance(n, str)]
        kind = _ARCHITECTURES.get(named[0], named[0]) if named else default
        text = {"model_type": kind, **text}
    language = language_config_from_llama(text)
    return language, language.pop("vocab_size")


def decoder_fields(config: dict) -> dict:
    """Return the `LlamaConfig` or `Qwen2Config` of a whole model's arguments.

    Raises:
        ValueError: naming an argument that both lack.
    """
    language = {**config["language_config"], "vocab_size": config["vocab_size"]}
    return llama_from_language_config(language)


def check_connector(config: dict, format_name: str, **fixed) -> dict:
    """Return the arguments of the projector, all of them, of a model that the format can say.

    Args:
        config: Arguments of `GhostVis` or `NVLM`.
        format_name: For messages.
        **fixed: The projector's arguments that the format has no choice in.

    Raises:
        ValueError: naming what the format lacks.
    """
    for name, value in (
        ("resampler_config", None),
        ("compressor_config", None),
        ("bidirectional_images", False),
        ("architecture", "decoder"),
    ):
        if config.get(name, value) != value:
            raise ValueError(
                f"{name}={config[name]!r}: {format_name} has no such part, only {name}={value!r}."
            )
    projector = with_defaults(
        config["projector_config"], arguments_of(VisionProjector), "projector_config"
    )
    fixed = {"num_layers": 2, "use_layer_norm": False, **fixed}
    for name, value in fixed.items():
        if projector[name] != value:
            raise ValueError(
                f"projector_config: {name}={projector[name]!r}: {format_name} has {name}={value!r}."
            )
    return projector
