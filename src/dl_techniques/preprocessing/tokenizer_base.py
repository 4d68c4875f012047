"""The interface that every tokenizer of the package has, and its files in a folder."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any

# Short strings (questions, answers, template parts) come back all the time; long ones hardly ever.
_CACHED_TEXTS = 16384
_LONGEST_CACHED_TEXT = 512
# How vocabularies spell bytes that are no characters.
_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")


class Tokenizer(ABC):
    """Text to ids and back, with special tokens that plain text can never produce.

    Subclasses say how a run of plain text is encoded and decoded; this class handles special
    tokens, so they behave alike everywhere. `pad`, `bos` and `eos` are names of special tokens,
    each of which may be missing.
    """

    # Where a dummy prefix stands: before every text between special tokens, or only before a text
    # with nothing in front of it.
    prefix_only_first = False

    def __init__(self) -> None:
        self._special: dict[str, int] = {}
        self._named: dict[str, str | None] = {"pad": None, "bos": None, "eos": None}
        self._start_cache()

    # What a subclass provides.

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Number of ids, added ones included: every id is smaller."""

    @abstractmethod
    def save(self, folder: str | Path) -> None:
        """Write the files that `load_tokenizer(folder)` reads; the folder is made if missing."""

    @abstractmethod
    def _encode_text(self, text: str, continues: bool) -> list[int]:
        """Ids of plain text."""

    @abstractmethod
    def _decode_text(self, ids: list[int]) -> str:
        """Text of a run of ids without special ones; ids are below `vocab_size`."""

    def _plain_bytes(self, token_id: int) -> bytes:
        """The bytes of an ordinary id."""
        byte = _BYTE_PIECE.fullmatch(self._id_to_piece(token_id))
        if byte:
            return bytes.fromhex(byte[1])
        # At the start of a text, its blank is lost.
        once = self._decode_text([token_id])
        return self._decode_text([token_id, token_id])[len(once) :].encode()

    @abstractmethod
    def _id_to_piece(self, token_id: int) -> str:
        """An id of the vocabulary as the vocabulary spells it."""

    @abstractmethod
    def _piece_to_id(self, token: str) -> int | None:
        """Id of a piece of the vocabulary as it is spelled there, or None."""

    @abstractmethod
    def _append_special(self, token: str) -> int:
        """Make `token` special, at the end of the vocabulary when new, and return its id.

        Raises:
            ValueError: `token` is a piece that plain text produces; nothing has changed then.
        """

    # What a user calls.

    def encode(
        self, text: str, allow_special: bool = False, *, continues: bool = False
    ) -> list[int]:
        """Ids of `text`; adds no bos or eos.

        Args:
            text: any text that UTF-8 can hold.
            allow_special: read the spelling of a special token as that token. By default it is
                text like any other: use True for fixed, trusted text only.
            continues: the text goes on after other text, so a model that puts a blank before
                every text (SentencePiece with a dummy prefix) puts none here.

        Raises:
            ValueError: `text` is no string, holds a lone surrogate, or a character for which the
                vocabulary has no id.
        """
        if not isinstance(text, str):
            raise ValueError(f"encode needs a string, not {type(text).__name__}")
        if not allow_special or not self._special:
            return self._encode_plain(text, continues)
        spellings = sorted(self._special, key=len, reverse=True)  # the longest spelling wins
        ids: list[int] = []
        for part in re.split("(" + "|".join(map(re.escape, spellings)) + ")", text):
            if part in self._special:
                ids.append(self._special[part])
                continues = self.prefix_only_first
            elif part:
                ids += self._encode_plain(part, continues)
        return ids

    def decode(self, ids: Iterable[int], skip_special: bool = False) -> str:
        """Text of `ids`; special tokens come as their spelling, or not at all.

        Raises:
            ValueError: an id that the vocabulary does not have.
        """
        ids = [int(i) for i in ids]
        size = self.vocab_size
        wrong = next((i for i in ids if not 0 <= i < size), None)
        if wrong is not None:
            raise ValueError(
                f"id {wrong} is outside the tokenizer's vocabulary of {size} ids; a model with "
                "more rows than that must not choose the ids that are left over"
            )
        spelling = {i: token for token, i in self._special.items()}
        text = []
        for special, run in groupby(ids, spelling.__contains__):
            if not special:
                text.append(self._decode_text(list(run)))
            elif not skip_special:
                text += (spelling[i] for i in run)
        return "".join(text)

    def token_bytes(self, token_id: int) -> bytes:
        """What one id adds to a text, in UTF-8; a character may need the bytes of several ids.

        Special tokens come as their spelling.

        Raises:
            ValueError: an id that the vocabulary does not have.
        """
        text = self.decode([token_id])  # Refuses what is no id.
        if token_id in self._special.values():
            return text.encode()
        return self._plain_bytes(token_id)

    def token_to_id(self, token: str) -> int:
        """Id of a special token or of a piece as the vocabulary spells it.

        Raises:
            ValueError: there is no such token.
        """
        found = self._special.get(token)
        if found is None:
            found = self._piece_to_id(token)
        if found is None:
            raise ValueError(
                f"the tokenizer has no token {token!r}; add it with add_special_tokens([{token!r}])"
            )
        return found

    @property
    def special_tokens(self) -> dict[str, int]:
        """Spelling and id of every special token, by id."""
        return dict(sorted(self._special.items(), key=lambda item: item[1]))

    def add_special_tokens(self, tokens: Iterable[str]) -> list[int]:
        """Make `tokens` special, new ones with new ids at the end; ids in the order of `tokens`.

        Raises:
            ValueError: a token is empty, or plain text already produces its id.
        """
        if isinstance(tokens, str):
            raise ValueError(f"add_special_tokens needs a list of tokens, not {tokens!r}")
        return [self._add_special(token) for token in tokens]

    @property
    def pad_id(self) -> int | None:
        """Id of the padding token, or None."""
        return self._id_of("pad")

    @property
    def bos_id(self) -> int | None:
        """Id of the token that starts a document, or None."""
        return self._id_of("bos")

    @property
    def eos_id(self) -> int | None:
        """Id of the token that ends a document, or None."""
        return self._id_of("eos")

    # Shared parts.

    def _id_of(self, name: str) -> int | None:
        token = self._named[name]
        return None if token is None else self._special[token]

    def _set_named(self, named: Mapping[str, str | None]) -> None:
        """Name the special tokens that pad, begin and end; None: there is none."""
        for name, token in named.items():
            if token is not None and token not in self._special:
                raise ValueError(
                    f"{name}_token is {token!r}, which is no special token of this tokenizer; "
                    f"it has {list(self.special_tokens)}"
                )
            self._named[name] = token

    def _add_special(self, token: str) -> int:
        if not isinstance(token, str) or not token:
            raise ValueError(f"a special token is a non-empty string, not {token!r}")
        if token in self._special:
            return self._special[token]
        self._special[token] = self._append_special(token)
        self._start_cache()
        return self._special[token]

    def _check_unreachable(self, token: str, token_id: int, text: str) -> None:
        if token_id in self._encode_text(text, False):
            raise ValueError(
                f"{token!r} cannot be a special token: the plain text {text!r} gives its id "
                f"{token_id}; choose a spelling that is not in the vocabulary"
            )

    def _encode_plain(self, text: str, continues: bool) -> list[int]:
        if len(text) <= _LONGEST_CACHED_TEXT:
            return list(self._cached(text, continues))
        return list(self._checked(text, continues))

    def _checked(self, text: str, continues: bool) -> tuple[int, ...]:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"the text holds a lone surrogate at position {error.start}, which UTF-8 cannot "
                "hold; decode it properly where it is read"
            ) from None
        return tuple(self._encode_text(text, continues))

    def _start_cache(self) -> None:
        self._cached = lru_cache(_CACHED_TEXTS)(self._checked)

    # A cache cannot travel to a worker process; the worker starts its own.

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_cached"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start_cache()
