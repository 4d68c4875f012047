"""The model of a run and its processor."""

import tempfile
from collections.abc import Iterable
from pathlib import Path

import keras

from dl_techniques.checkpoints.processors import tokenizer_of
from dl_techniques.datasets.vqa_dataset import VQADataProcessor
from dl_techniques.evaluation.question_answering import message_text
from dl_techniques.models.families import FAMILIES, create_model, model_arguments
from dl_techniques.models.nano_vlm import NanoVLM
from dl_techniques.models.vision_language_model import VisionLanguageModel
from dl_techniques.preprocessing.chat_templates import TEMPLATES
from dl_techniques.preprocessing.image_processors import (
    NVLMImageProcessor,
    image_processor_from_config,
)
from dl_techniques.preprocessing.tokenizer import (
    SentencePieceTokenizer,
    Tokenizer,
    load_tokenizer,
)
from dl_techniques.training.recipes import default_config
from dl_techniques.training.run_folder import has_weights, is_run, load_checkpoint

IMAGE_TOKEN = "<|image|>"
_PARTS = ("vision_config", "language_config", "projection_config")


def new_model(config: dict, load_weights: bool = True, **vocabulary) -> VisionLanguageModel:
    """Return the model that the settings name; one with weights brings its processor.

    Args:
        config: The run's settings.
        load_weights: Whether published models come with their weights.
        **vocabulary: `vocab_size`, `image_token_id` and `tile_tag_ids` of a model from scratch.

    Raises:
        ValueError: settings that are absent, or refused by the model; unknown models.
    """
    name, family = config["model"], FAMILIES[config["family"]]
    changes = config["model_changes"] or {}
    if changes and (name == "custom" or is_run(name) or "/" in name):
        raise ValueError(
            f"model_changes are for named models and backbones; {name!r} keeps its arguments."
        )
    if is_run(name):
        asked = config["precision"]
        model = load_checkpoint(name, None if asked == "auto" else asked)[0]
    elif name == "backbones":
        parts = {k: config[f"{k}_backbone"] for k in ("vision", "language")}
        if None in parts.values():
            raise ValueError("model='backbones' needs vision_backbone and language_backbone.")
        given = _given(config, ("tokenizer", "template", "image_processor"))
        if "image_processor" in given:
            given["image_processor"] = image_processor_from_config(given["image_processor"])
        model = family.from_backbones(**parts, **given, **changes, load_weights=load_weights)
    elif name == "custom":
        parts = {k: config[k] for k in _PARTS}
        if None in parts.values():
            raise ValueError(f"model='custom' needs a dict for each of {sorted(parts)}.")
        if family is not NanoVLM:
            raise ValueError(f"model='custom' is a NanoVLM, not a {config['family']}.")
        model = NanoVLM(**parts, **vocabulary)
    elif has_weights(config):
        model = family.from_preset(name, load_weights=load_weights)
    else:
        model = create_model(name, **_changed(name, changes), **vocabulary)
    for part in (model.vision_encoder, model.language_decoder):
        part.remat = config["remat"] or part.remat
    return model


def _changed(name: str, changes: dict) -> dict:
    """Return the constructor arguments; of dicts, the keys that are not named stay."""
    arguments = model_arguments(name)
    return {
        key: {**(arguments.get(key) or {}), **value} if isinstance(value, dict) else value
        for key, value in changes.items()
    }


def vocabulary_of(processor: VQADataProcessor, config: dict) -> dict:
    """Return the arguments of a new model that depend on the tokenizer."""
    found = {"vocab_size": processor.vocab_size, "image_token_id": processor.image_token_id}
    if config["tile_tags"]:
        special = processor.tokenizer.special_tokens
        found["tile_tag_ids"] = [special[tag] for tag in processor.image_processor.tags]
    return found


