"""What stands beside exported weights, so that transformers can run them by themselves."""

import pathlib

from dl_techniques.checkpoints.json_files import read_json, write_json
from dl_techniques.checkpoints.model_card import write_model_card
from dl_techniques.datasets.vqa_dataset import VQADataProcessor
from dl_techniques.preprocessing.chat_template_jinja import chat_template_jinja
from dl_techniques.preprocessing.chat_templates import TEMPLATES
from dl_techniques.preprocessing.huggingface_tokenizer import HuggingFaceTokenizer
from dl_techniques.preprocessing.image_processors import Idefics3ImageProcessor
from dl_techniques.preprocessing.images import BaseImageProcessor, ImageProcessor
from dl_techniques.preprocessing.preprocessor_config import preprocessor_config

CHAT_TEMPLATE_FILE = "chat_template.jinja"
OWN_FIELD = "dl_techniques"  # Of tokenizer_config.json, which may hold any field.
PROCESSOR_CLASSES = {"smolvlm": "SmolVLMProcessor", "idefics3": "Idefics3Processor"}
SMOLVLM_MARKERS = {
    "fake_image_token": "<fake_token_around_image>",
    "global_image_token": "<global-img>",
}
# Every image of the conversation, before all of its text.
_IMAGES_FIRST = (
    "{% for message in messages %}{% if message['content'] is not string %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}IMAGE{% endif %}"
    "{% endfor %}{% endif %}{% endfor %}"
)
_USAGE = """from transformers import AutoModelForImageTextToText, AutoProcessor

processor = AutoProcessor.from_pretrained("FOLDER")
model = AutoModelForImageTextToText.from_pretrained("FOLDER")"""


def write_tokenizer(tokenizer: HuggingFaceTokenizer, folder: pathlib.Path, **fields) -> None:
    """Write tokenizer.json and tokenizer_config.json, with further fields in the latter."""
    tokenizer.save(folder)
    path = folder / "tokenizer_config.json"
    write_json(path, {**read_json(path), **fields})


def write_chat_template(
    processor: VQADataProcessor, folder: pathlib.Path, image_token: str
) -> None:
    """Write chat_template.jinja; an image is `image_token` where the model has placeholders."""
    if processor.image_token_id is None:
        images = _IMAGES_FIRST.replace("IMAGE", image_token) if image_token else ""
        text = images + chat_template_jinja(processor.template, image_token="")
    else:
        text = chat_template_jinja(processor.template, image_token=image_token)
    (folder / CHAT_TEMPLATE_FILE).write_text(text, encoding="utf-8")


def write_generation_config(
    processor: VQADataProcessor, folder: pathlib.Path, stop_ids=(), **fields
) -> None:
    """Write generation_config.json: the ids at which answers end, and further fields."""
    ids = {
        "eos_token_id": list(dict.fromkeys([*processor.stop_ids, *stop_ids])),
        "pad_token_id": processor.pad_token_id,
        "bos_token_id": processor.bos_token_id,
        **fields,
    }
    known = {name: value for name, value in ids.items() if value is not None}
    write_json(folder / "generation_config.json", known)


def write_smolvlm_files(
    model, folder: pathlib.Path, kind: str, tokenizer: HuggingFaceTokenizer, image_token_id: int
) -> None:
    """Write what transformers' SmolVLM or Idefics3 classes need beside weights and config.json.

    Their processors put markers around every image, which ours may not have. SmolVLM's takes empty
    ones; where a model's images cannot be prepared by transformers, no processor is written, and
    the model card says so.

    Args:
        model: A model with a processor.
        folder: Where its weights are; their pixels are normalised by 0.5 and 0.5.
        kind: "smolvlm" or "idefics3".
        tokenizer: That of the folder.
        image_token_id: The placeholder's id.
    """
    processor = model.processor
    spelling = {i: token for token, i in tokenizer.special_tokens.items()}[image_token_id]
    markers = _markers(processor.image_processor, kind)
    names = {"image_token": spelling, **(markers or {})}
    write_tokenizer(
        tokenizer,
        folder,
        extra_special_tokens=names,
        **{OWN_FIELD: _notes(processor, markers)},
        **({} if markers is None else {"processor_class": PROCESSOR_CLASSES[kind]}),
    )
    write_chat_template(processor, folder, spelling)
    suppressed = (
        {} if processor.image_token_id is not None else {"suppress_tokens": [image_token_id]}
    )
    write_generation_config(processor, folder, model.stop_ids, **suppressed)
    usage = _USAGE
    if markers is None:
        usage = (
            "# transformers' own processor cuts images otherwise than this model's: prepare\n"
            "# pixel_values and input_ids with dl_techniques.\n" + _USAGE
        )
    else:
        _write_image_settings(model, folder, kind)
    write_model_card(model, folder / "README.md", library="transformers", usage=usage)


def _notes(processor: VQADataProcessor, markers: dict | None) -> dict:
    """Return what `from_preset` needs to know beside transformers' files."""
    template = processor.template
    named = TEMPLATES.get(template.name) == template and processor.image_token_id is not None
    return {
        "template": template.name if named else None,
        "markers": bool(markers and all(markers.values())),
    }


def _markers(images: BaseImageProcessor, kind: str) -> dict[str, str] | None:
    """Return the markers around images; None if transformers cannot cut them as we do."""
    if isinstance(images, Idefics3ImageProcessor):
        return SMOLVLM_MARKERS
    if kind == "smolvlm" and type(images) is ImageProcessor:
        return dict.fromkeys(SMOLVLM_MARKERS, "")
    return None


def _write_image_settings(model, folder: pathlib.Path, kind: str) -> None:
    images = model.processor.image_processor
    normalised = type(images).from_config({**images.get_config(), "mean": 0.5, "std": 0.5})
    settings = preprocessor_config(normalised, kind=kind)
    settings["processor_class"] = PROCESSOR_CLASSES[kind]
    write_json(folder / "preprocessor_config.json", settings)
    sequence = {
        "processor_class": PROCESSOR_CLASSES[kind],
        "image_seq_len": model.tokens_per_image,
    }
    write_json(folder / "processor_config.json", sequence)
    if kind == "smolvlm":
        # Its processor wants one of videos too.
        video = {"video_processor_type": "SmolVLMVideoProcessor"}
        write_json(folder / "video_preprocessor_config.json", video)
