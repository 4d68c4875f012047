"""Changing the weights of layers that are built: what Keras has no public way for is here."""

import contextlib
import difflib
import gc
import re
from collections.abc import Iterable

import keras

from dl_techniques.optimization.component_map import component_pattern


def dense_layers(model: keras.Model) -> list[keras.layers.Dense]:
    """Return all Dense layers in the order of the model's weights."""
    place = {id(weight): i for i, weight in enumerate(model.weights)}
    found = [layer for layer in model._flatten_layers() if isinstance(layer, keras.layers.Dense)]
    return sorted(found, key=lambda layer: place[id(layer._kernel)])


def kernel_shape(layer: keras.layers.Dense) -> tuple[int, int]:
    """Return (in, out), of packed kernels too."""
    return layer.input_spec.axes[-1], layer.units


def matching_dense(model: keras.Model, pattern: str) -> list[keras.layers.Dense]:
    """Return the Dense layers whose paths match a pattern over whole parts.

    Raises:
        ValueError: naming the nearest paths if there is none, or the embedding that matches.
    """
    if not isinstance(model, keras.Model) or not model.built:
        raise ValueError(
            f"{model.name} must be a built keras.Model: a part of one shares its compiled programs."
        )
    compiled = component_pattern(pattern)
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.Embedding) and compiled.search(layer.path):
            raise ValueError(
                f"Pattern {pattern!r} matches the embedding {layer.path}, on whose table (tied, or "
                "in 4 bits) Keras 3.15 has no sound LoRA (keras#23393, #23630). Name Dense layers, "
                r"such as 'language_decoder/block_\d+'."
            )
    dense = dense_layers(model)
    found = [layer for layer in dense if compiled.search(layer.path)]
    if not found:
        near = nearest(pattern, [layer.path for layer in dense])
        raise ValueError(
            f"Pattern {pattern!r} matches no Dense layer of {model.name}. The nearest paths are "
            f"{', '.join(near) or 'none: it has no Dense layer'}. Patterns match whole parts."
        )
    return found


def nearest(pattern: str, paths: Iterable[str]) -> list[str]:
    r"""Return the three paths most like a pattern, `block_\d+` standing for every block."""
    kinds = dict.fromkeys(re.sub(r"_\d+(?=/)", r"_\\d+", path) for path in paths)
    return difflib.get_close_matches(pattern, kinds, n=3, cutoff=0.0)


def can_train(model: keras.Model) -> list[keras.Variable]:
    """Return the weights that `model.trainable = True` opens, in the model's order."""
    ids = {id(v) for layer in model._flatten_layers() for v in layer._trainable_variables}
    return [weight for weight in model.weights if id(weight) in ids]


def track_again(layer: keras.layers.Layer, variable: keras.Variable, trainable: bool) -> None:
    """Move a variable to the end of those that can train, or of the others, open or not as it is.

    Args:
        layer: Its layer.
        variable: The variable.
        trainable: Whether `layer.trainable = True` shall open it.
    """
    was_trainable, locked = variable.trainable, layer._tracker.locked
    layer._untrack_variable(variable)
    variable.trainable = trainable
    layer._tracker.unlock()
    layer._track_variable(variable)
    if locked:
        layer._tracker.lock()
    variable.trainable = was_trainable


@contextlib.contextmanager
def quick_deletion():
    """Let `del layer.weight` take no time.

    Keras collects garbage after each, 0.5 s in a process with a backend; a weight that nothing
    holds is gone without that.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def forget_programs(model: keras.Model) -> None:
    """Drop what was compiled, or collected by an optimizer, for other variables than there are.

    A model whose optimizer has state is no longer compiled.
    """
    model.train_function = model.test_function = model.predict_function = None
    model._post_quantize(None)  # On PyTorch the parts hold on to weights that are gone.
    # A program that TensorFlow has traced goes on with the old layers.
    model.__dict__.pop("_generation_engine", None)
    if model.compiled and model.optimizer is not None and model.optimizer.built:
        model.optimizer, model.compiled = None, False
