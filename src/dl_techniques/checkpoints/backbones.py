"""A new model from a published vision encoder and a published language model."""

import os
import pathlib

from dl_techniques.checkpoints.building import Source, build
from dl_techniques.checkpoints.formats import Format, read_folder
from dl_techniques.checkpoints.hub import CONFIG_FILES, WEIGHT_FILES, local_folder
from dl_techniques.checkpoints.json_files import read_json
from dl_techniques.checkpoints.key_map import KeyMap
from dl_techniques.checkpoints.presets import stop_ids_of
from dl_techniques.checkpoints.processors import PREPROCESSOR_FILE, checked_processor, tokenizer_of
from dl_techniques.checkpoints.smolvlm_config import bare_projection
from dl_techniques.checkpoints.vision_key_maps import unread_layers
from dl_techniques.layers.modality_projection import ModalityProjection
from dl_techniques.models.language_decoder import LanguageDecoder
from dl_techniques.preprocessing.image_processors import NVLMImageProcessor
from dl_techniques.preprocessing.messages import IMAGE_MARK
from dl_techniques.preprocessing.preprocessor_config import image_processor_from_preprocessor_config

# Of the decoder: what no published language model has.
NEW_WEIGHTS = r"/cross_attention/"


def from_backbones(
    cls,
    vision: str | os.PathLike,
    language: str | os.PathLike,
    scale_factor: int | None | str = "default",
    projection_config: dict | None = None,
    template="chatml",
    tokenizer=None,
    load_weights: bool = True,
    dtype=None,
    image_processor=None,
    language_config: dict | None = None,
    **arguments,
):
    """Return a model of two published parts and a new projection between them.

    The tokenizer gets the token `<|image|>`, and where a model reads tiles by cross-attention
    (`NVLM` with another `architecture` than "decoder") a token for each tag. The vocabulary grows
    by the rows that it lacks, each the mean of the others, and is never shrunk; a tied head stays
    tied.

    Of CLIP the last layer is left out and the class token dropped, as in LLaVA; of InternViT the
    class token is dropped.

    Args:
        cls: The model's class.
        vision: A folder, or "hf://owner/name": of SigLIP or SigLIP2 of fixed resolution, or, where
            the class has a general `VisionTransformer`, of CLIP or InternViT, too.
        language: A Llama (SmolLM2) or Qwen2 folder, or "hf://owner/name".
        scale_factor: Of the pixel shuffle: so many by so many patches become one token. Default:
            4 for `NanoVLM`, else the class's own.
        projection_config: Arguments of `ModalityProjection`; default: one matrix, as nanoVLM has.
            Families with a `VisionConnector` have their own arguments in its place.
        template: The processor's chat template; see `VQADataProcessor`.
        tokenizer: A `Tokenizer`, a folder or "hf://owner/name"; default: that of `language`.
        load_weights: False: random weights.
        dtype: The weights' dtype or a policy; default: Keras' own.
        image_processor: Of `model.processor`; default: what the folder of `vision` says.
        language_config: Arguments of `LanguageDecoder` that its folder does not know, such as
            `cross_attention_every`; the cross-attention is new, its gates are closed.
        **arguments: Further ones of the class, such as `projector_config` and `resampler_config`
            of `GhostVis`; the projector's `output_dim` is filled in.

    Raises:
        ValueError: naming the file that is missing, or all that does not fit.
        ConnectionError: if the hub cannot be reached and the cache lacks the files.
    """
    vision_folder, vision_format, vision_config = _part(
        vision, "vision", cls.vision_class, load_weights
    )
    language_folder, language_format, folder_config = _part(
        language, "language", LanguageDecoder, load_weights
    )
    tokenizer = tokenizer_of(language_folder if tokenizer is None else tokenizer)
    images = image_processor
    if images is None:
        settings = read_json(vision_folder / PREPROCESSOR_FILE)
        images = image_processor_from_preprocessor_config(settings)
    marks = _marks(arguments.get("architecture", "decoder"), tokenizer, images)
    vision_arguments, vision_keys = _vision(vision_format, vision_config)
    language_arguments = language_format.arguments(folder_config)
    rows = language_arguments.pop("vocab_size")
    arguments = {
        **_projection(
            cls, vision_arguments, language_arguments, scale_factor, projection_config, arguments
        ),
        **marks,
        "vision_config": vision_arguments,
        "language_config": {**language_arguments, **(language_config or {})},
        "vocab_size": max(rows, tokenizer.vocab_size),
        "dtype": dtype,
    }
    sources = [
        Source(vision_folder, vision_keys, "vision_encoder"),
        Source(
            language_folder,
            language_format.key_map,
            "language_decoder",
            extend_vocabulary=True,
            new_weights=NEW_WEIGHTS,
        ),
    ]
    model = build(cls, arguments, *(sources if load_weights else ()))
    model.stop_ids = stop_ids_of(language_folder, folder_config)
    mark = None if model.image_token_id is None else IMAGE_MARK
    model.processor = checked_processor(model, tokenizer, template, images, mark)
    return model


