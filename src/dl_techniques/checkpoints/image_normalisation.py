"""Moves the normalisation of pixels into the patch embedding, which is exact."""

import keras
import numpy as np

from dl_techniques.checkpoints.key_map import variables_of

PATCH_KERNEL = "vision_encoder/patch_embedding/patch_projection/kernel"
PATCH_BIAS = "vision_encoder/patch_embedding/patch_projection/bias"


def fold_normalisation(model, mean, std, their_mean: float, their_std: float) -> dict:
    """Return the patch embedding for pixels that another processor normalises.

    Args:
        model: Its vision encoder's kernel and bias are changed, in float64 copies.
        mean: What is subtracted from pixels in [0, 1] before the model sees them; None: what its
            processor subtracts.
        std: What they are divided by then.
        their_mean: What the other processor subtracts.
        their_std: What it divides by.

    Returns:
        The changed values by their variables' paths; none where nothing changes.

    Raises:
        ValueError: if the statistics are not known or not numbers.
    """
    if (mean is None) != (std is None) or (mean is None and model.processor is None):
        raise ValueError(
            "image_mean and image_std: give both (0.5 and 0.5 for pixels in [-1, 1], 0 and 1 for "
            "pixels in [0, 1]), or give the model a processor."
        )
    if mean is None:
        processor = model.processor.image_processor
        mean, std = processor.mean, processor.std
    mean, std = (np.broadcast_to(np.asarray(x, "float64"), (3,)) for x in (mean, std))
    if not (np.isfinite(mean).all() and np.isfinite(std).all() and (std > 0).all()):
        raise ValueError(f"image_mean={mean}, image_std={std}: expected numbers, std positive.")
    if (mean == their_mean).all() and (std == their_std).all():
        return {}
    variables = variables_of(model)
    kernel, bias = (
        np.asarray(keras.ops.convert_to_numpy(variables[path]), "float64")
        for path in (PATCH_KERNEL, PATCH_BIAS)
    )
    # pixel = their_std y + their_mean, and this model's input is (pixel - mean) / std.
    by_channel = kernel.reshape(-1, 3, kernel.shape[1])
    folded = (by_channel * (their_std / std)[:, None]).reshape(kernel.shape)
    shift = np.einsum("pcd,c->d", by_channel, (their_mean - mean) / std)
    return {PATCH_KERNEL: folded, PATCH_BIAS: bias + shift}
