"""How much each text token attends to each place of each image."""

import math
from collections.abc import Mapping

import numpy as np
from keras import ops

from dl_techniques.generation.buckets import bucket, pad_to
from dl_techniques.generation.engine import TOKEN_BUCKET
from dl_techniques.generation.prompts import array_batch
from dl_techniques.layers.attention_mask import attention_rule
from dl_techniques.models.fusion import as_image_sequence


def image_attention(model, inputs: Mapping) -> np.ndarray:
    """Return float32[S, I, rows, columns] for one row of a batch.

    Entry [s, i] is the share of text token s's attention that falls on each place of image i: the
    mean over heads and decoder blocks. Where images are read by cross-attention, the mean over its
    blocks is added. A resampler's tokens have no places of their own: their shares are spread over
    what they read.

    Attention says what a token could read, not what the answer depends on.

    Args:
        model: A `VisionLanguageModel`.
        inputs: A batch of one row with `images`; see `VisionLanguageModel`.

    Raises:
        ValueError: more rows than one, no image, or packed rows.
    """
    inputs = {name: value for name, value in inputs.items() if value is not None}
    if len(inputs["text_tokens"]) != 1 or 0 in np.shape(inputs.get("images", ())):
        raise ValueError("image_attention needs one row with at least one image.")
    inputs = array_batch(model, inputs)
    length, engine = inputs["text_tokens"].shape[1], model.generation_engine()
    images = as_image_sequence(ops.convert_to_tensor(inputs.pop("images")))
    embeds = engine.encode(ops.convert_to_numpy(images[0]))[None]
    count, tokens = embeds.shape[1:3]
    inputs = _in_bucket(inputs)
    own, *crossed = engine.programs.run(_decoder_attention, {**inputs, "vision_embeds": embeds})
    own = ops.convert_to_numpy(own)
    text = np.asarray(inputs["text_tokens"])[0]
    shares = np.zeros((len(text), count, tokens), "float32")
    for image, places in _image_places(model, inputs, text, count, tokens).items():
        shares[:, image] += own[-len(text) :, places]
    for weights in crossed:
        by_image = ops.convert_to_numpy(weights).reshape(len(text), count, -1)
        shares += by_image[..., -tokens:]  # A hybrid model's tag comes first.
    shares = shares[-length:]
    maps = query_maps(model, images[0])
    if maps is None:
        return _as_grid(shares, _patches(model, images[0]))
    return np.einsum("sit,itrc->sirc", shares, maps)


def query_maps(model, images) -> np.ndarray | None:
    """Return float32[I, T, rows, columns]: what each token of a resampler reads of each image.

    Args:
        model: A `VisionLanguageModel`.
        images: float[I, H, W, 3].

    Returns:
        The attention of the last block of the resampler, or of the compressor, the mean over its
        heads; None for models without one.
    """
    connector = model.modality_projection
    resampler = getattr(connector, "vision_resampler", None)
    compressor = getattr(connector, "vision_compressor", None)
    if compressor is None and (resampler is None or resampler.mode == "avgpool"):
        return None
    tokens = model.vision_encoder(images)
    if connector.pixel_shuffle is not None:
        tokens = connector.pixel_shuffle(tokens)
    reader = resampler if compressor is None else compressor
    queries = ops.cast(reader.queries, tokens.dtype)[None]
    queries = ops.broadcast_to(queries, (tokens.shape[0], *queries.shape[1:]))
    if compressor is not None:
        weights = _context_weights(compressor.attention, queries, tokens)
    else:
        *earlier, last = resampler.blocks
        for block in earlier:
            queries = block(queries, tokens)
        queries, tokens = last.query_norm(queries), last.token_norm(tokens)
        weights = _context_weights(last.attention, queries, tokens)
    return _as_grid(ops.convert_to_numpy(weights), _patches(model, images))


