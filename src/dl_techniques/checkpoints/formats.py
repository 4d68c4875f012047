"""What a folder of weights is: the formats that we read, told apart by their config.json."""

import dataclasses
import os
import pathlib
from collections.abc import Callable

import keras

from dl_techniques.checkpoints.configs import language_config_from_llama, vision_config_from_siglip
from dl_techniques.checkpoints.internvl_config import (
    INTERNVL_CHAT_TYPE,
    NVLM_D_TYPE,
    config_from_internvl,
    config_from_internvl_chat,
)
from dl_techniques.checkpoints.json_files import read_json
from dl_techniques.checkpoints.key_map import Drop, KeyMap
from dl_techniques.checkpoints.key_maps import KEY_MAPS
from dl_techniques.checkpoints.llava_config import config_from_llava, unread_by_llava
from dl_techniques.checkpoints.nanovlm_config import config_from_nanovlm
from dl_techniques.checkpoints.native import MODEL_TYPE, NATIVE, config_from_native
from dl_techniques.checkpoints.placeholder_ids import token_id_in
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
        model_class: Of whole models: the name of their class; None: config.json names it.
        unread: Its config -> keys that are not loaded, beside those of the table.
        placeholder: The token whose id config.json may leave to the tokenizer's files.
    """

    name: str
    part: str
    key_map: KeyMap
    arguments: Callable[[dict], dict]
    layer_class: type | None = None
    model_class: str | None = None
    unread: Callable[[dict], tuple[Drop, ...]] | None = None
    placeholder: str | None = None

    def keys(self, config: dict) -> KeyMap:
        """Return the table for the weights beside a config."""
        return self.key_map if self.unread is None else self.key_map.without(self.unread(config))

    def class_name(self, config: dict) -> str | None:
        """Return the name of the class of a whole model."""
        return self.model_class or config.get("model_class")

    def make(self, **arguments) -> keras.layers.Layer:
        """Return the built layer that these are the arguments of; not for whole models."""
        layer = self.layer_class(**arguments)
        layer.build((None, None) if self.part == "language" else (None, None, None, 3))
        return layer


def _format(name, part, arguments, layer_class=None, key_map=None, **more) -> Format:
    return Format(name, part, key_map or KEY_MAPS[name], arguments, layer_class, **more)


FORMATS = {
    found.name: found
    for found in (
        _format("dl_techniques", "model", config_from_native, key_map=NATIVE),
        _format("nanovlm", "model", config_from_nanovlm, model_class="NanoVLM"),
        _format("smolvlm", "model", config_from_smolvlm, model_class="NanoVLM"),
        _format(
            "llava", "model", config_from_llava, model_class="GhostVis", unread=unread_by_llava
        ),
        _format("internvl", "model", config_from_internvl, model_class="NVLM"),
        _format(
            "internvl_chat",
            "model",
            config_from_internvl_chat,
            model_class="NVLM",
            placeholder="<IMG_CONTEXT>",
        ),
        _format(
            "nvlm_d",
            "model",
            config_from_internvl_chat,
            model_class="NVLM",
            placeholder="<|vision_pad|>",
        ),
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
    "llava": "llava",
    "internvl": "internvl",
    INTERNVL_CHAT_TYPE: "internvl_chat",
    NVLM_D_TYPE: "nvlm_d",
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

    An `image_token_id` that config.json leaves to the tokenizer is filled in.

    Raises:
        ValueError: if config.json is missing or names no supported format, or no file tells the
            placeholder's id.
    """
    path = pathlib.Path(folder) / CONFIG_FILE
    if not path.is_file():
        raise ValueError(f"{folder} has no {CONFIG_FILE}.")
    config = read_json(path)
    found = format_of(config, folder)
    if found.placeholder is not None and config.get("image_token_id") is None:
        token_id = token_id_in(folder, found.placeholder)
        if token_id is None:
            raise ValueError(
                f"{folder}: neither {CONFIG_FILE} (image_token_id) nor a tokenizer's file tells "
                f"the id of {found.placeholder!r}, which stands for the tokens of an image."
            )
        config["image_token_id"] = token_id
    return found, config
