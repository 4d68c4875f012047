"""Image sources inside archives, and what makes two image sources the same."""

import functools
import hashlib
import os
import threading
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

_lock = threading.Lock()


@dataclass(frozen=True)
class ZipMember:
    """A file inside a zip archive that is read when it is needed.

    Small and picklable; threads and forked processes may read at the same time.

    Args:
        archive: path of the zip file.
        name: the member's name inside it.
    """

    archive: str
    name: str

    def read(self) -> bytes:
        """Returns the member's bytes.

        Raises:
            KeyError: the archive has no such member.
        """
        changed = os.stat(self.archive).st_mtime_ns
        with _lock:
            archive = _open_archive(self.archive, changed, os.getpid())
        return archive.read(self.name)

    def __str__(self) -> str:
        return f"{self.archive}:{self.name}"


@functools.lru_cache(maxsize=16)
def _open_archive(path: str, changed: int, process: int) -> zipfile.ZipFile:
    # Forked processes share the file position, so each opens the archive anew.
    del changed, process
    return zipfile.ZipFile(path)


def source_key(source: Any) -> tuple:
    """Returns a hashable identity of an image source, without reading files.

    Paths and archive members are the same image when their names are; bytes, arrays and PIL
    images when their contents are.
    """
    if isinstance(source, (str, os.PathLike)):
        return ("path", os.path.abspath(source))
    if isinstance(source, ZipMember):
        return ("zip", os.path.abspath(source.archive), source.name)
    if isinstance(source, (bytes, bytearray, memoryview, np.ndarray, Image.Image)):
        return ("content", content_hash(source))
    return ("object", repr(source))


def content_hash(source: Any) -> str:
    """Returns a digest of what an image source holds: encoded bytes, or pixels in memory.

    The same picture encoded twice differs. An image that cannot be read is identified by its
    name: whoever decodes it later reports it.
    """
    digest = hashlib.blake2b(digest_size=16)
    if isinstance(source, np.ndarray):
        digest.update(f"{source.dtype}{source.shape}".encode())
        digest.update(np.ascontiguousarray(source).tobytes())
    elif isinstance(source, Image.Image):
        digest.update(f"{source.mode}{source.size}".encode())
        digest.update(source.tobytes())
    else:
        digest.update(_encoded_bytes(source))
    return digest.hexdigest()


def _encoded_bytes(source: Any) -> bytes:
    if isinstance(source, (bytes, bytearray, memoryview)):
        return bytes(source)
    try:
        if isinstance(source, (str, os.PathLike)):
            return Path(source).read_bytes()
        if hasattr(source, "seek"):
            source.seek(0)
        return source.read()
    except (OSError, KeyError):
        return f"unreadable: {source}".encode()
