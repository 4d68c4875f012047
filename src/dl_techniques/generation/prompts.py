"""Prompts: questions and conversations as the arrays that a model takes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from keras import ops

from dl_techniques.generation.vision_cache import encoder_digest, image_digest, settings_digest


@dataclass
class Prompt:
    """One conversation, ready for the model.

    Attributes:
        ids: Token ids, the images' placeholders included.
        images: The images' sources, in order.
        digests: What tells the images apart; see `vision_cache.image_digest`.
    """

    ids: list[int]
    images: list[Any]
    digests: list[str]


def as_conversations(inputs) -> tuple[list[list], bool] | None:
    """Return (conversations, whether there is only one), or None for prepared arrays.

    A question is a string; a conversation is a list of messages.

    Raises:
        ValueError: for anything else.
    """
    if isinstance(inputs, Mapping) and "text_tokens" in inputs or hasattr(inputs, "shape"):
        return None
    if isinstance(inputs, str) or _is_conversation(inputs):
        return [_conversation(inputs)], True
    if not isinstance(inputs, Sequence) or not inputs:
        raise ValueError(
            "generate takes a question, a conversation (a list of messages), a list of these, or "
            f"arrays with 'text_tokens'; got {inputs!r:.200}."
        )
    if isinstance(inputs[0], int | np.integer | list) and not _is_conversation(inputs[0]):
        return None
    return [_conversation(item) for item in inputs], False


def read_prompt(processor, conversation) -> Prompt:
    """Return the ids of a conversation that ends where the answer begins.

    Raises:
        ValueError: for a malformed conversation or a file that cannot be read.
    """
    encoded = processor.encode_prompt(conversation)
    try:
        digests = [image_digest(image) for image in encoded.images]
    except OSError as error:
        raise ValueError(f"An image cannot be read: {error}") from error
    return Prompt(list(encoded.token_ids), encoded.images, digests)


def prompt_batch(engine, model, prompts: Sequence[Prompt], vision_cache=None) -> dict:
    """Return `text_tokens`, `attention_mask` and, with images, `vision_embeds` and `num_images`.

    Every image is encoded once, however often it occurs, and not at all if the cache has it.
    """
    longest = max(len(prompt.ids) for prompt in prompts)
    tokens = np.full((len(prompts), longest), model.processor.pad_token_id, "int32")
    mask = np.zeros(tokens.shape, bool)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt.ids)] = prompt.ids
        mask[row, : len(prompt.ids)] = True
    batch = {"text_tokens": tokens, "attention_mask": mask}
    slots = max(len(prompt.images) for prompt in prompts)
    if slots:
        embeds = _encoded_images(engine, model, prompts, vision_cache)
        empty = ops.zeros_like(next(iter(embeds.values())))
        rows = [[embeds[digest] for digest in prompt.digests] for prompt in prompts]
        rows = [row + [empty] * (slots - len(row)) for row in rows]
        flat = ops.stack([image for row in rows for image in row])
        batch["vision_embeds"] = ops.reshape(flat, (len(rows), slots, *flat.shape[1:]))
        batch["num_images"] = np.array([len(prompt.images) for prompt in prompts], "int32")
    return batch


def _encoded_images(engine, model, prompts, vision_cache):
    """Return digest -> float[T, D]."""
    sources = {
        digest: image
        for prompt in prompts
        for digest, image in zip(prompt.digests, prompt.images, strict=True)
    }
    found, suffix = {}, ""
    if vision_cache is not None:
        settings = settings_digest(model.processor.image_processor.get_config())
        suffix = f"{settings} {encoder_digest(model)}"
        found = {digest: vision_cache.get(digest + suffix) for digest in sources}
        found = {digest: embeds for digest, embeds in found.items() if embeds is not None}
    missing = [digest for digest in sources if digest not in found]
    if missing:
        pixels = [model.processor.preprocess_image(sources[digest]) for digest in missing]
        for digest, embeds in zip(missing, engine.encode(np.stack(pixels)), strict=True):
            found[digest] = embeds
            if vision_cache is not None:
                vision_cache.put(digest + suffix, embeds)
    return found


def _is_conversation(value):
    return (
        isinstance(value, list | tuple)
        and len(value) > 0
        and all(isinstance(item, Mapping) and "role" in item for item in value)
    )


def _conversation(item):
    if isinstance(item, str):
        return [{"role": "user", "content": item}]
    if _is_conversation(item):
        return list(item)
    raise ValueError(
        f"Expected a question or a conversation (a list of messages), got {item!r:.200}."
    )
