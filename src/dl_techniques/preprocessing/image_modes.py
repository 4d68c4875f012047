"""Pixel formats: arrays and images of every mode become 8-bit RGB."""

import numpy as np
from PIL import Image

TRANSPARENCY = ("white", "drop")


class ImageError(ValueError):
    """An image that cannot be used.

    Attributes:
        reason: "missing image", "unreadable image", "truncated image", "huge image" or
            "unsupported image"; what a report of bad samples counts by.
    """

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason


def check_transparency(transparency: str) -> str:
    """Returns `transparency` if it is a known way to treat transparent pixels.

    Raises:
        ValueError: it is not.
    """
    if transparency not in TRANSPARENCY:
        raise ValueError(f"transparency must be one of {TRANSPARENCY}, got {transparency!r}.")
    return transparency


def image_from_array(array: np.ndarray, name: str) -> Image.Image:
    """Returns an image of an array; `name` stands for it in error messages.

    Raises:
        ImageError: the shape, the dtype or the range of values is not that of an image.
    """
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[-1] not in (3, 4)):
        raise ImageError(
            "unsupported image",
            f"Image {name} must have shape [H, W], [H, W, 1], [H, W, 3] or [H, W, 4] "
            "(channels last, one image).",
        )
    if np.issubdtype(array.dtype, np.floating):
        low, high = (float(array.min()), float(array.max())) if array.size else (0.0, 0.0)
        if not (low >= 0.0 and high <= 1.0):  # Also catches NaN.
            raise ImageError(
                "unsupported image",
                f"Image {name} holds floats from {low:g} to {high:g}; expected [0, 1]. "
                "Give uint8 for 0 to 255.",
            )
        array = np.round(array * 255.0).astype(np.uint8)
    elif array.dtype == np.uint16 and array.ndim == 2:
        array = _sixteen_to_eight(array)
    elif array.dtype != np.uint8:
        raise ImageError(
            "unsupported image", f"Image {name} must be uint8, uint16 [H, W] or float in [0, 1]."
        )
    if array.size == 0:
        raise ImageError("unsupported image", f"Image {name} has no pixels.")
    return Image.fromarray(np.ascontiguousarray(array))


def to_rgb(image: Image.Image, name: str, transparency: str) -> Image.Image:
    """Returns an image of mode "RGB"; `name` stands for it in error messages.

    Args:
        image: of any mode.
        name: for error messages.
        transparency: "white" lays transparent pixels over white; "drop" forgets the transparency
            and shows whatever colour lies under it, as Pillow's `convert("RGB")` does.

    Raises:
        ImageError: integers or floats out of range.
    """
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    if image.mode.startswith("I"):
        return _grey16_to_rgb(image, name)
    if image.mode == "F":
        return image_from_array(np.asarray(image), name).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if transparency == "white":
            white = Image.new("RGBA", image.size, (255, 255, 255, 255))
            image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _sixteen_to_eight(array: np.ndarray) -> np.ndarray:
    return ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _grey16_to_rgb(image: Image.Image, name: str) -> Image.Image:
    # Pillow's convert("RGB") clips 16-bit grey at 255: nearly everything would turn white.
    array = np.asarray(image)
    low, high = int(array.min()), int(array.max())
    if low < 0 or high > 65535:
        raise ImageError(
            "unsupported image",
            f"Image {name} holds integers from {low} to {high}; expected 16-bit grey (0 to 65535).",
        )
    return Image.fromarray(_sixteen_to_eight(array)).convert("RGB")
