"""Public rows that hold a question or captions for an image, as samples."""

import ast
import json
from typing import Any

from dl_techniques.datasets.row_fields import (
    Row,
    answer_list,
    bad_row,
    choice_question,
    dict_list,
    letter,
    list_field,
    needed_image,
    question_sample,
    right_choice,
    row_id,
    row_images,
    source_field,
    text_field,
)
from dl_techniques.datasets.samples import Sample, make_sample, normalize_sample
from dl_techniques.preprocessing.messages import IMAGE_MARK

CAPTION_PROMPT = f"{IMAGE_MARK}\nDescribe this image."


def vqav2(row: Row, *, source: str = "vqav2") -> list[Sample]:
    """Returns the sample of a question of VQA v2.

    Args:
        row: a row of the parquet layouts, with `image`; or a question of the official files joined
            with its annotation, with `image_id` and the files' `data_subtype`.
        source: the sample's data set.
    """
    name = row_id(row, "question_id")
    learned = row.get("multiple_choice_answer")
    if learned is not None:
        learned = text_field(row, "multiple_choice_answer", name)
    answers = answer_list(row.get("answers") or learned, name)
    image = row if row.get("image") is not None else {"image": _coco_file(row, name)}
    return [
        question_sample(
            name,
            source,
            needed_image(image, name, "image"),
            text_field(row, "question", name),
            answers,
            learned,
        )
    ]


def okvqa(row: Row) -> list[Sample]:
    """Returns the sample of a question of OK-VQA, which has VQA's layouts."""
    return vqav2(row, source="okvqa")


def _coco_file(row: Row, name: str) -> str:
    subtype, image_id = row.get("data_subtype"), row.get("image_id")
    if not isinstance(subtype, str) or not isinstance(image_id, int):
        raise bad_row(name, "no 'image', and no 'data_subtype' and 'image_id' that would name it.")
    return f"COCO_{subtype}_{image_id:012d}.jpg"


def textvqa(row: Row) -> list[Sample]:
    """Returns the sample of a question of TextVQA; without `image`, `image_id` names the file."""
    name = row_id(row, "question_id")
    image = row
    if row.get("image") is None and row.get("image_id"):
        image = {"image": f"{row['image_id']}.jpg"}
    return [_question(row, name, "textvqa", needed_image(image, name, "image"))]


def stvqa(row: Row) -> list[Sample]:
    """Returns the sample of a question of ST-VQA; without `image`, `file_path` names the file."""
    name = row_id(row, "question_id")
    fields = ("file_path",) if isinstance(row.get("image"), str) else ("image", "file_path")
    return [_question(row, name, "stvqa", needed_image(row, name, *fields))]


def docvqa(row: Row) -> list[Sample]:
    """Returns the sample of a question of DocVQA."""
    name = row_id(row, "questionId", "question_id")
    return [_question(row, name, "docvqa", needed_image(row, name, "image"))]


def _question(row: Row, name: str, source: str, images: list) -> Sample:
    question = text_field(row, "question", name)
    return question_sample(name, source, images, question, answer_list(row.get("answers"), name))


def chartqa(row: Row) -> list[Sample]:
    """Returns the sample of a question of ChartQA.

    Args:
        row: `question` and `answer`, or `query` and `label`; `image`, or the file's `imgname`.
    """
    name = row_id(row, "id")
    field, answer = ("query", "label") if "query" in row else ("question", "answer")
    images = needed_image(row, name, "image", "imgname")
    answers = answer_list(row.get(answer), name)
    return [question_sample(name, "chartqa", images, text_field(row, field, name), answers)]


def a_okvqa(row: Row, *, choices: bool = True) -> list[Sample]:
    """Returns the sample of a question of A-OKVQA; its rationales are not used.

    Args:
        row: `question`, `choices`, `correct_choice_idx`, `direct_answers` (a list, or one in text).
        choices: ask for the letter of one of the choices; otherwise for a direct answer, of which
            the most frequent is learned.
    """
    name = row_id(row, "question_id")
    question = text_field(row, "question", name)
    if choices:
        options = list_field(row, "choices", name)
        answers = [letter(right_choice(row, "correct_choice_idx", options, name))]
        question = choice_question(question, options)
    else:
        answers = answer_list(_direct_answers(row, name), name)
    images = needed_image(row, name, "image")
    return [question_sample(name, "a-okvqa", images, question, answers)]


def _direct_answers(row: Row, name: str) -> Any:
    answers = row.get("direct_answers")
    if not isinstance(answers, str):
        return answers
    try:
        return ast.literal_eval(answers)
    except (ValueError, SyntaxError) as error:
        raise bad_row(name, f"'direct_answers' is no list: {answers!r:.80}.") from error


