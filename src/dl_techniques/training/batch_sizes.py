"""How many tokens of which kind a batch gives a model to work on."""

import dataclasses
from collections.abc import Mapping


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
        image_tokens: Tokens per image after the projection.
    """

    rows: int
    text: int
    length: int
    images: int = 0
    pixels: int = 0
    patches: int = 0
    vision_length: int = 0
    image_tokens: int = 0

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
    return BatchSizes(
        rows,
        text,
        text + per_row * tokens * int(model.fusion == "prefix"),
        rows * per_row,
        shape[-3] * shape[-2] * shape[-1],
        inside - int(encoder.class_token),
        inside,
        tokens,
    )


def _shape(x):
    return tuple(getattr(x, "shape", x))
