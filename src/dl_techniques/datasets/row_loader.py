"""Pixels of packed rows: decoded, resized and augmented, in any thread or process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dl_techniques.datasets.augmentation import Augmentation, without_flip
from dl_techniques.datasets.image_store import augmented_tiles, whole_tiles
from dl_techniques.datasets.packed_rows import Document, PackedRow
from dl_techniques.datasets.quarantine import BadSample
from dl_techniques.datasets.tile_cache import TileCache
from dl_techniques.preprocessing.image_modes import ImageError
from dl_techniques.preprocessing.images import ImageProcessor, image_size_of

if TYPE_CHECKING:
    from dl_techniques.datasets.vqa_dataset import VQADataProcessor


class RowLoader:
    """Prepares the images of packed rows; small, and can be pickled.

    Args:
        processor: Prepares images.
        augment: uint8[H, W, 3], Generator -> uint8[H, W, 3]; None: nothing is changed.
        seed: Of the augmentation, which depends on the document and the image's number too.
        cache: Keeps prepared images on disk; None: each is prepared whenever it comes.

    Raises:
        ValueError: images that are cut into tiles are augmented before, so they cannot be kept.
    """

    def __init__(
        self,
        processor: VQADataProcessor,
        augment: Augmentation | None,
        seed: int,
        cache: TileCache | None = None,
    ):
        self._images = processor.image_processor
        if cache is not None and augment is not None and self._images.max_tiles > 1:
            raise ValueError(
                "Pictures are augmented before they are cut into tiles, so tiles cannot be kept: "
                "leave out the cache or the augmentation."
            )
        self._augment = augment
        self._seed = seed
        self._prepare = whole_tiles if cache is None else cache

    def count_tiles(self, source: Any) -> int:
        """Return into how many tiles an image is cut, from its header if that is needed."""
        if isinstance(self._images, ImageProcessor):
            return 1
        return self._images.grid(*image_size_of(source, self._images.max_pixels)).count

    def __call__(self, row: PackedRow) -> tuple[np.ndarray, dict[int, BadSample]]:
        """Return a row's tiles uint8[n, H, W, 3], and what is wrong with a document by its number.

        The tiles of documents with a fault are left out.
        """
        tiles, faults = [np.zeros((0, *self._images.image_size, 3), np.uint8)], {}
        for number, document in enumerate(row.documents):
            try:
                tiles += [self._tiles(document, k) for k in range(len(document.images))]
            except ImageError as error:
                source, index = document.key[:2]
                faults[number] = BadSample(
                    document.sample_id, error.reason, str(error), source, index
                )
        return np.concatenate(tiles), faults

    def _tiles(self, document: Document, number: int) -> np.ndarray:
        source, augment = document.images[number], self._augment
        if augment is None:
            return self._prepare(self._images, source)
        if not document.may_flip:
            augment = without_flip(augment)
        name = repr((document.key, number)).encode()
        rng = np.random.default_rng([self._seed, *name])
        return augmented_tiles(self._images, source, augment, rng, self._prepare)
