"""The images of a data set: each one once, checked, and kept as uint8 tiles or as its source."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from dl_techniques.datasets.augmentation import Augmentation
from dl_techniques.datasets.image_files import source_key
from dl_techniques.preprocessing.image_modes import ImageError
from dl_techniques.preprocessing.images import (
    BaseImageProcessor,
    describe_source,
    image_size_of,
    load_image,
)


def augmented_tiles(
    processor: BaseImageProcessor,
    source: Any,
    augment: Augmentation,
    rng: np.random.Generator,
    prepare: Callable[[BaseImageProcessor, Any], np.ndarray] | None = None,
) -> np.ndarray:
    """Returns uint8[n, H, W, 3], the tiles of an augmented image.

    A picture that may be cut is augmented whole, one that is only resized after that; `prepare`,
    by default `whole_tiles`, resizes it.

    Raises:
        ImageError: it cannot be decoded.
        ValueError: `augment` changes the shape or the dtype.
    """
    if processor.max_tiles == 1:
        return augmented((prepare or whole_tiles)(processor, source)[0], augment, rng)[None]
    image = load_image(source, processor.max_pixels, processor.transparency)
    return whole_tiles(processor, augmented(np.asarray(image), augment, rng))


def whole_tiles(processor: BaseImageProcessor, source: Any) -> np.ndarray:
    """Returns uint8[n, H, W, 3], the tiles of an image in whole grey levels."""
    pixels = processor.tiles(source).pixels
    return pixels if pixels.dtype == np.uint8 else np.rint(pixels).astype(np.uint8)


def augmented(pixels: np.ndarray, augment: Augmentation, rng: np.random.Generator) -> np.ndarray:
    """Returns augment(pixels, rng).

    Raises:
        ValueError: it changes the shape or the dtype.
    """
    result = augment(pixels, rng)
    if result.shape != pixels.shape or result.dtype != np.uint8:
        raise ValueError(
            f"augment must return uint8{list(pixels.shape)} like its input, got "
            f"{result.dtype}{list(result.shape)}."
        )
    return result


class ImageStore:
    """Images by number; a source that is added twice is kept once.

    Tiles are kept in whole grey levels, also those that the processor gives as floats.

    Args:
        processor: decodes, resizes, cuts into tiles.
        cache: `check` decodes everything and keeps pixels; otherwise it reads headers only, and
            `pixels` decodes each time.
    """

    def __init__(self, processor: BaseImageProcessor, cache: bool):
        self._processor = processor
        self._cache = cache
        self._images: list[Any] = []
        self._counts: list[int] = []
        self._numbers: dict[tuple, int] = {}

    def add(self, source: Any) -> int:
        """Returns the number of an image source."""
        key = source_key(source)
        if key not in self._numbers:
            self._numbers[key] = len(self._images)
            self._images.append(source)
        return self._numbers[key]

    def check(self):
        """Looks at every image; `error` and `tiles` tell the result."""
        # Pillow decodes outside Python's lock.
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            checked = list(pool.map(self._checked, self._images))
        self._images = [image for image, _ in checked]
        self._counts = [count for _, count in checked]

    def _checked(self, source: Any) -> tuple[Any, int]:
        try:
            if self._cache:
                pixels = whole_tiles(self._processor, source)
                return pixels, len(pixels)
            size = image_size_of(source, self._processor.max_pixels)
            return source, self._processor.grid(*size).count
        except ImageError as error:
            return error, 0

    def error(self, number: int) -> ImageError | None:
        """Returns why an image cannot be used, or None; meaningful after `check`."""
        image = self._images[number]
        return image if isinstance(image, ImageError) else None

    def tiles(self, number: int) -> int:
        """Returns into how many tiles an image is cut; meaningful after `check`."""
        return self._counts[number]

    def pixels(
        self,
        number: int,
        owner: str,
        augment: Augmentation | None = None,
        rng: np.random.Generator | None = None,
    ) -> np.ndarray:
        """Returns uint8[n, H, W, 3], the tiles of an image, augmented if that is asked for.

        Raises:
            ValueError: the image cannot be decoded; `owner` names the sample it belongs to.
        """
        image = self._images[number]
        if self._cache:
            return image if augment is None else augmented(image[0], augment, rng)[None]
        try:
            if augment is None:
                return whole_tiles(self._processor, image)
            return augmented_tiles(self._processor, image, augment, rng)
        except ImageError as error:
            raise ValueError(
                f"Sample {owner}: image {describe_source(image)} passed the check of its header, "
                f"but: {error}"
            ) from error
