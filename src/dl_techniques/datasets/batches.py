"""Batches: encoded rows padded to common shapes."""

from collections.abc import Sequence

import numpy as np

from dl_techniques.datasets.rows import IGNORE_INDEX, Tokens


def padded_length(length: int, bucket: int, max_length: int) -> int:
    """Returns `length` rounded up to a multiple of `bucket`, at most `max_length`."""
    return min(-(-length // bucket) * bucket, max_length)


def pad_tokens(
    rows: Sequence[Tokens], batch_size: int, length: int, pad_id: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pads rows on the right, and the batch with empty rows.

    Args:
        rows: ids and labels of each row.
        batch_size: B, at least the number of rows.
        length: S, at least the longest row.
        pad_id: the id of padding.

    Returns:
        text_tokens int32[B, S], attention_mask bool[B, S] and labels int32[B, S].
    """
    tokens = np.full((batch_size, length), pad_id, np.int32)
    labels = np.full((batch_size, length), IGNORE_INDEX, np.int32)
    mask = np.zeros((batch_size, length), bool)
    for row, (ids, row_labels) in enumerate(rows):
        tokens[row, : len(ids)] = ids
        labels[row, : len(ids)] = row_labels
        mask[row, : len(ids)] = True
    return tokens, mask, labels
