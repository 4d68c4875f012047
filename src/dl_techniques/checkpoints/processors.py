"""The processor of a folder of weights: its tokenizer, chat template and image settings."""

import os
import pathlib

from dl_techniques.checkpoints.companion_files import CHAT_TEMPLATE_FILE
from dl_techniques.checkpoints.config_fields import Fields
from dl_techniques.checkpoints.formats import Format
from dl_techniques.checkpoints.hub import TOKENIZER_FILES, local_folder
from dl_techniques.checkpoints.json_files import read_json
from dl_techniques.datasets.vqa_dataset import VQADataProcessor
from dl_techniques.preprocessing.chat_template_jinja import chat_template_jinja
from dl_techniques.preprocessing.chat_templates import (
    CHATML,
    IDEFICS3,
    QUESTION_ANSWER,
    SMOLVLM,
    TEMPLATES,
    ChatTemplate,
)
from dl_techniques.preprocessing.image_processors import NanoVLMImageProcessor
from dl_techniques.preprocessing.images import ImageProcessor
from dl_techniques.preprocessing.preprocessor_config import image_processor_from_preprocessor_config
from dl_techniques.preprocessing.tokenizer import Tokenizer, load_tokenizer

PREPROCESSOR_FILE = "preprocessor_config.json"


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
    return _smolvlm(config, folder, model, tokenizer)


def tokenizer_of(source: Tokenizer | str | os.PathLike) -> Tokenizer:
    """Return a tokenizer: itself, or that of a folder or of "hf://owner/name"."""
    if isinstance(source, Tokenizer):
        return source
    return load_tokenizer(local_folder(source, files=TOKENIZER_FILES))


def _nanovlm(config, folder, model, tokenizer) -> VQADataProcessor:
    fields = Fields(config, "config.json")
    if tokenizer is None:
        name = fields.get("lm_tokenizer")
        if not isinstance(name, str):
            raise fields.error("lm_tokenizer", "expected a name on the hub; give tokenizer=...")
        tokenizer = f"hf://{name}"
    tokenizer = tokenizer_of(tokenizer)
    extra = fields.get("vlm_extra_tokens") or {}
    tokenizer.add_special_tokens(list(extra.values()))
    side = fields.count("vit_img_size")
    if fields.get("max_img_size") is None:
        images = ImageProcessor(side, mean=0.0, std=1.0, resample="bilinear", transparency="drop")
    else:
        images = NanoVLMImageProcessor(
            side,
            max_side_len=fields.count("max_img_size"),
            resize_to_max_side_len=fields.flag("resize_to_max_side_len"),
        )
    template = CHATML if extra else QUESTION_ANSWER
    return _processor(model, tokenizer, template, images, extra.get("image_token"))


def _smolvlm(config, folder, model, tokenizer) -> VQADataProcessor:
    tokenizer = tokenizer_of(folder if tokenizer is None else tokenizer)
    images = image_processor_from_preprocessor_config(read_json(folder / PREPROCESSOR_FILE))
    spelling = {i: token for token, i in tokenizer.special_tokens.items()}
    image_token = spelling.get(model.image_token_id)
    template = _own_template(folder, image_token)
    if template is None:
        template = SMOLVLM if "<|im_start|>" in tokenizer.special_tokens else IDEFICS3
    elif _without_markers(folder):
        images = ImageProcessor(
            images.image_size, images.mean, images.std, images.resample, images.max_pixels
        )
    return _processor(model, tokenizer, template, images, image_token)


def _own_template(folder: pathlib.Path, image_token: str | None) -> ChatTemplate | None:
    """Return the template that our export has written, None for another's."""
    path = folder / CHAT_TEMPLATE_FILE
    if image_token is None or not path.is_file():
        return None
    text = path.read_text(encoding="utf-8")
    written = {chat_template_jinja(t, image_token): t for t in TEMPLATES.values()}
    return written.get(text)


def _without_markers(folder: pathlib.Path) -> bool:
    """Return whether our export has written that images stand alone in the text."""
    tokens = read_json(folder / "tokenizer_config.json").get("extra_special_tokens")
    return isinstance(tokens, dict) and tokens.get("fake_image_token") == ""


def _processor(model, tokenizer, template, images, image_token) -> VQADataProcessor:
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
    )
