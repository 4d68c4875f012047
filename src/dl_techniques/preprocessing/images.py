"""Images: one decode function for every kind of source, and one resize-and-normalise step."""

import io
import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

MAX_PIXELS = 64_000_000
RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
# What Pillow's decoders raise on broken files.
_DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error)


class ImageError(ValueError):
    """An image that cannot be used.

    Attributes:
        reason: "missing image", "unreadable image", "truncated image", "huge image" or
            "unsupported image"; what a report of bad samples counts by.
    """

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason


def describe_source(source: Any) -> str:
    """Returns a short name of an image source for error messages."""
    if isinstance(source, (str, os.PathLike)):
        return f"'{os.fspath(source)}'"
    if isinstance(source, (bytes, bytearray, memoryview)):
        return f"<{len(source)} bytes>"
    if isinstance(source, np.ndarray):
        return f"<array {source.dtype}{list(source.shape)}>"
    if isinstance(source, Image.Image):
        name = getattr(source, "filename", "")
        return f"'{name}'" if name else f"<PIL image {source.mode} {source.size}>"
    return repr(source)


def load_image(source: Any, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decodes any image source to an upright RGB image.

    EXIF orientation is applied; transparency is laid over white; 16-bit grey is scaled by 1/257;
    CMYK, palette and grey are converted. An RGB image that is already in memory is returned as it
    is, so do not draw on the result.

    Args:
        source: path (str or path-like), encoded bytes, PIL image, array (uint8 [H, W],
            [H, W, 1], [H, W, 3] or [H, W, 4]; uint16 [H, W]; floats in [0, 1] of the same
            shapes), or an object whose `read()` gives encoded bytes.
        max_pixels: pictures with more pixels are refused after reading their header only.
            Pillow's own limit (`PIL.Image.MAX_IMAGE_PIXELS`) holds beside it.

    Returns:
        A PIL image of mode "RGB".

    Raises:
        ImageError: (a ValueError) the source is missing, broken, truncated, too large or of an
            unknown kind; the message names the source.
    """
    name = describe_source(source)
    image = open_image(source, max_pixels)
    try:
        image.load()
        return _to_rgb(_upright(image), name)
    except ImageError:
        raise
    except _DECODE_ERRORS as error:
        raise ImageError(
            "truncated image", f"Image {name} cannot be decoded: truncated or corrupt ({error})."
        ) from error


def open_image(source: Any, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Opens an image source and checks its size without decoding it.

    Args:
        source: see `load_image`.
        max_pixels: the largest accepted width * height.

    Returns:
        A PIL image, whose pixels may not have been read yet, of any mode.

    Raises:
        ImageError: see `load_image`.
    """
    name = describe_source(source)
    if isinstance(source, Image.Image):
        image = source
    elif isinstance(source, np.ndarray):
        image = _from_array(source, name)
    else:
        image = _open_encoded(_read_bytes(source, name), name)
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError(
            "huge image",
            f"Image {name} has {width} x {height} pixels, more than max_pixels={max_pixels}: "
            "a decompression bomb? Scale it down, or raise max_pixels if you trust the file.",
        )
    return image


def _read_bytes(source: Any, name: str) -> bytes:
    if isinstance(source, (bytes, bytearray, memoryview)):
        return bytes(source)
    if isinstance(source, (str, os.PathLike)):
        try:
            return Path(source).read_bytes()
        except FileNotFoundError as error:
            raise ImageError("missing image", f"Image file {name} does not exist.") from error
        except (OSError, ValueError) as error:
            message = f"Image file {name} cannot be read: {error}."
            raise ImageError("unreadable image", message) from error
    if hasattr(source, "read"):
        if hasattr(source, "seek"):
            source.seek(0)  # An open file may have been read before.
        try:
            return source.read()
        except (FileNotFoundError, KeyError) as error:
            raise ImageError("missing image", f"Image {name} does not exist: {error}.") from error
    raise ImageError(
        "unsupported image",
        f"{name} ({type(source).__name__}) is no image source; give a path, bytes, a PIL image, "
        "an array or an object with read().",
    )


def _open_encoded(data: bytes, name: str) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError("huge image", f"Image {name} is refused: {error}") from error
    except _DECODE_ERRORS as error:
        raise ImageError(
            "unreadable image", f"Image {name} is not in an image format that Pillow reads."
        ) from error


def _from_array(array: np.ndarray, name: str) -> Image.Image:
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


def _sixteen_to_eight(array: np.ndarray) -> np.ndarray:
    return ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _upright(image: Image.Image) -> Image.Image:
    orientation = 0x0112
    if image.getexif().get(orientation, 1) == 1:
        return image
    return ImageOps.exif_transpose(image)


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    if image.mode.startswith("I"):
        return _grey16_to_rgb(image, name)
    if image.mode == "F":
        return _from_array(np.asarray(image), name).convert("RGB")
    if image.has_transparency_data:
        # Converting alone would show whatever colour lies under the transparent pixels.
        foreground = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, foreground).convert("RGB")
    return image.convert("RGB")


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


