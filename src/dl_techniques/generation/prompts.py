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
        tiles: Into how many tiles each of them is cut.
    """

    ids: list[int]
    images: list[Any]
    digests: list[str]
    tiles: list[int]


@dataclass
class Prompts:
    """Checked prompts, of which nothing is computed yet.

    Attributes:
        rows: How many there are.
        positions: Those of the longest, images included.
        as_text: Whether they came as text, so that the result is text too.
        single: Whether it was one, not a list.
        read: The prompts, if they came as text.
        arrays: Otherwise the batch.
    """

    rows: int
    positions: int
    as_text: bool = False
    single: bool = False
    read: list[Prompt] | None = None
    arrays: dict | None = None

    def batch(self, engine, model) -> dict:
        """Return the batch; images of prompts that came as text are encoded now."""
        if self.arrays is not None:
            return self.arrays
        batch = prompt_batch(engine, model, self.read, model.vision_cache)
        model.batch_checks.check(batch)
        return batch


def gather_prompts(model, inputs, vision_embeds=None) -> Prompts:
    """Return the prompts that `generate` and `score` were given.

    Raises:
        ValueError: for malformed prompts, or text without a processor.
    """
    conversations = as_conversations(inputs)
    if conversations is None:
        batch = array_batch(model, inputs, vision_embeds)
        return Prompts(len(batch["text_tokens"]), _positions(model, batch), arrays=batch)
    if vision_embeds is not None:
        raise ValueError("vision_embeds go with arrays; a conversation holds its images.")
    conversations, single = conversations
    if model.processor is None:
        raise ValueError(
            "Questions need a tokenizer: set model.processor (load_checkpoint does), or give "
            "arrays with 'text_tokens'."
        )
    read = [read_prompt(model.processor, conversation) for conversation in conversations]
    longest = max(len(prompt.ids) for prompt in read)
    if model.fusion == "prefix":
        # Images before the text take as many slots in every row.
        longest += model.tokens_per_image * max(sum(prompt.tiles) for prompt in read)
    return Prompts(len(read), longest, True, single, read)


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
    return Prompt(list(encoded.token_ids), encoded.images, digests, encoded.tiles)


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
    slots = max(sum(prompt.tiles) for prompt in prompts)
    if slots:
        embeds = _encoded_images(engine, model, prompts, vision_cache)
        batch["vision_embeds"] = _image_rows(prompts, embeds, slots)
        batch["num_images"] = np.array([sum(prompt.tiles) for prompt in prompts], "int32")
    return batch


def array_batch(model, inputs, vision_embeds=None) -> dict:
    """Return a checked batch of arrays.

    Raises:
        ValueError: if it is packed, empty, or malformed.
    """
    batch = dict(inputs) if isinstance(inputs, dict) else {"text_tokens": inputs}
    batch["text_tokens"] = np.asarray(batch["text_tokens"])
    if vision_embeds is not None:
        batch["vision_embeds"] = vision_embeds
    refused = sorted({"segment_ids", "positions", "turn_ids"} & set(batch))
    if refused:
        raise ValueError(f"Prompts cannot be packed: remove {refused}.")
    model.batch_checks.check(batch)
    if not batch["text_tokens"].size:
        raise ValueError(f"text_tokens {batch['text_tokens'].shape} hold no prompt.")
    return batch


def _positions(model, batch) -> int:
    """Return the positions of the longest prompt, images included."""
    mask, tokens = batch.get("attention_mask"), batch["text_tokens"]
    longest = tokens.shape[1] if mask is None else int(np.sum(np.asarray(mask), axis=1).max())
    if model.fusion == "placeholder":
        return longest
    embeds, images = batch.get("vision_embeds"), batch.get("images")
    if embeds is not None:
        return longest + embeds.shape[1] * embeds.shape[2]
    if images is None:
        return longest
    slots = images.shape[1] if len(images.shape) == 5 else 1
    return longest + (slots * model.count_image_tokens(*images.shape[-3:-1]) if slots else 0)


def _image_rows(prompts, embeds, slots):
    """Return float[B, slots, T, D]: the tiles of each prompt's images, zeros behind."""
    one = next(iter(embeds.values()))
    rows = np.zeros((len(prompts), slots, *one.shape[1:]), one.dtype)
    for row, prompt in zip(rows, prompts, strict=True):
        own = (tile for digest in prompt.digests for tile in embeds[digest])
        for place, tile in enumerate(own):
            row[place] = tile
    return rows


def _encoded_images(engine, model, prompts, vision_cache):
    """Return digest -> float[n, T, D] in NumPy, of an image's n tiles."""
    sources = {
        digest: image
        for prompt in prompts
        for digest, image in zip(prompt.digests, prompt.images, strict=True)
    }
    found, suffix = {}, ""
    if vision_cache is not None:
        settings = settings_digest(model.processor.image_processor.get_config())
        suffix = f"{settings} {vision_cache.encoder or encoder_digest(model)}"
        found = {digest: vision_cache.get(digest + suffix) for digest in sources}
        found = {digest: embeds for digest, embeds in found.items() if embeds is not None}
    missing = [digest for digest in sources if digest not in found]
    if missing:
        tiles = [model.processor.preprocess_tiles(sources[digest]) for digest in missing]
        encoded = ops.convert_to_numpy(engine.encode(np.concatenate(tiles)))
        ends = np.cumsum([len(pixels) for pixels in tiles])
        for digest, end, pixels in zip(missing, ends, tiles, strict=True):
            found[digest] = encoded[end - len(pixels) : end]
            if vision_cache is not None:
                vision_cache.put(digest + suffix, found[digest])
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
