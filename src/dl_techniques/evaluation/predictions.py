"""Files of predictions: one JSON object a line, appended to, so that a killed run can go on.

The first line holds the settings under which the answers were given, the others are records.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dl_techniques.utils.appended_file import AppendedFile

Record = dict[str, Any]


class Predictions:
    """The predictions of one process.

    Args:
        path: The file; a half-written last line is cut off.
        settings: Of these answers.

    Raises:
        ValueError: if the file is of other settings, or damaged.
    """

    def __init__(self, path: Path, settings: dict[str, Any]):
        self.records: list[Record] = []
        self._file = AppendedFile(path)
        found, size = None, 0
        if path.is_file():
            found, self.records, size = read_predictions(path)
        if found is None:
            self._file.append(_line({"settings": settings}))
            return
        _check_settings(path, found, settings)
        self._file.restore(size)

    def append(self, records: Iterable[Record]):
        """Add records, on their way to the disk when this returns."""
        records = list(records)
        self._file.append("".join(map(_line, records)))
        self.records += records


def read_predictions(path: Path) -> tuple[dict[str, Any] | None, list[Record], int]:
    """Return (settings, records, the bytes that they take) of a file.

    A last line that was not written to its end is left out.

    Raises:
        ValueError: for any other line that is no JSON object, or no settings before the records.
    """
    data = path.read_bytes()
    size = data.rfind(b"\n") + 1
    rows = []
    for number, line in enumerate(data[:size].splitlines(), start=1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: no JSON ({error}).") from error
    if rows and set(rows[0]) != {"settings"}:
        raise ValueError(f"{path} does not begin with its settings: it holds no predictions.")
    return (rows[0]["settings"] if rows else None), rows[1:], size


def _check_settings(path: Path, found: dict, settings: dict):
    keys = sorted({*found, *settings})
    changed = [key for key in keys if found.get(key) != settings.get(key)]
    if changed:
        differences = "; ".join(
            f"{key} was {found.get(key)!r:.80}, is {settings.get(key)!r:.80}" for key in changed
        )
        raise ValueError(
            f"{path} holds answers of other settings ({differences}). Choose another folder, or "
            "remove the file."
        )


def _line(value: dict) -> str:
    return json.dumps(value, ensure_ascii=False) + "\n"
