"""Rows of JSON files: an index of where each element begins, made in one pass in small memory."""

import array
import json
import re
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from dl_techniques.datasets.row_files import FileRows, json_object, read_span

_CHUNK = 1 << 20
_BLANK = re.compile(r"[ \t\r\n]*")
_ID_FIELDS = {"questions": "question_id", "annotations": "question_id", "images": "id"}


class JsonArray(NamedTuple):
    """Where the objects of an array are: int64[n] first bytes, ends, and ids (-1 without)."""

    starts: np.ndarray
    ends: np.ndarray
    ids: np.ndarray


def index_json(path: str | Path) -> tuple[dict[str, Any], dict[str, JsonArray]]:
    """Finds the arrays of objects in a JSON file, without keeping their elements.

    Args:
        path: holds an array of objects, or an object with such arrays among its values.

    Returns:
        (the values that are no such arrays, the arrays by their keys; "" for the file's own).

    Raises:
        ValueError: the file is not JSON of this form; the byte is named.
    """
    header: dict[str, Any] = {}
    arrays: dict[str, JsonArray] = {}
    with open(path, "rb") as file:
        scanner = _Scanner(file, path)
        if scanner.peek() == "[":
            arrays[""] = _index_array(scanner, "")
        else:
            scanner.take("{")
            while scanner.peek() != "}":
                key = scanner.value()[0]
                scanner.take(":")
                if scanner.peek() == "[":
                    arrays[key] = _index_array(scanner, key)
                else:
                    _, start, end = scanner.value()
                    header[key] = json.loads(read_span(path, start, end))
                if scanner.peek() != "}":
                    scanner.take(",")
            scanner.take("}")
        if scanner.peek():
            raise scanner.error("the end of the file")
    return header, arrays


def _index_array(scanner: "_Scanner", key: str) -> JsonArray:
    starts, ends, ids = (array.array("q") for _ in range(3))
    field = _ID_FIELDS.get(key)
    scanner.take("[")
    while scanner.peek() != "]":
        value, start, end = scanner.value()
        starts.append(start)
        ends.append(end)
        number = None
        if field and isinstance(value, dict):
            number = value.get(field, value.get("image_id"))
        ids.append(number if isinstance(number, int) else -1)
        if scanner.peek() != "]":
            scanner.take(",")
    scanner.take("]")
    return JsonArray(*(np.array(a, np.int64) for a in (starts, ends, ids)))


class _Scanner:
    """Reads JSON value by value from a window of the file.

    The window is decoded as latin-1, in which a character is a byte: JSON's own signs are ASCII,
    so the values' ends are right, and their texts are not used.
    """

    def __init__(self, file: BinaryIO, path: str | Path):
        self._file, self._path = file, path
        self._decoder = json.JSONDecoder()
        mark = file.read(3)
        self._text = "" if mark == b"\xef\xbb\xbf" else mark.decode("latin-1")
        self._start = 3 - len(self._text) if len(mark) == 3 else 0
        self._at = 0
        self._ended = False

    def peek(self) -> str:
        """Returns the next sign that is not blank, "" at the end."""
        while True:
            self._at = _BLANK.match(self._text, self._at).end()
            if self._at < len(self._text):
                return self._text[self._at]
            if self._ended:
                return ""
            self._more()

    def take(self, sign: str):
        """Goes past a sign."""
        if self.peek() != sign:
            raise self.error(repr(sign))
        self._at += 1

    def value(self) -> tuple[Any, int, int]:
        """Goes past a value and returns it with its first byte and its end."""
        self.peek()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                # A value that the window cuts fails at its end, or in an open string.
                cut = error.msg.startswith("Unterminated") or error.pos > len(self._text) - 16
                if self._ended or not cut:
                    self._at = error.pos
                    raise self.error("JSON") from error
            else:
                # A number that the window cuts is one too, but for its rest: 1 of 1.5, or of 1e5.
                after = self._text[end : end + 1]
                if self._ended or (after and (isinstance(value, dict) or after not in ".eE")):
                    start, self._at = self._at, end
                    return value, self._start + start, self._start + end
            self._more()

    def error(self, expected: str) -> ValueError:
        """Returns the error that something else was expected here."""
        found = self._text[self._at : self._at + 20]
        return ValueError(
            f"{self._path}, byte {self._start + self._at}: expected {expected}, found {found!r}. "
            "Expected is a JSON array of objects, or an object that holds such arrays."
        )

    def _more(self):
        rest = self._text[self._at :]
        # As much again as could not be used, so that long values take few attempts.
        data = self._file.read(max(_CHUNK, len(rest)))
        self._ended = not data
        self._start += self._at
        self._text = rest + data.decode("latin-1")
        self._at = 0


