"""The two files of an adapter folder: `adapter_model.safetensors` and `adapter_config.json`."""

import dataclasses
import hashlib
import os
import pathlib
import sys
import tempfile
from collections import Counter

import keras
import numpy as np

import dl_techniques
from dl_techniques.checkpoints.config_fields import Fields
from dl_techniques.checkpoints.json_files import read_json, write_json
from dl_techniques.checkpoints.safetensors_writer import PendingTensor, write_folder

WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
FORMAT = "dl_techniques_lora"


@dataclasses.dataclass(frozen=True)
class AdapterConfig:
    """The content of `adapter_config.json`.

    Attributes:
        model_class: The model's class.
        pattern, rank, alpha: See `enable_lora`.
        layers: Paths of the layers with adapters, below the model.
        trained: Paths of the other weights in the file.
        base: See `describe_weights`.
        version: Of this package.
        format: What tells the file from those of other libraries.
    """

    model_class: str
    pattern: str
    rank: int
    alpha: float
    layers: list[str]
    trained: list[str]
    base: dict
    version: str = dl_techniques.__version__
    format: str = FORMAT


def read_config(path: pathlib.Path) -> AdapterConfig:
    """Return what the file holds.

    Raises:
        ValueError: naming the file and the field that is absent or of another type.
    """
    fields = Fields(read_json(path), str(path))
    fields.require("format", FORMAT)
    texts, lists = ("model_class", "pattern", "version"), ("layers", "trained")
    values = {name: fields.get(name) for name in (*texts, *lists, "base")}
    for name in texts:
        if not isinstance(values[name], str):
            raise fields.error(name, "expected a text")
    for name in lists:
        value = values[name]
        if not isinstance(value, list) or not all(isinstance(path, str) for path in value):
            raise fields.error(name, "expected a list of paths")
        if len(set(value)) < len(value):
            raise fields.error(name, "a path stands twice")
    if not isinstance(values["base"], dict) or not {"digest", "dtypes"} <= set(values["base"]):
        raise fields.error("base", "expected an object with digest and dtypes")
    return AdapterConfig(rank=fields.count("rank"), alpha=fields.number("alpha"), **values)


def describe_weights(weights: dict[str, keras.Variable]) -> dict:
    """Return what tells weights from others, on every backend the same.

    Args:
        weights: Path -> weight.

    Returns:
        `digest`, the SHA-256 of all names, shapes, dtypes and values, read one weight at a time;
        `dtypes`, how many weights there are of each: another precision is the commonest reason
        for another digest.
    """
    hashed, counts = hashlib.sha256(), Counter()
    for path, weight in sorted(weights.items()):
        value = np.asarray(keras.ops.convert_to_numpy(weight), order="C")
        hashed.update(f"{path} {value.shape} {value.dtype.name}\n".encode())
        hashed.update(value.reshape(-1).view(np.uint8).data)
        counts[value.dtype.name] += 1
    return {"digest": f"sha256:{hashed.hexdigest()}", "dtypes": dict(sorted(counts.items()))}


def pending(key: str, weight: keras.Variable, transpose: bool = False) -> PendingTensor:
    """Return a weight as a tensor of the file.

    Args:
        key: Its name there.
        weight: The weight.
        transpose: Whether the file has its two axes the other way.
    """

    def make():
        value = keras.ops.convert_to_numpy(weight)
        return value.T if transpose else value

    shape = tuple(weight.shape)
    return PendingTensor(key, shape[::-1] if transpose else shape, np.dtype(weight.dtype), make)


def write_files(folder: str | os.PathLike, tensors: list[PendingTensor], config: dict) -> None:
    """Write both files; a folder that has a config is complete.

    Args:
        folder: Made where it does not exist; other files in it stay.
        tensors: What the weights' file holds.
        config: What `adapter_config.json` holds.

    Raises:
        OSError: if the folder cannot be written; it is then as it was.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".writing-") as temporary:
        # In one file, however large, as readers look for this name.
        (written,) = write_folder(temporary, tensors, {"format": "pt"}, max_shard_bytes=sys.maxsize)
        configured = pathlib.Path(temporary) / CONFIG_FILE
        write_json(configured, config)
        (folder / CONFIG_FILE).unlink(missing_ok=True)
        os.replace(written, folder / WEIGHTS_FILE)
        os.replace(configured, folder / CONFIG_FILE)
