"""Objectives: what a training step minimises beside the plain next-token loss."""

import dataclasses
import functools
import math

from keras import ops

from dl_techniques.losses.contrastive_loss import ContrastiveLoss, SigmoidContrastiveLoss

_CONTRASTS = {"infonce": ContrastiveLoss, "sigmoid": SigmoidContrastiveLoss}


@dataclasses.dataclass(frozen=True)
class Objective:
    """L = lambda_vlm * L_vlm + lambda_text * L_text + lambda_contrast * L_contrast.

    L_vlm is the mean loss of the learned tokens of documents with an image, L_text of those without
    one; each 0 where a batch has none. With packed rows a document is a segment, else a row. With
    `lambda_text=None` L_vlm is the mean over all learned tokens. A part whose lambda is 0 is not
    learned; if no token is learned, the pass that predicts them does not take place.

    L_contrast compares the images of each row with its caption: cosines of the mean of the image
    tokens behind the projection and of the mean of the decoder's last states at the labels, in a
    second pass that sees no image (see `contrast.py`). It needs one document a row.

    Accumulation (`ComponentOptimizer`) weighs the gradients of the micro-batches. As long as all
    tokens are alike, by learned tokens: uneven micro-batches then give the token loss of the one
    big batch. With a `lambda_text` no one number is right for both means, so that each micro-batch
    that learns anything counts as one, which keeps the lambdas' ratio where some micro-batches are
    wholly text and others wholly images. If the contrast is learned alone, by its pairs; its
    negatives are those of a micro-batch in any case.

    Sample weights apply to tokens alone, not to the contrast.

    Args:
        lambda_vlm: factor of L_vlm.
        lambda_text: factor of L_text, or None.
        lambda_contrast: factor of L_contrast.
        contrast: "infonce" (`ContrastiveLoss`) or "sigmoid" (`SigmoidContrastiveLoss`).
        temperature: what the cosines are divided by; default: that of the contrast's class. It
            is not learned.

    Raises:
        ValueError: a factor that is negative or not finite, all factors 0, an unknown contrast, or
            a temperature that is not above 0.
    """

    lambda_vlm: float = 1.0
    lambda_text: float | None = None
    lambda_contrast: float = 0.0
    contrast: str = "infonce"
    temperature: float | None = None

    def __post_init__(self):
        lambdas = {name: getattr(self, name) for name in ("lambda_vlm", "lambda_contrast")}
        if self.lambda_text is not None:
            lambdas["lambda_text"] = self.lambda_text
        for name, value in lambdas.items():
            if not 0.0 <= value < math.inf:
                raise ValueError(f"{name}={value} must be 0 or above, and finite.")
        if not any(lambdas.values()):
            raise ValueError(f"Nothing to learn: all of {', '.join(lambdas)} are 0.")
        if self.contrast not in _CONTRASTS:
            raise ValueError(f"contrast={self.contrast!r} must be one of {sorted(_CONTRASTS)}.")
        if self.temperature is not None and not 0.0 < self.temperature < math.inf:
            raise ValueError(f"temperature={self.temperature} must be above 0, and finite.")

    @property
    def learns_tokens(self) -> bool:
        """Whether any token is predicted."""
        return bool(self.lambda_vlm or self.lambda_text)

    @property
    def learns_contrast(self) -> bool:
        """Whether images and captions are compared."""
        return self.lambda_contrast > 0.0

    @functools.cached_property
    def pair_loss(self):
        """The contrastive loss, which has no variables."""
        temperature = {} if self.temperature is None else {"temperature": self.temperature}
        return _CONTRASTS[self.contrast](learned=False, **temperature)


def image_counts(inputs: dict):
    """Return int32[B]: how many images each row has, real ones only."""
    rows = ops.shape(inputs["text_tokens"])[0]
    arrays = [inputs.get(name) for name in ("images", "vision_embeds")]
    array = next((array for array in arrays if array is not None), None)
    if array is None:
        return ops.zeros((rows,), "int32")
    if inputs.get("num_images") is not None:
        return ops.cast(inputs["num_images"], "int32")
    slots = ops.shape(array)[1] if len(array.shape) == 5 or array is arrays[1] else 1
    return ops.ones((rows,), "int32") * slots


def documents_with_image(inputs: dict, image_mark_ids: tuple[int, ...]):
    """Return bool[B, S]: whether the document of each token has an image.

    Args:
        inputs: a model's inputs.
        image_mark_ids: ids that only a document with an image has; none: a row is a document.
    """
    text = ops.convert_to_tensor(inputs["text_tokens"])
    if not image_mark_ids:
        counts = ops.expand_dims(image_counts(inputs), 1)
        return ops.logical_and(counts > 0, ops.ones_like(text, "bool"))
    marks = ops.convert_to_tensor(list(image_mark_ids), dtype=text.dtype)
    found = ops.any(ops.equal(ops.expand_dims(text, -1), marks), axis=-1)
    segments = inputs.get("segment_ids")
    if segments is None:
        return ops.logical_or(ops.any(found, axis=1, keepdims=True), ops.zeros_like(found))
    # A row has fewer documents than S + 1: one number for each document of the batch.
    rows, length = ops.shape(text)
    first = ops.expand_dims(ops.arange(rows, dtype="int32") * (length + 1), 1)
    document = ops.reshape(ops.clip(ops.cast(segments, "int32"), 0, length) + first, (-1,))
    images = ops.segment_sum(
        ops.reshape(ops.cast(found, "int32"), (-1,)), document, rows * (length + 1)
    )
    return ops.reshape(ops.take(images, document) > 0, (rows, length))
