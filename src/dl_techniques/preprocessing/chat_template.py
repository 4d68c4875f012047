"""Chat templates, and conversations as ids with their label mask.

Ids and mask are built together, one turn after the other: text that is learned and text that is
not are tokenized apart, so the ids of a prompt are always the beginning of the ids of the prompt
with its answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

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
    "QUESTION_ANSWER",
    "TEMPLATES",
    "ChatTemplate",
    "EncodedConversation",
    "decode_answer",
    "encode_conversation",
    "split_turns",
]


@dataclass(frozen=True)
class ChatTemplate:
    """Fixed text around the turns of a conversation.

    Attributes:
        name: the template's key in `TEMPLATES`.
        system: text before and after the content of a system turn; likewise:
        user: of a user turn.
        assistant: of an assistant turn. The first one alone invites the model to answer.
        answer_lead: begins every answer, and is learned with it.
        end_token: ends an answer and is learned; None: the tokenizer's eos.
        markers: the special tokens in these texts.
        starts_with_bos: whether a conversation begins with the tokenizer's bos, if it has one.
        leading_images_first: whether images before a turn's text stand before its fixed text too.
        alternating: whether every user turn must be answered before the next one.
    """

    name: str
    system: tuple[str, str]
    user: tuple[str, str]
    assistant: tuple[str, str]
    answer_lead: str = ""
    end_token: str | None = None
    markers: tuple[str, ...] = ()
    starts_with_bos: bool = False
    leading_images_first: bool = False
    alternating: bool = False

    def end_id(self, tokenizer: Tokenizer) -> int:
        """Id of the token that ends an answer.

        Raises:
            ValueError: the tokenizer lacks a special token of this template.
        """
        special = tokenizer.special_tokens
        missing = [token for token in self.markers if token not in special]
        if missing:
            raise ValueError(
                f"the {self.name} template needs the special tokens {missing}; add them with "
                f"tokenizer.add_special_tokens({missing}) and give the model rows for them"
            )
        if self.end_token is not None:
            return special[self.end_token]
        if tokenizer.eos_id is None:
            raise ValueError(
                f"the {self.name} template ends answers with the tokenizer's eos, and this "
                "tokenizer has none; name its eos_token when you load it"
            )
        return tokenizer.eos_id

    def stop_ids(self, tokenizer: Tokenizer) -> list[int]:
        """Ids at which an answer ends: the template's end token and the tokenizer's eos."""
        ids = [self.end_id(tokenizer), tokenizer.eos_id]
        return list(dict.fromkeys(i for i in ids if i is not None))


CHATML = ChatTemplate(
    name="chatml",
    system=("<|im_start|>system\n", "<|im_end|>\n"),
    user=("<|im_start|>user\n", "<|im_end|>\n"),
    assistant=("<|im_start|>assistant\n", "\n"),
    end_token="<|im_end|>",
    markers=("<|im_start|>", "<|im_end|>"),
)

QUESTION_ANSWER = ChatTemplate(
    name="question_answer",
    system=("", "\n"),
    user=("Question: ", " Answer:"),
    assistant=("", ""),
    answer_lead=" ",
    starts_with_bos=True,
    leading_images_first=True,
    alternating=True,
)

TEMPLATES = {template.name: template for template in (CHATML, QUESTION_ANSWER)}


@dataclass(frozen=True)
class EncodedConversation:
    """A conversation as a model reads it.

    Attributes:
        token_ids: S ids.
        label_mask: S flags; True where the id is learned (answers and their end tokens).
        images: the images, in the order of their placeholders.
    """

    token_ids: list[int]
    label_mask: list[bool]
    images: list[Any]


def encode_conversation(
    messages: Sequence[Message],
    tokenizer: Tokenizer,
    template: ChatTemplate,
    *,
    image_token_id: int | None = None,
    tokens_per_image: int = 0,
    add_generation_prompt: bool = False,
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
        template: `CHATML`, `QUESTION_ANSWER` or one of your own.
        image_token_id: the placeholder; None: images take no place among the ids.
        tokens_per_image: placeholders for each image; unused without `image_token_id`.
        add_generation_prompt: end with what invites the model to answer.

    Raises:
        ValueError: a malformed message, images that do not fit their marks, an empty answer,
            turns that the template cannot follow, a special token that the tokenizer lacks, or
            text that gives the placeholder's id.
    """
    if image_token_id is not None and (image_token_id < 0 or tokens_per_image < 1):
        raise ValueError(
            "image_token_id must be at least 0 and needs tokens_per_image of at least 1, not "
            f"{image_token_id} with {tokens_per_image}"
        )
    _check_turns(messages, template, add_generation_prompt)
    builder = _Builder(tokenizer, template, image_token_id, tokens_per_image)
    if template.starts_with_bos and tokenizer.bos_id is not None:
        builder.token(tokenizer.bos_id)
    for number, message in enumerate(messages):
        parts = message_parts(message, f"message {number}")
        if message["role"] == "assistant":
            builder.answer(parts, f"message {number}")
        else:
            builder.turn(message["role"], parts)
    if add_generation_prompt:
        builder.fixed(template.assistant[0])
    builder.flush()
    return EncodedConversation(builder.ids, builder.mask, builder.images)


def decode_answer(ids: Iterable[int], tokenizer: Tokenizer, template: ChatTemplate) -> str:
    """Text of generated `ids` up to the first stop id, without special tokens and outer blanks."""
    stops = template.stop_ids(tokenizer)
    answer = []
    for token_id in ids:
        if int(token_id) in stops:
            break
        answer.append(int(token_id))
    return tokenizer.decode(answer, skip_special=True).strip()


class _Builder:
    """Ids and mask of a conversation, growing together."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: ChatTemplate,
        image_token_id: int | None,
        tokens_per_image: int,
    ) -> None:
        self.ids: list[int] = []
        self.mask: list[bool] = []
        self.images: list[Any] = []
        self._tokenizer = tokenizer
        self._template = template
        self._end_id = template.end_id(tokenizer)
        self._image_token_id = image_token_id
        self._tokens_per_image = tokens_per_image
        # Neighbouring texts of one kind are tokenized as one, as a model saw them in training.
        self._text = ""
        self._learned = False
        self._after_text = False

    def text(self, text: str, learned: bool = False) -> None:
        """Append text in which nothing is special."""
        if learned != self._learned:
            self.flush()
            self._learned = learned
        self._text += text

    def fixed(self, text: str) -> None:
        """Append text of the template, with its special tokens."""
        special = self._tokenizer.special_tokens
        markers = self._template.markers
        parts = re.split("(" + "|".join(map(re.escape, markers)) + ")", text) if markers else [text]
        for part in parts:
            if part in markers:
                self.token(special[part])
            elif part:
                self.text(part)

    def token(self, token_id: int, learned: bool = False, times: int = 1) -> None:
        """Append a special token or a run of it."""
        self.flush()
        self.ids += [token_id] * times
        self.mask += [learned] * times
        self._after_text = False

    def image(self, image: Any) -> None:
        """Append an image and its placeholders."""
        self.images.append(image)
        if self._image_token_id is not None:
            self.token(self._image_token_id, times=self._tokens_per_image)

    def turn(self, role: str, parts: list[tuple[str, Any]]) -> None:
        """Append a turn that is read, not learned."""
        before, after = getattr(self._template, role)
        lead = 0
        if self._template.leading_images_first:
            lead = next((i for i, (kind, _) in enumerate(parts) if kind == "text"), len(parts))
        for _, image in parts[:lead]:
            self.image(image)
        self.fixed(before)
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
