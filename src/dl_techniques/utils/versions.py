"""The versions of what computes, for files that results and runs leave."""

import importlib.metadata
import platform

import keras

_PACKAGES = (
    *("dl_techniques", "keras", "numpy", "pillow"),
    *("jax", "tensorflow-cpu", "tensorflow", "torch"),
)


def versions() -> dict[str, str]:
    """Return name -> version of Python and the packages that are installed, and the backend."""
    found = {"python": platform.python_version(), "backend": keras.backend.backend()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
