"""Next-token loss of the vision-language models: shifted once, weighted by tokens, in float32."""

import keras
from keras import ops


def at_predictors(values, num_positions=None, fill=0):
    """Return [B, L] of [B, S]: what belongs to text position t + 1, at the logits that predict it.

    Args:
        values: any number of each text position.
        num_positions: L, the number of logit positions, the additional ones leading; default S.
        fill: what the positions get that predict no text.
    """
    prefix = 0 if num_positions is None else num_positions - ops.shape(values)[1]
    return ops.pad(values[:, 1:], [[0, 0], [prefix, 1]], constant_values=fill)


def next_token_targets(labels, num_positions=None, ignore_index: int = -100):
    """Return int32[B, L]: the id that each of the L logit positions has to predict.

    The shift happens here and nowhere else. Position t is asked for `labels[t + 1]`, the last one
    for nothing. Leading positions that have no label (prepended images) are asked for nothing
    either. Moving the small labels leaves the logits uncopied.

    Args:
        labels: int[B, S], the id at each text position, `ignore_index` where nothing is learned.
        num_positions: L, the number of logit positions; default S.
        ignore_index: label that asks for nothing.

    Raises:
        ValueError: labels that are not int[B, S], or fewer logit positions than labels.
    """
    labels = ops.convert_to_tensor(labels)
    if len(labels.shape) != 2 or "int" not in keras.backend.standardize_dtype(labels.dtype):
        raise ValueError(
            "labels must be int32[B, S] token ids (not one-hot, not floats), got "
            f"{keras.backend.standardize_dtype(labels.dtype)}{list(labels.shape)}."
        )
    length = ops.shape(labels)[1]
    prefix = 0 if num_positions is None else num_positions - length
    if isinstance(prefix, int) and prefix < 0:
        raise ValueError(
            f"logits have {num_positions} positions but labels have {length}. Logits need one "
            "position per label; additional ones may only lead (prepended images)."
        )
    return at_predictors(ops.cast(labels, "int32"), num_positions, ignore_index)


def supervised_token_count(labels, ignore_index: int = -100):
    """Return float32[]: how many labels of the batch are learned after the shift.

    The first label of a row has no position before it that could predict it, so it never counts.
    This is the weight of the batch's mean loss wherever several batches are combined.

    Args:
        labels: int[B, S] as for `NanoVLMLoss`.
        ignore_index: label that asks for nothing.
    """
    targets = next_token_targets(labels, ignore_index=ignore_index)
    return ops.sum(ops.cast(ops.not_equal(targets, ignore_index), "float32"))


def token_weights(targets, labels_shape, sample_weight=None, ignore_index: int = -100):
    """Return float32[B, L]: the weight of each logit position, 0 where nothing is learned.

    Args:
        targets: int32[B, L] of `next_token_targets`.
        labels_shape: shape [B, S] of the labels.
        sample_weight: optional [B] or [B, 1] (one weight per row) or [B, S] (the weight of the
            label at the same place, which is shifted with it).
        ignore_index: label that asks for nothing.

    Raises:
        ValueError: a `sample_weight` of another shape.
    """
    mask = ops.cast(ops.not_equal(targets, ignore_index), "float32")
    if sample_weight is None:
        return mask
    weight = ops.cast(ops.convert_to_tensor(sample_weight), "float32")
    if len(weight.shape) == 1:
        return mask * ops.expand_dims(weight, 1)
    if len(weight.shape) == 2 and weight.shape[1] == 1:
        return mask * weight
    if len(weight.shape) != 2 or weight.shape[1] != labels_shape[1]:
        raise ValueError(
            f"sample_weight must have shape [B] or [B, S] like labels {list(labels_shape)}, "
            f"got {list(weight.shape)}."
        )
    return mask * at_predictors(weight, ops.shape(targets)[1], 0.0)


def _picked(logits, ids):
    # A comparison that XLA fuses into one pass. The gradient of a gather, a scatter into
    # [B, L, V], would take longer than all the rest of a small step on a CPU.
    chosen = ops.equal(ops.arange(logits.shape[-1]), ops.expand_dims(ids, -1))
    return ops.sum(ops.where(chosen, logits, 0.0), axis=-1)


