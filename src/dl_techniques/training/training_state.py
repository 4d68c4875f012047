"""A training run's whole state in one file, written whole or not at all."""

import json
import os
from pathlib import Path

import keras
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

FILE_NAME = "training_state.safetensors"


def _named_variables(model) -> dict:
    """Return every variable that a step changes: weights, random states, optimizer."""
    groups = {"model": model.variables, "optimizer": model.optimizer.variables}
    return {
        f"{group}/{i:05d}/{variable.path}": variable
        for group, variables in groups.items()
        for i, variable in enumerate(variables)
    }


def save_training_state(folder: str | Path, model, progress: dict) -> Path:
    """Write `training_state.safetensors` into the folder; an older one is replaced at once.

    Args:
        folder: Is made if need be.
        model: A compiled model with a built optimizer.
        progress: JSON-ready values to be given back by `load_training_state`.

    Raises:
        OSError: if it cannot be written (a full disk, say); the older file is then untouched.
    """
    path = Path(folder) / FILE_NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {
        name: np.ascontiguousarray(keras.ops.convert_to_numpy(variable.value))
        for name, variable in _named_variables(model).items()
    }
    partial = path.with_suffix(".partial")
    try:
        save_file(arrays, partial, metadata={"progress": json.dumps(progress)})
        os.replace(partial, path)
    except (OSError, SafetensorError) as error:
        partial.unlink(missing_ok=True)
        raise OSError(f"Could not write {path}: {error}") from error
    return path


def load_training_state(folder: str | Path, model) -> dict:
    """Put the saved values into the model and its optimizer; return the saved progress.

    Raises:
        ValueError: if there is no such file, it is damaged, or it belongs to another model or
            optimizer. Nothing is changed then.
    """
    path = Path(folder) / FILE_NAME
    if not path.is_file():
        raise ValueError(f"There is nothing to resume: {path} does not exist.")
    variables = _named_variables(model)
    try:
        with safe_open(path, framework="numpy") as file:
            progress = json.loads(file.metadata()["progress"])
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    shapes = {name: tuple(array.shape) for name, array in arrays.items()}
    expected = {name: tuple(variable.shape) for name, variable in variables.items()}
    if shapes != expected:
        differing = sorted(
            name for name in shapes.keys() | expected if shapes.get(name) != expected.get(name)
        )
        raise ValueError(
            f"{path} was written for another model or optimizer: {len(differing)} variables "
            f"differ, first {differing[0]}: file {shapes.get(differing[0])}, "
            f"model {expected.get(differing[0])}."
        )
    for name, variable in variables.items():
        variable.assign(arrays[name])
    return progress
