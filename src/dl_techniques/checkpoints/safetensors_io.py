"""Safetensors files and folders, read through a memory map, one tensor at a time."""

import json
import math
import mmap
import os
import pathlib

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from dl_techniques.checkpoints.json_files import MAX_JSON_BYTES, read_json

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")

DTYPES = {
    "BOOL": np.dtype("bool"),
    "U8": np.dtype("uint8"),
    "I8": np.dtype("int8"),
    "U16": np.dtype("<u2"),
    "I16": np.dtype("<i2"),
    "U32": np.dtype("<u4"),
    "I32": np.dtype("<i4"),
    "U64": np.dtype("<u8"),
    "I64": np.dtype("<i8"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
}
FLOATS = ("F16", "BF16", "F32", "F64")


class SafetensorsFile:
    """One memory-mapped file.

    Args:
        path: The file.

    Attributes:
        metadata: The header's texts.

    Raises:
        ValueError: naming the file, if it is no complete, well-formed safetensors file.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = pathlib.Path(path)
        header, start = _checked_header(self.path)
        self.metadata = header.pop("__metadata__", None) or {}
        self._tensors = header
        self._start = start
        with open(self.path, "rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def keys(self) -> list[str]:
        """Return the tensors' names."""
        return list(self._tensors)

    def shape(self, key: str) -> tuple[int, ...]:
        """Return a tensor's shape."""
        return tuple(self._tensors[key]["shape"])

    def dtype(self, key: str) -> str:
        """Return a tensor's dtype as the format spells it: "F32", "BF16", ..."""
        return self._tensors[key]["dtype"]

    def view(self, key: str) -> np.ndarray:
        """Return a tensor as a read-only view of the map, valid until `close`.

        Raises:
            ValueError: if NumPy has no such dtype.
        """
        if self.dtype(key) not in DTYPES:
            raise ValueError(f"{self.path}: {key!r} has the unsupported dtype {self.dtype(key)}.")
        dtype, shape = DTYPES[self.dtype(key)], self.shape(key)
        offset = self._start + self._tensors[key]["data_offsets"][0]
        flat = np.frombuffer(self._map, dtype, math.prod(shape), offset)
        return flat.reshape(shape)

    def forget(self) -> None:
        """Let go of the pages read so far; those that are used again are read again."""
        if hasattr(self._map, "madvise"):
            self._map.madvise(mmap.MADV_DONTNEED)

    def close(self) -> None:
        """Close the map; it stays until its last view is gone."""
        self._tensors = {}
        self._map = None


def _checked_header(path: pathlib.Path) -> tuple[dict, int]:
    """Return (the header, where the data begin); the library checks all of it first."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise ValueError(
                f"{path} is truncated or no safetensors file: its header claims {length} bytes, "
                f"the file has {size}."
            )
        if length > MAX_JSON_BYTES:
            raise ValueError(f"{path}: a header of {length} bytes is not read.")
        try:
            with safe_open(path, framework="numpy"):
                pass
            header = json.loads(file.read(length), object_pairs_hook=_without_duplicates)
        except (SafetensorError, OSError, ValueError, RecursionError) as error:
            raise ValueError(f"{path} is not a valid safetensors file: {error}") from error
    return header, 8 + length


def _without_duplicates(pairs: list) -> dict:
    names = dict(pairs)
    if len(names) != len(pairs):
        raise ValueError("a name stands twice in the header")
    return names


class Checkpoint:
    """The tensors of a safetensors file, or of a folder with one or with shards and their index.

    Use it in a `with` statement, or call `close`.

    Args:
        source: A `.safetensors` file or a folder.

    Attributes:
        path: The source.
        metadata: The texts in the headers.

    Raises:
        ValueError: naming the file, if something is absent, damaged, ambiguous or a pickle.
    """

    def __init__(self, source: str | os.PathLike):
        self.path = pathlib.Path(source)
        self._file_of: dict[str, SafetensorsFile] = {}
        self.metadata: dict[str, str] = {}
        files, index = _files_of(self.path)
        for path in files:
            file = SafetensorsFile(path)
            self.metadata.update(file.metadata)
            for key in file.keys():
                if key in self._file_of:
                    raise ValueError(f"{path} and {self._file_of[key].path} both hold {key!r}.")
                self._file_of[key] = file
        if index is not None:
            _check_index(self.path / INDEX_FILE, index, self._file_of)

    def keys(self) -> list[str]:
        """Return the names of all tensors."""
        return list(self._file_of)

    def __contains__(self, key: str) -> bool:
        return key in self._file_of

    def shape(self, key: str) -> tuple[int, ...]:
        """Return a tensor's shape."""
        return self._file_of[key].shape(key)

    def dtype(self, key: str) -> str:
        """Return a tensor's dtype as the format spells it: "F32", "BF16", ..."""
        return self._file_of[key].dtype(key)

    def view(self, key: str) -> np.ndarray:
        """Return a tensor as a read-only view of the map; nothing is read before it is used."""
        return self._file_of[key].view(key)

    def read(self, key: str, dtype: str | None = None) -> np.ndarray:
        """Return a tensor in memory of its own.

        Args:
            key: Its name.
            dtype: "float32", "float16", "bfloat16", ...; default: as stored.
        """
        return np.array(self.view(key), dtype=None if dtype is None else np.dtype(dtype))

    def forget(self) -> None:
        """Let go of the pages read so far, which count as this process's memory."""
        for file in set(self._file_of.values()):
            file.forget()

    def close(self) -> None:
        """Close the files."""
        for file in self._file_of.values():
            file.close()
        self._file_of = {}

    def __enter__(self) -> "Checkpoint":
        return self

    def __exit__(self, *error) -> None:
        self.close()


def _files_of(path: pathlib.Path) -> tuple[list[pathlib.Path], dict | None]:
    """Return (the files that hold the tensors, the index's map of keys to their names)."""
    if path.suffix in PICKLE_SUFFIXES:
        raise ValueError(_pickle_refusal(path))
    if path.is_file():
        return [path], None
    if not path.is_dir():
        raise ValueError(f"{path} does not exist.")
    single, index = path / SINGLE_FILE, path / INDEX_FILE
    if single.is_file() and index.is_file():
        raise ValueError(f"{path} holds both {SINGLE_FILE} and {INDEX_FILE}: remove one.")
    if single.is_file():
        return [single], None
    if not index.is_file():
        pickles = sorted(p for p in path.iterdir() if p.suffix in PICKLE_SUFFIXES)
        if pickles:
            raise ValueError(_pickle_refusal(pickles[0]))
        raise ValueError(f"{path} holds no {SINGLE_FILE} (nor {INDEX_FILE}).")
    weight_map = read_json(index).get("weight_map")
    names = weight_map.values() if isinstance(weight_map, dict) else [None]
    if not all(isinstance(name, str) and _is_plain_name(name) for name in names):
        raise ValueError(f"{index} must have a 'weight_map' from keys to names of files beside it.")
    files = [path / name for name in sorted(set(names))]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise ValueError(f"{index} names files that are not there: {missing}.")
    return files, weight_map


def _is_plain_name(name: str) -> bool:
    return name.endswith(".safetensors") and not set(name) & set("/\\\0")


def _check_index(path: pathlib.Path, index: dict, file_of: dict[str, SafetensorsFile]) -> None:
    held = {key: file.path.name for key, file in file_of.items()}
    differing = sorted(k for k in {**index, **held} if index.get(k) != held.get(k))
    if differing:
        raise ValueError(f"{path} and its files disagree about {differing[:10]}.")


def _pickle_refusal(path: pathlib.Path) -> str:
    return (
        f"{path} is a pickle, which can run any code when it is loaded: it is not read. Convert it "
        "where you trust it: safetensors.torch.save_file(torch.load(path, weights_only=True), "
        f"'{SINGLE_FILE}', metadata={{'format': 'pt'}})."
    )
