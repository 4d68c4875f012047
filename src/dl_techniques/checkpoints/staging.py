"""Folders are written beside and moved into their place whole."""

import contextlib
import os
import pathlib
import tempfile
from collections.abc import Iterator

from dl_techniques.checkpoints.safetensors_io import INDEX_FILE, SINGLE_FILE

CONFIG_FILE = "config.json"
# What may stand beside weights: of an older model, it would be taken for the new one's.
_OWNED = (
    CONFIG_FILE,
    SINGLE_FILE,
    INDEX_FILE,
    "model-?????-of-?????.safetensors",
    "README.md",
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
    "merges.txt",
    "preprocessor_config.json",
    "processor_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "video_preprocessor_config.json",
    "vocab.json",
)


@contextlib.contextmanager
def staged(folder: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Give a temporary folder, whose files take their places in `folder` at the end.

    After an error or ctrl-C `folder` is as it was. config.json comes last, and an older one goes
    first, so that a folder with config.json is complete. Files of an older model go, too; others
    stay.

    Args:
        folder: Made where it does not exist.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".writing-") as temporary:
        yield pathlib.Path(temporary)
        new = sorted(os.listdir(temporary), key=lambda name: name == CONFIG_FILE)
        (folder / CONFIG_FILE).unlink(missing_ok=True)
        for pattern in _OWNED:
            for old in folder.glob(pattern):
                if old.name not in new:
                    old.unlink()
        for name in new:
            os.replace(pathlib.Path(temporary) / name, folder / name)
