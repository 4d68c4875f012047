"""The processor of a folder of weights: its tokenizer, chat template and image settings."""

import copy
import os
import pathlib

from dl_techniques.checkpoints.config_fields import Fields
from dl_techniques.checkpoints.family_files import (
    PREPROCESSOR_FILE,
    images_in,
    own_settings,
    template_in,
)
from dl_techniques.checkpoints.formats import Format
from dl_techniques.checkpoints.hub import TOKENIZER_FILES, local_folder
from dl_techniques.checkpoints.json_files import read_json
from dl_techniques.checkpoints.nanovlm_processor import nanovlm_images, nanovlm_template
from dl_techniques.datasets.vqa_dataset import VQADataProcessor
from dl_techniques.preprocessing.chat_templates import IDEFICS3, SMOLVLM, TEMPLATES
from dl_techniques.preprocessing.huggingface_tokenizer import TOKENIZER_FILE
from dl_techniques.preprocessing.images import ImageProcessor
from dl_techniques.preprocessing.preprocessor_config import image_processor_from_preprocessor_config
from dl_techniques.preprocessing.tokenizer import Tokenizer, load_tokenizer


def processor_of(
    found: Format, config: dict, folder: pathlib.Path, model, tokenizer=None
) -> VQADataProcessor:
    """Return the processor with which a folder's model was trained.

    Args:
        found: The folder's format.
        config: Its config.json.
        folder: The folder.
        model: The model.
        tokenizer: See `from_preset`.

    Raises:
        ValueError: if a file is missing or broken, or tokenizer and model disagree.
    """
    if found.name == "dl_techniques":
        own = None if tokenizer is None else tokenizer_of(tokenizer)
        return VQADataProcessor.load(folder, tokenizer=own)
    if found.name == "nanovlm":
        return _nanovlm(config, folder, model, tokenizer)
    if found.name == "smolvlm":
        return _smolvlm(config, folder, model, tokenizer)
    tokenizer = tokenizer_of(folder if tokenizer is None else tokenizer)
    spelling = {i: token for token, i in tokenizer.special_tokens.items()}
    return checked_processor(
        model,
        tokenizer,
        template_in(found.name, config, folder),
        images_in(found.name, config, folder),
        spelling.get(model.image_token_id),
    )


def tokenizer_of(source: Tokenizer | str | os.PathLike) -> Tokenizer:
    """Return a tokenizer of its own: a copy, or that of a folder or of "hf://owner/name"."""
    if isinstance(source, Tokenizer):
        return copy.deepcopy(source)  # It may get special tokens.
    return load_tokenizer(local_folder(source, files=TOKENIZER_FILES))


def _nanovlm(config, folder, model, tokenizer) -> VQADataProcessor:
    fields = Fields(config, "config.json")
    extra = fields.get("vlm_extra_tokens") or {}
    image_token = extra.get("image_token")
    images, template = nanovlm_images(fields), nanovlm_template(fields, image_token)
    if tokenizer is None:
        tokenizer = _named_tokenizer(fields, folder)
    tokenizer = tokenizer_of(tokenizer)
    tokenizer.add_special_tokens(list(extra.values()))
    return checked_processor(model, tokenizer, template, images, image_token)


def _named_tokenizer(fields: Fields, folder: pathlib.Path) -> str | os.PathLike:
    """Return the folder if it has a tokenizer itself, else what its config names."""
    if (folder / TOKENIZER_FILE).is_file():
        return folder
    name = fields.get("lm_tokenizer")
    if not isinstance(name, str):
        raise fields.error("lm_tokenizer", "expected a name on the hub; give tokenizer=...")
    return name if os.path.isdir(name) else f"hf://{name}"


def _smolvlm(config, folder, model, tokenizer) -> VQADataProcessor:
    tokenizer = tokenizer_of(folder if tokenizer is None else tokenizer)
    if not (folder / PREPROCESSOR_FILE).is_file():
        raise ValueError(
            f"{folder} has no {PREPROCESSOR_FILE}: give processor=None to load the model alone."
        )
    images = image_processor_from_preprocessor_config(read_json(folder / PREPROCESSOR_FILE))
    spelling = {i: token for token, i in tokenizer.special_tokens.items()}
    template = SMOLVLM if "<|im_start|>" in tokenizer.special_tokens else IDEFICS3
    own = own_settings(folder)
    if own:
        template = TEMPLATES.get(own.get("template"))
        if template is None:
            raise ValueError(
                f"{folder} was exported from a model that puts images before the text, or with a "
                "template of its own; load the original, or this one with processor=None."
            )
        if not own.get("markers"):
            images = ImageProcessor(
                images.image_size, images.mean, images.std, images.resample, images.max_pixels
            )
    return checked_processor(model, tokenizer, template, images, spelling.get(model.image_token_id))


def checked_processor(model, tokenizer, template, images, image_token) -> VQADataProcessor:
    """Return a processor that fits a model.

    Raises:
        ValueError: if tokenizer or image settings are another model's.
    """
    found = None if image_token is None else tokenizer.token_to_id(image_token)
    if found != model.image_token_id:
        raise ValueError(
            f"The tokenizer gives {image_token!r} the id {found}, the model has "
            f"image_token_id={model.image_token_id}: this is another model's tokenizer."
        )
    if tokenizer.vocab_size > model.vocab_size:
        raise ValueError(
            f"The tokenizer has {tokenizer.vocab_size} ids, the model only {model.vocab_size}."
        )
    if images.image_size != model.image_size:
        raise ValueError(
            f"The image settings give {images.image_size} pixels, the model was made for "
            f"{model.image_size}."
        )
    return VQADataProcessor(
        max_text_length=model.language_decoder.max_positions,
        tokenizer=tokenizer,
        template=template,
        image_token_id=model.image_token_id,
        tokens_per_image=0 if found is None else model.tokens_per_image,
        image_processor=images,
        # NVLM-H reads the other tiles by cross-attention.
        placeholder_tiles="last" if getattr(model, "architecture", "") == "hybrid" else "all",
    )