class ImageProcessor:
    """Turns image sources into model inputs: decode, stretch, normalise.

    `resize` and `normalize` are separate so that a data set can keep uint8 pixels and normalise a
    whole batch at once. The stretch ignores the aspect ratio and is Pillow's antialiased resize.

    Args:
        image_size: side of the square in pixels, or (height, width).
        mean: mean of pixels in [0, 1]: one number, or one for each of R, G, B.
        std: their scale; the defaults 0.5, 0.5 give values in [-1, 1].
        resample: one of "nearest", "box", "bilinear", "bicubic", "lanczos".
        max_pixels: larger pictures are refused before they are decoded.

    Raises:
        ValueError: a size, a scale or a filter name is not usable.
    """

    def __init__(
        self,
        image_size: int | Sequence[int] = 224,
        mean: float | Sequence[float] = 0.5,
        std: float | Sequence[float] = 0.5,
        resample: str = "bicubic",
        max_pixels: int = MAX_PIXELS,
    ):
        size = (image_size, image_size) if np.isscalar(image_size) else tuple(image_size)
        if len(size) != 2 or any(int(n) != n or n < 1 for n in size):
            raise ValueError(
                f"image_size must be a positive int or (height, width), got {image_size!r}."
            )
        if resample not in RESAMPLING:
            raise ValueError(f"resample must be one of {sorted(RESAMPLING)}, got {resample!r}.")
        self.height, self.width = int(size[0]), int(size[1])
        self.mean = _channel_values("mean", mean)
        self.std = _channel_values("std", std)
        if min(self.std) <= 0:
            raise ValueError(f"std must be positive, got {std!r}.")
        self.resample = resample
        self.max_pixels = int(max_pixels)

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.height, self.width

    def resize(self, source: Any) -> np.ndarray:
        """Decodes and stretches a source (see `load_image`) to uint8[H, W, 3]."""
        image = load_image(source, self.max_pixels)
        if image.size != (self.width, self.height):
            image = image.resize((self.width, self.height), RESAMPLING[self.resample])
        return np.array(image)

    def normalize(self, pixels: np.ndarray) -> np.ndarray:
        """Maps uint8[..., 3] to float32[..., 3]: `(pixels / 255 - mean) / std`.

        Raises:
            ValueError: `pixels` are not uint8 with three channels last.
        """
        if pixels.dtype != np.uint8 or pixels.shape[-1:] != (3,):
            raise ValueError(
                f"normalize expects uint8[..., 3], got {pixels.dtype}{list(pixels.shape)}."
            )
        mean, std = np.asarray(self.mean, np.float64), np.asarray(self.std, np.float64)
        scale, offset = (255.0 * std).astype(np.float32), (mean / std).astype(np.float32)
        if len(set(self.mean)) == len(set(self.std)) == 1:
            scale, offset = scale[0], offset[0]  # Scalars broadcast several times faster.
        result = np.divide(pixels, scale, dtype=np.float32)
        result -= offset
        return result

    def __call__(self, source: Any) -> np.ndarray:
        """Returns float32[H, W, 3] for any source that `load_image` reads."""
        return self.normalize(self.resize(source))

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments, JSON-ready."""
        return {
            "image_size": [self.height, self.width],
            "mean": list(self.mean),
            "std": list(self.std),
            "resample": self.resample,
            "max_pixels": self.max_pixels,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "ImageProcessor":
        """Builds a processor from `get_config()`'s result."""
        return cls(**config)


def _channel_values(name: str, value: float | Sequence[float]) -> tuple[float, ...]:
    values = (value,) * 3 if np.isscalar(value) else tuple(value)
    if len(values) != 3 or not all(np.isfinite(v) for v in values):
        raise ValueError(f"{name} must be one finite number or three, got {value!r}.")
    return tuple(float(v) for v in values)
