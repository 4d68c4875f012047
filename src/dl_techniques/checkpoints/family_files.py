"""Processors of LLaVA's, InternVL's and NVLM-D's folders: what stands beside the weights."""

import copy
import dataclasses
import pathlib

from dl_techniques.checkpoints.companion_files import (
    OWN_FIELD,
    write_chat_template,
    write_generation_config,
    write_tokenizer,
)
from dl_techniques.checkpoints.config_fields import Fields
from dl_techniques.checkpoints.json_files import read_json, write_json
from dl_techniques.checkpoints.model_card import write_model_card
from dl_techniques.preprocessing.chat_templates import CHATML, NVLM, TEMPLATES, VICUNA, ChatTemplate
from dl_techniques.preprocessing.image_processors import InternVLImageProcessor, NVLMImageProcessor
from dl_techniques.preprocessing.images import BaseImageProcessor, ImageProcessor
from dl_techniques.preprocessing.preprocessor_config import (
    image_processor_from_preprocessor_config,
    preprocessor_config,
)
from dl_techniques.preprocessing.sentencepiece_export import to_huggingface

PREPROCESSOR_FILE = "preprocessor_config.json"
PROCESSOR_FILE = "processor_config.json"
INTERNVL2_5 = dataclasses.replace(
    CHATML,
    name="internvl2_5",
    default_system=(
        "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的"
        "多模态大语言模型。"
    ),
)
# Of each format: the names of templates in its config.json, or None where that names none.
_TEMPLATES = {
    "llava": {None: VICUNA},
    "internvl": {None: CHATML},
    "internvl_chat": {"internvl2_5": INTERNVL2_5},
    "nvlm_d": {"chatml": NVLM},
}
_USAGE = """from transformers import AutoModelForImageTextToText, AutoProcessor

processor = AutoProcessor.from_pretrained("FOLDER")
model = AutoModelForImageTextToText.from_pretrained("FOLDER")"""
_OWN_USAGE = """from dl_techniques.models.nvlm import NVLM

model = NVLM.from_preset("FOLDER")"""


def template_in(format_name: str, config: dict, folder: pathlib.Path) -> ChatTemplate:
    """Return the chat template of a folder.

    Args:
        format_name: The folder's format.
        config: Its config.json.
        folder: The folder; what our export has noted there goes first.

    Raises:
        ValueError: if it is not one of ours.
    """
    noted = own_settings(folder).get("template")
    known = {t.name: t for t in (*TEMPLATES.values(), INTERNVL2_5)}
    if noted in known:
        return known[noted]
    templates = _TEMPLATES[format_name]
    name = None if None in templates else config.get("template")
    if noted is not None or name not in templates:
        raise ValueError(
            f"{folder}: the chat template {noted or name!r} is not known; give processor=None to "
            "load the model alone."
        )
    return templates[name]


def own_settings(folder: pathlib.Path) -> dict:
    """Return what our export has noted for us; nothing in others' folders."""
    path = folder / "tokenizer_config.json"
    own = read_json(path).get(OWN_FIELD) if path.is_file() else None
    return own if isinstance(own, dict) else {}


def images_in(format_name: str, config: dict, folder: pathlib.Path) -> BaseImageProcessor:
    """Return the image processor of a folder.

    Args:
        format_name: The folder's format.
        config: Its config.json; the original InternVL and NVLM-D have their settings there.
        folder: The folder, in which transformers has a file of them.

    Raises:
        ValueError: if a file is missing, or a setting is one that ours cannot follow.
    """
    if format_name in ("internvl_chat", "nvlm_d"):
        return _tiles_in(Fields(config, "config.json"), format_name)
    if (folder / PREPROCESSOR_FILE).is_file():
        settings = read_json(folder / PREPROCESSOR_FILE)
    elif (folder / PROCESSOR_FILE).is_file():
        # transformers 5 writes one file for the whole processor.
        settings = read_json(folder / PROCESSOR_FILE).get("image_processor")
    else:
        raise ValueError(
            f"{folder} has no {PREPROCESSOR_FILE}: give processor=None to load the model alone."
        )
    return image_processor_from_preprocessor_config(settings)


