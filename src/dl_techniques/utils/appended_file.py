"""A file that a run appends lines to, and that goes back with the run when it is resumed."""

import os
from pathlib import Path

from dl_techniques.utils.logger import logger


class AppendedFile:
    """Appends to a file what belongs to one run.

    An older file is replaced by the first `append`, unless `restore` goes on with it. Everything is
    on its way to the disk when `append` returns, so that nothing is lost with the process.

    Args:
        path: Its folder is made if need be.

    Attributes:
        size: How many bytes were written.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self.size = 0
        self._opened = False

    def append(self, text: str):
        """Appends text.

        Raises:
            OSError: the file cannot be written.
        """
        if not self._opened:
            self._open()
        data = text.encode("utf-8", "backslashreplace")
        with self.path.open("ab") as file:
            file.write(data)
        self.size += len(data)

    def restore(self, size: int):
        """Goes on behind the first bytes of the file; what is beyond them is cut off."""
        self.size, self._opened = size, False

    def _open(self):
        self.path.parent.mkdir(parents=True, exist_ok=True)
        found = self.path.stat().st_size if self.path.is_file() else 0
        if found < self.size:
            logger.warning(
                "%s has %d bytes, but the run wrote %d: its beginning is lost.",
                *(self.path, found, self.size),
            )
        self.size = min(found, self.size)
        with self.path.open("ab") as file:
            file.truncate(self.size)
        self._opened = True
