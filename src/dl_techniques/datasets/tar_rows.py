"""Rows of webdataset shards: files of a tar archive whose names differ in their endings."""

import array
import tarfile
from pathlib import Path
from typing import Any

import numpy as np

from dl_techniques.datasets.row_files import FileRows, json_object, read_span

_TEXTS = ("txt", "text", "caption", "cls")


class TarRows(FileRows):
    """Records of a tar file, found by an index and read where they are asked for.

    A record is `{"__key__": name, ending: content}`: text for txt and its like, a dict for json,
    bytes for the rest. Its files follow each other.

    Raises:
        ValueError: the file is no plain tar file, or a record has two files of one ending.
    """

    def __init__(self, path: str | Path):
        super().__init__(path)
        starts, sizes, endings = array.array("q"), array.array("q"), array.array("i")
        firsts, key_ends, keys = array.array("q"), array.array("q"), bytearray()
        known: dict[str, int] = {}
        previous, seen = None, set()
        for name, start, size in _members(self.path):
            folder, slash, base = name.rpartition("/")
            stem, _, ending = base.partition(".")
            key, ending = folder + slash + stem, ending.lower()
            if key != previous:
                previous, seen = key, set()
                firsts.append(len(starts))
                keys += key.encode()
                key_ends.append(len(keys))
            if ending in seen:
                raise ValueError(f"{path}: the record '{key}' has two files '.{ending}'.")
            seen.add(ending)
            starts.append(start)
            sizes.append(size)
            endings.append(known.setdefault(ending, len(known)))
        self._starts = np.array(starts, np.int64)
        self._sizes = np.array(sizes, np.int64)
        self._endings = np.array(endings, np.int32)
        self._firsts = np.array([*firsts, len(starts)], np.int64)
        self._keys, self._key_ends = bytes(keys), np.array(key_ends, np.int64)
        self._names = list(known)
        self.columns = ["__key__", *(self._names[k] for k in self._endings[self._files(0)])]

    def __len__(self) -> int:
        return len(self._firsts) - 1

    def _files(self, index: int) -> slice:
        return slice(*map(int, self._firsts[index : index + 2])) if len(self) else slice(0)

    def __getitem__(self, index: int) -> dict[str, Any]:
        start = int(self._key_ends[index - 1]) if index else 0
        row: dict[str, Any] = {"__key__": self._keys[start : int(self._key_ends[index])].decode()}
        files = self._files(index)
        for k in range(files.start, files.stop):
            ending, first = self._names[self._endings[k]], int(self._starts[k])
            row[ending] = _content(ending, read_span(self.path, first, first + int(self._sizes[k])))
        return row


def _members(path: Path):
    """Yields name, first byte and size of each file of an archive."""
    try:
        with tarfile.open(path, "r:") as archive:
            while (member := archive.next()) is not None:
                archive.members = []  # Otherwise the header of every file stays in memory.
                if member.isreg():
                    yield member.name, member.offset_data, member.size
    except tarfile.TarError as error:
        raise ValueError(
            f"{path} is no plain tar file ({error}). Unpack a compressed one first: its records "
            "cannot be read one by one."
        ) from error


def _content(ending: str, data: bytes) -> Any:
    if ending == "json":
        return json_object(data.decode("utf-8"))
    return data.decode("utf-8") if ending in _TEXTS else data
