"""The processor of nanoVLM's folders, from and to the fields of its `VLMConfig`."""

from dl_techniques.checkpoints.config_fields import Fields
from dl_techniques.preprocessing.chat_template_jinja import chat_template_jinja
from dl_techniques.preprocessing.chat_templates import (
    CHATML,
    QUESTION_ANSWER,
    TEMPLATES,
    ChatTemplate,
)
from dl_techniques.preprocessing.image_processors import NanoVLMImageProcessor
from dl_techniques.preprocessing.images import BaseImageProcessor, ImageProcessor

# All releases with a chat template have this one.
_PUBLISHED = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def nanovlm_images(fields: Fields) -> BaseImageProcessor:
    """Return the image processor of a `VLMConfig`.

    Raises:
        ValueError: naming a field with an unsupported value.
    """
    side = fields.count("vit_img_size")
    if fields.get("max_img_size") is None:
        return ImageProcessor(side, mean=0.0, std=1.0, resample="bilinear", transparency="drop")
    if "global_image_token" not in (fields.get("vlm_extra_tokens") or {}):
        raise fields.error(
            "vlm_extra_tokens", "tiles without a global_image_token are not supported"
        )
    return NanoVLMImageProcessor(
        side, fields.count("max_img_size"), fields.flag("resize_to_max_side_len")
    )


def nanovlm_template(fields: Fields, image_token: str | None) -> ChatTemplate:
    """Return the chat template of a `VLMConfig`.

    Raises:
        ValueError: if it is not one of ours.
    """
    if image_token is None:
        return QUESTION_ANSWER
    text = fields.get("lm_chat_template")
    if text is None or text.replace("\\n", "\n") == _PUBLISHED:
        return CHATML
    known = {chat_template_jinja(t, image_token): t for t in TEMPLATES.values()}
    if text not in known:
        raise fields.error("lm_chat_template", "this template is not known; give processor=None")
    return known[text]


def nanovlm_processor_fields(model) -> dict:
    """Return the fields of a `VLMConfig` for a model's processor.

    Raises:
        ValueError: if nanoVLM cannot prepare images or prompts so.
    """
    processor = model.processor
    images = processor.image_processor
    fields = {}
    if isinstance(images, NanoVLMImageProcessor):
        fields["max_img_size"] = images.max_side_len
        fields["resize_to_max_side_len"] = images.resize_to_max_side_len
    elif type(images) is not ImageProcessor:
        raise ValueError(
            f"nanoVLM cannot prepare images as a {type(images).__name__} does; set model.processor "
            "= None to write the weights alone."
        )
    if processor.image_token_id is None:
        if processor.template != QUESTION_ANSWER:
            raise ValueError(
                f"nanoVLM's first release knows no {processor.template.name!r} template, only "
                "'question_answer'."
            )
        return fields
    spelling = {i: token for token, i in processor.tokenizer.special_tokens.items()}
    image_token = spelling[processor.image_token_id]
    fields["lm_chat_template"] = (
        _PUBLISHED
        if processor.template == CHATML
        else chat_template_jinja(processor.template, image_token)
    )
    first = processor.image_token_id
    extra = {"image_token": image_token}
    for token_id in range(first + 1, model.vocab_size):
        if token_id in spelling:
            token = spelling[token_id]
            name = "global_image_token" if token == "<|global_image|>" else f"token_{token_id}"
            extra[name] = token
    return {**fields, "vlm_extra_tokens": extra}
