"""Readers of the rows of open-ended benchmarks and captions: one row to its questions.

Column names are those of the data sets on the Hugging Face hub, and of the official files where
`open_rows` reads them.
"""

from dataclasses import replace
from typing import Any

from dl_techniques.datasets.question_schemas import (
    chartqa,
    coco_captions,
    docvqa,
    jsonl,
    textvqa,
    vqav2,
)
from dl_techniques.datasets.row_fields import (
    Row,
    answer_list,
    bad_row,
    list_field,
    row_id,
    text_field,
)
from dl_techniques.datasets.samples import Sample
from dl_techniques.evaluation.question_answering import message_text, sample_questions
from dl_techniques.evaluation.questions import Find, Question, picture_group, pictures
from dl_techniques.preprocessing.images import load_image

CAPTION_REQUEST = "Provide a one-sentence caption for the provided image."
BOX_REQUEST = (
    "Bounding box coordinates are specified in the format (top-left x, top-left y, bottom-right x, "
    "bottom-right y). All values are floating point numbers bounded between 0 and 1. Please "
    "provide the bounding box coordinate of the region this sentence describes: "
)


def read_vqav2(row: Row, find: Find) -> list[Question]:
    """Read VQA v2: lmms-lab/VQAv2, or the official questions with annotations."""
    group, category = picture_group(row, "image_id"), str(row.get("answer_type") or "")
    return [_of_sample(vqav2(row)[0], find, category=category, group=group)]


def read_textvqa(row: Row, find: Find) -> list[Question]:
    """Read TextVQA: lmms-lab/textvqa or textvqa/textvqa."""
    return [_of_sample(textvqa(row)[0], find, group=picture_group(row, "image_id"))]


def read_docvqa(row: Row, find: Find) -> list[Question]:
    """Read DocVQA or InfographicVQA: lmms-lab/DocVQA."""
    kinds = row.get("question_types") or row.get("answer_type") or ""
    category = kinds if isinstance(kinds, str) else ", ".join(sorted(map(str, kinds)))
    document, page = picture_group(row, "docId"), picture_group(row, "ucsf_document_page_no")
    group = f"{document} {page}".strip() or picture_group(row, "image_url", "image")
    return [_of_sample(docvqa(row)[0], find, category=category, group=group)]


def read_chartqa(row: Row, find: Find) -> list[Question]:
    """Read ChartQA: lmms-lab/ChartQA (`type`) or HuggingFaceM4/ChartQA (`human_or_machine`)."""
    kind = row.get("type")
    if kind is None and row.get("human_or_machine") is not None:
        kind = ("human", "augmented")[int(row["human_or_machine"])]
    kind = str(kind or "").removesuffix("_test")
    if kind not in ("human", "augmented", ""):
        raise bad_row(row_id(row, "id"), f"'type' is 'human_test' or 'augmented_test', not {kind}.")
    group = picture_group(row, "imgname", "image")
    return [_of_sample(chartqa(row)[0], find, category=kind, group=group)]


def read_gqa(row: Row, find: Find) -> list[Question]:
    """Read GQA: lmms-lab/GQA's instructions, whose `imageId` names the picture."""
    name = row_id(row, "id", "question_id")
    image = row.get("image")
    if image is None:
        image = f"{text_field(row, 'imageId', name)}.jpg"
    answers = answer_list(row.get("answer"), name)
    types = row.get("types")
    category = str(types.get("structural") or "") if isinstance(types, dict) else ""
    return [
        Question(
            name,
            pictures({"image": image}, name, find, "image"),
            text_field(row, "question", name),
            answers,
            category=category,
            group=picture_group(row, "imageId"),
        )
    ]


def read_pope(row: Row, find: Find) -> list[Question]:
    """Read POPE: lmms-lab/POPE, or the official lines with `text` and `label`."""
    name = row_id(row, "id", "question_id")
    asked, answered = ("text", "label") if "label" in row else ("question", "answer")
    category = str(row.get("category") or "")
    return [
        Question(
            f"{category} {name}".strip(),
            pictures(row, name, find, "image"),
            text_field(row, asked, name).strip(),
            [text_field(row, answered, name).strip().lower()],
            category=category,
            group=picture_group(row, "image_source", "image"),
        )
    ]