def token_losses(logits, targets, label_smoothing: float = 0.0, ignore_index: int = -100):
    """Return float32[B, L]: the cross-entropy of each target, 0 where nothing is learned.

    Args:
        logits: float[B, L, V].
        targets: int32[B, L] of `next_token_targets`.
        label_smoothing: as of `NanoVLMLoss`.
        ignore_index: label that asks for nothing.
    """
    # Where, not a product: what is not learned has no cross-entropy (NaN), not a small one.
    learned = ops.not_equal(targets, ignore_index)
    return ops.where(learned, _cross_entropy(logits, targets, label_smoothing), 0.0)


def _cross_entropy(logits, targets, label_smoothing):
    """Return float32[B, L]: -log p of the targets; NaN where a target is no row of V."""
    logits = ops.cast(logits, "float32")
    vocabulary = logits.shape[-1]
    inside = ops.logical_and(targets >= 0, targets < vocabulary)
    ids = ops.where(inside, targets, 0)
    if keras.backend.backend() == "jax":
        losses = ops.logsumexp(logits, axis=-1) - _picked(logits, ids)
    else:
        # The kernels of TensorFlow and PyTorch.
        losses = ops.sparse_categorical_crossentropy(
            ops.reshape(ids, (-1,)), ops.reshape(logits, (-1, vocabulary)), from_logits=True
        )
        losses = ops.reshape(losses, ops.shape(targets))
    if label_smoothing:
        even = ops.logsumexp(logits, axis=-1) - ops.mean(logits, axis=-1)
        losses = (1.0 - label_smoothing) * losses + label_smoothing * even
    return ops.where(inside, losses, float("nan"))


@keras.saving.register_keras_serializable(package="dl_techniques")
class NanoVLMLoss(keras.losses.Loss):
    """Cross-entropy of the next token: sum over supervised tokens / their count in the batch.

    Called with labels int[B, S] (`labels[t]` is the id AT position t; this loss shifts, data never
    does) and logits float[B, P + S, V], whose leading P >= 0 positions (prepended images) are not
    trained. Returns float32[], whatever the dtype of the logits. A batch without supervised
    tokens gives zero loss and zero gradient. A supervised id outside [0, V) cannot raise inside a
    compiled step, so it makes the loss NaN.

    `sample_weight` ([B] or [B, S], the latter placed like the labels) gives
    sum(weight * loss) / sum(weight) over the supervised tokens.

    Args:
        ignore_index: label of what is not learned: padding, image placeholders, prompts.
        label_smoothing: share of the target's probability spread evenly over the vocabulary,
            in [0, 1).
        chunk_size: a `VisionLanguageModel` that is trained or evaluated with this loss computes the
            logits of so many tokens at a time, with the same result (`chunked_cross_entropy`);
            None: all at once. Called with logits, the loss does not look at it.
        name: name of the loss.

    Raises:
        ValueError: bad constructor values; labels that are not int[B, S]; logits that are not
            [B, L, V] or have fewer positions than labels; a misshapen `sample_weight`.
    """

    def __init__(
        self,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
        chunk_size: int | None = None,
        name: str = "nanovlm_loss",
    ):
        if chunk_size is not None and chunk_size < 1:
            raise ValueError(f"chunk_size must be at least 1 or None, got {chunk_size}.")
        if not 0.0 <= label_smoothing < 1.0:
            raise ValueError(f"label_smoothing must lie in [0, 1), got {label_smoothing}.")
        super().__init__(name=name)
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing
        self.chunk_size = chunk_size

    def __call__(self, y_true, y_pred, sample_weight=None):
        """Return the loss float32[]; unlike the base class, leave integer labels integers."""
        labels, logits = ops.convert_to_tensor(y_true), ops.convert_to_tensor(y_pred)
        if len(logits.shape) != 3:
            raise ValueError(f"logits must be float[B, L, V], got shape {list(logits.shape)}.")
        targets = next_token_targets(labels, ops.shape(logits)[1], self.ignore_index)
        weights = token_weights(targets, labels.shape, sample_weight, self.ignore_index)
        losses = token_losses(logits, targets, self.label_smoothing, self.ignore_index)
        return ops.divide_no_nan(ops.sum(losses * weights), ops.sum(weights))

    def call(self, y_true, y_pred):
        """Return the unweighted loss float32[]."""
        return self(y_true, y_pred)

    def get_config(self) -> dict:
        """Return the constructor arguments."""
        return {
            "ignore_index": self.ignore_index,
            "label_smoothing": self.label_smoothing,
            "chunk_size": self.chunk_size,
            "name": self.name,
        }
