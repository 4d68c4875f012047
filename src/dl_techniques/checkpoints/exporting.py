"""Writes weights, and vision encoders and decoders as folders that transformers loads."""

import copy
import os
import pathlib
from collections.abc import Sequence

import keras
import numpy as np

from dl_techniques.checkpoints.companion_files import (
    write_chat_template,
    write_generation_config,
    write_tokenizer,
)
from dl_techniques.checkpoints.configs import llama_from_language_config, siglip_from_vision_config
from dl_techniques.checkpoints.json_files import write_json
from dl_techniques.checkpoints.key_map import Binding, KeyMap, bind, variables_of
from dl_techniques.checkpoints.loading import key_map_of
from dl_techniques.checkpoints.safetensors_writer import (
    MAX_SHARD_BYTES,
    PendingTensor,
    write_folder,
)
from dl_techniques.checkpoints.staging import staged
from dl_techniques.preprocessing.image_processors import TiledImageProcessor
from dl_techniques.preprocessing.images import ImageProcessor
from dl_techniques.preprocessing.preprocessor_config import preprocessor_config
from dl_techniques.preprocessing.sentencepiece_export import to_huggingface

DECODER_CLASSES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}


def save_weights(
    owner: keras.layers.Layer,
    folder: str | os.PathLike,
    key_map: KeyMap | str,
    dtype: str | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    replaced: dict[str, np.ndarray] | None = None,
    added: dict[str, np.ndarray] | None = None,
    metadata: dict[str, str] | None = None,
) -> list[pathlib.Path]:
    """Write every weight of a layer or model as safetensors; read back, they are bit-equal.

    Args:
        owner: A built layer or model.
        folder: Made where it does not exist; weights in it are replaced.
        key_map: The table, or its name in `KEY_MAPS`.
        dtype: "float32", "float16" or "bfloat16"; default: each weight's own.
        max_shard_bytes: See `write_folder`.
        replaced: Values to write in place of those of the variables at these paths.
        added: Tensors of the format that no variable holds, by key.
        metadata: Texts for the headers.

    Returns:
        The files written.

    Raises:
        ValueError: if the format has no place for a weight, or a float16 value would be infinite.
    """
    if dtype not in (None, "float32", "float16", "bfloat16"):
        raise ValueError(f"dtype={dtype!r} must be 'float32', 'float16', 'bfloat16' or None.")
    variables = variables_of(owner)
    bindings = bind(key_map_of(key_map), variables)
    pending = [_pending(binding, variables, dtype, replaced or {}) for binding in bindings]
    for key, value in (added or {}).items():
        pending.append(PendingTensor(key, value.shape, value.dtype, lambda value=value: value))
    return write_folder(folder, pending, {"format": "pt", **(metadata or {})}, max_shard_bytes)


def _pending(binding: Binding, variables: dict, dtype, replaced: dict) -> PendingTensor:
    mine = [variables[path] for path in binding.paths]
    stored = np.dtype(dtype or mine[0].dtype)

    def make():
        arrays = [
            replaced[path] if path in replaced else keras.ops.convert_to_numpy(variable)
            for path, variable in zip(binding.paths, mine, strict=True)
        ]
        value = binding.transform.to_theirs(tuple(arrays))
        if stored == np.float16 and value.dtype != np.float16:
            if np.abs(value).max(initial=0) > np.finfo(np.float16).max:
                raise ValueError(f"{binding.keys[0]} has values beyond float16: use bfloat16.")
        return value

    ours = (replaced.get(path, v) for path, v in zip(binding.paths, mine, strict=True))
    shape = binding.transform.their_shape(tuple(tuple(value.shape) for value in ours))
    return PendingTensor(binding.keys[0], shape, stored, make)


def export_decoder(
    decoder,
    folder: str | os.PathLike,
    dtype: str | None = None,
    processor=None,
    stop_ids: Sequence[int] = (),
    **options,
) -> None:
    """Write a `LanguageDecoder` as a Llama or Qwen2 folder of transformers.

    Args:
        decoder: The decoder, alone or of a model.
        folder: Made where it does not exist.
        dtype: See `save_weights`.
        processor: A `VQADataProcessor` whose tokenizer and chat template are written too.
        stop_ids: Further ids at which answers end, such as a model's `stop_ids`.
        **options: `max_shard_bytes`, and further fields of `config.json` (such as
            `eos_token_id`).

    Raises:
        ValueError: naming what the format lacks.
    """
    config = llama_from_language_config(decoder.arguments())
    config["architectures"] = [DECODER_CLASSES[config["model_type"]]]
    tokenizer = None if processor is None else to_huggingface(copy.deepcopy(processor.tokenizer))
    with staged(folder) as place:
        write_model(decoder, place, config["model_type"], config, dtype, options)
        if processor is not None:
            write_tokenizer(tokenizer, place)
            write_chat_template(processor, place, image_token="")
            write_generation_config(processor, place, stop_ids)


def export_vision_encoder(
    encoder, folder: str | os.PathLike, dtype: str | None = None, processor=None, **options
) -> None:
    """Write a `SigLIPVisionTransformer` as the SigLIP folder of transformers.

    Args:
        encoder: The encoder, alone or of a model.
        folder: Made where it does not exist.
        dtype: See `save_weights`.
        processor: A `VQADataProcessor` whose image settings are written too; those of one tile,
            as SigLIP knows no tiles.
        **options: As for `export_decoder`.

    Raises:
        ValueError: naming what the format lacks.
    """
    config = siglip_from_vision_config(encoder.arguments())
    config |= {"architectures": ["SiglipVisionModel"], "vision_use_head": False}
    images = None
    if processor is not None:
        tile = processor.image_processor
        if isinstance(tile, TiledImageProcessor):
            tile = ImageProcessor(tile.image_size, tile.mean, tile.std, tile.resample)
        images = preprocessor_config(tile, kind="siglip")
    with staged(folder) as place:
        write_model(encoder, place, "siglip", config, dtype, options)
        if images is not None:
            write_json(place / "preprocessor_config.json", images)


def write_model(owner, folder, key_map, config: dict, dtype, options: dict, **values) -> None:
    """Write weights and config.json.

    Args:
        owner: A layer or model.
        folder: Made where it does not exist.
        key_map: See `save_weights`.
        config: The fields of config.json.
        dtype: See `save_weights`.
        options: `max_shard_bytes`, and further fields of config.json, which win.
        **values: `replaced`, `added` and `metadata` of `save_weights`.
    """
    limit = options.pop("max_shard_bytes", MAX_SHARD_BYTES)
    save_weights(owner, folder, key_map, dtype, limit, **values)
    if "architectures" in config:  # transformers' configs say it, nanoVLM's cannot.
        stored = dtype or keras.backend.standardize_dtype(owner.weights[0].dtype)
        config = {**config, "dtype": stored}
    write_json(pathlib.Path(folder) / "config.json", {**config, **options})
