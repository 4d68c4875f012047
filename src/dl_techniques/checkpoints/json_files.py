"""JSON files: small, checked, written atomically."""

import json
import os
import pathlib

# A header of 4 MB names 30,000 tensors; parsed, it takes less than 100 MB.
MAX_JSON_BYTES = 4_000_000


def read_json(path: str | os.PathLike, max_bytes: int = MAX_JSON_BYTES) -> dict:
    """Return the object that a JSON file holds.

    Args:
        path: The file.
        max_bytes: Its largest size.

    Raises:
        ValueError: naming the file, if it is absent, too large, or not a JSON object.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise ValueError(f"{path} does not exist.")
    if path.stat().st_size > max_bytes:
        raise ValueError(f"{path} has more than {max_bytes} bytes: not read as JSON.")
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(value).__name__}.")
    return value


def write_json(path: str | os.PathLike, value: dict) -> None:
    """Write a JSON file atomically."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.writing")
    temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, path)
