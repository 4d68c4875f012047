"""Conversations as ids with their label mask.

Ids and mask are built together, one turn after the other: text that is learned and text that is
not are tokenized apart, so the ids of a prompt are always the beginning of the ids of the prompt
with its answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from dl_techniques.preprocessing.chat_templates import (
    CHATML,
    IDEFICS3,
    NVLM,
    QUESTION_ANSWER,
    QWEN2,
    SMOLLM2,
    SMOLVLM,
    TEMPLATES,
    ChatTemplate,
)
from dl_techniques.preprocessing.messages import (
    IMAGE_MARK,
    Message,
    message_parts,
    role_of,
    split_turns,
)
from dl_techniques.preprocessing.tokenizer_base import Tokenizer

__all__ = [
    "CHATML",
    "IDEFICS3",
    "NVLM",
    "QUESTION_ANSWER",
    "QWEN2",
    "SMOLLM2",
    "SMOLVLM",
    "TEMPLATES",
    "ChatTemplate",
    "EncodedConversation",
    "ImageLayout",
    "decode_answer",
    "encode_conversation",
    "split_turns",
]


# Image, its number in the conversation, number of images -> tiles and the markers between them.
ImageLayout = Callable[[Any, int, int], tuple[str | int, ...]]


@dataclass(frozen=True)
class EncodedConversation:
    """A conversation as a model reads it.

    Attributes:
        token_ids: S ids.
        label_mask: S flags; True where the id is learned (answers and their end tokens).
        images: the images, in the order of their placeholders.
        tiles: into how many tiles each image is cut.
    """

    token_ids: list[int]
    label_mask: list[bool]
    images: list[Any]
    tiles: list[int]


def encode_conversation(
    messages: Sequence[Message],
    tokenizer: Tokenizer,
    template: ChatTemplate,
    *,
    image_token_id: int | None = None,
    tokens_per_image: int = 0,
    image_layout: ImageLayout | None = None,
    placeholder_tiles: str = "all",
    add_generation_prompt: bool = False,
    continues: bool = False,
) -> EncodedConversation:
    """Turn a conversation into ids, a label mask and its images.

    A message is `{"role": "system" | "user" | "assistant", "content": ...}`. The content is a list
    of `{"type": "text", "text": ...}` and `{"type": "image", "image": ...}`, or a string. Beside a
    string there may be `"image"` or `"images"`; then `<|image|>` in the string marks their places
    (none: all images before the text). Without images that spelling is plain text, as is the
    spelling of every special token.

    Args:
        messages: the conversation.
        tokenizer: must have the template's special tokens.
        template: one of `TEMPLATES` or one of your own.
        image_token_id: the placeholder; None: images take no place among the ids.
        tokens_per_image: placeholders for each tile; unused without `image_token_id`.
        image_layout: called with an image, its number in the conversation (from 0) and how many
            images there are. Returns in reading order: 0, 1, ... for its tiles, strings for the
            markers between them (special tokens where the tokenizer has them, else text). None:
            every image is one tile, without markers.
        placeholder_tiles: "all", or "last": only the last tile of each image has placeholders.
        add_generation_prompt: end with what invites the model to answer.
        continues: the messages go on after others, so neither bos, nor the template's start, nor
            its default system turn stand before them.

    Raises:
        ValueError: a malformed message, images that do not fit their marks, an empty answer,
            turns that the template cannot follow, a special token that the tokenizer lacks, text
            that gives the placeholder's id, or a layout without tiles in their order.
    """
    if image_token_id is not None and (image_token_id < 0 or tokens_per_image < 1):
        raise ValueError(
            "image_token_id must be at least 0 and needs tokens_per_image of at least 1, not "
            f"{image_token_id} with {tokens_per_image}"
        )
    _check_turns(messages, template, add_generation_prompt)
    contents = [message_parts(m, f"message {number}") for number, m in enumerate(messages)]
    image_count = sum(kind == "image" for parts in contents for kind, _ in parts)
    layout = image_layout or _one_tile
    builder = _Builder(
        tokenizer,
        template,
        image_token_id,
        tokens_per_image,
        lambda image, number: layout(image, number, image_count),
        placeholder_tiles,
    )
    if continues:
        builder.resume()
    else:
        builder.open(messages[0]["role"] == "system")
    for number, (message, parts) in enumerate(zip(messages, contents, strict=True)):
        if message["role"] == "assistant":
            builder.answer(parts, f"message {number}")
        else:
            builder.turn(message["role"], parts)
    if add_generation_prompt:
        builder.fixed(template.assistant[0])
    builder.flush()
    return EncodedConversation(builder.ids, builder.mask, builder.images, builder.tiles)


def decode_answer(ids: Iterable[int], tokenizer: Tokenizer, template: ChatTemplate) -> str:
    """Text of generated `ids` up to the first stop id, without special tokens and outer blanks."""
    stops = template.stop_ids(tokenizer)
    answer = []
    for token_id in ids:
        if int(token_id) in stops:
            break
        answer.append(int(token_id))
    return tokenizer.decode(answer, skip_special=True).strip()


def _one_tile(image: Any, number: int, count: int) -> tuple[str | int, ...]:
    return (0,)


class _Builder:
    """Ids and mask of a conversation, growing together."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: ChatTemplate,
        image_token_id: int | None,
        tokens_per_image: int,
        layout: Callable[[Any, int], tuple[str | int, ...]],
        placeholder_tiles: str,
    ) -> None:
        self.ids: list[int] = []
        self.mask: list[bool] = []
        self.images: list[Any] = []
        self.tiles: list[int] = []
        self._tokenizer = tokenizer
        self._special = tokenizer.special_tokens
        self._template = template
        self._end_id = template.end_id(tokenizer)
        self._image_token_id = image_token_id
        self._tokens_per_image = tokens_per_image
        self._layout = layout
        self._only_last = placeholder_tiles == "last"
        # Neighbouring texts of one kind are tokenized as one, as a model saw them in training.
        self._text = ""
        self._learned = False
        self._after_text = False

    def open(self, has_system: bool) -> None:
        """Append what stands before the first turn."""
        if self._template.starts_with_bos and self._tokenizer.bos_id is not None:
            self.token(self._tokenizer.bos_id)
        self.fixed(self._template.start)
        if self._template.default_system is not None and not has_system:
            self.turn("system", [("text", self._template.default_system)])

    def resume(self) -> None:
        """Go on behind a special token."""
        self._after_text = self._tokenizer.prefix_only_first

    def text(self, text: str, learned: bool = False) -> None:
        """Append text in which nothing is special."""
        if learned != self._learned:
            self.flush()
            self._learned = learned
        self._text += text

    def fixed(self, text: str) -> None:
        """Append text of the template, with its special tokens."""
        markers = self._template.markers
        parts = re.split("(" + "|".join(map(re.escape, markers)) + ")", text) if markers else [text]
        for part in parts:
            if part in markers:
                self.token(self._special[part])
            elif part:
                self.text(part)

    def token(self, token_id: int, learned: bool = False, times: int = 1) -> None:
        """Append a special token or a run of it."""
        self.flush()
        self.ids += [token_id] * times
        self.mask += [learned] * times
        self.resume()

    def image(self, image: Any) -> None:
        """Append an image: the placeholders of its tiles and the markers between them."""
        number = len(self.images)
        layout = self._layout(image, number)
        tiles = [part for part in layout if not isinstance(part, str)]
        if not tiles or tiles != list(range(len(tiles))):
            raise ValueError(
                f"the layout of image {number} must have its tiles 0, 1, ... in this order, got "
                f"{layout!r}"
            )
        self.images.append(image)
        self.tiles.append(len(tiles))
        for part in layout:
            if isinstance(part, str):
                self._marker(part)
            elif self._image_token_id is not None and not (self._only_last and part < tiles[-1]):
                self.token(self._image_token_id, times=self._tokens_per_image)

    def _marker(self, marker: str) -> None:
        token_id = self._special.get(marker)
        if token_id is None:
            self.text(marker)
        elif token_id == self._image_token_id:
            raise ValueError(
                f"an image layout has the placeholder {marker!r} as a marker; give the number of "
                "the tile instead"
            )
        else:
            self.token(token_id)

    def turn(self, role: str, parts: list[tuple[str, Any]]) -> None:
        """Append a turn that is read, not learned."""
        before, after = getattr(self._template, role)
        lead = 0
        if self._template.leading_images_first:
            lead = next((i for i, (kind, _) in enumerate(parts) if kind == "text"), len(parts))
        for _, image in parts[:lead]:
            self.image(image)
        self.fixed(before)
        if parts and parts[0][0] == "text":
            self.text(self._template.text_lead)
        for kind, content in parts[lead:]:
            if kind == "text":
                self.text(content)
            else:
                self.image(content)
        self.fixed(after)

    def answer(self, parts: list[tuple[str, Any]], where: str) -> None:
        """Append an assistant's turn: its text and its end token are learned."""
        if any(kind == "image" for kind, _ in parts):
            raise ValueError(f"{where} is the assistant's and holds an image; only text is learned")
        text = "".join(content for _, content in parts)
        if not text.strip():
            raise ValueError(
                f"{where} is an empty answer, which would teach to say nothing; leave the row out"
            )
        before, after = self._template.assistant
        self.fixed(before)
        self.text(self._template.answer_lead + text, learned=True)
        self.token(self._end_id, learned=True)
        self.fixed(after)

    def flush(self) -> None:
        """Tokenize the text that waits."""
        if not self._text:
            return
        ids = self._tokenizer.encode(self._text, continues=self._after_text)
        if self._image_token_id in ids:
            raise ValueError(
                f"text gives the image placeholder's id {self._image_token_id}: {self._text!r}; "
                f"take the id that tokenizer.add_special_tokens([{IMAGE_MARK!r}]) returns"
            )
        self.ids += ids
        self.mask += [self._learned] * len(ids)
        self._text = ""
        self._after_text = True


def _check_turns(
    messages: Sequence[Message], template: ChatTemplate, add_generation_prompt: bool
) -> None:
    if not messages:
        raise ValueError("a conversation needs at least one message")
    roles = [role_of(message, f"message {number}") for number, message in enumerate(messages)]
    if add_generation_prompt and roles[-1] == "assistant":
        raise ValueError(
            "the last message is the assistant's, so there is nothing to answer; drop it or set "
            "add_generation_prompt=False"
        )
    if not template.alternating:
        return
    for number, role in enumerate(roles):
        answered = number > 0 and roles[number - 1] == "user"
        if answered != (role == "assistant"):
            raise ValueError(
                f"message {number} is the {role}'s, but with the {template.name} template the "
                "assistant answers every user message and nothing else"
            )
    if add_generation_prompt and roles[-1] != "user":
        raise ValueError(f"the {template.name} template needs a user message to answer")
