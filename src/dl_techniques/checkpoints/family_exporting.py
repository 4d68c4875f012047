"""Writes `GhostVis` as LLaVA-1.5's folder, `NVLM` as InternVL's or NVLM-D's."""

import os
from collections.abc import Callable

import numpy as np

from dl_techniques.checkpoints.exporting import write_model
from dl_techniques.checkpoints.family_files import (
    processor_fields,
    write_internvl_files,
    write_llava_files,
)
from dl_techniques.checkpoints.internvl_config import (
    INTERNVL_CHAT_TYPE,
    NVLM_D_TYPE,
    internvl_chat_from_config,
    internvl_from_config,
)
from dl_techniques.checkpoints.llava_config import NORM_KEYS, llava_from_config
from dl_techniques.checkpoints.staging import staged
from dl_techniques.layers.vision_connector import VisionConnector

INTERNVL_LAYOUTS = ("transformers", "original", "nvlm_d")


def export_llava(model, folder: str | os.PathLike, dtype: str | None = None, **options) -> None:
    """Write a model as the LLaVA folder that transformers (`LlavaForConditionalGeneration`) loads.

    Nothing is lost: our encoder ends with the layer whose output LLaVA reads, so config.json has
    as many layers and `vision_feature_layer` -1 in place of -2, and every tensor of those layers is
    as it was loaded. The layers behind, which had no effect, are not written; the norm of the
    pooled class token, which has none either, is written as ones and zeros, for transformers wants
    one.

    Args:
        model: A `GhostVis` of a CLIP encoder, a projector of two layers without norms, as wide as
            the decoder, and no resampler.
        folder: Made where it does not exist.
        dtype: See `save_weights`.
        **options: As for `export_decoder`.

    Raises:
        ValueError: naming what the format lacks.
    """
    config = llava_from_config(_whole_config(model, "llava"))
    width = model.vision_encoder.embed_dim
    # In the dtype of the other weights.
    stored = np.dtype(dtype or model.vision_encoder.blocks[0].norm1.gamma.dtype)
    values = (np.ones(width, stored), np.zeros(width, stored))
    added = {
        f"vision_tower.vision_model.{key}": value
        for key, value in zip(NORM_KEYS, values, strict=True)
    }
    _write(model, folder, "llava", config, dtype, options, write_llava_files, added=added)


def export_internvl(
    model,
    folder: str | os.PathLike,
    dtype: str | None = None,
    layout: str = "transformers",
    **options,
) -> None:
    """Write a model as the folder of InternVL or NVLM-D.

    NVLM-D's own files have dummy heads in the vision encoder, which have no effect and are not
    kept: what is written has none, and a program that insists on them does not read it.

    Args:
        model: An `NVLM` with the architecture "decoder" and a projector of two layers behind a
            norm.
        folder: Made where it does not exist.
        dtype: See `save_weights`.
        layout: "transformers": what `InternVLForConditionalGeneration` loads; "original":
            OpenGVLab's, for its own programs; "nvlm_d": NVLM-D's, whose projector has no biases.
        **options: As for `export_decoder`.

    Raises:
        ValueError: naming what the format lacks.
    """
    if layout not in INTERNVL_LAYOUTS:
        raise ValueError(f"layout={layout!r} must be one of {INTERNVL_LAYOUTS}.")
    config = _whole_config(model, layout)
    if layout == "transformers":
        config = internvl_from_config(config)
        _write(model, folder, "internvl", config, dtype, options, write_internvl_files)
        return
    model_type = NVLM_D_TYPE if layout == "nvlm_d" else INTERNVL_CHAT_TYPE
    config = internvl_chat_from_config(config, model_type)
    name = "nvlm_d" if layout == "nvlm_d" else "internvl_chat"
    if model.processor is not None:
        config |= processor_fields(model.processor, name)
    _write(model, folder, name, config, dtype, options, write_internvl_files)


def _whole_config(model, layout: str) -> dict:
    """Return a model's arguments, those of its parts complete.

    Raises:
        ValueError: if its connector is of another family.
    """
    connector = model.modality_projection
    if not isinstance(connector, VisionConnector):
        raise ValueError(f"A {type(model).__name__} cannot be written as {layout!r}.")
    language = model.language_decoder.arguments()
    language.pop("vocab_size")
    return {
        **model.arguments(),
        "vision_config": model.vision_encoder.arguments(),
        "language_config": language,
        "projector_config": connector.vision_projector.arguments(),
        "resampler_config": connector.resampler_config,
        "compressor_config": connector.compressor_config,
        "scale_factor": connector.scale_factor,
    }


def _write(
    model, folder, key_map: str, config: dict, dtype, options, write_files: Callable, **values
) -> None:
    with staged(folder) as place:
        write_model(model, place, key_map, config, dtype, options, **values)
        if model.processor is not None:
            write_files(model, place, key_map)
