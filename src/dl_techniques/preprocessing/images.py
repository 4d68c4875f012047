"""Images: one decode function for every kind of source, and the processor that stretches.

Processors that cut images into tiles are in `image_processors`.
"""

import io
import math
import numbers
import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from dl_techniques.preprocessing.image_modes import (
    ImageError,
    check_transparency,
    image_from_array,
    to_rgb,
)
from dl_techniques.preprocessing.tiling import Grid, Layout, Tiles

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


def load_image(
    source: Any, max_pixels: int = MAX_PIXELS, transparency: str = "white"
) -> Image.Image:
    """Decodes any image source to an upright RGB image.

    EXIF orientation is applied; transparency is laid over white; 16-bit grey is scaled by 1/257
    (most other programs clip it at 255, which turns nearly everything white); CMYK, palette and
    grey are converted. An RGB image that is already in memory is returned as it is, so do not draw
    on the result.

    Args:
        source: path (str or path-like), encoded bytes, PIL image, array (uint8 [H, W],
            [H, W, 1], [H, W, 3] or [H, W, 4]; uint16 [H, W]; floats in [0, 1] of the same
            shapes), or an object whose `read()` gives encoded bytes.
        max_pixels: pictures with more pixels are refused after reading their header only.
            Pillow's own limit (`PIL.Image.MAX_IMAGE_PIXELS`) holds beside it.
        transparency: "white", or "drop" to show whatever colour lies under transparent pixels.

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
        return to_rgb(_upright(image), name, check_transparency(transparency))
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
        image = image_from_array(source, name)
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
        try:
            return read_stream(source, name)
        except (FileNotFoundError, KeyError) as error:
            raise ImageError("missing image", f"Image {name} does not exist: {error}.") from error
    raise ImageError(
        "unsupported image",
        f"{name} ({type(source).__name__}) is no image source; give a path, bytes, a PIL image, "
        "an array or an object with read().",
    )


def read_stream(source: Any, name: str) -> bytes:
    """Reads an object with `read()` from its beginning: an open file may have been read before.

    Raises:
        ImageError: nothing comes, as of a stream that was read before and cannot go back.
    """
    if hasattr(source, "seek") and getattr(source, "seekable", lambda: True)():
        source.seek(0)
    data = source.read()
    if not data:
        raise ImageError(
            "unreadable image",
            f"Image {name} gives no bytes. If it can be read only once, give what read() returned.",
        )
    return data


def _open_encoded(data: bytes, name: str) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError("huge image", f"Image {name} is refused: {error}") from error
    except _DECODE_ERRORS as error:
        raise ImageError(
            "unreadable image", f"Image {name} is not in an image format that Pillow reads."
        ) from error


def image_size_of(source: Any, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Reads the size of the image that `load_image` returns from the header, without decoding.

    Only a PNG file with EXIF or XMP data behind its header is decoded.

    Args:
        source: see `load_image`.
        max_pixels: see `load_image`.

    Returns:
        (width, height) in pixels, EXIF orientation applied.

    Raises:
        ImageError: see `load_image`; broken pixels are not noticed.
    """
    image = open_image(source, max_pixels)
    width, height = image.size
    try:
        turned = _may_be_turned(image) and _orientation(image) in (5, 6, 7, 8)
    except _DECODE_ERRORS as error:
        message = f"Image {describe_source(source)} cannot be decoded: truncated or corrupt."
        raise ImageError("truncated image", message) from error
    return (height, width) if turned else (width, height)


def _may_be_turned(image: Image.Image) -> bool:
    if image.format == "TIFF":
        return False  # Pillow turns these itself and tells their upright size from the start.
    file = getattr(image, "fp", None)
    if image.format == "PNG" and isinstance(file, io.BytesIO):
        # Pillow decodes all of a PNG to look for an orientation behind the pixels.
        data = file.getvalue()
        return any(mark in data for mark in (b"eXIf", b"exif", b"xmp"))
    return True


def _orientation(image: Image.Image) -> int:
    return image.getexif().get(0x0112, 1)


def _upright(image: Image.Image) -> Image.Image:
    return image if _orientation(image) == 1 else ImageOps.exif_transpose(image)


