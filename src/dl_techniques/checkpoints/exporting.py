"""Writes models as folders that transformers and nanoVLM load."""

import os
import pathlib
from collections.abc import Sequence

import keras
import numpy as np

from dl_techniques.checkpoints.configs import llama_from_language_config, siglip_from_vision_config
from dl_techniques.checkpoints.image_normalisation import fold_normalisation
from dl_techniques.checkpoints.json_files import write_json
from dl_techniques.checkpoints.key_map import Binding, KeyMap, bind, variables_of
from dl_techniques.checkpoints.loading import key_map_of
from dl_techniques.checkpoints.nanovlm_config import nanovlm_from_config
from dl_techniques.checkpoints.safetensors_writer import (
    MAX_SHARD_BYTES,
    PendingTensor,
    write_folder,
)
from dl_techniques.checkpoints.smolvlm_config import smolvlm_from_config
from dl_techniques.layers.configured_layer import ConfiguredLayer
from dl_techniques.layers.rotary_embedding import rotary_frequencies

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

    shape = binding.transform.their_shape(tuple(tuple(v.shape) for v in mine))
    return PendingTensor(binding.keys[0], shape, stored, make)


def _arguments(layer: ConfiguredLayer) -> dict:
    """Return a layer's own constructor arguments."""
    config = layer.get_config()
    for name in ("name", "trainable", "dtype"):
        config.pop(name, None)
    return config


def _model_config(model) -> dict:
    """Return a model's arguments, those of its parts complete."""
    language = _arguments(model.language_decoder)
    vocab_size = language.pop("vocab_size")
    return {
        "vision_config": _arguments(model.vision_encoder),
        "language_config": language,
        "projection_config": _arguments(model.modality_projection),
        "vocab_size": vocab_size,
        "image_token_id": model.image_token_id,
        "bidirectional_images": model.bidirectional_images,
    }


def _stored_dtype(owner, dtype: str | None) -> str:
    return dtype or keras.backend.standardize_dtype(owner.weights[0].dtype)


def export_decoder(decoder, folder: str | os.PathLike, dtype: str | None = None, **options) -> None:
    """Write a `LanguageDecoder` as the Llama or Qwen2 folder (weights, config) of transformers.

    Args:
        decoder: The decoder, alone or of a model.
        folder: Made where it does not exist.
        dtype: See `save_weights`.
        **options: `max_shard_bytes`, and further fields of `config.json` (such as
            `eos_token_id`).

    Raises:
        ValueError: naming what the format lacks.
    """
    config = llama_from_language_config(_arguments(decoder))
    config["architectures"] = [DECODER_CLASSES[config["model_type"]]]
    _write(decoder, folder, config["model_type"], config, dtype, options)


def export_vision_encoder(
    encoder, folder: str | os.PathLike, dtype: str | None = None, **options
) -> None:
    """Write a `SigLIPVisionTransformer` as the SigLIP folder (weights, config) of transformers.

    Args:
        encoder: The encoder, alone or of a model.
        folder: Made where it does not exist.
        dtype: See `save_weights`.
        **options: As for `export_decoder`.

    Raises:
        ValueError: naming what the format lacks.
    """
    config = siglip_from_vision_config(_arguments(encoder))
    config |= {"architectures": ["SiglipVisionModel"], "vision_use_head": False}
    _write(encoder, folder, "siglip", config, dtype, options)


def export_nanovlm(
    model,
    folder: str | os.PathLike,
    dtype: str | None = None,
    tokenizer: str = "HuggingFaceTB/SmolLM2-360M-Instruct",
    image_mean: float | Sequence[float] | None = None,
    image_std: float | Sequence[float] | None = None,
    **fields,
) -> None:
    """Write a model as the folder (weights, config) that huggingface/nanoVLM loads.

    Args:
        model: A `NanoVLM` whose projection is one matrix.
        folder: Made where it does not exist.
        dtype: See `save_weights`.
        tokenizer: What nanoVLM is to load as tokenizer: a hub name or a folder.
        image_mean: As for `export_smolvlm`, but nanoVLM's pixels are in [0, 1].
        image_std: As for `export_smolvlm`.
        **fields: Further fields of its `VLMConfig`, or others in place of ours.

    Raises:
        ValueError: naming what the format lacks.
    """
    config = nanovlm_from_config(_model_config(model), model.tokens_per_image, tokenizer)
    decoder = model.language_decoder
    metadata = {}
    if decoder.tie_embeddings:
        metadata = {"decoder.token_embedding.weight": "decoder.head.weight"}
    head_dim = decoder.blocks[0].attention.head_dim
    frequencies = rotary_frequencies(head_dim, decoder.rope_theta)
    save_weights(
        model,
        folder,
        "nanovlm",
        dtype,
        # nanoVLM reads no shards.
        max_shard_bytes=2**62,
        replaced=fold_normalisation(model, image_mean, image_std, 0.0, 1.0),
        added={"decoder.rotary_embd.inv_freq": frequencies},
        metadata=metadata,
    )
    write_json(pathlib.Path(folder) / "config.json", {**config, **fields})


def export_smolvlm(
    model,
    folder: str | os.PathLike,
    dtype: str | None = None,
    kind: str = "smolvlm",
    image_mean: float | Sequence[float] | None = None,
    image_std: float | Sequence[float] | None = None,
    **options,
) -> None:
    """Write a model as the SmolVLM or Idefics3 folder (weights, config) of transformers.

    Args:
        model: A `NanoVLM` whose projection is one matrix and whose images have placeholders.
        folder: Made where it does not exist.
        dtype: See `save_weights`.
        kind: "smolvlm" or "idefics3".
        image_mean: What is subtracted from pixels in [0, 1] before this model sees them, one
            number or one per channel; default: as its processor does. SmolVLM subtracts 0.5 and
            divides by 0.5; what differs is folded into the patch embedding. nanoVLM's own
            checkpoints have 0.
        image_std: What they are divided by then. nanoVLM's own checkpoints have 1.
        **options: As for `export_decoder`.

    Raises:
        ValueError: naming what the format lacks.
    """
    config = smolvlm_from_config(_model_config(model), kind)
    replaced = fold_normalisation(model, image_mean, image_std, 0.5, 0.5)
    _write(model, folder, "smolvlm", config, dtype, options, replaced)


def _write(owner, folder, key_map, config: dict, dtype, options: dict, replaced=None) -> None:
    limit = options.pop("max_shard_bytes", MAX_SHARD_BYTES)
    save_weights(owner, folder, key_map, dtype, limit, replaced)
    config = {**config, "dtype": _stored_dtype(owner, dtype), **options}
    write_json(pathlib.Path(folder) / "config.json", config)
