"""A new model from a published vision encoder and a published language model."""

import os
import pathlib

from dl_techniques.checkpoints.building import Source, build
from dl_techniques.checkpoints.formats import Format, read_folder
from dl_techniques.checkpoints.hub import CONFIG_FILES, WEIGHT_FILES, local_folder
from dl_techniques.checkpoints.json_files import read_json
from dl_techniques.checkpoints.presets import stop_ids_of
from dl_techniques.checkpoints.processors import PREPROCESSOR_FILE, checked_processor, tokenizer_of
from dl_techniques.checkpoints.smolvlm_config import bare_projection
from dl_techniques.layers.vision_transformer_siglip import SigLIPVisionTransformer
from dl_techniques.models.language_decoder import LanguageDecoder
from dl_techniques.preprocessing.messages import IMAGE_MARK
from dl_techniques.preprocessing.preprocessor_config import image_processor_from_preprocessor_config


def from_backbones(
    cls,
    vision: str | os.PathLike,
    language: str | os.PathLike,
    scale_factor: int = 4,
    projection_config: dict | None = None,
    template="chatml",
    tokenizer=None,
    load_weights: bool = True,
    dtype=None,
):
    """Return a model of two published parts and a new projection between them.

    The tokenizer gets the token `<|image|>`. The vocabulary grows by the rows that it lacks, each
    the mean of the others, and is never shrunk; a tied head stays tied.

    Args:
        cls: The model's class.
        vision: A SigLIP or SigLIP2 folder of fixed resolution, or "hf://owner/name".
        language: A Llama (SmolLM2) or Qwen2 folder, or "hf://owner/name".
        scale_factor: Of the pixel shuffle: so many by so many patches become one token.
        projection_config: Arguments of `ModalityProjection`; default: one matrix, as nanoVLM has.
        template: The processor's chat template; see `VQADataProcessor`.
        tokenizer: A `Tokenizer`, a folder or "hf://owner/name"; default: that of `language`.
        load_weights: False: random weights.
        dtype: The weights' dtype or a policy; default: Keras' own.

    Raises:
        ValueError: naming the file that is missing, or all that does not fit.
        ConnectionError: if the hub cannot be reached and the cache lacks the files.
    """
    vision_folder, vision_format, vision_config = _part(
        vision, "vision", SigLIPVisionTransformer, load_weights
    )
    language_folder, language_format, language_config = _part(
        language, "language", LanguageDecoder, load_weights
    )
    tokenizer = tokenizer_of(language_folder if tokenizer is None else tokenizer)
    (image_token_id,) = tokenizer.add_special_tokens([IMAGE_MARK])
    vision_arguments = vision_format.arguments(vision_config)
    language_arguments = language_format.arguments(language_config)
    rows = language_arguments.pop("vocab_size")
    projection = bare_projection(vision_arguments, language_arguments, scale_factor)
    arguments = {
        "vision_config": vision_arguments,
        "language_config": language_arguments,
        "projection_config": {**projection, **(projection_config or {})},
        "vocab_size": max(rows, tokenizer.vocab_size),
        "image_token_id": image_token_id,
        "dtype": dtype,
    }
    sources = [
        Source(vision_folder, vision_format.key_map, "vision_encoder"),
        Source(language_folder, language_format.key_map, "language_decoder", True),
    ]
    images = image_processor_from_preprocessor_config(read_json(vision_folder / PREPROCESSOR_FILE))
    model = build(cls, arguments, *(sources if load_weights else ()))
    model.stop_ids = stop_ids_of(language_folder, language_config)
    model.processor = checked_processor(model, tokenizer, template, images, IMAGE_MARK)
    return model


def _part(
    source: str | os.PathLike, part: str, expected: type, load_weights: bool
) -> tuple[pathlib.Path, Format, dict]:
    """Return (folder, format, config.json) of a part.

    Raises:
        ValueError: if the folder holds something else.
    """
    folder = local_folder(source, files=CONFIG_FILES + (WEIGHT_FILES if load_weights else ()))
    found, config = read_folder(folder)
    if found.layer_class is not expected:
        raise ValueError(f"{source} is {found.name}'s; {part} must be a {expected.__name__}.")
    return folder, found, config
