"""Rows of files: opened without reading them, each row read where it is asked for.

Files are opened anew for each read, so that threads and other processes may read at the same time
and everything can be pickled.
"""

import array
import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dl_techniques.datasets.image_place import ImagePlace


class FileRows:
    """Rows of one file, by number.

    Args:
        path: the file.

    Attributes:
        columns: names of the rows' fields, of the first row where rows may differ.
        block_ends: int[n], the number of rows in each block that is read whole for any of its rows
            and those before it; None where a row is read alone.
    """

    columns: list[str]
    block_ends: np.ndarray | None = None
    _unit = "row"
    # Whether the images may lie in a folder or an archive of their own beside the file.
    _images_beside = False

    def __init__(self, path: str | Path):
        self.path = Path(path)

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, index: int) -> dict[str, Any]:
        raise NotImplementedError

    def number(self, index: int) -> int:
        """Returns which row of the file it is, from 1."""
        return index + 1

    def where(self, index: int) -> str:
        """Returns where a row is, for error messages."""
        return f"{self.path}, {self._unit} {self.number(index)}"

    def default_id(self, index: int) -> str:
        """Returns the id of a row that has none."""
        return f"{self.path.stem}-{self.number(index)}"

    def images(self, index: int) -> ImagePlace:
        """Returns where the images are that a row names, unless the caller knows better."""
        if self._images_beside:
            return ImagePlace.beside(self.path)
        return ImagePlace(str(self.path.parent))

    def _first_columns(self) -> list[str]:
        if not len(self):
            return []
        try:
            return list(self[0])
        except ValueError as error:
            raise ValueError(f"{self.where(0)}: {error}") from error


class _SpanRows(FileRows):
    """Rows that are stretches of a text file.

    Args:
        path: the file.
        starts: int64[n], where each row begins, in bytes.
        ends: int64[n], where it ends.
        numbers: int64[n], its number in the file.
    """

    _images_beside = True

    def __init__(self, path: Path, starts: np.ndarray, ends: np.ndarray, numbers: np.ndarray):
        super().__init__(path)
        self._starts, self._ends, self._numbers = starts, ends, numbers

    def __len__(self) -> int:
        return len(self._starts)

    def number(self, index: int) -> int:
        return int(self._numbers[index])

    def _read(self, index: int) -> str:
        data = read_span(self.path, int(self._starts[index]), int(self._ends[index]))
        try:
            return data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError(f"not UTF-8: {error}.") from error


class JsonLinesRows(_SpanRows):
    """Rows of a JSONL file; blank lines are no rows."""

    _unit = "line"

    def __init__(self, path: str | Path):
        starts, ends, numbers = (array.array("q") for _ in range(3))
        end = 0
        with open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                start, end = end, end + len(line)
                if not line.isspace():
                    starts.append(start)
                    ends.append(end)
                    numbers.append(number)
        super().__init__(Path(path), *(np.array(a, np.int64) for a in (starts, ends, numbers)))
        self.columns = self._first_columns()

    def __getitem__(self, index: int) -> dict[str, Any]:
        return json_object(self._read(index))


class CsvRows(_SpanRows):
    """Rows of a table in text, its first row the columns; `.tsv` files have tabs, others commas.

    Raises:
        ValueError: a row has another number of cells than there are columns.
    """

    def __init__(self, path: str | Path):
        path = Path(path)
        self._delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
        starts, ends = array.array("q"), array.array("q")
        with path.open("rb") as file:
            lines = _CountedLines(file)
            table = csv.reader(lines, delimiter=self._delimiter)
            try:
                self.columns = next(table, [])
                start = lines.position
                for row in table:
                    if row:
                        starts.append(start)
                        ends.append(lines.position)
                    start = lines.position
            except (csv.Error, UnicodeDecodeError) as error:
                raise ValueError(f"{path}, line {table.line_num + 1}: {error}.") from error
        numbers = np.arange(1, len(starts) + 1, dtype=np.int64)
        super().__init__(path, np.array(starts, np.int64), np.array(ends, np.int64), numbers)

    def __getitem__(self, index: int) -> dict[str, Any]:
        text = io.StringIO(self._read(index), newline="")
        cells = next(csv.reader(text, delimiter=self._delimiter))
        if len(cells) != len(self.columns):
            raise ValueError(f"{len(cells)} cells for the columns {self.columns}.")
        return dict(zip(self.columns, cells, strict=True))


