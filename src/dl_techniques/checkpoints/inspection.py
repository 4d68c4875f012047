"""What a folder or file of weights is, from its headers and config alone."""

import collections
import math
import os
import pathlib

from dl_techniques.checkpoints.building import build
from dl_techniques.checkpoints.converting import family_of
from dl_techniques.checkpoints.formats import CONFIG_FILE, FORMATS, Format, read_folder
from dl_techniques.checkpoints.safetensors_io import Checkpoint
from dl_techniques.models.model_size import analyze_model_size, without_weights


def describe(path: str | os.PathLike, model_class: type | None = None) -> str:
    """Return the format, architecture, parameters and dtypes of a folder or file, as lines.

    Nothing is loaded.

    Args:
        path: A folder in a supported format, or a safetensors file.
        model_class: What whole models are that are of no family; default: they are refused.

    Raises:
        ValueError: if it is nothing that is supported.
    """
    path = pathlib.Path(path)
    if not path.exists():
        raise ValueError(f"There is no {str(path)!r}, neither a model nor a file nor a folder.")
    folder = path if path.is_dir() else path.parent
    with Checkpoint(path) as checkpoint:
        tensors = _tensor_lines(checkpoint)
        if path.is_file() and not (folder / CONFIG_FILE).is_file():
            found = _format_of_keys(checkpoint)
            name = "unknown" if found is None else found.name
            return "\n".join([f"format        {name} (by its keys; no {CONFIG_FILE})", *tensors])
    found, config = read_folder(folder)
    lines = [f"format        {found.name}", *tensors]
    arguments = found.arguments(config)
    is_model = found.layer_class is None
    make = family_of(found, config, model_class) if is_model else found.make
    model = without_weights(lambda: build(make, arguments))
    lines.append(f"architecture  {type(model).__name__}")
    lines += _argument_lines(arguments)
    if found.part == "model":
        return "\n".join([*lines, "", str(analyze_model_size(model))])
    count = sum(math.prod(v.shape) for v in model.weights)
    return "\n".join([*lines, f"parameters    {count:,} in use"])


def _tensor_lines(checkpoint: Checkpoint) -> list[str]:
    elements = collections.Counter()
    for key in checkpoint.keys():
        elements[checkpoint.dtype(key)] += math.prod(checkpoint.shape(key))
    dtypes = ", ".join(f"{dtype} {count:,}" for dtype, count in elements.most_common())
    return [
        f"tensors       {len(checkpoint.keys())}, {sum(elements.values()):,} numbers",
        f"dtype         {dtypes}",
    ]


def _argument_lines(arguments: dict) -> list[str]:
    lines = []
    for name, value in arguments.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key}={inner}" for key, inner in value.items())
        lines.append(f"  {name}: {value}")
    return lines


def _format_of_keys(checkpoint: Checkpoint) -> Format | None:
    """Return the format whose table has the most lines for these keys."""
    keys = set(checkpoint.keys())

    def matches(found: Format) -> int:
        return found.key_map.layout_of(keys).matches(keys)

    best = max(FORMATS.values(), key=matches)
    return best if matches(best) else None