def scienceqa(row: Row, *, lecture: bool = False) -> list[Sample]:
    """Returns the sample of a question of ScienceQA, with its hint before the question.

    Args:
        row: `question`, `choices`, `answer` (an index), `image`, `hint` and `lecture`, which may be
            null or empty.
        lecture: put the lecture, which explains what the question is about, before the hint.
    """
    name = row_id(row, "id", "question_id")
    options = list_field(row, "choices", name)
    answer = letter(right_choice(row, "answer", options, name))
    fields = ("lecture", "hint") if lecture else ("hint",)
    context = [text_field(row, field, name).strip() for field in fields if row.get(field)]
    question = choice_question(text_field(row, "question", name), options)
    question = "\n".join([*context, question])
    return [question_sample(name, "scienceqa", row_images(row, name, "image"), question, [answer])]


def coco_captions(row: Row) -> list[Sample]:
    """Returns one sample for each caption of an image; all captions are its `answers`.

    Args:
        row: an image of the official file with its `annotations`, or a row with `image` and a list
            of captions in `answer`, `caption` or `sentences_raw`.
    """
    name = row_id(row, "question_id", "id", "cocoid", "file_name")
    if "annotations" in row:
        captions = [a.get("caption") for a in dict_list(row, "annotations", name)]
    else:
        field = next((f for f in ("answer", "caption", "sentences_raw") if row.get(f)), "answer")
        captions = row.get(field)
    captions = [text.strip() for text in answer_list(captions, name) if text.strip()]
    images = needed_image(row, name, "image", "file_name")
    return [
        {**_caption_sample(f"{name}-{k}", "coco_captions", images, caption), "answers": captions}
        for k, caption in enumerate(captions)
    ]


def laion(row: Row) -> list[Sample]:
    """Returns the sample of a captioned image of LAION.

    Args:
        row: a webdataset record (`__key__`, `jpg` or another image, `txt` or `json` with a
            `caption`), or a parquet row with `image`, `jpg` or `image_path` and a caption in
            `caption`, `TEXT`, `text` or `txt`.
    """
    name = row_id(row, "__key__", "key", "id")
    images = needed_image(row, name, "jpg", "jpeg", "png", "webp", "image", "image_path")
    described = row if not isinstance(row.get("json"), dict) else {**row["json"], **row}
    fields = ("txt", "caption", "TEXT", "text")
    field = next((f for f in fields if described.get(f) is not None), fields[0])
    caption = text_field(described, field, name).strip()
    return [_caption_sample(name, "laion", images, caption)]


def _caption_sample(name: str, source: str, images: list, caption: str) -> Sample:
    return make_sample(name, source, images, [(CAPTION_PROMPT, caption)])


def jsonl(row: Row) -> list[Sample]:
    """Returns the sample of a row of our own layout.

    A row names its images (`image`, or `images`, a list; none is a text-only row) and its text in
    one of these ways:

    - `question` and `answer`;
    - `question` and `answers` (all accepted; the most frequent one is learned);
    - `sentence` and `answer`: whether the statement is true;
    - `captions`: descriptions (all accepted; the most frequent one is learned);
    - `messages`.

    `type` is kept as the question's kind.
    """
    name = row_id(row, "id")
    source = source_field(row)
    images = row_images(row, name, "images", "image")
    if "messages" in row:
        named = {**row, "images": images, "id": name, "source": source}
        named.pop("image", None)
        return [normalize_sample(named, index=0)]
    question, answers = _question_and_answers(row, name)
    sample = question_sample(name, source, images, question, answers)
    if len(answers) == 1:
        del sample["answers"]
    if row.get("type") is not None:
        sample["kinds"] = [str(row["type"])]
    return [sample]


def _question_and_answers(row: Row, name: str) -> tuple[str, list[str]]:
    if row.get("captions") is not None:
        question, answers = "Describe the picture.", row["captions"]
    else:
        question = row.get("question")
        if question is None and isinstance(row.get("sentence"), str):
            question = f"Is this true? {row['sentence']}"
        answers = row.get("answers")
        answers = [row.get("answer")] if answers is None else answers
    if not isinstance(question, str) or not question.strip():
        raise bad_row(
            name,
            "no question; expected 'question', 'sentence', 'captions' or 'messages', "
            f"found {sorted(row)}.",
        )
    texts = isinstance(answers, list) and all(isinstance(answer, str) for answer in answers)
    if not texts or not any(answer.strip() for answer in answers):
        raise bad_row(
            name,
            "'answer' must be a string, or 'answers' a list of strings, and not blank; got "
            f"{answers!r:.80}.",
        )
    return question, answers


def csv(row: Row) -> list[Sample]:
    """Returns the sample of a row of a table: `jsonl`'s fields, as text; empty cells are absent.

    `images`, `answers` and `captions` are lists in JSON: `["a", "b"]`.
    """
    row = {field: cell for field, cell in row.items() if cell}
    for field in {"images", "answers", "captions", "messages"} & row.keys():
        try:
            row[field] = json.loads(row[field])
        except (ValueError, TypeError) as error:
            raise bad_row(
                row_id(row, "id"), f"'{field}' must be a list in JSON, got {row[field]!r:.80}."
            ) from error
    return jsonl(row)