class _CountedLines:
    """Lines of a binary file as text; knows how far it has read."""

    def __init__(self, file: Any):
        self._file = file
        self.position = 0

    def __iter__(self) -> "_CountedLines":
        return self

    def __next__(self) -> str:
        line = self._file.readline()
        if not line:
            raise StopIteration
        encoding = "utf-8" if self.position else "utf-8-sig"
        self.position += len(line)
        return line.decode(encoding)


class TextRows(_SpanRows):
    """Passages of a text file: cut behind a blank line, or in a long paragraph behind any line.

    A passage is a document of its own in training. A whole book as one would be far longer than a
    row, and would come at once wherever it is mixed with other sources.
    """

    columns = ["text"]
    _unit = "passage"
    _CUT_AT_BLANK_LINES, _CUT_AT_LINES = 2_000, 8_000  # Bytes from which a passage may end.

    def __init__(self, path: str | Path):
        ends, start, end = array.array("q"), 0, 0
        with open(path, "rb") as file:
            for line in file:
                end += len(line)
                enough = self._CUT_AT_BLANK_LINES if line.isspace() else self._CUT_AT_LINES
                if end - start >= enough:
                    ends.append(end)
                    start = end
        if end > start or not ends:
            ends.append(end)
        numbers = np.arange(1, len(ends) + 1, dtype=np.int64)
        super().__init__(Path(path), np.array([0, *ends[:-1]], np.int64), np.array(ends), numbers)

    def __getitem__(self, index: int) -> dict[str, Any]:
        name = self.path.stem if len(self) == 1 else self.default_id(index)
        return {"text": self._read(index).strip("\r\n"), "id": name}


class JoinedRows:
    """Rows of several files, one after the other.

    Attributes:
        parts: what holds the rows of each file.
    """

    def __init__(self, parts: Sequence[FileRows]):
        self.parts = list(parts)
        self._ends = np.cumsum([len(part) for part in parts], dtype=np.int64)
        self.block_ends = None
        if all(part.block_ends is not None for part in parts):
            starts = [0, *self._ends[:-1]]
            ends = [p.block_ends + start for p, start in zip(parts, starts, strict=True)]
            self.block_ends = np.concatenate(ends)

    def __len__(self) -> int:
        return int(self._ends[-1]) if self.parts else 0

    def __getitem__(self, index: int) -> dict[str, Any]:
        part, inside = self._find(index)
        return part[inside]

    def where(self, index: int) -> str:
        """Returns where a row is, for error messages."""
        part, inside = self._find(index)
        return part.where(inside)

    def default_id(self, index: int) -> str:
        """Returns the id of a row that has none."""
        part, inside = self._find(index)
        return part.default_id(inside)

    def images(self, index: int) -> ImagePlace:
        """Returns where the images are that a row names."""
        part, inside = self._find(index)
        return part.images(inside)

    def _find(self, index: int) -> tuple[FileRows, int]:
        number = int(np.searchsorted(self._ends, index, side="right"))
        return self.parts[number], index - (int(self._ends[number - 1]) if number else 0)


def read_span(path: str | Path, start: int, end: int) -> bytes:
    """Returns the bytes of a file from `start` to before `end`."""
    with open(path, "rb") as file:
        file.seek(start)
        return file.read(end - start)


def json_object(text: str) -> dict[str, Any]:
    """Returns a JSON object.

    Raises:
        ValueError: the text is not JSON, or not an object.
    """
    try:
        row = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error}).") from error
    if not isinstance(row, dict):
        raise ValueError(f"expected a JSON object, got {type(row).__name__}.")
    return row
