"""Fields of public rows: checked access, and the samples that are made of them."""

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from dl_techniques.datasets.samples import Sample, make_sample
from dl_techniques.preprocessing.messages import IMAGE_MARK

Row = Mapping[str, Any]


def row_id(row: Row, *names: str) -> str:
    """Returns the first of these fields that is not null, as text; "" without any."""
    return next((str(row[name]) for name in names if row.get(name) is not None), "")


def bad_row(name: str, message: str) -> ValueError:
    """Returns the error about the row with this id."""
    return ValueError(f"row {name!r}: {message}" if name else message)


def text_field(row: Row, field: str, name: str) -> str:
    """Returns a field that must be text.

    Raises:
        ValueError: it is absent, null, blank or of another type; `name` names the row.
    """
    value = row.get(field)
    if not isinstance(value, str) or not value.strip():
        found = repr(value) if isinstance(value, str) else type(value).__name__
        raise bad_row(name, f"'{field}' must be text, got {found}; the row has {sorted(row)}.")
    return value


def list_field(row: Row, field: str, name: str) -> list[Any]:
    """Returns a field that must be a list with something in it."""
    value = row.get(field)
    if not isinstance(value, (list, tuple)) or not value:
        found = "an empty list" if value == [] else type(value).__name__
        raise bad_row(name, f"'{field}' must be a non-empty list, got {found}.")
    return list(value)


def dict_list(row: Row, field: str, name: str) -> list[Mapping[str, Any]]:
    """Returns a field that must be a list of dicts with something in it."""
    values = list_field(row, field, name)
    wrong = [value for value in values if not isinstance(value, Mapping)]
    if wrong:
        raise bad_row(name, f"'{field}' must hold dicts, not {wrong[0]!r:.80}.")
    return values


def source_field(row: Row) -> str:
    """Returns the data set that a row says it is from, "" without any."""
    return str(row.get("source") or "")


def row_images(row: Row, name: str, *fields: str) -> list[Any]:
    """Returns the image sources in the first of these fields that is not null.

    A field holds one image or a list: a name, encoded bytes, `{"bytes", "path"}`, a PIL image or
    an array.

    Raises:
        ValueError: a value is none of these; `name` names the row.
    """
    for field in fields:
        value = row.get(field)
        if value is not None:
            values = value if isinstance(value, (list, tuple)) else [value]
            return [_image(item, field, name) for item in values]
    return []


def needed_image(row: Row, name: str, *fields: str) -> list[Any]:
    """Returns `row_images`, which must not be empty."""
    images = row_images(row, name, *fields)
    if not images:
        raise bad_row(name, f"no image in {list(fields)}; the row has {sorted(row)}.")
    return images


def _image(value: Any, field: str, name: str) -> Any:
    if isinstance(value, Mapping) and {"bytes", "path"} & value.keys():
        stored = value.get("bytes")
        value = value.get("path") if stored is None else stored
        if not value:
            raise bad_row(name, f"an image in '{field}' has neither 'bytes' nor 'path'.")
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if isinstance(value, str) and re.match("https?://", value):
        raise bad_row(
            name, f"'{field}' is the address {value!r}; download the images and name the files."
        )
    known = isinstance(value, (str, bytes, bytearray, np.ndarray, Image.Image))
    if not known or (isinstance(value, (str, bytes, bytearray)) and not value):
        raise bad_row(
            name,
            f"'{field}' must be a name, encoded bytes, {{'bytes', 'path'}} or a picture, "
            f"got {value!r:.80}.",
        )
    return value


def answer_list(value: Any, name: str) -> list[str]:
    """Returns answers that are stored as one text, or as a list of texts or of `{"answer": ...}`.

    Raises:
        ValueError: there is none, as in test splits, or one is not text; `name` names the row.
    """
    answers = [value] if isinstance(value, str) else value
    if not isinstance(answers, (list, tuple)) or not answers:
        raise bad_row(name, f"no answers, got {value!r:.80}; test splits have none.")
    answers = [a.get("answer") if isinstance(a, Mapping) else a for a in answers]
    wrong = [a for a in answers if not isinstance(a, str)]
    if wrong:
        raise bad_row(name, f"an answer must be text, got {wrong[0]!r:.80}.")
    if not any(answer.strip() for answer in answers):
        raise bad_row(name, "every answer is blank.")
    return answers


def most_frequent(answers: Iterable[str]) -> str:
    """Returns the most frequent answer that is not blank, of equally frequent ones the first."""
    return Counter(answer for answer in answers if answer.strip()).most_common(1)[0][0]


def question_sample(
    name: str,
    source: str,
    images: Sequence[Any],
    question: str,
    answers: list[str],
    learned: str | None = None,
) -> Sample:
    """Returns the sample of one question.

    Args:
        name: its id.
        source: its data set.
        images: they stand before the question.
        question: the text; nothing in it is special.
        answers: every accepted answer.
        learned: the answer to learn. Default: the most frequent one.
    """
    answer = most_frequent(answers) if learned is None else learned
    sample = make_sample(name, source, images, [(literal(question, images), answer)])
    return {**sample, "answers": answers}


def turns_sample(
    name: str, source: str, images: Sequence[Any], turns: Sequence[tuple[Any, Any]]
) -> Sample:
    """Returns the sample of a conversation of questions and answers.

    Raises:
        ValueError: a text is blank or no text; `name` names the row.
    """
    for number, turn in enumerate(turns):
        for role, text in zip(("question", "answer"), turn, strict=True):
            if not isinstance(text, str) or not text.strip():
                raise bad_row(name, f"the {role} of turn {number} must be text, got {text!r:.80}.")
    (question, answer), *rest = turns
    return make_sample(name, source, images, [(literal(question, images), answer), *rest])


def literal(text: str, images: Sequence[Any]) -> Any:
    """Returns a content in which the spelling of an image's mark is plain text."""
    if images and IMAGE_MARK in text:
        return [{"type": "text", "text": text}]
    return text


def letter(index: int) -> str:
    """Returns the letter of a choice."""
    return chr(ord("A") + index)


def choice_question(question: str, choices: Sequence[str]) -> str:
    """Returns the prompt of a question with lettered choices, answered by a letter."""
    lines = [f"{letter(k)}. {choice}" for k, choice in enumerate(choices)]
    return "\n".join([question, *lines, "Answer with the letter of the right choice."])


def right_choice(row: Row, field: str, choices: Sequence[Any], name: str) -> int:
    """Returns the index of the right choice.

    Raises:
        ValueError: it is no index of a choice, or the choices are no texts; `name` names the row.
    """
    if not all(isinstance(choice, str) for choice in choices) or len(choices) > 26:
        raise bad_row(name, f"'choices' must be at most 26 texts, got {choices!r:.120}.")
    index = row.get(field)
    if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < len(choices):
        raise bad_row(
            name,
            f"'{field}' must be 0 to {len(choices) - 1}, got {index!r}; test splits have none.",
        )
    return index
