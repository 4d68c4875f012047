"""The base of every layer here: a config that is exactly its constructor arguments."""

import inspect

import keras

PACKAGE = "dl_techniques"
register = keras.saving.register_keras_serializable(package=PACKAGE)


class ConfiguredLayer(keras.layers.Layer):
    """A layer that keeps each constructor argument in an attribute of the same name."""

    def arguments(self) -> dict:
        """Return every constructor argument with its present value."""
        names = inspect.signature(type(self).__init__).parameters
        return {name: getattr(self, name) for name in names if name not in ("self", "kwargs")}

    def get_config(self) -> dict:
        """Return the arguments, and those of every Keras layer."""
        return {**super().get_config(), **self.arguments()}


def require_divisible(total: int, parts: int, total_name: str, parts_name: str) -> None:
    """Raise ValueError unless `total` is a positive multiple of `parts`."""
    if parts < 1 or total < 1 or total % parts:
        raise ValueError(
            f"{total_name}={total} must be a positive multiple of {parts_name}={parts}."
        )
