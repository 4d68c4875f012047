"""Tests of what only some backends have."""

import keras


def only_on(*backends):
    """Have a test collected on these backends alone: the others lack what it is about."""
    return lambda test: test if keras.backend.backend() in backends else None
