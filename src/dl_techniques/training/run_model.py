"""The model of a run and its processor."""

import keras

from dl_techniques.datasets.vqa_dataset import VQADataProcessor
from dl_techniques.evaluation.question_answering import message_text
from dl_techniques.models.nano_vlm import NANOVLM_CONFIGS, NanoVLM, create_nanovlm
from dl_techniques.preprocessing.tokenizer import SentencePieceTokenizer, load_tokenizer

IMAGE_TOKEN = "<|image|>"
_PARTS = ("vision_config", "language_config", "projection_config")


def new_model(config: dict, load_weights: bool = True, **vocabulary) -> NanoVLM:
    """Return the model that the settings name; published ones bring a processor.

    Args:
        config: The run's settings.
        load_weights: Whether published models come with their weights.
        **vocabulary: `vocab_size` and `image_token_id` of a model from scratch.

    Raises:
        ValueError: settings that are absent, or refused by the model; unknown models.
    """
    name = config["model"]
    if name == "backbones":
        parts = {k: config[f"{k}_backbone"] for k in ("vision", "language")}
        if None in parts.values():
            raise ValueError("model='backbones' needs vision_backbone and language_backbone.")
        model = NanoVLM.from_backbones(**parts, load_weights=load_weights)
    elif name == "custom":
        parts = {k: config[k] for k in _PARTS}
        if None in parts.values():
            raise ValueError(f"model='custom' needs a dict for each of {sorted(parts)}.")
        model = NanoVLM(**parts, **vocabulary)
    elif is_published(config):
        model = NanoVLM.from_preset(name, load_weights=load_weights)
    else:
        model = create_nanovlm(name, **vocabulary)
    for part in (model.vision_encoder, model.language_decoder):
        part.remat = config["remat"] or part.remat
    return model


def is_published(config: dict) -> bool:
    """Tell whether the model comes with weights and a processor of its own."""
    name = config["model"]
    return name == "backbones" or (name != "custom" and name not in NANOVLM_CONFIGS and "/" in name)


def new_processor(config: dict, train: list, model: NanoVLM) -> VQADataProcessor:
    """Return the model's own processor, or a new one with the tokenizer that the settings name.

    Args:
        config: The run's settings.
        train: Samples of whose texts a tokenizer is made, where none is named.
        model: The model, with or without weights.

    Raises:
        ValueError: there is neither a tokenizer nor text to make one of.
    """
    if model.processor is not None:
        model.processor.max_text_length = config["max_text_length"]
        return model.processor
    if config["tokenizer"] is not None:
        tokenizer = load_tokenizer(config["tokenizer"])
        tokenizer.add_special_tokens([IMAGE_TOKEN])
    elif train:
        texts = [message_text(message) for sample in train for message in sample["messages"]]
        frame = [f"Question: {text} Answer: {text}" for text in texts]
        tokenizer = SentencePieceTokenizer.train(
            frame, config["vocab_size"], special_tokens=[IMAGE_TOKEN]
        )
    else:
        raise ValueError("A mixture needs a tokenizer: name its folder, or a model that has one.")
    return VQADataProcessor(
        model.vision_encoder.img_size,
        config["max_text_length"],
        tokenizer=tokenizer,
        image_token_id=tokenizer.token_to_id(IMAGE_TOKEN),
        tokens_per_image=model.tokens_per_image,
    )


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