def read_mme(row: Row, find: Find) -> list[Question]:
    """Read MME: lmms-lab/MME; the two questions about a picture share their `question_id`."""
    name = row_id(row, "question_id")
    question = text_field(row, "question", name).strip()
    question = question.removesuffix("Please answer yes or no.").rstrip()
    category = text_field(row, "category", name)
    # The subtask is no part of the name in all versions.
    group = f"{category} {name}"
    return [
        Question(
            f"{group} {question}",
            pictures(row, name, find, "image"),
            question,
            [text_field(row, "answer", name)],
            category=category,
            group=group,
        )
    ]


def read_ocrbench(row: Row, find: Find) -> list[Question]:
    """Read OCRBench: echo840/OCRBench."""
    name = row_id(row, "id")
    return [
        Question(
            name,
            pictures(row, name, find, "image"),
            text_field(row, "question", name).strip(),
            answer_list(row.get("answer"), name),
            category=str(row.get("question_type") or ""),
            details={"handwritten_formula": row.get("dataset") == "HME100k"},
        )
    ]


def read_refcoco(row: Row, find: Find) -> list[Question]:
    """Read RefCOCO, RefCOCO+ or RefCOCOg: lmms-lab/RefCOCO; each expression is a question."""
    name = row_id(row, "question_id")
    images = pictures(row, name, find, "image")
    box = list_field(row, "bbox", name)
    if len(box) != 4 or not all(isinstance(x, (int, float)) for x in box):
        raise bad_row(name, f"'bbox' must be left, top, width and height in pixels, got {box!r}.")
    width, height = load_image(images[0]).size
    left, top, wide, high = box
    shares = [left / width, top / height, (left + wide) / width, (top + high) / height]
    expressions = answer_list(row.get("answer"), name)
    return [
        Question(
            f"{name}-{number}",
            images,
            BOX_REQUEST + expression,
            ["[" + ", ".join(f"{x:.4f}" for x in shares) + "]"],
            group=name,
            details={"box": shares},
        )
        for number, expression in enumerate(expressions)
    ]


def read_captions(row: Row, find: Find) -> list[Question]:
    """Read captioned pictures: COCO (lmms-lab/COCO-Caption2017) or Flickr (lmms-lab/flickr30k)."""
    (sample, *_) = coco_captions(row)
    images = [find(image) for image in sample["images"]]
    name = sample["id"].removesuffix("-0")
    return [Question(name, images, CAPTION_REQUEST, sample["answers"])]


def read_nlvr(row: Row, find: Find) -> list[Question]:
    """Read NLVR2: `sentence` (or `question`), `label` (or `answer`) and several pictures.

    These are in `images`, or in `left_image` and `right_image`, or are named after the
    `identifier`, as in the official files.
    """
    name = row_id(row, "id", "identifier", "question_id")
    if row.get("images") is not None:
        images = pictures(row, name, find, "images")
    elif row.get("left_image") is not None:
        images = [pictures(row, name, find, f"{side}_image")[0] for side in ("left", "right")]
    else:
        stem = text_field(row, "identifier", name).rpartition("-")[0]
        images = [find(f"{stem}-img{side}.png") for side in (0, 1)]
    field, answer = ("sentence", "label") if "sentence" in row else ("question", "answer")
    value = row.get(answer)
    value = str(value) if isinstance(value, bool) else text_field(row, answer, name)
    text = text_field(row, field, name)
    # Sentences of one picture have names that differ in their last number.
    group = name.rpartition("-")[0] or name
    return [Question(name, images, f"Is this true? {text}", [value], group=group)]


def read_own(row: Row, find: Find) -> list[Question]:
    """Read a row of our own layout; see `question_schemas.jsonl`."""
    (sample,) = jsonl(row)
    if "answers" in sample:
        sample["references"] = [sample.pop("answers")]
    group = picture_group(row, "image")
    return [replace(question, group=group) for question in read_sample(sample, find)]


def read_sample(sample: Sample, find: Find) -> list[Question]:
    """Read a sample of several turns, such as those of `generate_shapes`: each user turn alone."""
    return [
        Question(
            question["id"],
            [find(image) for image in question["images"]],
            question["question"],
            question["references"],
            category="" if question["kind"] == "question" else question["kind"],
            group=str(sample["id"]),
        )
        for question in sample_questions(sample)
    ]


def _of_sample(sample: Sample, find: Find, **fields: Any) -> Question:
    asked, answered = sample["messages"]
    answers = sample.get("answers") or [message_text(answered)]
    images = [find(image) for image in sample["images"]]
    return Question(sample["id"], images, message_text(asked), answers, **fields)
