"""Readers of the rows of multiple-choice benchmarks: one row to its questions."""

import ast
import re
from typing import Any

from dl_techniques.datasets.row_fields import (
    Row,
    answer_list,
    bad_row,
    letter,
    list_field,
    right_choice,
    row_id,
    text_field,
)
from dl_techniques.evaluation.questions import (
    Find,
    Question,
    optional_pictures,
    picture_group,
    pictures,
    with_options,
)

CIRCLE = 1_000_000  # MMBench numbers the rotations of a question so far apart.
_MARK = re.compile(r"<image (\d)>")


def read_mmstar(row: Row, find: Find) -> list[Question]:
    """Read MMStar: Lin-Chen/MMStar, whose options are in the question's text."""
    name = row_id(row, "index")
    return [
        Question(
            name,
            pictures(row, name, find, "image"),
            text_field(row, "question", name).strip(),
            [text_field(row, "answer", name)],
            category=str(row.get("category") or ""),
        )
    ]


def read_mmmu(row: Row, find: Find) -> list[Question]:
    """Read MMMU: lmms-lab/MMMU or MMMU/MMMU; lists are stored as texts.

    Marks as "<image 1>" stay in the text, and `images` holds what they name, in their order.
    """
    name = row_id(row, "id")
    question = text_field(row, "question", name)
    options = _literal_list(row.get("options"), "options", name)
    answer = row.get("answer")
    if options:
        question, answers = with_options(question, options), [text_field(row, "answer", name)]
    elif isinstance(answer, str) and answer.startswith("["):
        answers = [str(each) for each in _literal_list(answer, "answer", name)]
    else:
        answers = answer_list(answer, name)
    numbers = list(_MARK.findall(question))
    images = [pictures(row, name, find, f"image_{number}")[0] for number in numbers]
    if not images:
        images = optional_pictures(row, name, find, "image_1")
    # "validation_Art_and_Theory_3": the subject is between the split and the number.
    subject = "_".join(name.split("_")[1:-1])
    return [Question(name, images, question, answers, options, category=subject)]


def read_mmbench(row: Row, find: Find) -> list[Question]:
    """Read MMBench: lmms-lab/MMBench; rotations of a question are one group."""
    name = row_id(row, "index")
    cells = [_cell(row, key, name) for key in "ABCDE"]
    options = [cell for cell in cells if cell]
    if cells[: len(options)] != options:
        raise bad_row(name, f"an empty option before another: the options are {cells}.")
    hint = _cell(row, "hint", name)
    question = with_options(text_field(row, "question", name), options)
    return [
        Question(
            name,
            pictures(row, name, find, "image"),
            f"{hint}\n{question}" if hint else question,
            [text_field(row, "answer", name)],
            options,
            category=str(row.get("category") or ""),
            group=str(int(name) % CIRCLE) if name.isdigit() else name,
        )
    ]


def read_seedbench(row: Row, find: Find) -> list[Question]:
    """Read SEED-Bench: lmms-lab/SEED-Bench; videos are several pictures."""
    name = row_id(row, "question_id")
    options = [text_field(row, f"choice_{key}", name) for key in "abcd"]
    return [
        Question(
            name,
            pictures(row, name, find, "image"),
            with_options(text_field(row, "question", name), options),
            [text_field(row, "answer", name)],
            options,
            category=str(row.get("data_type") or ""),
            group=picture_group(row, "data_id"),
        )
    ]


def read_ai2d(row: Row, find: Find) -> list[Question]:
    """Read AI2D: lmms-lab/ai2d, whose answer is an index as text."""
    name = row_id(row, "id", "question_id")
    options, answer = list_field(row, "options", name), row.get("answer")
    if isinstance(answer, str) and answer.isdigit():
        answer = int(answer)
    index = right_choice({"answer": answer}, "answer", options, name)
    question = with_options(text_field(row, "question", name), options)
    images = pictures(row, name, find, "image")
    return [Question(name, images, question, [letter(index)], options)]


def read_scienceqa(row: Row, find: Find) -> list[Question]:
    """Read ScienceQA: lmms-lab/ScienceQA; the hint stands before the question."""
    name = row_id(row, "id", "question_id")
    options = list_field(row, "choices", name)
    index = right_choice(row, "answer", options, name)
    question = with_options(text_field(row, "question", name), options)
    hint = _cell(row, "hint", name)
    return [
        Question(
            name,
            optional_pictures(row, name, find, "image"),
            f"Context: {hint}\n{question}" if hint else question,
            [letter(index)],
            options,
            category=str(row.get("subject") or ""),
        )
    ]


def read_a_okvqa(row: Row, find: Find) -> list[Question]:
    """Read the multiple choice of A-OKVQA: HuggingFaceM4/A-OKVQA."""
    name = row_id(row, "question_id")
    options = list_field(row, "choices", name)
    index = right_choice(row, "correct_choice_idx", options, name)
    question = with_options(text_field(row, "question", name), options)
    images = pictures(row, name, find, "image")
    return [Question(name, images, question, [letter(index)], options)]


def read_mathvista(row: Row, find: Find) -> list[Question]:
    """Read MathVista: AI4Math/MathVista; the picture is in `decoded_image`, `image` is its path."""
    name = row_id(row, "pid")
    kind, metadata = text_field(row, "answer_type", name), row.get("metadata")
    choices = list(row.get("choices") or [])
    if row.get("question_type") == "multi_choice" and not choices:
        raise bad_row(name, "a multi_choice question without 'choices'.")
    precision = row.get("precision")
    return [
        Question(
            name,
            pictures(row, name, find, "decoded_image", "image"),
            text_field(row, "query" if row.get("query") else "question", name),
            [text_field(row, "answer", name)],
            choices,
            category=str(metadata.get("task") or "") if isinstance(metadata, dict) else "",
            group=picture_group(row, "image"),
            details={
                "answer_type": kind,
                "precision": None if precision is None else int(precision),
            },
        )
    ]


def _cell(row: Row, field: str, name: str) -> str:
    """Return an optional text or number as text; "nan" is how tables spell an empty cell."""
    value = row.get(field)
    if value is not None and not isinstance(value, (str, int, float)):
        raise bad_row(name, f"'{field}' must be text or a number, got {value!r:.80}.")
    text = "" if value is None else str(value).strip()
    return "" if text == "nan" else text


def _literal_list(value: Any, field: str, name: str) -> list[Any]:
    try:
        found = ast.literal_eval(value) if isinstance(value, str) else value
    except (ValueError, SyntaxError) as error:
        raise bad_row(name, f"'{field}' is no list: {value!r:.80}.") from error
    if found is not None and not isinstance(found, (list, tuple)):
        raise bad_row(name, f"'{field}' is no list: {value!r:.80}.")
    return list(found or [])