def _in_bucket(inputs: dict) -> dict:
    """Return a row with padding before its text, so that few lengths are compiled."""
    tokens = np.asarray(inputs["text_tokens"], "int32")
    mask = inputs.get("attention_mask")
    mask = np.ones(tokens.shape, bool) if mask is None else np.asarray(mask, bool)
    padded = {**inputs, "text_tokens": tokens, "attention_mask": mask}
    if inputs.get("image_tags") is not None:
        padded["image_tags"] = np.asarray(inputs["image_tags"], "int32")
    size = bucket(tokens.shape[1], TOKEN_BUCKET)
    for name in padded.keys() & {"text_tokens", "attention_mask", "image_tags"}:
        padded[name] = pad_to(padded[name], size, 1, before=True)
    return padded


def _decoder_attention(model, inputs: dict) -> list:
    """Return float32[S, S] of self-attention and, if there is any, [S, V] of cross-attention."""
    decoder, fused = model.language_decoder, model.embed(inputs)
    x, context, context_mask = fused["inputs"], fused.get("context"), fused.get("context_mask")
    length = x.shape[1]
    mask, positions = attention_rule(
        ops.arange(length, dtype="int32"),
        length,
        fused.get("attention_mask"),
        image_ids=fused.get("image_ids"),
    )
    own, crossed = [], []
    for block in decoder.blocks:
        normed = block.input_norm(x)
        own.append(_mean_of_heads(block.attention.attention_weights(normed, positions, mask)))
        seen = context if block.cross_attention else None
        if seen is not None:
            cross = block.cross_block
            middle = cross.norm(x + block.attention(normed, positions, mask))
            crossed.append(_context_weights(cross.attention, middle, seen, context_mask)[0])
        x = block(x, positions, mask, context_mask, seen)
    means = [ops.mean(ops.stack(own), axis=0)[0]]
    return means + ([ops.mean(ops.stack(crossed), axis=0)] if crossed else [])


def _context_weights(attention, x, context, mask=None):
    """Return float32[B, T, S] of attention to other tokens."""
    keys_values = attention.project_context(context)
    weights = attention.attention_weights(x, attention_mask=mask, keys_values=keys_values)
    return _mean_of_heads(weights)


def _mean_of_heads(weights):
    return ops.mean(weights, axis=1)


def _image_places(model, inputs, text, count: int, tokens: int) -> dict[int, np.ndarray]:
    """Return image -> the places of its tokens in the decoder's sequence."""
    if model.fusion == "prefix":
        return dict(enumerate(np.arange(count * tokens).reshape(count, tokens)))
    if model.image_token_id is None:
        return {}
    runs = np.flatnonzero(text == model.image_token_id).reshape(-1, tokens)
    if getattr(model, "architecture", "decoder") == "decoder":
        return dict(enumerate(runs))
    tags = inputs.get("image_tags")
    if tags is None:
        found = np.isin(text, model.tile_tag_ids)
        tags = np.where(found, np.cumsum(found), 0)[None]
    tags = np.asarray(tags)[0]
    return {int(tags[run[0] - 1]) - 1: run for run in runs}


def _patches(model, images) -> tuple[int, int]:
    """Return the rows and columns of patches of float[I, H, W, 3]."""
    size = model.vision_encoder.patch_embedding.patch_size
    return images.shape[1] // size, images.shape[2] // size


def _as_grid(shares: np.ndarray, patches: tuple[int, int]) -> np.ndarray:
    """Return [..., rows, columns] of [..., N] tokens of an image, without its class token.

    Raises:
        ValueError: if the tokens make no grid.
    """
    count = shares.shape[-1]
    for factor in range(1, min(patches) + 1):
        rows, columns = (side // factor for side in patches)
        if count - rows * columns in (0, 1):
            break
    else:
        rows = columns = math.isqrt(count)
        if rows * columns != count:
            raise ValueError(f"{count} image tokens are no grid of {patches} patches.")
    return shares[..., count - rows * columns :].reshape(*shares.shape[:-1], rows, columns)