class JsonRows(FileRows):
    """Rows that are the objects of an array in a JSON file."""

    _images_beside = True

    def __init__(self, path: str | Path, elements: JsonArray):
        super().__init__(path)
        self._elements = elements
        self.columns = self._first_columns()

    def __len__(self) -> int:
        return len(self._elements.starts)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return _element(self.path, self._elements, index)


class QuestionRows(JsonRows):
    """Questions of VQA's official files, each with its annotation.

    Args:
        path: the file of questions.
        questions: where they are.
        header: the file's other values; `data_subtype` names the images' part of COCO.
        annotations_path: the file of annotations.

    Raises:
        ValueError: there are no annotations, or not one for each question.
    """

    def __init__(
        self, path: Path, questions: JsonArray, header: dict[str, Any], annotations_path: Path
    ):
        self._subtype = header.get("data_subtype")
        self._annotations_path = annotations_path
        if not annotations_path.is_file():
            raise ValueError(
                f"{path} holds questions, but '{annotations_path}' with their answers does not "
                "exist. Name it: annotations='...'."
            )
        _, arrays = index_json(annotations_path)
        if "annotations" not in arrays:
            raise ValueError(f"{annotations_path} has no 'annotations', only {sorted(arrays)}.")
        self._annotations = arrays["annotations"]
        order = np.argsort(self._annotations.ids, kind="stable")
        found = self._annotations.ids[order]
        places = np.searchsorted(found, questions.ids)
        missing = places == len(found)
        missing[~missing] = found[places[~missing]] != questions.ids[~missing]
        if missing.any():
            raise ValueError(
                f"{int(missing.sum())} of {len(missing)} questions in {path} have no annotation in "
                f"{annotations_path}; the first one is question {questions.ids[missing][0]}."
            )
        self._matching = order[places]
        super().__init__(path, questions)

    def __getitem__(self, index: int) -> dict[str, Any]:
        place = int(self._matching[index])
        annotation = _element(self._annotations_path, self._annotations, place)
        return {"data_subtype": self._subtype, **annotation, **super().__getitem__(index)}


class CaptionRows(JsonRows):
    """Images of COCO's official caption files, each with its `annotations`."""

    def __init__(self, path: Path, images: JsonArray, annotations: JsonArray):
        self._annotations = annotations
        self._order = np.argsort(annotations.ids, kind="stable")
        found = annotations.ids[self._order]
        self._first = np.searchsorted(found, images.ids, side="left")
        self._end = np.searchsorted(found, images.ids, side="right")
        super().__init__(path, images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        chosen = self._order[self._first[index] : self._end[index]]
        annotations = [_element(self.path, self._annotations, int(k)) for k in chosen]
        return {**super().__getitem__(index), "annotations": annotations}


def _element(path: Path, elements: JsonArray, index: int) -> dict[str, Any]:
    return json_object(
        read_span(path, int(elements.starts[index]), int(elements.ends[index])).decode("utf-8")
    )


def open_json(path: str | Path, annotations: str | Path | None = None) -> JsonRows:
    """Opens a JSON file of rows.

    Args:
        path: an array of rows (LLaVA); an object with one such array, as `data` (TextVQA); COCO's
            captions; or VQA's questions.
        annotations: the file of the questions' answers. Default: beside the file, with the name
            that VQA gives it.

    Raises:
        ValueError: the file holds none of these.
    """
    path = Path(path)
    header, arrays = index_json(path)
    if "questions" in arrays:
        answers = path.name.replace("OpenEnded_", "").replace("questions", "annotations")
        place = path.with_name(answers) if annotations is None else Path(annotations)
        return QuestionRows(path, arrays["questions"], header, place)
    if annotations is not None:
        raise ValueError(f"{path} has no 'questions' that annotations='{annotations}' belong to.")
    if {"images", "annotations"} <= arrays.keys():
        return CaptionRows(path, arrays["images"], arrays["annotations"])
    filled = {key: found for key, found in arrays.items() if len(found.starts)}
    if len(filled) != 1:
        raise ValueError(
            f"{path} must hold one array of rows, 'questions', or 'images' with 'annotations'; it "
            f"holds the arrays {sorted(filled)}."
        )
    return JsonRows(path, next(iter(filled.values())))
