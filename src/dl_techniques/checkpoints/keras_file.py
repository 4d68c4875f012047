"""`.keras` files: what Keras reads, with the file's name in what is told of a damaged one."""

import json
import os
import pathlib
import zipfile

import keras


def read_keras_file(path: str | os.PathLike, dtype: str | None = None):
    """Return the model in a `.keras` file.

    Args:
        path: The file.
        dtype: The policy of the model; default: the one that it was saved with.

    Raises:
        ValueError: naming the file, if it is absent or damaged, or Keras cannot read it.
    """
    if not pathlib.Path(path).is_file():
        raise ValueError(f"There is no file {path}.")
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} cannot be read: it is not a whole zip archive.")
    try:
        if dtype is None:
            return keras.saving.load_model(path, compile=False)
        with zipfile.ZipFile(path) as file:
            description = json.loads(file.read("config.json"))
        description["config"]["dtype"] = dtype
        description["compile_config"] = None
        model = keras.saving.deserialize_keras_object(description)
        model.load_weights(path)
        return model
    except (zipfile.BadZipFile, OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
