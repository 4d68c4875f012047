"""Adaptive resolution: the size at which an image is encoded without being stretched."""

from typing import Any

from dl_techniques.preprocessing.images import image_size_of, positive_int


def get_adaptive_resolution(
    image: Any, max_size: int = 1024, patch_size: int = 14
) -> tuple[int, int]:
    """Returns the size in whole patches that an image should be resized to.

    The longest edge is brought down to `max_size` where it is longer; then both edges are rounded
    down to multiples of the patch, but to no less than one patch. Smaller images are not enlarged
    (beyond that one patch).

    Args:
        image: any source that `images.load_image` takes; of files only the header is read.
        max_size: the longest edge in pixels, at least `patch_size`.
        patch_size: side of a patch in pixels.

    Returns:
        (height, width) in pixels.

    Raises:
        ValueError: `max_size` holds no patch, a number is not a positive integer, or the image is
            missing, broken or of an unknown kind.
    """
    max_size = positive_int("max_size", max_size)
    patch_size = positive_int("patch_size", patch_size)
    if max_size < patch_size:
        raise ValueError(
            f"max_size={max_size} is smaller than one patch of {patch_size}: raise max_size."
        )
    width, height = image_size_of(image)
    longest = max(width, height)
    # Whole numbers: 1024 / 3000 * 3000 as floats can fall short of 1024.
    scaled = (
        edge * max_size // longest if longest > max_size else edge for edge in (height, width)
    )
    height, width = (max(edge // patch_size, 1) * patch_size for edge in scaled)
    return height, width
