"""UploadStore: images that were sent before the question about them."""

import secrets
import shutil
import tempfile
import threading
import time
import weakref
from collections import OrderedDict
from pathlib import Path

from dl_techniques.serving.failures import RefusedError
from dl_techniques.serving.requests import FullError


class UploadStore:
    """Files under random names in a folder that nobody else can read.

    Args:
        max_bytes: Of all files together.
        seconds: How long a file is kept.

    Attributes:
        folder: Where the files are.
    """

    def __init__(self, max_bytes: int, seconds: float):
        self._max_bytes, self._seconds = max_bytes, seconds
        self.folder = Path(tempfile.mkdtemp(prefix="dl_techniques_uploads_"))
        # Also of a server that is never closed, nothing stays when its process ends.
        self._delete = weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)
        # Name -> (size, when it is dropped), the oldest first.
        self._files: OrderedDict[str, tuple[int, float]] = OrderedDict()
        self._lock = threading.Lock()

    def put(self, data: bytes) -> str:
        """Keep a file; return its name, which cannot be guessed.

        Raises:
            FullError: if there is no room; files make room when their time is over.
        """
        with self._lock:
            self._drop_old()
            if sum(size for size, _ in self._files.values()) + len(data) > self._max_bytes:
                wait = self._seconds
                if self._files:
                    wait = next(iter(self._files.values()))[1] - time.monotonic()
                raise FullError("There is no room for more uploads.", max(1, round(wait)))
            name = secrets.token_urlsafe(24)
            try:
                (self.folder / name).write_bytes(data)
            except OSError:  # A part of it would take room that nobody counts.
                (self.folder / name).unlink(missing_ok=True)
                raise
            self._files[name] = len(data), time.monotonic() + self._seconds
        return name

    def get(self, name: str) -> bytes:
        """Return a file.

        Raises:
            RefusedError: if it is not there, or no longer.
        """
        with self._lock:
            self._drop_old()
            if name not in self._files:
                raise RefusedError(
                    404, "There is no image of this image_id: upload it again.", "image_not_found"
                )
            return (self.folder / name).read_bytes()

    def close(self) -> None:
        """Delete everything."""
        with self._lock:
            self._files.clear()
            self._delete()

    def _drop_old(self):
        now = time.monotonic()
        for name in [name for name, (_, end) in self._files.items() if end <= now]:
            del self._files[name]
            (self.folder / name).unlink(missing_ok=True)
