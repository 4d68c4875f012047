"""The contrast of images and captions: their vectors, from one pass of the vision tower."""

from keras import ops

from dl_techniques.losses.contrastive_loss import pool_images, pool_text
from dl_techniques.models.objectives import image_counts


def outputs_with_contrast(model, inputs: dict, training=None) -> dict:
    """Return what the losses of an `Objective` with a contrast need, the images encoded once.

    Returns:
        images: float32[B, D] of `image_vectors`.
        captions: float[B, S, D] of `caption_states`.
        tokens: as `model.decode`, if the objective learns tokens.
        A batch without images has no `images` and `captions`, if it has `tokens`.
    """
    inputs = model.with_vision_embeds(inputs, training)
    vision = inputs["vision_embeds"]
    outputs = {}
    if model.objective.learns_tokens:
        outputs["tokens"] = model.decode(inputs, training)
        if vision is None:
            return outputs
    outputs["captions"] = captions = caption_states(model, inputs, training)
    outputs["images"] = (
        ops.zeros_like(captions[:, 0], "float32")
        if vision is None
        else image_vectors(vision, image_counts(inputs))
    )
    return outputs


def image_vectors(vision, counts):
    """Return float32[B, D]: the mean over the tokens of the first int32[B] images of each row.

    Args:
        vision: float[B, I, T, D] of `encode_vision`.
        counts: int32[B]; rows of 0 images give zeros.
    """
    rows, images, tokens, width = ops.shape(vision)
    pooled = pool_images(ops.reshape(vision, (rows * images, tokens, width)))
    real = ops.arange(images, dtype="int32") < ops.expand_dims(counts, 1)
    return pool_text(ops.reshape(pooled, (rows, images, width)), real)


def caption_states(model, inputs: dict, training=None):
    """Return float[B, S, D]: the decoder's last states for the text alone; no token sees an image.

    Placeholders are padding here, and positions count the text only.
    """
    text = ops.cast(inputs["text_tokens"], "int32")
    mask = inputs.get("attention_mask")
    mask = ops.ones_like(text, "bool") if mask is None else ops.cast(mask, "bool")
    if model.image_token_id is not None:
        mask = ops.logical_and(mask, ops.not_equal(text, model.image_token_id))
    return model.language_decoder(
        text,
        attention_mask=mask,
        segment_ids=inputs.get("segment_ids"),
        turn_ids=inputs.get("turn_ids"),
        return_hidden=True,
        training=training,
    )


def paired_rows(inputs: dict, labels, ignore_index: int = -100):
    """Return bool[B]: rows with an image and a caption, which is what the labels name."""
    named = ops.any(ops.not_equal(ops.convert_to_tensor(labels), ignore_index), axis=1)
    return ops.logical_and(named, image_counts(inputs) > 0)


def contrast(pair_loss, outputs: dict, inputs: dict, labels, ignore_index: int = -100):
    """Return float32[], the loss of the pairs, and float32[], their number.

    Args:
        pair_loss: `ContrastiveLoss` or `SigmoidContrastiveLoss`.
        outputs: those of `outputs_with_contrast`.
        inputs: the model's inputs. Rows of several documents make the loss NaN: the host refuses
            them where it sees them.
        labels: int[B, S]; a caption's vector is the mean of the states at its labels.
        ignore_index: label of what is no caption.
    """
    rows = paired_rows(inputs, labels, ignore_index)
    texts = pool_text(outputs["captions"], ops.not_equal(labels, ignore_index))
    loss = pair_loss(outputs["images"], texts, row_mask=rows)
    segments = inputs.get("segment_ids")
    if segments is not None:
        last = ops.max(segments, axis=1, keepdims=True)
        several = ops.logical_and(ops.not_equal(segments, 0), ops.not_equal(segments, last))
        loss = ops.where(ops.any(several), float("nan"), loss)
    return loss, ops.sum(ops.cast(rows, "float32"))
