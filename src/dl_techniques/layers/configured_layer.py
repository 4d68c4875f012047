"""The base of every layer here: a config that is exactly its constructor arguments."""

import inspect
from numbers import Integral

import keras

PACKAGE = "dl_techniques"
register = keras.saving.register_keras_serializable(package=PACKAGE)


class ConfiguredLayer(keras.layers.Layer):
    """A layer that keeps each constructor argument in an attribute of the same name.

    A subclass whose constructor passes `**kwargs` on has the arguments of its base, too; of those
    that it gives itself, it leaves the names out of `arguments`.
    """

    def arguments(self) -> dict:
        """Return every constructor argument with its present value."""
        return {name: getattr(self, name) for name in argument_names(type(self))}

    def get_config(self) -> dict:
        """Return the arguments, and those of every Keras layer.

        Raises:
            ValueError: if a part was quantized, see `require_floats`.
        """
        require_floats(self)
        return {**self.arguments(), **super().get_config()}


def argument_names(layer_class: type) -> list[str]:
    """Return the names of the constructor's arguments, with those that `**` passes on to bases."""
    names = {}
    for owner in layer_class.__mro__[: layer_class.__mro__.index(ConfiguredLayer)]:
        if "__init__" not in vars(owner):
            continue
        parameters = list(inspect.signature(owner.__init__).parameters.values())[1:]
        names |= {
            p.name: None for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        }
        if not any(p.kind == p.VAR_KEYWORD for p in parameters):
            break
    return list(names)


def call_arguments(layer: keras.layers.Layer, *args, **kwargs) -> dict:
    """Return the arguments that a call is given, by their names; those left out are absent."""
    return inspect.signature(layer.call).bind(*args, **kwargs).arguments


def require_floats(layer: keras.layers.Layer) -> None:
    """Raise ValueError if a part was quantized, which no argument of the layer tells.

    A `.keras` file would have to be read into floats, and could not.
    """
    for part in layer._flatten_layers(include_self=False):
        mode = part.quantization_mode
        if mode and mode != layer.quantization_mode:
            raise ValueError(
                f"{part.path} was quantized ({mode}), which the config of {layer.name} cannot "
                "hold: save before `quantize`, or only weights (`save_weights`) or adapters."
            )


def require_width(layer: keras.layers.Layer, shape, name: str = "hidden_dim") -> None:
    """Raise ValueError unless the last axis of an input's shape is as long as `layer.<name>`."""
    width = getattr(layer, name)
    if shape[-1] != width:
        raise ValueError(
            f"{layer.name} expects inputs of width {name}={width}, got shape {tuple(shape)}."
        )


def require_fixed(length, what: str) -> None:
    """Raise ValueError if a length, None where unknown, is an expression of JAX's export.

    What needs its root cannot have it: the shapes of such a program are polynomials.
    """
    if length is not None and not isinstance(length, Integral):
        raise ValueError(
            f"{what} must be fixed for export on JAX, got {length}: export a model whose "
            "`keras.Input` has fixed sizes."
        )


def require_divisible(total: int, parts: int, total_name: str, parts_name: str) -> None:
    """Raise ValueError unless `total` is a positive multiple of `parts`."""
    if parts < 1 or total < 1 or total % parts:
        raise ValueError(
            f"{total_name}={total} must be a positive multiple of {parts_name}={parts}."
        )
