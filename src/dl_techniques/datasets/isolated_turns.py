"""Isolated turns: several questions about one image in one row, each as if it were alone."""

from collections.abc import Sequence

import numpy as np

IGNORE_INDEX = -100

# (int32[n] ids, int32[n] labels)
Tokens = tuple[np.ndarray, np.ndarray]


def join_isolated(turns: Sequence[Tokens]) -> tuple[Tokens, np.ndarray]:
    """Joins turns that were encoded alone: what all of them begin with once, then the rest of each.

    Where turn k sees only the beginning and itself (`attention_rule`), every token sees what it
    saw alone, so that the row has the losses of the turns apart at the cost of one beginning:
    the images.

    Args:
        turns: ids and labels of each turn with its images; nothing that is learned is shared.

    Returns:
        ((ids, labels), turn_ids int32[n]: 0 for the beginning, k for the rest of the k-th turn).
    """
    shared = _shared_length(turns)
    head = tuple(array[:shared] for array in turns[0])
    parts = [head, *(tuple(array[shared:] for array in turn) for turn in turns)]
    turn_ids = np.repeat(np.arange(len(parts), dtype=np.int32), [len(ids) for ids, _ in parts])
    return tuple(np.concatenate([part[k] for part in parts]) for k in (0, 1)), turn_ids


def _shared_length(turns: Sequence[Tokens]) -> int:
    unlearned = [np.append(labels == IGNORE_INDEX, False).argmin() for _, labels in turns]
    shared = int(min(unlearned))
    heads = np.stack([ids[:shared] for ids, _ in turns])
    return int(np.append((heads == heads[0]).all(axis=0), False).argmin())
