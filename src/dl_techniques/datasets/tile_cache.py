"""Prepared images kept on disk, so that later epochs and runs decode and resize nothing."""

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from dl_techniques.datasets.image_files import content_hash
from dl_techniques.datasets.image_store import whole_tiles
from dl_techniques.preprocessing.images import BaseImageProcessor
from dl_techniques.utils.logger import logger


class TileCache:
    """Tiles of images in a folder, one file each; threads, processes and runs may share it.

    A file's name is a digest of what the image holds and of the processor's settings: a changed
    picture or another size is prepared anew, a picture under two names once. Files are written
    whole or not at all. Nothing is ever removed: delete the folder to free its space, which is
    H * W * 3 bytes for each tile.

    Args:
        folder: is made if need be.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)

    def __call__(self, processor: BaseImageProcessor, source: Any) -> np.ndarray:
        """Returns uint8[n, H, W, 3], the tiles of an image; see `image_store.whole_tiles`.

        Raises:
            ImageError: the image cannot be decoded; that is not kept.
            OSError: the tiles cannot be written.
        """
        path = self.path(processor, source)
        try:
            return np.load(path, allow_pickle=False)
        except FileNotFoundError:
            pass
        except (ValueError, EOFError) as error:
            logger.warning("%s is damaged (%s) and is written anew.", path, error)
        tiles = whole_tiles(processor, source)
        self._write(path, tiles)
        return tiles

    def path(self, processor: BaseImageProcessor, source: Any) -> Path:
        """Returns where an image's tiles are kept."""
        settings = json.dumps(processor.get_config(), sort_keys=True)
        name = hashlib.blake2b(
            f"{settings}{content_hash(source)}".encode(), digest_size=16
        ).hexdigest()
        return self.folder / name[:2] / f"{name[2:]}.npy"

    def _write(self, path: Path, tiles: np.ndarray):
        partial = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
                partial = file.name
                np.save(file, tiles)
            os.replace(partial, path)
        except OSError as error:
            if partial is not None:
                Path(partial).unlink(missing_ok=True)
            raise OSError(
                f"Prepared images cannot be kept in {self.folder}: {error}. Free space there, or "
                "leave the cache out."
            ) from error
