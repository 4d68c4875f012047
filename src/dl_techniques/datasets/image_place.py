"""Where the images are that rows name: a folder, or a folder inside a zip archive."""

import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dl_techniques.datasets.image_files import ZipMember
from dl_techniques.datasets.samples import Sample


@dataclass(frozen=True)
class ImagePlace:
    """Finds images by name.

    Args:
        folder: a folder on disk, or inside the archive ("" for its top).
        archive: a zip file; it is opened when the first image is read.
    """

    folder: str
    archive: str | None = None

    @classmethod
    def at(cls, path: str | Path) -> "ImagePlace":
        """Returns a place by its path; "images.zip/train" is a folder inside an archive.

        Raises:
            ValueError: there is no such folder or archive.
        """
        path = Path(path)
        if path.is_dir():
            return cls(str(path))
        for archive in (path, *path.parents):
            if archive.is_file():
                inside = path.relative_to(archive).as_posix()
                return cls("" if inside == "." else inside, str(archive))
        raise ValueError(f"Images '{path}' do not exist: expected a folder or a .zip file.")

    @classmethod
    def beside(cls, path: str | Path) -> "ImagePlace":
        """Returns where the images of a file of rows are.

        The first of `<stem>_images.zip`, `<stem>_images/`, `images.zip` and `images/` beside the
        file, else the file's folder.
        """
        return _place_beside(os.fspath(path))

    def find(self, image: Any) -> Any:
        """Returns the source of an image that a row names; other sources are returned as given."""
        if not isinstance(image, str):
            return image
        if self.archive is None:
            return os.path.join(self.folder, image)
        return ZipMember(self.archive, f"{self.folder}/{image}" if self.folder else image)

    def place(self, sample: Sample) -> Sample:
        """Returns a sample with its images found, also those inside its messages."""
        messages = [
            {**message, "content": [self._part(part) for part in message["content"]]}
            if isinstance(message.get("content"), (list, tuple))
            else message
            for message in sample["messages"]
        ]
        images = [self.find(image) for image in sample["images"]]
        return {**sample, "images": images, "messages": messages}

    def _part(self, part: Any) -> Any:
        if isinstance(part, Mapping) and part.get("type") == "image":
            return {**part, "image": self.find(part.get("image"))}
        return part


@functools.lru_cache(maxsize=64)
def _place_beside(path: str) -> ImagePlace:
    folder, stem = Path(path).parent, Path(path).stem
    for name in (f"{stem}_images.zip", f"{stem}_images", "images.zip", "images"):
        if (folder / name).exists():
            return ImagePlace.at(folder / name)
    return ImagePlace(str(folder))