class BaseImageProcessor:
    """What all image processors share: sizes, statistics, and tiles with their layout.

    A subclass says which tiles an image of some size gets (`grid`), how their pixels are made and
    what text stands around them; so tiles and layout cannot disagree.

    Args:
        image_size: side of a tile in pixels, or (height, width).
        mean: mean of pixels in [0, 1]: one number, or one for each of R, G, B.
        std: their scale; 0.5 and 0.5 give values in [-1, 1].
        resample: one of "nearest", "box", "bilinear", "bicubic", "lanczos".
        transparency: "white" lays transparent pixels over white; "drop" shows whatever colour
            lies under them. Which one equals a public processor is told by each class.
        max_pixels: larger pictures are refused before they are decoded.

    Raises:
        ValueError: a size, a scale or a name is not usable.
    """

    kind: str

    def __init__(
        self,
        image_size: int | Sequence[int],
        mean: float | Sequence[float],
        std: float | Sequence[float],
        resample: str,
        transparency: str,
        max_pixels: int,
    ):
        self.height, self.width = _pair("image_size", image_size)
        self.mean = _channel_values("mean", mean)
        self.std = _channel_values("std", std)
        if min(self.std) <= 0:
            raise ValueError(f"std must be positive, got {std!r}.")
        if resample not in RESAMPLING:
            raise ValueError(f"resample must be one of {sorted(RESAMPLING)}, got {resample!r}.")
        self.resample = resample
        self.transparency = check_transparency(transparency)
        self.max_pixels = positive_int("max_pixels", max_pixels)

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of a tile in pixels."""
        return self.height, self.width

    @property
    def max_tiles(self) -> int:
        """The most tiles that any image gets."""
        return 1

    def grid(self, width: int, height: int) -> Grid:
        """Plans the tiles of an upright image of this size in pixels.

        Raises:
            ValueError: a side is not a positive int.
        """
        positive_int("width", width)
        positive_int("height", height)
        return self._grid(width, height)

    def layout(self, width: int, height: int, number: int = 0, count: int = 1) -> Layout:
        """Returns the layout that `tiles` gives an image of this size, without its pixels.

        Args:
            width: of the upright image in pixels; see `images.image_size_of`.
            height: of the upright image in pixels.
            number: of the image in its conversation, from 0; some layouts write it.
            count: of the images in the conversation.

        Raises:
            ValueError: a size is not positive, or `number` is not below `count`.
        """
        return self._checked_layout(self.grid(width, height), number, count)

    def tiles(self, source: Any, number: int = 0, count: int = 1) -> Tiles:
        """Decodes an image (see `load_image`) and cuts it into tiles.

        Args:
            source: see `load_image`.
            number: see `layout`.
            count: see `layout`.

        Returns:
            `pixels` uint8[n, H, W, 3] (float32 in [0, 255] where the class says so) with n at most
            `max_tiles`, possibly read-only, and their `layout`.

        Raises:
            ImageError: see `load_image`.
            ValueError: see `layout`.
        """
        image = load_image(source, self.max_pixels, self.transparency)
        grid = self.grid(*image.size)
        return Tiles(self._pixels(image, grid), self._checked_layout(grid, number, count))

    def normalize(self, pixels: np.ndarray) -> np.ndarray:
        """Maps pixels [..., 3] to float32[..., 3]: `(pixels / 255 - mean) / std`.

        Args:
            pixels: uint8, or float32 in [0, 255].

        Raises:
            ValueError: another dtype, no three channels last, or floats out of range.
        """
        if pixels.dtype not in (np.uint8, np.float32) or pixels.shape[-1:] != (3,):
            raise ValueError(
                "normalize expects uint8[..., 3] or float32[..., 3] in [0, 255], got "
                f"{pixels.dtype}{list(pixels.shape)}."
            )
        if pixels.dtype == np.float32 and pixels.size:
            low, high = float(pixels.min()), float(pixels.max())
            if not (low >= 0.0 and high <= 255.0):  # Also catches NaN.
                raise ValueError(
                    f"normalize expects float32 in [0, 255], got values from {low:g} to {high:g}."
                )
        mean, std = np.asarray(self.mean, np.float64), np.asarray(self.std, np.float64)
        scale, offset = (255.0 * std).astype(np.float32), (mean / std).astype(np.float32)
        if len(set(self.mean)) == len(set(self.std)) == 1:
            scale, offset = scale[0], offset[0]  # Scalars broadcast several times faster.
        result = np.divide(pixels, scale, dtype=np.float32)
        result -= offset
        return result

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments and the `kind` of processor, JSON-ready."""
        return {
            "kind": self.kind,
            "image_size": [self.height, self.width],
            "mean": list(self.mean),
            "std": list(self.std),
            "resample": self.resample,
            "transparency": self.transparency,
            "max_pixels": self.max_pixels,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "BaseImageProcessor":
        """Builds a processor from `get_config()`'s result.

        Raises:
            ValueError: the config is that of another kind of processor.
        """
        arguments = dict(config)
        kind = arguments.pop("kind", ImageProcessor.kind)  # Old files have no kind.
        if kind != cls.kind:
            raise ValueError(
                f"This is the config of a processor of kind {kind!r}, not {cls.kind!r}; "
                "image_processor_from_config builds the right one."
            )
        return cls(**arguments)

    def _grid(self, width: int, height: int) -> Grid:
        return Grid()

    def _pixels(self, image: Image.Image, grid: Grid) -> np.ndarray:
        raise NotImplementedError

    def _layout(self, grid: Grid, number: int, count: int) -> Layout:
        return tuple(range(grid.count))

    def _checked_layout(self, grid: Grid, number: int, count: int) -> Layout:
        if not 0 <= number < count:
            raise ValueError(f"Expected 0 <= number < count, got number={number}, count={count}.")
        return self._layout(grid, number, count)

    def _resized(self, image: Image.Image, width: int, height: int) -> Image.Image:
        if image.size == (width, height):
            return image
        return image.resize((width, height), RESAMPLING[self.resample])


class ImageProcessor(BaseImageProcessor):
    """Turns image sources into model inputs: decode, stretch, normalise.

    `resize` and `normalize` are separate so that a data set can keep uint8 pixels and normalise a
    whole batch at once. The stretch ignores the aspect ratio and is Pillow's antialiased resize.

    These settings give the pixels of public models: SigLIP, the defaults; SigLIP 2 of fixed
    resolution, `resample="bilinear"`; the first nanoVLM, `mean=0, std=1, resample="bilinear",
    transparency="drop"`. transformers lays transparent PIL images over white, but drops the
    transparency of images that it loads itself from a path.

    Args:
        image_size: side of the square in pixels, or (height, width).
        mean: see `BaseImageProcessor`.
        std: see `BaseImageProcessor`.
        resample: see `BaseImageProcessor`.
        max_pixels: see `BaseImageProcessor`.
        transparency: see `BaseImageProcessor`.

    Raises:
        ValueError: a size, a scale or a name is not usable.
    """

    kind = "stretch"

    def __init__(
        self,
        image_size: int | Sequence[int] = 224,
        mean: float | Sequence[float] = 0.5,
        std: float | Sequence[float] = 0.5,
        resample: str = "bicubic",
        max_pixels: int = MAX_PIXELS,
        transparency: str = "white",
    ):
        super().__init__(image_size, mean, std, resample, transparency, max_pixels)

    def resize(self, source: Any) -> np.ndarray:
        """Returns the only tile of a source (see `load_image`): uint8[H, W, 3]."""
        return np.array(self._fitted(load_image(source, self.max_pixels, self.transparency)))

    def __call__(self, source: Any) -> np.ndarray:
        """Returns float32[H, W, 3] for any source that `load_image` reads."""
        return self.normalize(self.resize(source))

    def _fitted(self, image: Image.Image) -> np.ndarray:
        return np.asarray(self._resized(image, self.width, self.height))

    def _pixels(self, image: Image.Image, grid: Grid) -> np.ndarray:
        return self._fitted(image)[None]


def positive_int(name: str, value: Any) -> int:
    """Returns `value`, a positive whole number, as an int.

    Raises:
        ValueError: it is none; the message begins with `name`.
    """
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value < 1 or int(value) != value:
        raise ValueError(f"{name} must be a positive int, got {value!r}.")
    return int(value)


def _pair(name: str, value: Any) -> tuple[int, int]:
    sizes = (value, value) if isinstance(value, numbers.Real) else value
    if not isinstance(sizes, Sequence) or isinstance(sizes, str) or len(sizes) != 2:
        raise ValueError(f"{name} must be a positive int or (height, width), got {value!r}.")
    return positive_int(name, sizes[0]), positive_int(name, sizes[1])


def _channel_values(name: str, value: Any) -> tuple[float, ...]:
    values = [value] * 3 if isinstance(value, numbers.Real) else value
    good = isinstance(values, (Sequence, np.ndarray)) and len(values) == 3
    if not good or not all(isinstance(v, numbers.Real) and abs(v) < 1e30 for v in values):
        raise ValueError(f"{name} must be one finite number or three, got {value!r}.")
    return tuple(float(v) for v in values)
