"""Loads a checkpoint into a layer or model: everything of it, or nothing and every reason why."""

import os
import re
from collections.abc import Callable

import keras
import numpy as np

from dl_techniques.checkpoints.key_map import Binding, KeyMap, bind, listed, variables_of
from dl_techniques.checkpoints.key_maps import KEY_MAPS
from dl_techniques.checkpoints.padded_heads import uneven_heads
from dl_techniques.checkpoints.safetensors_io import FLOATS, Checkpoint
from dl_techniques.checkpoints.vocabulary import with_mean_rows

ROWS_AT_A_TIME = 1024
LARGEST_FLOAT16 = 65504.0


def key_map_of(key_map: KeyMap | str) -> KeyMap:
    """Return a table by its name.

    Args:
        key_map: A table, or a key of `KEY_MAPS`.

    Raises:
        ValueError: if there is none of that name.
    """
    if isinstance(key_map, KeyMap):
        return key_map
    if key_map not in KEY_MAPS:
        raise ValueError(f"Unknown key map {key_map!r}: choose from {sorted(KEY_MAPS)}.")
    return KEY_MAPS[key_map]


def load_weights(
    owner: keras.layers.Layer,
    source: str | os.PathLike | Checkpoint,
    key_map: KeyMap | str,
    extend_vocabulary: bool = False,
) -> None:
    """Set every weight of a layer or model from a checkpoint.

    Every key of the checkpoint is used or on the table's list of keys to drop; every weight is
    assigned once. All is checked before the first weight is written. Tensors are read one at a
    time and cast to the weight's dtype.

    Args:
        owner: A built layer or model.
        source: A safetensors file, a folder, or an open checkpoint.
        key_map: The table, or its name in `KEY_MAPS`.
        extend_vocabulary: Whether the model may have more token ids than the checkpoint; the new
            rows become the mean of the checkpoint's. It may never have fewer.

    Raises:
        ValueError: naming all that does not fit; nothing was written then.
    """
    if not isinstance(source, Checkpoint):
        with Checkpoint(source) as checkpoint:
            return load_weights(owner, checkpoint, key_map, extend_vocabulary)
    bindings = check_weights(owner, source, key_map, extend_vocabulary)
    return assign_weights(owner, source, bindings)


def _assign_value(variable: keras.Variable, value: np.ndarray) -> None:
    variable.assign(value)


def assign_weights(
    owner: keras.layers.Layer,
    checkpoint: Checkpoint,
    bindings: list[Binding],
    put: Callable[[keras.Variable, np.ndarray], None] = _assign_value,
) -> None:
    """Set the weights of a layer or model, one tensor at a time.

    Args:
        owner: A layer or model.
        checkpoint: Where the tensors are.
        bindings: What `check_weights` returned for it.
        put: Gives a variable its value.
    """
    variables = variables_of(owner)
    for binding in bindings:
        _assign(checkpoint, binding, [variables[path] for path in binding.paths], put)
        checkpoint.forget()


def check_weights(
    owner: keras.layers.Layer,
    checkpoint: Checkpoint,
    key_map: KeyMap | str,
    extend_vocabulary: bool = False,
    new_weights: str | None = None,
) -> list[Binding]:
    """Return which keys go to which weights; see `load_weights`.

    Only the shapes and dtypes of the weights are looked at, not their values. Weights whose paths
    have the regular expression `new_weights` need no key.

    Raises:
        ValueError: naming all that does not fit.
    """
    key_map = key_map_of(key_map).layout_of(checkpoint.keys())
    variables = {
        path: variable
        for path, variable in variables_of(owner).items()
        if new_weights is None or not re.search(new_weights, path)
    }
    bindings = bind(key_map, variables, key_map.prefix_in(checkpoint.keys()))
    problems = _key_problems(checkpoint, key_map, bindings)
    for binding in bindings:
        found = _found(checkpoint, binding)
        shapes = [tuple(variables[path].shape) for path in binding.paths]
        smallest = min((variables[path].dtype for path in binding.paths), key=_is_not_float16)
        new = [_tensor_problem(checkpoint, k, binding, shapes, extend_vocabulary) for k in found]
        problems += [problem for problem in new if problem]
        if not any(new):
            problems += _value_problems(checkpoint, found, smallest)
            problems += _padding_problems(checkpoint, found, binding, shapes)
    problems = problems or uneven_heads(_dummy_channels(checkpoint, bindings, variables))
    if problems:
        raise ValueError(listed(f"{checkpoint.path} does not fit {owner.name}", problems))
    return bindings


def _found(checkpoint: Checkpoint, binding: Binding) -> list[str]:
    return [key for key in binding.keys if key in checkpoint]


