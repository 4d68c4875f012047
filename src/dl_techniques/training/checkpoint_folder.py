"""One checkpoint on disk: a folder that is there whole or not at all, and proves to be sound.

`state.safetensors` holds the arrays; `progress.json` holds the rest, with a checksum of every
array and of itself.
"""

import hashlib
import json
import os
import pathlib
import shutil
import sys
from collections.abc import Iterator, Mapping

import numpy as np

from dl_techniques.checkpoints.safetensors_io import SafetensorsFile
from dl_techniques.checkpoints.safetensors_writer import NAMES, PendingTensor, write_folder

STATE_FILE = "state.safetensors"
PROGRESS_FILE = "progress.json"
WRITING = ".writing_"
FORMAT = 1


class StoredArrays(Mapping):
    """The arrays of a checkpoint by name; each is read, into memory of its own, on access.

    Args:
        path: The safetensors file.

    Raises:
        ValueError: naming the file, if it is absent, incomplete or malformed.
    """

    def __init__(self, path: pathlib.Path):
        if not path.is_file():
            raise ValueError(f"{path.parent} is incomplete: it has no {path.name}.")
        self._file = SafetensorsFile(path)

    def __getitem__(self, name: str) -> np.ndarray:
        array = np.array(self._file.view(name))
        self._file.forget()
        return array

    def __iter__(self) -> Iterator[str]:
        return iter(self._file.keys())

    def __len__(self) -> int:
        return len(self._file.keys())

    def shape(self, name: str) -> tuple[int, ...]:
        """Return an array's shape without reading it."""
        return self._file.shape(name)

    def seals(self) -> dict[str, list]:
        """Read everything once; return name -> what `progress.json` holds of each array."""
        seals = {}
        for name in self:
            seals[name] = _seal(self._file.view(name))
            self._file.forget()
        return seals


def checked_arrays(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return a dict of the arrays, none of them copied.

    Raises:
        ValueError: naming the first that cannot be stored.
    """
    for name, array in arrays.items():
        if not isinstance(name, str) or name == "__metadata__":
            raise ValueError(f"{name!r} cannot be the name of an array.")
        if not isinstance(array, np.ndarray):
            raise ValueError(
                f"{name!r} is a {type(array).__name__}, not a NumPy array. Copy it to the host."
            )
        if array.dtype not in NAMES:
            raise ValueError(
                f"{name!r} has dtype {array.dtype}; known are {sorted(NAMES, key=str)}."
            )
    return dict(arrays)


def checked_progress(progress: dict) -> dict:
    """Return a copy of the progress as it will be read back.

    Raises:
        ValueError: if it is no dict, or JSON cannot hold it.
    """
    if not isinstance(progress, dict):
        raise ValueError(f"progress must be a dict, got {type(progress).__name__}.")
    try:
        return json.loads(json.dumps(progress))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"progress must be what JSON can hold: {error}") from error


def write_checkpoint(
    target: pathlib.Path,
    arrays: dict[str, np.ndarray],
    progress: dict,
    score: float | None,
) -> None:
    """Write the folder `target`, which must not exist; it appears complete, and is then durable.

    No array is copied, but for one at a time if it is not contiguous.

    Raises:
        OSError: if it cannot be written; then nothing is left of it.
    """
    temporary = target.with_name(WRITING + target.name)
    try:
        temporary.mkdir()
        seals = _write_arrays(temporary, arrays)
        content = {"format": FORMAT, "score": score, "progress": progress, "arrays": seals}
        _write_synced(temporary / PROGRESS_FILE, _with_checksum(content))
        sync_folder(temporary)
        os.rename(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_folder(target.parent)


def read_checkpoint(folder: pathlib.Path) -> tuple[StoredArrays, dict]:
    """Return (the arrays, the progress) after all of it was read and found sound.

    Raises:
        ValueError: naming what is absent or damaged.
    """
    content = _read_content(folder)
    arrays = StoredArrays(folder / STATE_FILE)
    expected, found = content["arrays"], arrays.seals()
    if found != expected:
        differing = sorted(k for k in expected | found if expected.get(k) != found.get(k))
        raise ValueError(
            f"{folder / STATE_FILE} is damaged: {len(differing)} of {len(expected)} arrays are not "
            f"what was written (checksum), first {differing[0]!r}."
        )
    return arrays, content["progress"]


def read_score(folder: pathlib.Path) -> float | None:
    """Return the score that a checkpoint was saved with.

    Raises:
        ValueError: if its `progress.json` is absent or damaged.
    """
    return _read_content(folder)["score"]


def sync_folder(folder: pathlib.Path) -> None:
    """Make the folder's list of names durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_arrays(folder, arrays):
    """Write `state.safetensors`; return the seals, made while every array is at hand."""
    seals = {}

    def value_of(name):
        value = np.asarray(arrays[name], order="C")
        seals[name] = _seal(value)
        return value

    tensors = [
        PendingTensor(name, array.shape, array.dtype, lambda name=name: value_of(name))
        for name, array in arrays.items()
    ]
    [path] = write_folder(folder, tensors, max_shard_bytes=sys.maxsize)
    SafetensorsFile(path).close()  # What could not be read must not count as saved.
    os.rename(path, folder / STATE_FILE)
    return seals


def _seal(array):
    """Return [dtype, shape, checksum] of a contiguous array."""
    # With the processor's help SHA-256 is as fast as CRC-32, and twice as fast as BLAKE2.
    digest = hashlib.sha256(array.reshape(-1).view(np.uint8)).hexdigest()
    return [NAMES[array.dtype], list(array.shape), digest]


def _checksum(content):
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _with_checksum(content):
    return json.dumps({"sha256": _checksum(content), "content": content}).encode()


def _write_synced(path, data):
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _read_content(folder):
    path = folder / PROGRESS_FILE
    if not path.is_file():
        raise ValueError(f"{folder} is incomplete: it has no {PROGRESS_FILE}.")
    try:
        whole = json.loads(path.read_bytes())
        content, checksum = whole["content"], whole["sha256"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if checksum != _checksum(content):
        raise ValueError(f"{path} is damaged: it is not what was written (checksum).")
    if content["format"] != FORMAT:
        raise ValueError(f"{path} has format {content['format']}, this version reads {FORMAT}.")
    return content
