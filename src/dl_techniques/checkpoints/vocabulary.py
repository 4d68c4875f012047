"""More rows for the embedding table: each is the mean of those that are there."""

import keras
import numpy as np

from dl_techniques.checkpoints.key_map import variables_of


def grown_vocabulary(model, rows: int) -> dict[str, np.ndarray]:
    """Return the embedding table, and an untied head, with `rows` token ids.

    The logit of a new id is then the mean of all others, which is never the largest.

    Returns:
        The changed values by their variables' paths; none where there are as many rows.
    """
    missing = rows - model.vocab_size
    if not missing:
        return {}
    grown = {}
    for name, axis in (("embeddings", 0), ("reverse_embeddings", 1)):
        path = f"language_decoder/token_embedding/{name}"
        variable = variables_of(model).get(path)
        if variable is not None:
            value = keras.ops.convert_to_numpy(variable)
            mean = np.mean(value, axis=axis, dtype="float64", keepdims=True).astype(value.dtype)
            grown[path] = np.concatenate([value, np.repeat(mean, missing, axis)], axis)
    return grown
