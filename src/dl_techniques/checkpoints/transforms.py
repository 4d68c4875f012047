"""Named, invertible changes between a checkpoint's tensor and our variables."""

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from dl_techniques.checkpoints.padded_heads import Padding, Shape


@dataclasses.dataclass(frozen=True)
class Transform:
    """One change, in both directions; NumPy views wherever that can be.

    Attributes:
        to_ours: (their array, shapes of our variables) -> our arrays, in order.
        to_theirs: Our arrays -> their array.
        their_shape: Shapes of our variables -> their shape.
        padding: What their array may hold beyond that; it is cut off and never written.
    """

    to_ours: Callable[[np.ndarray, tuple[Shape, ...]], tuple[np.ndarray, ...]]
    to_theirs: Callable[[tuple[np.ndarray, ...]], np.ndarray]
    their_shape: Callable[[tuple[Shape, ...]], Shape]
    padding: Padding | None = None


def _one(to_ours, to_theirs, their_shape) -> Transform:
    """Return a transform of one variable."""
    return Transform(
        lambda array, shapes: (to_ours(array, shapes[0]),),
        lambda arrays: to_theirs(arrays[0]),
        lambda shapes: their_shape(shapes[0]),
    )


def _patch_side(rows: int) -> int:
    return math.isqrt(rows // 3)


def _patch_to_ours(array, shape):
    # (out, channels, height, width) -> (height, width, channels, out), flattened.
    return array.transpose(2, 3, 1, 0).reshape(shape)


def _patch_to_theirs(kernel):
    side = _patch_side(kernel.shape[0])
    return kernel.reshape(side, side, 3, kernel.shape[1]).transpose(3, 2, 0, 1)


def _patch_their_shape(shape):
    side = _patch_side(shape[0])
    return shape[1], 3, side, side


def _split(array, shapes):
    ends = np.cumsum([shape[-1] for shape in shapes])[:-1]
    return tuple(np.split(array, ends, axis=0))


def _padded(transform: Transform, padding: Padding) -> Transform:
    """Return a transform that also takes arrays with dummy heads."""

    def to_ours(array, shapes):
        return transform.to_ours(padding.cut(array, transform.their_shape(shapes)), shapes)

    return dataclasses.replace(transform, to_ours=to_ours, padding=padding)


TRANSFORMS = {
    "same": _one(lambda a, _: a, lambda a: a, lambda s: s),
    # PyTorch's linear layers hold (out, in), Dense layers (in, out).
    "transpose": _one(lambda a, _: a.T, lambda a: a.T, lambda s: s[::-1]),
    "patch kernel": _one(_patch_to_ours, _patch_to_theirs, _patch_their_shape),
    "without leading 1": _one(lambda a, _: a[0], lambda a: a[None], lambda s: (1, *s)),
    "without leading 1, 1": _one(
        lambda a, _: a[0, 0], lambda a: a[None, None], lambda s: (1, 1, *s)
    ),
    # One linear layer whose outputs are those of several of ours, one after the other.
    "split": Transform(
        _split,
        lambda arrays: np.concatenate(arrays),
        lambda shapes: (sum(shape[0] for shape in shapes),),
    ),
    "split, transpose": Transform(
        lambda array, shapes: tuple(part.T for part in _split(array, shapes)),
        lambda arrays: np.concatenate([a.T for a in arrays]),
        lambda shapes: (sum(shape[1] for shape in shapes), shapes[0][0]),
    ),
}

# A dummy head does nothing if the output projection ignores it, whatever its query, key and value.
TRANSFORMS |= {
    "same, padded": _padded(TRANSFORMS["same"], Padding()),
    "transpose, padded": _padded(TRANSFORMS["transpose"], Padding(axis=1, must_be_zero=True)),
    "split, padded": _padded(TRANSFORMS["split"], Padding(blocks=3)),
    "split, transpose, padded": _padded(TRANSFORMS["split, transpose"], Padding(blocks=3)),
}
