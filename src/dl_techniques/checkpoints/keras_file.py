"""`.keras` files: what Keras reads, with the file's name in what is told of a damaged one."""

import os
import pathlib
import zipfile

import keras


def read_keras_file(path: str | os.PathLike):
    """Return the model in a `.keras` file.

    Raises:
        ValueError: naming the file, if it is absent or damaged, or Keras cannot read it.
    """
    if not pathlib.Path(path).is_file():
        raise ValueError(f"There is no file {path}.")
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} cannot be read: it is not a whole zip archive.")
    try:
        return keras.saving.load_model(path, compile=False)
    except (zipfile.BadZipFile, OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
