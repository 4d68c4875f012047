"""A training run's whole state in one file, written whole or not at all."""

import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import keras
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from dl_techniques.training.processes import assign_full, full_value

FILE_NAME = "training_state.safetensors"


def _named_variables(model) -> dict:
    """Return every variable that a step changes: weights, random states, optimizer."""
    groups = {"model": model.variables, "optimizer": model.optimizer.variables}
    return {
        f"{group}/{i:05d}/{_unnumbered(variable.path)}": variable
        for group, variables in groups.items()
        for i, variable in enumerate(variables)
    }


def _unnumbered(path):
    """Drop the numbers that Keras gives the second optimizer or seed generator of a process."""
    return re.sub(r"^([a-z_]+?)_\d+/", r"\1/", path)


def _generator_states():
    """Return the state of PyTorch's own generators, from which Keras' dropout draws there."""
    if keras.backend.backend() != "torch":
        return {}
    import torch

    states = {"generator/cpu": torch.get_rng_state().numpy()}
    if torch.cuda.is_available():
        states["generator/cuda"] = torch.cuda.get_rng_state().numpy()
    return states


def _set_generator_states(states):
    if not states:
        return
    import torch

    torch.set_rng_state(torch.from_numpy(states["generator/cpu"]))
    if "generator/cuda" in states:
        torch.cuda.set_rng_state(torch.from_numpy(states["generator/cuda"]))


def state_arrays(model) -> dict[str, np.ndarray]:
    """Return copies of every value that a step changes: weights, random states, optimizer.

    Values that are split over devices are whole here; all processes must call this.

    Args:
        model: A compiled model with a built optimizer.
    """
    arrays = {
        # safetensors writes memory as it lies. (np.ascontiguousarray would give scalars an axis.)
        name: np.array(full_value(variable), order="C")
        for name, variable in _named_variables(model).items()
    }
    return arrays | _generator_states()


def assign_state(model, arrays: Mapping[str, np.ndarray], where: str | Path) -> None:
    """Put the values of `state_arrays` back.

    Args:
        model: A compiled model with a built optimizer.
        arrays: Each is read once.
        where: Names them in messages.

    Raises:
        ValueError: if they belong to another model, optimizer or backend. Nothing is changed then.
    """
    variables, generators = _named_variables(model), _generator_states()
    shapes = {name: tuple(np.shape(arrays[name])) for name in arrays}
    expected = {k: tuple(v.shape) for k, v in (variables | generators).items()}
    if shapes != expected:
        differing = sorted(
            name for name in shapes.keys() | expected if shapes.get(name) != expected.get(name)
        )
        raise ValueError(
            f"{where} was written for another model, optimizer or backend: {len(differing)} arrays "
            f"differ, first {differing[0]}: file {shapes.get(differing[0])}, "
            f"model {expected.get(differing[0])}."
        )
    for name, variable in variables.items():
        assign_full(variable, arrays[name])
    _set_generator_states({name: arrays[name] for name in generators})


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
    partial = path.with_suffix(".partial")
    try:
        save_file(state_arrays(model), partial, metadata={"progress": json.dumps(progress)})
        os.replace(partial, path)
    except (OSError, SafetensorError) as error:
        partial.unlink(missing_ok=True)
        raise OSError(f"Could not write {path}: {error}") from error
    return path


def save_model(model, path: Path) -> None:
    """Write a `.keras` file without the optimizer, whose state is three times as large.

    Raises:
        OSError: if it cannot be written; an older file is then untouched.
    """
    partial = path.with_suffix(".partial.keras")
    # Keras' own argument for it, include_optimizer, has no effect on this format.
    optimizer, model.optimizer, model.compiled = model.optimizer, None, False
    try:
        model.save(partial)
        os.replace(partial, path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    finally:
        model.optimizer, model.compiled = optimizer, True


def load_training_state(folder: str | Path, model, check: Callable[[dict], None]) -> dict:
    """Put the saved values into the model and its optimizer; return the saved progress.

    Args:
        folder: Where `save_training_state` wrote.
        model: A compiled model with a built optimizer.
        check: Is called with the progress and raises ValueError if it is not what is expected.

    Raises:
        ValueError: if there is no such file, it is damaged, or it belongs to another model,
            optimizer or backend, or `check` says so. Nothing is changed then.
    """
    path = Path(folder) / FILE_NAME
    if not path.is_file():
        raise ValueError(f"There is nothing to resume: {path} does not exist.")
    try:
        with safe_open(path, framework="numpy") as file:
            progress = json.loads(file.metadata()["progress"])
            arrays = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    check(progress)
    assign_state(model, arrays, path)
    return progress
