"""More rows for the embedding table: each is the mean of those that are there."""

import keras
import numpy as np

from dl_techniques.checkpoints.key_map import variables_of


def with_mean_rows(table: np.ndarray, rows: int, axis: int = 0) -> np.ndarray:
    """Return a table of `rows` token ids along an axis; the new ones are the mean of the others.

    The logit of a new id is then the mean of all others, which is never the largest.
    """
    missing = rows - table.shape[axis]
    if not missing:
        return table
    mean = np.mean(table, axis=axis, dtype="float64", keepdims=True).astype(table.dtype)
    return np.concatenate([table, np.repeat(mean, missing, axis)], axis)


def grown_vocabulary(model, rows: int) -> dict[str, np.ndarray]:
    """Return the embedding table, and an untied head, with `rows` token ids.

    Returns:
        The changed values by their variables' paths; none where there are as many rows.
    """
    grown, variables = {}, variables_of(model)
    for name, axis in (("embeddings", 0), ("reverse_embeddings", 1)):
        path = f"language_decoder/token_embedding/{name}"
        if rows > model.vocab_size and path in variables:
            table = keras.ops.convert_to_numpy(variables[path])
            grown[path] = with_mean_rows(table, rows, axis)
    return grown
