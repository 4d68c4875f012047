"""The images of a data set: each one once, checked, and kept as uint8 pixels or as its source."""

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from dl_techniques.datasets.image_files import source_key
from dl_techniques.preprocessing.images import (
    ImageError,
    ImageProcessor,
    describe_source,
    open_image,
)


class ImageStore:
    """Images by number; a source that is added twice is kept once.

    Args:
        processor: decodes and resizes.
        cache: `check` decodes everything and keeps pixels; otherwise it reads headers only, and
            `pixels` decodes each time.
    """

    def __init__(self, processor: ImageProcessor, cache: bool):
        self._processor = processor
        self._cache = cache
        self._images: list[Any] = []
        self._numbers: dict[tuple, int] = {}

    def add(self, source: Any) -> int:
        """Returns the number of an image source."""
        key = source_key(source)
        if key not in self._numbers:
            self._numbers[key] = len(self._images)
            self._images.append(source)
        return self._numbers[key]

    def check(self):
        """Looks at every image; `error` tells the result."""
        # Pillow decodes outside Python's lock.
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            self._images = list(pool.map(self._checked, self._images))

    def _checked(self, source: Any) -> Any:
        try:
            if self._cache:
                return self._processor.resize(source)
            open_image(source, self._processor.max_pixels)
            return source
        except ImageError as error:
            return error

    def error(self, number: int) -> ImageError | None:
        """Returns why an image cannot be used, or None; meaningful after `check`."""
        image = self._images[number]
        return image if isinstance(image, ImageError) else None

    def pixels(self, number: int, owner: str) -> np.ndarray:
        """Returns uint8[H, W, 3].

        Raises:
            ValueError: the image cannot be decoded; `owner` names the sample it belongs to.
        """
        image = self._images[number]
        if self._cache:
            return image
        try:
            return self._processor.resize(image)
        except ImageError as error:
            raise ValueError(
                f"Sample {owner}: image {describe_source(image)} passed the check of its header, "
                f"but: {error}"
            ) from error
