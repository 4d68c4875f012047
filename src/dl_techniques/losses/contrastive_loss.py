"""Contrastive losses: image and text of one row belong together, those of other rows do not."""

import math

import keras
from keras import ops

from dl_techniques.layers.configured_layer import ConfiguredLayer, register
from dl_techniques.losses.shapes import sizes_differ


def pool_images(tokens):
    """Return float32[B, D]: the mean of image tokens float[B, T, D]."""
    return ops.mean(ops.cast(tokens, "float32"), axis=1)


def pool_text(states, mask):
    """Return float32[B, D]: the mean of the states float[B, S, D] where bool[B, S] is True.

    A row without any gives zeros; leave it out of the loss by `row_mask`.
    """
    kept = ops.expand_dims(ops.cast(mask, "bool"), axis=-1)
    # Where, not a product: padding may be NaN.
    total = ops.sum(ops.where(kept, ops.cast(states, "float32"), 0.0), axis=1)
    return ops.divide_no_nan(total, ops.sum(ops.cast(kept, "float32"), axis=1))


class _AtMost(keras.constraints.Constraint):
    def __init__(self, largest: float):
        self.largest = largest

    def __call__(self, w):
        return ops.minimum(w, self.largest)


class _PairLoss(ConfiguredLayer):
    """What both losses share: a temperature, and the pairs of the rows that take part."""

    largest_scale: float | None = None

    def __init__(self, temperature: float, learned: bool, **kwargs):
        if not temperature > 0.0:
            raise ValueError(f"temperature={temperature} must be above 0.")
        if learned and self.largest_scale is not None and temperature < 1.0 / self.largest_scale:
            raise ValueError(
                f"A learned temperature stays at or above {1.0 / self.largest_scale}, it cannot "
                f"begin at {temperature}: raise it, or set learned=False."
            )
        # No input may lose its precision: all is computed in float32.
        super().__init__(autocast=False, **kwargs)
        self.temperature = temperature
        self.learned = learned

    def build(self, image_embeds_shape):
        if not self.learned:
            return
        limited = self.largest_scale is not None
        self.log_scale = self._scalar(
            "log_scale",
            -math.log(self.temperature),
            _AtMost(math.log(self.largest_scale)) if limited else None,
        )

    def _scalar(self, name, value, constraint=None):
        return self.add_weight(
            shape=(),
            initializer=keras.initializers.Constant(value),
            constraint=constraint,
            dtype="float32",
            autocast=False,
            name=name,
        )

    def scale(self):
        """Return what the cosines are multiplied by: 1 / temperature, as it is now."""
        return ops.exp(self.log_scale) if self.learned else 1.0 / self.temperature

    def call(self, image_embeds, text_embeds, row_mask=None, ids=None, all_gather=None):
        if row_mask is None:
            row_mask = ops.ones(ops.shape(image_embeds)[:1])
        _check_rows(image_embeds, text_embeds, row_mask, ids)
        row_mask = ops.cast(row_mask, "float32")
        if all_gather is not None:
            image_embeds, text_embeds, row_mask = map(
                all_gather, (image_embeds, text_embeds, row_mask)
            )
            ids = ids if ids is None else all_gather(ids)
        row_mask = row_mask > 0.0
        images, texts = _unit_rows(image_embeds, row_mask), _unit_rows(text_embeds, row_mask)
        place = ops.arange(ops.shape(images)[0])
        own = ops.equal(ops.expand_dims(place, 1), place)
        known = ops.logical_and(ops.expand_dims(row_mask, 1), row_mask)
        if ids is not None:
            known = ops.logical_and(
                known, ops.logical_or(own, ops.not_equal(ops.expand_dims(ids, 1), ids))
            )
        total = self.sum_over_pairs(ops.matmul(images, ops.transpose(texts)), own, known)
        return ops.divide_no_nan(total, ops.sum(ops.cast(row_mask, "float32")))

    def compute_output_spec(self, *args, **kwargs):
        """Return the symbolic loss."""
        return keras.KerasTensor((), dtype="float32")


