"""Schemas: the layouts of public data sets, and how a layout is told by its columns."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from dl_techniques.datasets.conversation_schemas import (
    finevision,
    llava,
    lnqa,
    plain_text,
    sharegpt4v,
    smoltalk,
    the_cauldron,
)
from dl_techniques.datasets.question_schemas import (
    a_okvqa,
    chartqa,
    coco_captions,
    csv,
    docvqa,
    jsonl,
    laion,
    okvqa,
    scienceqa,
    stvqa,
    textvqa,
    vqav2,
)
from dl_techniques.datasets.samples import Sample

# Each function takes one row in the public layout. An id or a source that the layout does not have
# is "" in the sample. A row of which nothing can be used is a ValueError.
SCHEMAS: dict[str, Callable[..., list[Sample]]] = {
    "the_cauldron": the_cauldron,
    "finevision": finevision,
    "llava": llava,
    "sharegpt4v": sharegpt4v,
    "vqav2": vqav2,
    "okvqa": okvqa,
    "textvqa": textvqa,
    "stvqa": stvqa,
    "docvqa": docvqa,
    "chartqa": chartqa,
    "a-okvqa": a_okvqa,
    "scienceqa": scienceqa,
    "coco_captions": coco_captions,
    "laion": laion,
    "lnqa": lnqa,
    "smoltalk": smoltalk,
    "plain_text": plain_text,
    "jsonl": jsonl,
    "csv": csv,
}

_IMAGE_COLUMNS = ("jpg", "jpeg", "png", "webp", "image_path")
# (schema, columns that it has, columns that it does not have)
_TELLING_COLUMNS: tuple[tuple[str, set[str], set[str]], ...] = (
    ("the_cauldron", {"images", "texts"}, {"relevance_ratings", "formatting_ratings"}),
    ("finevision", {"images", "texts", "relevance_ratings"}, set()),
    ("llava", {"conversations"}, set()),
    ("vqav2", {"question", "multiple_choice_answer", "answer_type"}, set()),
    ("okvqa", {"question", "answers", "answer_type"}, {"multiple_choice_answer"}),
    ("textvqa", {"question", "image_classes", "flickr_original_url"}, set()),
    ("stvqa", {"question", "file_path"}, set()),
    ("docvqa", {"question", "ucsf_document_id"}, set()),
    ("chartqa", {"query", "label"}, set()),
    ("a-okvqa", {"question", "choices", "direct_answers"}, set()),
    ("scienceqa", {"question", "choices", "lecture"}, set()),
    ("coco_captions", {"file_name", "annotations"}, set()),
    ("coco_captions", {"coco_url", "image", "answer"}, set()),
    ("coco_captions", {"cocoid", "sentences_raw"}, set()),
    ("lnqa", {"image", "qa"}, set()),
    *(
        ("laion", {image, text}, {"question", "texts"})
        for image in _IMAGE_COLUMNS
        for text in ("txt", "json", "caption", "TEXT")
    ),
    ("laion", {"image", "caption"}, {"question"}),
    ("laion", {"image", "TEXT"}, {"question"}),
    ("smoltalk", {"messages"}, {"image", "images", "question"}),
    ("plain_text", {"text"}, {"image", "images", "question", "messages", *_IMAGE_COLUMNS}),
)
# Our own layout, where no public one is told.
_OWN_COLUMNS = (
    {"question", "answer"},
    {"question", "answers"},
    {"sentence", "answer"},
    {"captions"},
    {"messages"},
)


def detect_schema(columns: Iterable[str], own: str = "jsonl") -> str:
    """Returns the schema that has these columns.

    Args:
        columns: the columns of the rows.
        own: our own layout, in which the rows are where no public data set's columns are found.

    Raises:
        ValueError: the columns fit no schema, or more than one.
    """
    columns = set(columns)
    found = {
        schema
        for schema, present, absent in _TELLING_COLUMNS
        if present <= columns and not absent & columns
    }
    if not found and any(present <= columns for present in _OWN_COLUMNS):
        return own
    if len(found) != 1:
        fits = f"fit {sorted(found)}" if found else "fit no known layout"
        raise ValueError(
            f"The columns {sorted(columns)} {fits}. Name the schema: one of {sorted(SCHEMAS)}."
        )
    return found.pop()


def check_schema(schema: str, options: Mapping[str, Any]) -> Callable[..., list[Sample]]:
    """Returns the function of a schema that takes these options.

    Raises:
        ValueError: the schema is unknown, or it has no such option.
    """
    if schema not in SCHEMAS:
        raise ValueError(f"Unknown schema {schema!r}; known are {sorted(SCHEMAS)}.")
    function = SCHEMAS[schema]
    known = list(inspect.signature(function).parameters)[1:]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ValueError(f"Unknown options {unknown}; the schema {schema!r} has {known}.")
    return function
