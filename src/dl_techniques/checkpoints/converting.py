"""Converts checkpoints between formats: what `dl-techniques convert` does."""

import os
import pathlib

import keras

from dl_techniques.checkpoints.building import Source, build
from dl_techniques.checkpoints.exporting import export_decoder, export_vision_encoder
from dl_techniques.checkpoints.family_exporting import export_internvl, export_llava
from dl_techniques.checkpoints.formats import Format, read_folder
from dl_techniques.checkpoints.hub import local_folder
from dl_techniques.checkpoints.keras_file import read_keras_file
from dl_techniques.checkpoints.model_exporting import export_nanovlm, export_smolvlm
from dl_techniques.models.families import FAMILIES
from dl_techniques.models.language_decoder import LanguageDecoder

KERAS_SUFFIX = ".keras"
TARGETS = ("keras", "nanovlm", "smolvlm", "llava", "internvl", "nvlm_d", "llama", "siglip")


def family_of(found: Format, config: dict, default: type | None = None) -> type:
    """Return the class of a folder's model.

    Args:
        found: The folder's format.
        config: Its config.json.
        default: For a class that is not one of our families.

    Raises:
        ValueError: if it is none of them and there is no default.
    """
    family = FAMILIES.get(found.class_name(config), default)
    if family is None:
        raise ValueError(
            f"config.json has model_class={config.get('model_class')!r}, which is none of "
            f"{sorted(FAMILIES)}."
        )
    return family


def refuse_options(source: str | os.PathLike, options: dict) -> None:
    """Raise ValueError if any option is given to a source that is loaded as it is."""
    given = sorted(name for name, value in options.items() if value is not None)
    if given:
        raise ValueError(f"{source} is loaded as it is: it takes no {', '.join(given)}.")


def load_any(source: str | os.PathLike, model_class: type | None = None, **options):
    """Return the model, or the vision encoder or decoder alone, of any supported source.

    Args:
        source: A `.keras` file, a folder in a supported format, or "hf://owner/name".
        model_class: What whole models are that are of no family; default: they are refused.
        **options: See `from_preset`. A `.keras` file takes none: it is loaded as it is.

    Raises:
        ValueError: naming all that does not fit.
    """
    if pathlib.Path(source).suffix == KERAS_SUFFIX:
        refuse_options(source, options)
        return read_keras_file(source)
    folder = local_folder(source, options.pop("revision", None))
    found, config = read_folder(folder)
    if found.part == "model":
        return family_of(found, config, model_class).from_preset(folder, **options)
    arguments = {**found.arguments(config), "dtype": options.get("dtype")}
    return build(found.make, arguments, Source(folder, found.key_map))


def convert(model, target: str | os.PathLike, to: str, dtype: str | None = None) -> None:
    """Write a model, or a vision encoder or decoder, in a format.

    Args:
        model: What `load_any` returned.
        target: A folder; for "keras" a `.keras` file, which holds neither processor nor stop ids,
            or a folder that `from_preset` reads.
        to: One of `TARGETS`: "nanovlm" and "smolvlm" need a `NanoVLM`, "llava" a `GhostVis`,
            "internvl" (of transformers) and "nvlm_d" an `NVLM`; "llama" is a model's decoder, or
            one alone (written as Qwen2 if it has q, k, v biases); "siglip" is its vision encoder,
            or one alone.
        dtype: "float32", "float16" or "bfloat16"; default: each weight's own.

    Raises:
        ValueError: naming what the format lacks.
    """
    if to not in TARGETS:
        raise ValueError(f"to={to!r}: choose from {TARGETS}.")
    target = pathlib.Path(target)
    is_model = isinstance(model, keras.Model)
    processor = model.processor if is_model else None
    if to == "keras" and target.suffix == KERAS_SUFFIX:
        if dtype is not None:
            raise ValueError(f"A {KERAS_SUFFIX} file keeps the weights' own dtype.")
        target.parent.mkdir(parents=True, exist_ok=True)
        (model if is_model else _as_model(model)).save(target)
    elif to == "llama" and (is_model or isinstance(model, LanguageDecoder)):
        decoder = model.language_decoder if is_model else model
        stops = model.stop_ids if is_model else ()
        export_decoder(decoder, target, dtype, processor, stops)
    elif to == "siglip" and not isinstance(model, LanguageDecoder):
        encoder = model.vision_encoder if is_model else model
        export_vision_encoder(encoder, target, dtype, processor)
    elif not is_model:
        raise ValueError(f"A {type(model).__name__} alone cannot be converted to {to!r}.")
    elif to == "keras":
        model.save_to_preset(target, dtype)
    elif to == "nvlm_d":
        export_internvl(model, target, dtype, layout="nvlm_d")
    else:
        export = {
            "nanovlm": export_nanovlm,
            "smolvlm": export_smolvlm,
            "llava": export_llava,
            "internvl": export_internvl,
        }[to]
        export(model, target, dtype)


def _as_model(layer: keras.layers.Layer) -> keras.Model:
    if isinstance(layer, LanguageDecoder):
        inputs = keras.Input((None,), dtype="int32", name="text_tokens")
    else:
        inputs = keras.Input((None, None, 3), name="images")
    return keras.Model(inputs, layer(inputs), name=layer.name)
