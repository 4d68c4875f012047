"""Public rows that hold conversations or plain text, as samples."""

from collections.abc import Mapping
from typing import Any

from dl_techniques.datasets.row_fields import (
    Row,
    bad_row,
    dict_list,
    literal,
    needed_image,
    row_id,
    row_images,
    source_field,
    text_field,
    turns_sample,
)
from dl_techniques.datasets.samples import Sample
from dl_techniques.preprocessing.messages import IMAGE_MARK

_LLAVA_MARK = "<image>"
_LLAVA_ROLES = {"human": "user", "gpt": "assistant", "system": "system"}


def the_cauldron(row: Row) -> list[Sample]:
    """Returns the sample of a row of The Cauldron: `images`, `texts` of user and assistant."""
    texts = _texts(row)
    turns = [(text["user"], text["assistant"]) for text in texts]
    source = source_field(texts[0]) or source_field(row)
    return [turns_sample("", source, row_images(row, "", "images"), turns)]


def finevision(
    row: Row,
    *,
    min_relevance: int = 1,
    min_visual_dependency: int = 1,
    min_image_correspondence: int = 1,
    min_formatting: int = 1,
) -> list[Sample]:
    """Returns the sample of a row of FineVision, without the turns that are rated too low.

    Args:
        row: as The Cauldron's, with `source` and lists of ratings, one per turn.
        min_relevance: the lowest accepted rating, 1 to 5. What is not rated is accepted.
        min_visual_dependency: likewise.
        min_image_correspondence: likewise.
        min_formatting: likewise.

    Returns:
        One sample, or none where no turn is rated high enough.
    """
    limits = {
        "relevance": min_relevance,
        "visual_dependency": min_visual_dependency,
        "image_correspondence": min_image_correspondence,
        "formatting": min_formatting,
    }
    texts = _texts(row)
    kept = [True] * len(texts)
    for kind, limit in limits.items():
        ratings = row.get(f"{kind}_ratings") or [None] * len(texts)
        if not isinstance(ratings, (list, tuple)) or len(ratings) != len(texts):
            raise ValueError(f"'{kind}_ratings' {ratings!r:.80} for {len(texts)} turns.")
        for turn, rating in enumerate(ratings):
            if not isinstance(rating, int | float | None):
                raise ValueError(f"{kind} rating of turn {turn} must be a number, got {rating!r}.")
            kept[turn] &= rating is None or rating >= limit
    turns = [(t["user"], t["assistant"]) for t, keep in zip(texts, kept, strict=True) if keep]
    if not turns:
        return []
    return [turns_sample("", source_field(row), row_images(row, "", "images"), turns)]


def _texts(row: Row) -> list[Mapping]:
    texts = dict_list(row, "texts", "")
    for text in texts:
        if not {"user", "assistant"} <= text.keys():
            raise ValueError(f"'texts' must hold dicts with 'user' and 'assistant', not {text!r}.")
    return texts


def llava(row: Row, *, source: str = "llava") -> list[Sample]:
    """Returns the sample of a row of LLaVA: `id`, `image`, `conversations` of human and gpt.

    "<image>" in what a human says marks an image's place; without marks all images come first.
    Where a later message has marks too, the images are inside the messages.

    Args:
        row: `image` is a name or a list of names; it is absent in text-only rows, where "<image>"
            is plain text.
        source: the sample's data set.
    """
    name = row_id(row, "id", "question_id")
    images = row_images(row, name, "image", "images")
    messages = [_llava_message(turn, name) for turn in dict_list(row, "conversations", name)]
    _check_conversation(messages, name)
    asked = [message for message in messages if message["role"] == "user"]
    marks = [message["content"].count(_LLAVA_MARK) if images else 0 for message in asked]
    if sum(marks) not in (0, len(images)):
        raise bad_row(name, f"{sum(marks)} marks {_LLAVA_MARK} for {len(images)} images.")
    first = asked[0]
    if not any(marks):
        first["content"] = literal(first["content"], images)
    elif not any(marks[1:]) and IMAGE_MARK not in first["content"]:
        first["content"] = first["content"].replace(_LLAVA_MARK, IMAGE_MARK)
    else:
        rest = iter(images)
        for message in asked:
            message["content"] = _parts(message["content"], rest)
        images = []
    return [{"images": images, "messages": messages, "source": source, "id": name}]


def sharegpt4v(row: Row) -> list[Sample]:
    """Returns the sample of a row of ShareGPT4V, which has LLaVA's layout."""
    return llava(row, source="sharegpt4v")


def _llava_message(turn: Mapping, name: str) -> dict[str, Any]:
    role = _LLAVA_ROLES.get(str(turn.get("from")))
    if role is None or not isinstance(turn.get("value"), str):
        raise bad_row(
            name, f"'conversations' must hold 'from' (human or gpt) and 'value', not {turn!r:.120}."
        )
    return {"role": role, "content": turn["value"]}


def _parts(text: str, images: Any) -> list[dict[str, Any]]:
    first, *rest = text.split(_LLAVA_MARK)
    parts = [{"type": "text", "text": first}] if first else []
    for after in rest:
        parts.append({"type": "image", "image": next(images)})
        if after:
            parts.append({"type": "text", "text": after})
    return parts


def smoltalk(row: Row) -> list[Sample]:
    """Returns the sample of a row of smoltalk: `messages` of text, and `source`."""
    name = row_id(row, "id")
    if row_images(row, name, "image", "images"):
        raise bad_row(name, "smoltalk has no images; read rows with images by schema='jsonl'.")
    messages = dict_list(row, "messages", name)
    for message in messages:
        roles = ("system", "user", "assistant")
        if message.get("role") not in roles:
            raise bad_row(name, f"a message must have one of the roles {roles}, not {message!r}.")
    messages = [{"role": m["role"], "content": text_field(m, "content", name)} for m in messages]
    _check_conversation(messages, name)
    return [{"images": [], "messages": messages, "source": source_field(row), "id": name}]


def _check_conversation(messages: list[dict[str, Any]], name: str):
    roles = [message["role"] for message in messages]
    if next((role for role in roles if role != "system"), None) != "user":
        raise bad_row(name, "the conversation does not begin with a question.")
    if roles[-1] != "assistant":
        raise bad_row(name, "the conversation does not end with an answer.")
    if any(m["role"] == "assistant" and not m["content"].strip() for m in messages):
        raise bad_row(name, "an answer is blank.")


def lnqa(row: Row) -> list[Sample]:
    """Returns the sample of a row of lnqa: `image` and `qa`, a list of questions and answers."""
    pairs = dict_list(row, "qa", "")
    turns = [(pair.get("question"), pair.get("answer")) for pair in pairs]
    return [turns_sample("", "lnqa", needed_image(row, "", "image"), turns)]


def plain_text(row: Row) -> list[Sample]:
    """Returns a document without questions (FineWeb-Edu's layout: `text`, `id`, ...).

    It has no turns to tell apart, so the sample has the document as `text` and no messages: every
    token of it is learned.
    """
    name = row_id(row, "id")
    document = {"text": text_field(row, "text", name)}
    return [{"images": [], "messages": [], **document, "source": "", "id": name}]
