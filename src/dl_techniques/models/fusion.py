"""The two ways in which image embeddings reach the decoder's sequence.

Both take and return the decoder's call arguments: a dict of `inputs` float[B, S, D] (the text's
embeddings), `attention_mask`, `segment_ids`, `positions` and `turn_ids`.
"""

from keras import ops


def as_image_sequence(images):
    """Return float[B, I, H, W, 3]; float[B, H, W, 3] is read as one image per row."""
    if len(images.shape) == 4:
        return ops.expand_dims(images, 1)
    if len(images.shape) != 5:
        raise ValueError(
            "images must be float[B, I, H, W, 3] or float[B, H, W, 3], got shape "
            f"{tuple(images.shape)}."
        )
    return images


def misplaced(is_placeholder, tokens_of_images: int, num_images=None, images: int = 0):
    """Return bool[B]: rows whose placeholders are not as many as the tokens of their images.

    The host checks this before a compiled step; for batches that reach one unchecked (`tf.data`,
    PyTorch loaders) the caller turns these rows into NaN: loud, never a silent splice.

    Args:
        is_placeholder: bool[B, S].
        tokens_of_images: Tokens per image.
        num_images: int[B]; default: `images` in every row.
        images: Images per row that the batch has room for.
    """
    found = ops.sum(ops.cast(is_placeholder, "int32"), axis=1)
    counts = images if num_images is None else ops.cast(num_images, "int32")
    return ops.not_equal(found, counts * tokens_of_images)


def placeholder_fusion(text: dict, vision, is_placeholder, bidirectional_images: bool) -> dict:
    """Replace the n-th placeholder of a row by the n-th vision token of its images.

    Args:
        text: The decoder's call arguments for the text alone.
        vision: float[B, I, T, D].
        is_placeholder: bool[B, S]; a row may have fewer than I * T, but not more.
        bidirectional_images: Whether to number the images' tokens for `attention_rule`.
    """
    batch, images, tokens, width = ops.shape(vision)
    flat = ops.reshape(vision, (batch, images * tokens, width))
    if vision.shape[1] is None:  # A compiled step may meet a batch without any: one row to take.
        flat = ops.pad(flat, ((0, 0), (0, 1), (0, 0)))
    place = ops.cumsum(ops.cast(is_placeholder, "int32"), axis=1) - 1
    index = ops.expand_dims(ops.clip(place, 0, ops.shape(flat)[1] - 1), -1)
    spliced = ops.where(
        ops.expand_dims(is_placeholder, -1),
        ops.take_along_axis(flat, index, axis=1),
        ops.cast(text["inputs"], flat.dtype),
    )
    fused = {**text, "inputs": spliced}
    if bidirectional_images:
        fused["image_ids"] = ops.where(is_placeholder, place // tokens + 1, 0)
    return fused


def prefix_fusion(text: dict, vision, num_images=None) -> dict:
    """Put all vision tokens of a row before its text; those of absent images become padding.

    Args:
        text: The decoder's call arguments for the text alone.
        vision: float[B, I, T, D].
        num_images: int[B]; default: all I are real.

    Raises:
        ValueError: for packed rows: a document's images cannot stand before the whole row.
    """
    if text["segment_ids"] is not None or text["positions"] is not None:
        raise ValueError(
            "Prefix fusion cannot place images in packed rows (segment_ids, positions): use "
            "placeholder fusion."
        )
    batch, images, tokens, width = ops.shape(vision)
    length = ops.shape(text["inputs"])[1]
    prefix = ops.reshape(vision, (batch, images * tokens, width))
    embeddings = ops.concatenate([prefix, ops.cast(text["inputs"], prefix.dtype)], axis=1)
    text = {**text, "inputs": embeddings}
    if text["turn_ids"] is not None:
        text["turn_ids"] = ops.pad(text["turn_ids"], ((0, 0), (images * tokens, 0)))
    mask = text["attention_mask"]
    if mask is None and num_images is None:
        return text
    mask = ops.ones((batch, length), "bool") if mask is None else ops.cast(mask, "bool")
    real = ops.ones((batch, images * tokens), "bool")
    if num_images is not None:
        image_of = ops.arange(images * tokens, dtype="int32") // tokens
        count = ops.expand_dims(ops.cast(num_images, "int32"), 1)
        real = ops.expand_dims(image_of, 0) < count
    mask = ops.concatenate([real, mask], axis=1)
    return {**text, "attention_mask": mask}
