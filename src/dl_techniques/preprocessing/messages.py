"""Conversations: what a message looks like, its parts, and where a conversation may be cut."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

IMAGE_MARK = "<|image|>"
ROLES = ("system", "user", "assistant")

Message = Mapping[str, Any]


def role_of(message: Message, where: str) -> str:
    """Role of a message; `where` names the message in errors."""
    if not isinstance(message, Mapping) or "role" not in message or "content" not in message:
        raise ValueError(f"{where} must be a dict with a role and a content, not {message!r}")
    if message["role"] not in ROLES:
        raise ValueError(f"{where} has the role {message['role']!r}; expected one of {ROLES}")
    return message["role"]


def message_parts(message: Message, where: str) -> list[tuple[str, Any]]:
    """The content in order: ("text", str) and ("image", anything)."""
    content = message["content"]
    if isinstance(content, str):
        return _marked_parts(content, _images_beside(message, where), where)
    if not isinstance(content, list | tuple):
        raise ValueError(f"{where} must have a string or a list as content, not {content!r}")
    if "image" in message or "images" in message:
        raise ValueError(f"{where} has images in its content list and beside it; use one place")
    parts = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind not in ("text", "image") or kind not in part:
            raise ValueError(
                f"{where} holds {part!r}; expected {{'type': 'text', 'text': ...}} or "
                "{'type': 'image', 'image': ...}"
            )
        if part[kind] is None or (kind == "text" and not isinstance(part[kind], str)):
            raise ValueError(f"{where} holds the {kind} {part[kind]!r}; expected a real {kind}")
        parts.append((kind, part[kind]))
    return parts


def _images_beside(message: Message, where: str) -> list[Any]:
    if "image" in message and "images" in message:
        raise ValueError(f"{where} has both 'image' and 'images'; use one of them")
    images = [message["image"]] if "image" in message else message.get("images", [])
    if not isinstance(images, list | tuple):
        raise ValueError(f"{where} must have a list as 'images', not {type(images).__name__}")
    if any(image is None for image in images):
        raise ValueError(f"{where} has an image that is None; leave the key out without an image")
    return list(images)


def _marked_parts(text: str, images: list[Any], where: str) -> list[tuple[str, Any]]:
    if not images:
        return [("text", text)]
    first, *rest = text.split(IMAGE_MARK)
    if not rest:
        return [("image", image) for image in images] + [("text", text)]
    if len(rest) != len(images):
        raise ValueError(
            f"{where} has {len(rest)} marks {IMAGE_MARK} for {len(images)} images; give one mark "
            "for each image, or none to put all images before the text"
        )
    parts: list[tuple[str, Any]] = [("text", first)] if first else []
    for image, after in zip(images, rest, strict=True):
        parts.append(("image", image))
        if after:
            parts.append(("text", after))
    return parts


def split_turns(messages: Sequence[Message]) -> list[list[Message]]:
    """Cut a conversation where a too long one may be split: after each answer.

    Returns:
        First the leading system messages (an empty list without any), then one list per exchange:
        what was said to the assistant and what it answered. Joined, they are `messages` again.
    """
    roles = [role_of(message, f"message {number}") for number, message in enumerate(messages)]
    lead = next((i for i, role in enumerate(roles) if role != "system"), len(roles))
    groups: list[list[Message]] = [list(messages[:lead])]
    previous = "assistant"
    for role, message in zip(roles[lead:], messages[lead:], strict=True):
        if len(groups) == 1 or (previous == "assistant" and role != "assistant"):
            groups.append([])
        groups[-1].append(message)
        previous = role
    return groups