def new_processor(config: dict, train: list, model: VisionLanguageModel) -> VQADataProcessor:
    """Return the model's own processor, or a new one with the tokenizer that the settings name.

    Args:
        config: The run's settings.
        train: Samples of whose texts a tokenizer is made, where none is named.
        model: The model, with or without weights.

    Raises:
        ValueError: there is neither a tokenizer nor text to make one of; or the model's own
            processor is another one than the settings say.
    """
    if model.processor is not None:
        _check_own(config, model)
        model.processor.max_text_length = config["max_text_length"]
        return model.processor
    images = config["image_processor"]
    images = None if images is None else image_processor_from_config(images)
    if config["template"] not in TEMPLATES:
        raise ValueError(f"template={config['template']!r} must be one of {sorted(TEMPLATES)}.")
    special = [IMAGE_TOKEN, *TEMPLATES[config["template"]].markers]
    if config["tile_tags"]:
        if not isinstance(images, NVLMImageProcessor):
            raise ValueError("tile_tags need an image_processor of the kind 'nvlm'.")
        special += images.tags
    if config["tokenizer"] is not None:
        tokenizer = load_tokenizer(config["tokenizer"])
        tokenizer.add_special_tokens([t for t in special if t not in tokenizer.special_tokens])
    elif train:
        texts = [message_text(message) for sample in train for message in sample["messages"]]
        frame = [f"Question: {text} Answer: {text}" for text in texts]
        tokenizer = SentencePieceTokenizer.train(
            frame, config["vocab_size"], special_tokens=special
        )
    else:
        raise ValueError("A mixture needs a tokenizer: name its folder, or a model that has one.")
    placed = model.fusion != "cross_attention"
    return VQADataProcessor(
        model.vision_encoder.img_size,
        config["max_text_length"],
        tokenizer=tokenizer,
        template=config["template"],
        image_token_id=tokenizer.token_to_id(IMAGE_TOKEN) if placed else None,
        tokens_per_image=model.tokens_per_image if placed else 0,
        image_processor=images,
        placeholder_tiles=config["placeholder_tiles"],
    )


def _given(config: dict, names: Iterable[str]) -> dict:
    """Return those of the settings that are not the default, which is to say nothing of them."""
    defaults = default_config()
    return {name: config[name] for name in names if config[name] != defaults[name]}


def _check_own(config: dict, model: VisionLanguageModel) -> None:
    """Make sure that the settings of a processor say nothing else than the model's own one.

    Raises:
        ValueError: naming what they say, and what the model has.
    """
    own = model.processor
    has = {
        "template": own.template.name,
        "image_processor": own.image_processor.get_config(),
        "placeholder_tiles": own.placeholder_tiles,
        "tile_tags": getattr(model, "tile_tag_ids", None) is not None,
        "tokenizer": f"a {type(own.tokenizer).__name__} of {own.vocab_size} ids",
    }
    for name, value in _given(config, has).items():
        if name == "tokenizer":
            same = _same_tokenizer(tokenizer_of(value), own.tokenizer)
        elif name == "template":
            same = TEMPLATES.get(value) == own.template
        elif name == "image_processor":
            same = image_processor_from_config(value).get_config() == has[name]
        else:
            same = value == has[name]
        if not same:
            raise ValueError(
                f"{name}={value!r} is another than the model {config['model']!r} brings: "
                f"{has[name]}. Leave {name} out, or begin with a model from scratch."
            )


def _same_tokenizer(asked: Tokenizer, own: Tokenizer) -> bool:
    """Tell whether a tokenizer, with the special tokens that the other has got, is the other."""
    try:
        asked.add_special_tokens(t for t in own.special_tokens if t not in asked.special_tokens)
    except ValueError:
        return False
    files = []
    for tokenizer in (asked, own):
        with tempfile.TemporaryDirectory() as folder:
            tokenizer.save(folder)
            files.append({path.name: path.read_bytes() for path in Path(folder).iterdir()})
    return files[0] == files[1]


def precision_policy(name: str) -> str:
    """Return the dtype policy of a name; "auto": mixed_float16 on a GPU, else float32."""
    if name != "auto":
        return name
    if keras.backend.backend() == "torch":  # Where keras.distribution does not exist.
        import torch

        on_gpu = torch.cuda.is_available()
    else:
        on_gpu = any("gpu" in device.lower() for device in keras.distribution.list_devices())
    return "mixed_float16" if on_gpu else "float32"