@register
class ContrastiveLoss(_PairLoss):
    """InfoNCE as in CLIP: each image picks its text among all texts, each text its image.

    float32[], the mean of both cross-entropies over the rows that take part; 0 if none does.

    Call arguments:
        image_embeds, text_embeds: float[B, D], of any length: they are normalised here.
        row_mask: bool[B], the rows that take part. Others (without an image, without a caption)
            are neither positives nor negatives. Default: all.
        ids: int[B], what tells images apart: rows of the same image, such as its several captions,
            are not each other's negatives. Default: all differ.
        all_gather: function that returns the rows of all replicas of an array, [R * b, ...] of
            [b, ...], in the same order on each. For replicas that hold their part of the batch
            only, as under `tf.distribute.MirroredStrategy`:
            `lambda x: tf.distribute.get_replica_context().all_gather(x, axis=0)`. Every replica
            then computes the loss of the whole batch. If the function is differentiable, as that
            one is, the gradient of the mean over replicas is the one of a single device.
            Arrays of JAX that span devices hold the whole batch anyway and need none.

    Args:
        temperature: what the cosines are divided by; to begin with, if it is learned.
        learned: whether the temperature is a variable, `log_scale` = log(1 / temperature). It is
            held at or above 0.01 after every update.

    Raises:
        ValueError: a temperature out of range; arrays whose shapes do not fit together.

    Reference: https://arxiv.org/abs/2103.00020.
    """

    largest_scale = 100.0

    def __init__(self, temperature: float = 0.07, learned: bool = True, **kwargs):
        super().__init__(temperature, learned, **kwargs)

    def sum_over_pairs(self, cosines, own, known):
        """Return float32[]: the sum over rows; bool[B, B] says what is a row's own, and known."""
        logits = cosines * self.scale()
        candidates = ops.where(known, logits, float("-inf"))
        lost = sum(ops.logsumexp(candidates, axis=axis) for axis in (0, 1))
        chosen = ops.logical_and(own, known)
        losses = 0.5 * ops.expand_dims(lost, 1) - logits
        return ops.sum(ops.where(chosen, losses, 0.0))


@register
class SigmoidContrastiveLoss(_PairLoss):
    """SigLIP's loss: of every pair of image and text, whether the two belong together.

    float32[], -log sigmoid(z * (cosine / temperature + bias)) with z = 1 for a row's own pair and
    -1 for others, summed over all pairs and divided by the number of rows that take part.
    Call arguments are those of `ContrastiveLoss`.

    Args:
        temperature: what the cosines are divided by; to begin with, if it is learned.
        bias: what is added; it makes up for the many pairs that do not belong together.
        learned: whether both are variables, `log_scale` = log(1 / temperature) and `bias_value`.

    Raises:
        ValueError: a temperature that is not positive; arrays whose shapes do not fit together.

    Reference: https://arxiv.org/abs/2303.15343.
    """

    def __init__(
        self, temperature: float = 0.1, bias: float = -10.0, learned: bool = True, **kwargs
    ):
        super().__init__(temperature, learned, **kwargs)
        self.bias = bias

    def build(self, image_embeds_shape):
        """Create the variables."""
        super().build(image_embeds_shape)
        if self.learned:
            self.bias_value = self._scalar("bias", self.bias)

    def sum_over_pairs(self, cosines, own, known):
        """Return float32[]: the sum over known pairs, bool[B, B]; own says which belong."""
        logits = cosines * self.scale() + (self.bias_value if self.learned else self.bias)
        losses = -ops.log_sigmoid(ops.where(own, logits, -logits))
        return ops.sum(ops.where(known, losses, 0.0))


def _unit_rows(x, row_mask):
    """Return float32[B, D] of length 1; rows left out, and zeros, are zeros without gradient."""
    x = ops.where(ops.expand_dims(row_mask, 1), ops.cast(x, "float32"), 0.0)
    squares = ops.sum(ops.square(x), axis=1, keepdims=True)
    some = squares > 0.0
    return x * ops.where(some, ops.rsqrt(ops.where(some, squares, 1.0)), 0.0)


def _check_rows(image_embeds, text_embeds, row_mask, ids):
    shape, other = list(image_embeds.shape), list(text_embeds.shape)
    if len(shape) != 2 or sizes_differ(shape, other):
        raise ValueError(
            "image_embeds and text_embeds must both be float[B, D], one vector a row (see "
            f"pool_images and pool_text), got {shape} and {other}."
        )
    for name, x in (("row_mask", row_mask), ("ids", ids)):
        if x is not None and sizes_differ(x.shape, shape[:1]):
            raise ValueError(f"{name} must have shape {shape[:1]}, got {list(x.shape)}.")
    if ids is not None and "int" not in keras.backend.standardize_dtype(ids.dtype):
        raise ValueError(f"ids must be integers, got {ids.dtype}.")
