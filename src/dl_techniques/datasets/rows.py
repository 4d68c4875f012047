"""Rows: conversations cut to length and encoded turn by turn, ready to be joined in any order."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dl_techniques.datasets.augmentation import may_flip
from dl_techniques.datasets.isolated_turns import IGNORE_INDEX, Tokens, join_isolated
from dl_techniques.datasets.samples import Sample
from dl_techniques.preprocessing.chat_template import EncodedConversation
from dl_techniques.preprocessing.messages import message_parts, split_turns

Messages = list[dict[str, Any]]


class BadSampleError(ValueError):
    """A sample that cannot be used; `reason` is what a report counts by."""

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason


@dataclass
class Row:
    """One training row: a conversation, or a part of one.

    Attributes:
        sample_id: the sample it comes from.
        source: the sample's source.
        images: the row's image sources in order; a data set replaces them by indices.
        opening: tokens of each turn as the first of a conversation (bos, system turn, images).
        following: tokens of each turn as a later one. Turns are joined in the order given when
            this is empty: `opening` then holds the whole row.
        turn_ids: int32[n], for a row whose turns do not see each other; see `join_isolated`.
        may_flip: whether its images may be mirrored: its text speaks of no left, right or reading.
    """

    sample_id: str
    source: str
    images: list[Any]
    opening: list[Tokens]
    following: list[Tokens]
    turn_ids: np.ndarray | None = None
    may_flip: bool = True

    def tokens(self, rng: np.random.Generator | None = None) -> Tokens:
        """Returns ids and labels, with the turns in an order drawn from `rng` if given."""
        if rng is None or not self.following:
            parts = self.opening[:1] + self.following[1:]
        else:
            first, *rest = rng.permutation(len(self.opening))
            parts = [self.opening[first], *(self.following[k] for k in rest)]
        if len(parts) == 1:
            return parts[0]
        return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])


class RowEncoder:
    """Cuts samples into rows and encodes them.

    Every turn is encoded alone and the pieces are joined, so that turns can change places without
    encoding anything again. `verify` compares the first joined rows with the whole conversation
    encoded at once.

    Args:
        encode: messages, whether they go on after others -> ids, label mask and images.
        max_length: the longest row, in tokens.
        max_turns: the most questions in a row; None: as many as fit.
        shuffle_turns: whether the turns of a row will change places.
        isolate_turns: whether each turn sees only the images and itself.
        split: whether a conversation that is too long becomes several rows, each with the images
            that its turns need, or is a bad sample.
    """

    _VERIFIED = 8

    def __init__(
        self,
        encode: Callable[[Messages, bool], EncodedConversation],
        max_length: int,
        max_turns: int | None = None,
        shuffle_turns: bool = False,
        isolate_turns: bool = False,
        split: bool = True,
    ):
        if shuffle_turns and isolate_turns:
            raise ValueError("Isolated turns have no order: give shuffle_turns or isolate_turns.")
        if isolate_turns and not split:
            raise ValueError("Isolated turns are always split: leave split=True.")
        if max_turns is not None and max_turns < 1:
            raise ValueError(f"max_turns must be at least 1 or None, got {max_turns}.")
        self._encode = encode
        self._max_length = max_length
        self._max_turns = max_turns
        self._shuffle_turns = shuffle_turns
        self._isolate_turns = isolate_turns
        self._split = split
        self._verified = 0

    def rows(self, sample: Sample) -> list[Row]:
        """Returns the rows of a sample; each repeats the images that its turns need.

        Raises:
            BadSampleError: an empty answer, a turn longer than the limit, no answer at all, or
                messages that the template refuses.
        """
        try:
            messages = messages_with_images(sample)
            lead, *turns = split_turns(messages)
        except ValueError as error:
            raise BadSampleError("malformed messages", str(error)) from error
        _check_answers(messages)
        own_images = [_images(turn) for turn in turns]
        cut = self._isolated_rows if self._isolate_turns else self._joined_rows
        rows = cut(sample, lead, turns, own_images)
        flippable = may_flip(messages)
        return [dataclasses.replace(row, may_flip=flippable) for row in rows]

    def _joined_rows(
        self, sample: Sample, lead: Messages, turns: list[Messages], own_images: list[list]
    ) -> list[Row]:
        """Returns rows of turns that each see all before them."""
        # Turns may change places only where all of them speak about the images of the first.
        movable = self._shuffle_turns and len(turns) > 1 and not any(own_images[1:])
        rows, start = [], 0
        while start < len(turns):
            earlier = [image for images in own_images[:start] for image in images]
            pieces = self._pieces(sample, lead, turns[start:], earlier, movable)
            taken = [
                image for images in own_images[start : start + len(pieces)] for image in images
            ]
            row = Row(str(sample["id"]), sample["source"], earlier + taken, *_join(pieces, movable))
            self._verify(row, lead, turns[start : start + len(pieces)], earlier)
            rows.append(row)
            start += len(pieces)
        return rows

    def _isolated_rows(
        self, sample: Sample, lead: Messages, turns: list[Messages], own_images: list[list]
    ) -> list[Row]:
        """Returns rows of turns that each see the images so far and themselves."""
        rows, together, shown = [], [], []
        for turn, images in zip(turns, own_images, strict=True):
            tokens = self._tokens(lead + _with_images(turn, shown))
            shown = shown + images
            joined, turn_ids = join_isolated([*together, tokens])
            full = len(together) == self._max_turns or len(turn_ids) > self._max_length
            if images or full or not together:
                together = []
                joined, turn_ids = join_isolated([tokens])
                self._check_length(len(turn_ids))
            else:
                rows.pop()
            together.append(tokens)
            rows.append(Row(str(sample["id"]), sample["source"], shown, [joined], [], turn_ids))
            if images and not _images_lead(turn):
                together = []  # The next turn has the images at its beginning.
        return rows

    def _pieces(
        self, sample: Sample, lead: Messages, turns: list[Messages], earlier: list, movable: bool
    ) -> list[tuple[Tokens | None, Tokens | None]]:
        """Encodes as many turns as fit into one row: each as its opening, as a later turn, or both.

        `earlier` are the images of the conversation's turns before these; they go to the front.
        """
        pieces: list[tuple[Tokens | None, Tokens | None]] = []
        images = earlier + _images(turns[0])
        for number, turn in enumerate(turns[: self._max_turns]):
            opening = following = None
            if number == 0:
                opening = self._tokens(lead + _with_images(turn, earlier))
            elif movable:
                opening = self._tokens(lead + _with_images(turn, images))
            if number > 0:
                following = self._tokens(turn, continues=True)
            elif movable:
                following = self._tokens(_without_images(turn), continues=True)
            length = _longest([*pieces, (opening, following)], movable)
            if length > self._max_length:
                if number > 0 and self._split:
                    break
                self._check_length(length)
            pieces.append((opening, following))
        return pieces

    def _check_length(self, length: int):
        if length > self._max_length:
            what = "A turn has" if self._split else "The conversation has at least"
            raise BadSampleError(
                "too long",
                f"{what} {length} tokens, its images included, more than "
                f"max_text_length={self._max_length}. Shorten it or raise the limit.",
            )

    def _tokens(self, messages: Messages, continues: bool = False) -> Tokens:
        try:
            encoded = self._encode(messages, continues)
        except ValueError as error:
            raise BadSampleError("malformed messages", str(error)) from error
        ids = np.asarray(encoded.token_ids, np.int32)
        return ids, np.where(np.asarray(encoded.label_mask, bool), ids, np.int32(IGNORE_INDEX))

    def _verify(self, row: Row, lead: Messages, turns: list[Messages], earlier: list):
        # Some processors number the images of a conversation, which a turn alone does not know.
        later_images = any(_images(turn) for turn in turns[1:])
        if len(turns) < 2 or (self._verified >= self._VERIFIED and not later_images):
            return
        self._verified += 1
        first, *rest = turns
        whole = lead + _with_images(first, earlier) + [m for turn in rest for m in turn]
        same = zip(row.tokens(), self._tokens(whole), strict=True)
        if all(np.array_equal(joined, expected) for joined, expected in same):
            return
        if later_images:
            raise BadSampleError(
                "images in several turns",
                "The image processor numbers the images of a conversation: put all of them into "
                "the first turn.",
            )
        raise ValueError(
            f"Sample {row.sample_id}: the turns encoded one by one differ from the whole "
            "conversation. The template must separate turns by special tokens."
        )


def messages_with_images(sample: Sample) -> Messages:
    """Returns the messages, contents as lists of parts, with the sample's images in their place.

    Images of the sample go to the first user message: where `<|image|>` marks in a string content
    say so, else before the text.

    Raises:
        ValueError: malformed messages, images both in the sample and in the messages, or images
            without a user message.
    """
    messages = [dict(message) for message in sample["messages"]]
    if sample["images"]:
        first = next((m for m in messages if m["role"] == "user"), None)
        if first is None:
            raise ValueError(f"Sample {sample['id']} has images, but no user message.")
        inside = any(kind == "image" for m in messages for kind, _ in message_parts(m, "a message"))
        if inside:
            raise ValueError(f"Sample {sample['id']} has images beside and inside its messages.")
        if isinstance(first["content"], str):
            first["images"] = list(sample["images"])
        else:
            shown = [{"type": "image", "image": image} for image in sample["images"]]
            first["content"] = shown + list(first["content"])
    return [
        {
            "role": message["role"],
            "content": [
                {"type": kind, kind: value}
                for kind, value in message_parts(message, f"message {number}")
            ],
        }
        for number, message in enumerate(messages)
    ]


def _longest(pieces: list, movable: bool) -> int:
    """Returns the length of a row, in the order of its turns that gives the longest one."""
    if not movable:
        return sum(len((opening or following)[0]) for opening, following in pieces)
    extra = max(len(opening[0]) - len(following[0]) for opening, following in pieces)
    return extra + sum(len(following[0]) for _, following in pieces)


def _join(pieces: list, movable: bool) -> tuple[list[Tokens], list[Tokens]]:
    if movable:
        return [opening for opening, _ in pieces], [following for _, following in pieces]
    parts = [opening or following for opening, following in pieces]
    return [tuple(np.concatenate([part[k] for part in parts]) for k in (0, 1))], []


def _images(turn: Messages) -> list[Any]:
    return [p["image"] for message in turn for p in message["content"] if p["type"] == "image"]


def _images_lead(turn: Messages) -> bool:
    """Returns whether all images of a turn stand before its text."""
    kinds = [part["type"] for part in turn[0]["content"]]
    return "image" not in kinds[kinds.index("text") :] if "text" in kinds else True


def _with_images(turn: Messages, images: Sequence[Any]) -> Messages:
    if not images:
        return turn
    first, *rest = turn
    shown = [{"type": "image", "image": image} for image in images]
    return [{**first, "content": shown + first["content"]}, *rest]


def _without_images(turn: Messages) -> Messages:
    return [
        {**message, "content": [p for p in message["content"] if p["type"] != "image"]}
        for message in turn
    ]


def _check_answers(messages: Messages):
    answers = [m for m in messages if m["role"] == "assistant"]
    if not answers:
        raise BadSampleError("no answer", "There is no assistant message to learn.")
    if messages[-1]["role"] != "assistant":
        raise BadSampleError("no answer", "The last message has no answer.")
    for number, message in enumerate(answers):
        if not "".join(part.get("text", "") for part in message["content"]).strip():
            raise BadSampleError("empty answer", f"Answer {number} is empty.")
