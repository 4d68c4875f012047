"""Writes safetensors folders, one tensor at a time, in shards, atomically."""

import dataclasses
import json
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterator
from typing import BinaryIO

import numpy as np

from dl_techniques.checkpoints.safetensors_io import DTYPES, INDEX_FILE, SINGLE_FILE

MAX_SHARD_BYTES = 5_000_000_000
NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclasses.dataclass(frozen=True)
class PendingTensor:
    """A tensor that is made when it is written.

    Attributes:
        key: Its name.
        shape: Its shape.
        dtype: Its NumPy dtype in the file.
        make: Returns its value, of any dtype.
    """

    key: str
    shape: tuple[int, ...]
    dtype: np.dtype
    make: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        """Its size in the file."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


def write_folder(
    folder: str | os.PathLike,
    tensors: list[PendingTensor],
    metadata: dict[str, str] | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> list[pathlib.Path]:
    """Write `model.safetensors`, or shards and their index if it would be too large.

    All files are complete under other names before the first takes its place. Weights that lay in
    the folder before are replaced.

    Args:
        folder: Made where it does not exist.
        tensors: What to write; each is made only when its turn comes.
        metadata: Texts for the headers.
        max_shard_bytes: A shard ends before the tensor that would exceed this.

    Returns:
        The files written.

    Raises:
        ValueError: if two tensors have one name, or a value has another shape than was said.
    """
    folder = pathlib.Path(folder)
    if len({t.key for t in tensors}) != len(tensors):
        raise ValueError("Two tensors have the same name.")
    folder.mkdir(parents=True, exist_ok=True)
    shards = _in_shards(tensors, max_shard_bytes)
    names = [SINGLE_FILE]
    if len(shards) > 1:
        count = len(shards)
        names = [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
    with tempfile.TemporaryDirectory(dir=folder, prefix=".writing-") as temporary:
        for name, shard in zip(names, shards, strict=True):
            _write_file(pathlib.Path(temporary) / name, shard, metadata)
        if len(shards) > 1:
            (pathlib.Path(temporary) / INDEX_FILE).write_text(_index(names, shards))
            names = [*names, INDEX_FILE]
        # Until the last file is in its place, the folder must not look whole.
        for old in (INDEX_FILE, SINGLE_FILE):
            if len(shards) > 1 or old not in names:
                (folder / old).unlink(missing_ok=True)
        for name in names:
            os.replace(pathlib.Path(temporary) / name, folder / name)
    for stale in folder.glob("model-?????-of-?????.safetensors"):
        if stale.name not in names:
            stale.unlink()
    return [folder / name for name in names]


def _in_shards(tensors: list[PendingTensor], max_bytes: int) -> list[list[PendingTensor]]:
    shards, size = [[]], 0
    for tensor in sorted(tensors, key=lambda t: t.key):
        if shards[-1] and size + tensor.nbytes > max_bytes:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.nbytes
    return shards


def _index(names: list[str], shards: list[list[PendingTensor]]) -> str:
    weight_map = {
        tensor.key: name for name, shard in zip(names, shards, strict=True) for tensor in shard
    }
    total = sum(tensor.nbytes for shard in shards for tensor in shard)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    return json.dumps(index, indent=2, sort_keys=True) + "\n"


def _write_file(path: pathlib.Path, tensors: list[PendingTensor], metadata: dict | None) -> None:
    # The library's own writer wants all tensors of a file in memory at once.
    # Wider elements first, so that each tensor is aligned to its element size.
    tensors = sorted(tensors, key=lambda t: (-t.dtype.itemsize, t.key))
    header = {"__metadata__": metadata} if metadata else {}
    for tensor, (start, end) in zip(tensors, _offsets(tensors), strict=True):
        header[tensor.key] = {
            "dtype": NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors:
            _write_tensor(file, tensor)
        file.flush()
        os.fsync(file.fileno())


def _write_tensor(file: BinaryIO, tensor: PendingTensor) -> None:
    # In a function, so that one value is gone before the next is made.
    value = np.asarray(tensor.make(), dtype=tensor.dtype, order="C")
    if value.shape != tensor.shape:
        raise ValueError(f"{tensor.key!r} has shape {value.shape}, not {tensor.shape}.")
    file.write(value.reshape(-1).view(np.uint8).data)


def _offsets(tensors: list[PendingTensor]) -> Iterator[tuple[int, int]]:
    start = 0
    for tensor in tensors:
        yield start, start + tensor.nbytes
        start += tensor.nbytes
