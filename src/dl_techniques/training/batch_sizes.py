"""How many tokens of which kind a batch gives a model to work on."""

import dataclasses
from collections.abc import Mapping

import keras

from dl_techniques.layers.vision_connector import VisionConnector


@dataclasses.dataclass(frozen=True)
class BatchSizes:
    """The sizes that decide about work and memory.

    Attributes:
        rows: Rows of the batch, B.
        text: Text tokens per row, S.
        length: Positions per row in the decoder: S, with prepended images more.
        images: Images of all rows together.
        pixels: Numbers in one image.
        patches: Patches per image.
        vision_length: Tokens per image inside the vision encoder, a class token included.
        encoder_tokens: Tokens per image that the vision encoder gives.
        image_tokens: Tokens per image after the projection.
        images_per_row: Images of a row.
        context: Tokens of a row that gated cross-attention reads; 0 for none.
        tags: Tag tokens among them, one an image of a hybrid NVLM.
    """

    rows: int
    text: int
    length: int
    images: int = 0
    pixels: int = 0
    patches: int = 0
    vision_length: int = 0
    encoder_tokens: int = 0
    image_tokens: int = 0
    images_per_row: int = 0
    context: int = 0
    tags: int = 0

    @property
    def tokens(self) -> int:
        """All positions in the decoder."""
        return self.rows * self.length


def batch_sizes(model, inputs: Mapping) -> BatchSizes:
    """Return the sizes of a batch.

    Args:
        model: A `VisionLanguageModel`, or one that `make_skeleton` gives.
        inputs: Arrays or shapes: `text_tokens` [B, S], and `images` [B, I, H, W, 3] or
            [B, H, W, 3] unless there are none.
    """
    rows, text = _shape(inputs["text_tokens"])
    shape = _shape(inputs["images"]) if inputs.get("images") is not None else (rows, 0)
    per_row = 1 if len(shape) == 4 else shape[1]
    if not rows * per_row:
        return BatchSizes(rows, text, text)
    pixels_shape = (None, *shape[-3:])
    encoder = model.vision_encoder
    inside = encoder.patch_embedding.compute_output_shape(pixels_shape)[1]
    outside = encoder.compute_output_shape(pixels_shape)
    tokens = model.modality_projection.compute_output_shape(outside)[1]
    architecture = getattr(model, "architecture", "decoder")
    tags = per_row * int(architecture == "hybrid")
    return BatchSizes(
        rows=rows,
        text=text,
        length=text + per_row * tokens * int(model.fusion == "prefix"),
        images=rows * per_row,
        pixels=shape[-3] * shape[-2] * shape[-1],
        patches=inside - int(encoder.class_token),
        vision_length=inside,
        encoder_tokens=outside[1],
        image_tokens=tokens,
        images_per_row=per_row,
        context=0 if architecture == "decoder" else per_row * tokens + tags,
        tags=tags,
    )


def row_tokens(model, images: int, image_tokens: int) -> int:
    """Return how many text tokens of a row its images need: placeholders and tags.

    Of a hybrid NVLM's images one is in the sequence, the thumbnail.
    """
    architecture = getattr(model, "architecture", "decoder")
    if architecture == "decoder":
        return images * image_tokens * int(model.fusion == "placeholder")
    in_sequence = image_tokens * int(architecture == "hybrid" and images > 0)
    return images + in_sequence


def projection_parts(model, sizes: BatchSizes) -> list[tuple[keras.layers.Layer, int, int]]:
    """Return the parts between encoder and decoder, each with tokens per image and their width."""
    projection, width = model.modality_projection, model.vision_encoder.embed_dim
    parts = [projection]
    if isinstance(projection, VisionConnector):
        names = ("pixel_shuffle", "vision_resampler", "vision_compressor", "vision_projector")
        parts = [getattr(projection, name) for name in names]
    shape, found = (None, sizes.encoder_tokens, width), []
    for part in parts:
        if part is not None:
            found.append((part, *shape[1:]))
            shape = part.compute_output_shape(shape)
    return found


def _shape(x):
    return tuple(getattr(x, "shape", x))
