"""Images that a decoder reads by cross-attention: which token may look at which image.

A tag is the token, or the run of tokens, that stands for image k of its row: `image_tags` int[B, S]
are k there, 0 elsewhere, and grow along the row.
"""

from keras import ops


def tags_of(text, tag_ids):
    """Return int32[B, S]: k at the k-th of a row's tokens that is one of the tags, else 0."""
    tags = ops.convert_to_tensor(list(tag_ids), dtype="int32")
    found = ops.any(ops.equal(ops.expand_dims(text, -1), tags), axis=-1)
    return ops.where(found, ops.cumsum(ops.cast(found, "int32"), axis=1), 0)


def tags_by_image(image_tags, images: int):
    """Return bool[B, S, I]: whether a token is of the tag of image i."""
    numbers = ops.arange(1, images + 1, dtype="int32")
    return ops.equal(ops.expand_dims(image_tags, -1), numbers)


def seen_images(tags, segment_ids=None):
    """Return bool[B, S, I]: which images a token sees.

    A token of a tag sees the tag's image alone. Any other sees the images of its document (segment)
    whose tags stand before it.

    Args:
        tags: bool[B, S, I] of `tags_by_image`.
        segment_ids: int[B, S]; 0 is padding, which sees nothing.
    """
    seen = ops.cumsum(ops.cast(tags, "int32"), axis=1) > 0
    if segment_ids is not None:
        segments = ops.expand_dims(ops.cast(segment_ids, "int32"), -1)
        of_image = ops.max(ops.where(tags, segments, 0), axis=1, keepdims=True)
        seen = ops.logical_and(seen, ops.logical_and(segments == of_image, segments > 0))
    return ops.where(ops.any(tags, axis=-1, keepdims=True), tags, seen)


def images_in_sequence(tags, is_placeholder):
    """Return bool[B, I]: the images whose placeholders follow right behind their tags."""
    following = ops.pad(is_placeholder[:, 1:], ((0, 0), (0, 1)))
    return ops.any(ops.logical_and(tags, ops.expand_dims(following, -1)), axis=1)


def begun_images(tags):
    """Return int32[B, S]: the image whose tag began last, 0 before the first."""
    begun = ops.cumsum(ops.cast(tags, "int32"), axis=1) > 0
    return ops.sum(ops.cast(begun, "int32"), axis=-1)


def tag_embeddings(tags, embeddings):
    """Return float[B, I, D]: the mean of the text embeddings float[B, S, D] of each image's tag."""
    share = ops.cast(tags, embeddings.dtype)
    total = ops.einsum("bsi,bsd->bid", share, embeddings)
    count = ops.maximum(ops.sum(share, axis=1), 1.0)
    return total / ops.expand_dims(count, -1)