def _tiles_in(fields: Fields, format_name: str) -> InternVLImageProcessor:
    fields.require("pad2square", False, None)
    size = fields.get("force_image_size")
    if size is None:
        size = Fields(fields.get("vision_config"), "vision_config").count("image_size")
    fewest, most = 1, 1
    if fields.flag("dynamic_image_size"):
        fewest, most = (fields.count(f"{end}_dynamic_patch") for end in ("min", "max"))
    made = NVLMImageProcessor if format_name == "nvlm_d" else InternVLImageProcessor
    return made(size, min_num=fewest, max_num=most, use_thumbnail=fields.flag("use_thumbnail"))


def processor_fields(processor, format_name: str) -> dict:
    """Return the fields of an original InternVL's or NVLM-D's config.json for a processor.

    Raises:
        ValueError: if its programs cannot prepare images or prompts so.
    """
    images = processor.image_processor
    made = NVLMImageProcessor if format_name == "nvlm_d" else InternVLImageProcessor
    if type(images) is not made:
        raise _other_images(images, format_name)
    usual = made(images.image_size, images.max_num).get_config()
    for name in ("mean", "std", "resample"):
        if images.get_config()[name] != usual[name]:
            raise ValueError(
                f"{name}={images.get_config()[name]}: {format_name} has {usual[name]}."
            )
    names = {template: name for name, template in _TEMPLATES[format_name].items()}
    fields = {} if processor.template not in names else {"template": names[processor.template]}
    return {
        **fields,
        "dynamic_image_size": images.max_num > 1,
        "min_dynamic_patch": images.min_num,
        "max_dynamic_patch": images.max_num,
        "use_thumbnail": images.use_thumbnail,
        "pad2square": False,
    }


def _other_images(images: BaseImageProcessor, format_name: str) -> ValueError:
    return ValueError(
        f"{format_name} cannot prepare images as a {type(images).__name__} does; set "
        "model.processor = None to write the weights alone."
    )


def write_llava_files(model, folder: pathlib.Path, format_name: str) -> None:
    """Write tokenizer, chat template, image and generation settings and card of a LLaVA folder.

    Raises:
        ValueError: if transformers cannot prepare images so.
    """
    images = model.processor.image_processor
    if not isinstance(images, ImageProcessor):
        raise _other_images(images, format_name)
    image_token = _write_texts(model, folder, "LlavaProcessor")
    settings = preprocessor_config(images)
    write_json(folder / PREPROCESSOR_FILE, {**settings, "processor_class": "LlavaProcessor"})
    drops_class = model.vision_encoder.drop_class_token
    processor = {
        "processor_class": "LlavaProcessor",
        "patch_size": model.vision_encoder.patch_size,
        "vision_feature_select_strategy": "default" if drops_class else "full",
        # The class token, which "default" takes off again.
        "num_additional_image_tokens": 1,
        "image_token": image_token,
    }
    write_json(folder / PROCESSOR_FILE, processor)
    write_model_card(model, folder / "README.md", library="transformers", usage=_USAGE)


def write_internvl_files(model, folder: pathlib.Path, format_name: str) -> None:
    """Write tokenizer, chat template, image and generation settings and card of an InternVL folder.

    Raises:
        ValueError: if transformers cannot prepare images so.
    """
    processor_class = None
    if format_name == "internvl":
        settings = preprocessor_config(model.processor.image_processor, kind="internvl")
        write_json(folder / PREPROCESSOR_FILE, settings)
        processor_class = settings["processor_class"]
    _write_texts(model, folder, processor_class)
    library, usage = ("transformers", _USAGE) if processor_class else ("dl_techniques", _OWN_USAGE)
    write_model_card(model, folder / "README.md", library=library, usage=usage)


def _write_texts(model, folder: pathlib.Path, processor_class: str | None) -> str:
    """Write what is about texts and return the spelling of the placeholder."""
    processor = model.processor
    tokenizer = to_huggingface(copy.deepcopy(processor.tokenizer))
    spelling = {i: token for token, i in tokenizer.special_tokens.items()}
    image_token = spelling[processor.image_token_id]
    template = processor.template
    named = template == INTERNVL2_5 or TEMPLATES.get(template.name) == template
    fields = {OWN_FIELD: {"template": template.name if named else "of its own"}}
    if processor_class is not None:
        fields["processor_class"] = processor_class
    names = {"image_token": image_token}
    if processor_class == "InternVLProcessor":
        names = {
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": image_token,
            "video_token": "<video>",
        }
    write_tokenizer(tokenizer, folder, extra_special_tokens=names, **fields)
    write_chat_template(processor, folder, image_token)
    write_generation_config(processor, folder, model.stop_ids)
    return image_token
