"""Comparing shapes of which TensorFlow may know a part only."""


def sizes_differ(shape, expected) -> bool:
    """Return whether a shape cannot be the expected one; an unknown size (None) may be any."""
    return len(shape) != len(expected) or any(
        a != b for a, b in zip(shape, expected, strict=True) if a is not None and b is not None
    )