def _key_problems(checkpoint, key_map, bindings) -> list[str]:
    used = {key for binding in bindings for key in binding.keys}
    problems = [
        f"{binding.keys[0]}: missing, needed for {', '.join(binding.paths)}"
        for binding in bindings
        if not _found(checkpoint, binding)
    ]
    for key in sorted(set(checkpoint.keys()) - used):
        if key_map.dropped(key) is None:
            problems.append(f"{key}: unexpected, shape {checkpoint.shape(key)}")
    return problems


def _tensor_problem(checkpoint, key, binding, shapes, extend_vocabulary) -> str | None:
    shape, expected = checkpoint.shape(key), binding.transform.their_shape(tuple(shapes))
    if checkpoint.dtype(key) not in FLOATS:
        return f"{key}: dtype {checkpoint.dtype(key)}, expected one of {', '.join(FLOATS)}"
    padding = binding.transform.padding
    if shape == expected or (padding and padding.fits(shape, expected)):
        return None
    if binding.is_vocabulary and shape[1:] == expected[1:] and shape:
        if shape[0] > expected[0]:
            return (
                f"{key}: {shape[0]} token ids, the model has only {expected[0]}; a vocabulary is "
                "never shrunk"
            )
        if extend_vocabulary and shape[0] > 0:
            return None
        return (
            f"{key}: {shape[0]} token ids, the model has {expected[0]} (extend_vocabulary=True "
            "gives the new ones the mean)"
        )
    return f"{key}: shape {shape}, expected {expected} for {', '.join(binding.paths)}"


def _value_problems(checkpoint, keys, dtype) -> list[str]:
    problems = []
    for other in keys[1:]:
        if not _equal(checkpoint.view(keys[0]), checkpoint.view(other)):
            problems.append(f"{keys[0]}, {other}: differ, but the model's head is tied")
    for key in keys:
        if not _is_not_float16(dtype) and not _fits_float16(checkpoint.view(key)):
            problems.append(f"{key}: values beyond float16's {LARGEST_FLOAT16:.0f}")
    return problems


def _padding_problems(checkpoint, keys, binding, shapes) -> list[str]:
    padding, expected = binding.transform.padding, binding.transform.their_shape(tuple(shapes))
    return [
        f"{key}: shape {checkpoint.shape(key)}, expected {expected}: the heads beyond that are not "
        "zero, so they are no dummy heads"
        for key in keys
        if padding and not padding.is_dummy(checkpoint.view(key), expected)
    ]


def _dummy_channels(checkpoint, bindings, variables) -> dict[str, int]:
    counts = {}
    for binding in bindings:
        transform, key = binding.transform, binding.keys[0]
        if transform.padding:
            expected = transform.their_shape(
                tuple(tuple(variables[p].shape) for p in binding.paths)
            )
            counts[key] = transform.padding.dummy_channels(checkpoint.shape(key), expected)
    return counts


def _is_not_float16(dtype: str) -> bool:
    return dtype != "float16"


def _rows(array: np.ndarray):
    """Yield a tensor some rows at a time, so that no second whole copy is in memory."""
    for start in range(0, max(len(array), 1), ROWS_AT_A_TIME) if array.ndim else ():
        yield np.asarray(array[start : start + ROWS_AT_A_TIME], "float64")


def _equal(a: np.ndarray, b: np.ndarray) -> bool:
    pairs = zip(_rows(a), _rows(b), strict=False)
    return a.shape == b.shape and all(np.array_equal(x, y, equal_nan=True) for x, y in pairs)


def _fits_float16(array: np.ndarray) -> bool:
    return all(
        not np.any((np.abs(rows) > LARGEST_FLOAT16) & np.isfinite(rows)) for rows in _rows(array)
    )


def _assign(checkpoint: Checkpoint, binding: Binding, variables: list, put) -> None:
    shapes = tuple(tuple(variable.shape) for variable in variables)
    array = checkpoint.view(_found(checkpoint, binding)[0])
    if binding.is_vocabulary:
        array = with_mean_rows(array, binding.transform.their_shape(shapes)[0])
    parts = binding.transform.to_ours(array, shapes)
    for variable, part in zip(variables, parts, strict=True):
        put(variable, _aligned_copy(part, np.dtype(variable.dtype)))


def _aligned_copy(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Return a copy that a backend can keep as it is: JAX copies what is not aligned once more."""
    size, step = array.size * dtype.itemsize, 64
    memory = np.empty(size + step, "uint8")
    start = -memory.ctypes.data % step
    copy = memory[start : start + size].view(dtype).reshape(array.shape)
    copy[...] = array
    return copy
