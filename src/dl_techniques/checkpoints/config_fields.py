"""Reads the fields of a reference's config.json with errors that name them."""

import numbers
from typing import Any

# Beyond this (which infinity is too) a JSON number may not fit a float.
LARGEST = 1e300


class Fields:
    """The fields of one JSON object.

    Args:
        config: The object.
        where: What it is, for messages.
        defaults: What the reference's class takes for absent fields.

    Raises:
        ValueError: if it is no object.
    """

    def __init__(self, config: Any, where: str, defaults: dict | None = None):
        if not isinstance(config, dict):
            raise ValueError(f"{where} must be an object, got {type(config).__name__}.")
        self.config = {**(defaults or {}), **config}
        self.where = where

    def get(self, name: str) -> Any:
        """Return a field, None where there is none."""
        return self.config.get(name)

    def count(self, name: str) -> int:
        """Return a positive whole number.

        Raises:
            ValueError: naming the field, if it is anything else.
        """
        value = self.get(name)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 2**31:
            raise self.error(name, "expected a positive whole number")
        return value

    def number(self, name: str) -> float:
        """Return a positive finite number.

        Raises:
            ValueError: naming the field, if it is anything else.
        """
        return positive_number(self.get(name), f"{self.where}: {name}")

    def flag(self, name: str) -> bool:
        """Return True or False, False for an absent field.

        Raises:
            ValueError: naming the field, if it is anything else.
        """
        value = self.get(name)
        if value not in (True, False, None) or isinstance(value, float):
            raise self.error(name, "expected true or false")
        return bool(value)

    def require(self, name: str, *allowed: Any) -> None:
        """Check that a field has one of these values; None stands for an absent field.

        Raises:
            ValueError: naming the field and its value.
        """
        if not any(self.get(name) == value for value in allowed):
            shown = " or ".join(repr(value) for value in allowed if value is not None)
            raise self.error(name, f"only {shown} is supported")

    def error(self, name: str, what: str) -> ValueError:
        """Return an error about a field."""
        return ValueError(f"{self.where}: {name}={self.get(name)!r}: {what}.")


def positive_number(value: Any, name: str) -> float:
    """Return a positive finite number.

    Raises:
        ValueError: naming it, if it is anything else.
    """
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not is_number or not 0 < value < LARGEST:
        raise ValueError(f"{name}={value!r}: expected a positive number.")
    return float(value)


def square(fields: Fields, name: str) -> int:
    """Return the side of a square that is written as one number or as two equal ones.

    Raises:
        ValueError: naming the field, if it is anything else.
    """
    value = fields.get(name)
    if isinstance(value, list) and len(value) == 2 and value[0] == value[1]:
        value = value[0]
    return Fields({name: value}, fields.where).count(name)


def with_defaults(config: dict, defaults: dict, where: str) -> dict:
    """Return one of our configs with every argument.

    Args:
        config: Keyword arguments.
        defaults: All arguments' defaults.
        where: What it is, for messages.

    Raises:
        ValueError: naming unknown arguments.
    """
    unknown = sorted(set(config) - set(defaults))
    if unknown:
        raise ValueError(f"{where} has no arguments {unknown}.")
    return {**defaults, **config}
