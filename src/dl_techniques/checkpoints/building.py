"""Builds a layer or model with the weights of checkpoints, which are compared with it first."""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator

import keras
import numpy as np

from dl_techniques.checkpoints.key_map import KeyMap
from dl_techniques.checkpoints.loading import assign_weights, check_weights
from dl_techniques.checkpoints.safetensors_io import Checkpoint
from dl_techniques.models.model_size import without_weights


@dataclasses.dataclass(frozen=True)
class Source:
    """Where the weights of a model, or of a part of it, come from.

    Attributes:
        path: A safetensors file or a folder.
        key_map: The table of its keys.
        part: The model's attribute that gets them; None: the model itself.
        extend_vocabulary: See `load_weights`.
        new_weights: A regular expression: weights whose paths below the part have it are not in the
            file and get random values.
    """

    path: str | os.PathLike
    key_map: KeyMap
    part: str | None = None
    extend_vocabulary: bool = False
    new_weights: str | None = None

    def owner(self, model: keras.layers.Layer) -> keras.layers.Layer:
        """Return the part of a model that gets these weights."""
        return model if self.part is None else getattr(model, self.part)


def build(make: Callable[..., keras.layers.Layer], arguments: dict, *sources: Source):
    """Return `make(**arguments)` with the weights of the sources, random ones without any.

    Nothing is allocated before every key and shape has been compared with those of the files.

    Raises:
        ValueError: naming all that does not fit.
    """

    def create():
        try:
            return make(**arguments)
        except (TypeError, AttributeError, OverflowError) as error:
            raise ValueError(f"The configuration does not fit: {error}") from error

    if not sources:
        return create()
    with contextlib.ExitStack() as stack:
        checkpoints = [stack.enter_context(Checkpoint(source.path)) for source in sources]
        _check_blocks(arguments, checkpoints)
        made = without_weights(create)
        bindings = [
            check_weights(
                source.owner(made),
                file,
                source.key_map,
                source.extend_vocabulary,
                source.new_weights,
            )
            for source, file in zip(sources, checkpoints, strict=True)
        ]
        for source, file, bound in zip(sources, checkpoints, bindings, strict=True):
            assign_weights(source.owner(made), file, bound, _initialize)
    for variable in made.variables:
        if variable._value is None:  # New weights, and the seeds of dropout: no file holds them.
            variable._deferred_initialize()
    return made


def _initialize(variable: keras.Variable, value: np.ndarray) -> None:
    """Give a variable its first value.

    Keras has no public way to do so. Random values would cost more time than the file, and memory
    beside it, as they go only when the new ones are there.
    """
    variable._initializer = lambda shape, dtype: value
    variable._deferred_initialize()


def _check_blocks(arguments: dict, checkpoints: list[Checkpoint]) -> None:
    """Refuse a config with more blocks than the files have tensors, before they are made."""
    blocks = sum(_blocks(arguments))
    tensors = sum(len(file.keys()) for file in checkpoints)
    if blocks > tensors:
        raise ValueError(
            f"{checkpoints[0].path}: the configuration has {blocks} blocks, but there are only "
            f"{tensors} tensors."
        )


def _blocks(config: dict) -> Iterator[int]:
    for name, value in config.items():
        if isinstance(value, dict):
            yield from _blocks(value)
        elif name in ("depth", "num_layers") and isinstance(value, int):
            yield value
