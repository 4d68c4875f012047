"""What a folder of weights is: the formats that we read, told apart by their config.json."""

import dataclasses
import os
import pathlib
from collections.abc import Callable

import keras

from dl_techniques.checkpoints.configs import language_config_from_llama, vision_config_from_siglip
from dl_techniques.checkpoints.json_files import read_json
from dl_techniques.checkpoints.key_map import KeyMap
from dl_techniques.checkpoints.key_maps import KEY_MAPS
from dl_techniques.checkpoints.nanovlm_config import config_from_nanovlm
from dl_techniques.checkpoints.native import MODEL_TYPE, NATIVE, config_from_native
from dl_techniques.checkpoints.smolvlm_config import SMOLVLM_CLASSES, config_from_smolvlm
from dl_techniques.checkpoints.vision_configs import (
    vision_config_from_clip,
    vision_config_from_internvit,
)
from dl_techniques.layers.vision_transformer import VisionTransformer
from dl_techniques.layers.vision_transformer_siglip import SigLIPVisionTransformer
from dl_techniques.models.language_decoder import LanguageDecoder

CONFIG_FILE = "config.json"


@dataclasses.dataclass(frozen=True)
class Format:
    """A kind of folder.

    Attributes:
        name: The format's name.
        part: "model", "vision" or "language": what its weights are.
        key_map: The table of its keys.
        arguments: Its config -> the keyword arguments of what it configures.
        layer_class: What these are the arguments of; None for whole models.
    """

    name: str
    part: str
    key_map: KeyMap
    arguments: Callable[[dict], dict]
    layer_class: type | None = None

    def make(self, **arguments) -> keras.layers.Layer:
        """Return the built layer that these are the arguments of; not for whole models."""
        layer = self.layer_class(**arguments)
        layer.build((None, None) if self.part == "language" else (None, None, None, 3))
        return layer


def _format(name, part, arguments, layer_class=None, key_map=None) -> Format:
    return Format(name, part, key_map or KEY_MAPS[name], arguments, layer_class)


FORMATS = {
    found.name: found
    for found in (
        _format("dl_techniques", "model", config_from_native, key_map=NATIVE),
        _format("nanovlm", "model", config_from_nanovlm),
        _format("smolvlm", "model", config_from_smolvlm),
        _format("llama", "language", language_config_from_llama, LanguageDecoder),
        _format("qwen2", "language", language_config_from_llama, LanguageDecoder),
        _format("siglip", "vision", vision_config_from_siglip, SigLIPVisionTransformer),
        _format("clip", "vision", vision_config_from_clip, VisionTransformer),
        _format("internvit", "vision", vision_config_from_internvit, VisionTransformer),
    )
}
# `model_type` in config.json -> a key of FORMATS.
_BY_MODEL_TYPE = {
    MODEL_TYPE: "dl_techniques",
    **dict.fromkeys(SMOLVLM_CLASSES, "smolvlm"),
    "llama": "llama",
    "qwen2": "qwen2",
    "siglip": "siglip",
    "siglip_vision_model": "siglip",
    "clip": "clip",
    "clip_vision_model": "clip",
    "intern_vit_6b": "internvit",
}


def format_of(config: dict, where: str | os.PathLike) -> Format:
    """Return the format of a config.json.

    Args:
        config: Its content.
        where: The folder, for messages.

    Raises:
        ValueError: if it is none of ours.
    """
    model_type = config.get("model_type")
    if isinstance(model_type, str) and model_type in _BY_MODEL_TYPE:
        return FORMATS[_BY_MODEL_TYPE[model_type]]
    # nanoVLM's configs name no model type.
    if {"vit_hidden_dim", "lm_hidden_dim"} <= set(config):
        return FORMATS["nanovlm"]
    known = ", ".join(sorted(_BY_MODEL_TYPE))
    raise ValueError(
        f"{where}: {CONFIG_FILE} has model_type={model_type!r}; supported are {known}, and "
        "nanoVLM's configs, which have vit_... and lm_... fields."
    )


def read_folder(folder: str | os.PathLike) -> tuple[Format, dict]:
    """Return (format, content of config.json) of a folder.

    Raises:
        ValueError: if config.json is missing or names no supported format.
    """
    path = pathlib.Path(folder) / CONFIG_FILE
    if not path.is_file():
        raise ValueError(f"{folder} has no {CONFIG_FILE}.")
    config = read_json(path)
    return format_of(config, folder), config
