"""Attention heads that a file holds although the model has no use for them.

NVLM-D's files pad InternViT-6B's 25 heads to 32, which eight devices can share.
"""

import collections
import dataclasses

import numpy as np

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Padding:
    """Where dummy heads lie in a tensor: behind the real ones.

    Attributes:
        axis: The axis of the heads' channels.
        blocks: How many tensors, each padded on its own, lie one after the other along it.
        must_be_zero: Whether the dummy heads do nothing only if they are zero in this tensor.
    """

    axis: int = 0
    blocks: int = 1
    must_be_zero: bool = False

    def dummy_channels(self, shape: Shape, expected: Shape) -> int:
        """Return the channels of dummy heads in a tensor of this shape."""
        return (shape[self.axis] - expected[self.axis]) // self.blocks

    def fits(self, shape: Shape, expected: Shape) -> bool:
        """Return whether a shape is the expected one but for more heads."""
        if len(shape) != len(expected) or shape[self.axis] % self.blocks:
            return False
        resized = list(shape)
        resized[self.axis] = expected[self.axis]
        return tuple(resized) == expected and self.dummy_channels(shape, expected) > 0

    def cut(self, array: np.ndarray, expected: Shape) -> np.ndarray:
        """Return a tensor without its dummy heads, if it has any."""
        if array.shape == expected:
            return array
        return np.concatenate([real for real, _ in self._parts(array, expected)], self.axis)

    def is_dummy(self, array: np.ndarray, expected: Shape) -> bool:
        """Return whether what `cut` leaves out has no effect."""
        if not self.must_be_zero or array.shape == expected:
            return True
        return not any(np.any(dummy) for _, dummy in self._parts(array, expected))

    def _parts(self, array, expected):
        kept = expected[self.axis] // self.blocks
        blocks = np.split(array, self.blocks, self.axis)
        return [np.split(block, [kept], self.axis) for block in blocks]


def uneven_heads(dummy_channels: dict[str, int]) -> list[str]:
    """Return a problem for each tensor that has more or fewer dummy heads than most.

    Args:
        dummy_channels: Their channels, by key.
    """
    if len(set(dummy_channels.values())) < 2:
        return []
    usual = collections.Counter(dummy_channels.values()).most_common(1)[0][0]
    return [
        f"{key}: {count} channels of dummy heads, but {usual} in most other tensors"
        for key, count in dummy_channels.items()
        if count != usual
    ]