def _marks(architecture: str, tokenizer, images) -> dict:
    """Return a class's arguments that name tokens, which the tokenizer gets here.

    Raises:
        ValueError: if images to be read by cross-attention have no tags.
    """
    found = {"image_token_id": None}
    if architecture != "cross_attention":
        (found["image_token_id"],) = tokenizer.add_special_tokens([IMAGE_MARK])
    if architecture != "decoder":
        if not isinstance(images, NVLMImageProcessor):
            raise ValueError(
                f"architecture={architecture!r} needs tiles with tags: give image_processor="
                f"NVLMImageProcessor(...), not {type(images).__name__}."
            )
        found["tile_tag_ids"] = tokenizer.add_special_tokens(images.tags)
    return found


def _vision(found: Format, config: dict) -> tuple[dict, KeyMap]:
    """Return (arguments, table of keys) of the encoder: what a VLM reads of a part's folder."""
    arguments, keys = found.arguments(config), found.key_map
    if found.name in ("clip", "internvit"):
        arguments["drop_class_token"] = True
    if found.name == "clip":
        layers = arguments["depth"]
        if layers < 2:
            raise ValueError("A CLIP encoder of one layer has no layer before the last.")
        arguments["depth"] = layers - 1
        keys = keys.without(unread_layers(r"(vision_model\.)?", layers - 1, layers))
    return arguments, keys


def _projection(cls, vision, language, scale_factor, projection_config, arguments: dict) -> dict:
    """Return a class's arguments for what lies between encoder and decoder, and further ones.

    Raises:
        ValueError: if they are another family's.
    """
    if cls.projection_class is ModalityProjection:
        factor = 4 if scale_factor == "default" else scale_factor
        projection = bare_projection(vision, language, factor)
        return {"projection_config": {**projection, **(projection_config or {})}, **arguments}
    if projection_config is not None:
        raise ValueError(
            f"{cls.__name__} has no projection_config: give projector_config and the like."
        )
    projector = {"output_dim": language["hidden_dim"], **(arguments.get("projector_config") or {})}
    shuffle = {} if scale_factor == "default" else {"scale_factor": scale_factor}
    return {**arguments, **shuffle, "projector_config": projector}


def _part(
    source: str | os.PathLike, part: str, expected: type, load_weights: bool
) -> tuple[pathlib.Path, Format, dict]:
    """Return (folder, format, config.json) of a part.

    Raises:
        ValueError: if the folder holds something else.
    """
    folder = local_folder(source, files=CONFIG_FILES + (WEIGHT_FILES if load_weights else ()))
    found, config = read_folder(folder)
    if found.layer_class is None or not issubclass(found.layer_class, expected):
        raise ValueError(f"{source} is {found.name}'s; {part} must be a {expected.__name__}.")
    return folder, found, config
