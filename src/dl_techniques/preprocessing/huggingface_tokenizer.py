"""Byte-level BPE and other tokenizers in Hugging Face's file formats."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders

from dl_techniques.preprocessing.bpe_files import (
    CLIP_END,
    CLIP_START,
    MERGES_FILE,
    PRE_TOKENIZER_OF_CLASS,
    PRE_TOKENIZERS,
    VOCAB_FILE,
    byte_spelling,
    read_clip_bpe,
    read_vocab_and_merges,
    read_with,
)
from dl_techniques.preprocessing.tokenizer_base import Tokenizer
from dl_techniques.preprocessing.tokenizer_files import (
    FolderTokens,
    read_folder_tokens,
    write_folder_tokens,
)

TOKENIZER_FILE = "tokenizer.json"
_BYTE_OF = {char: byte for byte, char in byte_spelling().items()}


class HuggingFaceTokenizer(Tokenizer):
    """A tokenizer of the `tokenizers` library; build it with one of the class methods.

    Byte-level BPE without a normalizer gives every text back exactly; Qwen's gives its NFC form,
    CLIP's the words in lower case. Truncation, padding and
    the adding of bos or eos that a file may ask for are switched off. Only tokens that the files
    mark as special are special here; Qwen's `<tool_call>`, for one, is ordinary vocabulary.

    Args:
        backend: taken over and changed.
        special_tokens: made special, with new ids when the vocabulary does not have them.
        pad_token: padding token; None: there is none. Likewise:
        bos_token: start of a document.
        eos_token: end of a document.

    Raises:
        ValueError: a named token is not special, or plain text produces a special token's id.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        special_tokens: Sequence[str] = (),
        pad_token: str | None = None,
        bos_token: str | None = None,
        eos_token: str | None = None,
    ) -> None:
        super().__init__()
        self._backend = backend
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = True  # in text, the spelling of a special token is text
        self._continuing: tokenizers.Tokenizer | None = None
        self.prefix_only_first = b'"prepend_scheme":"first"' in _state(backend.pre_tokenizer)
        self._measure()
        for token_id, token in backend.get_added_tokens_decoder().items():
            if token.special:
                self._check_unreachable(token.content, token_id, token.content)
                self._special[token.content] = token_id
        self.add_special_tokens(special_tokens)
        self._set_named({"pad": pad_token, "bos": bos_token, "eos": eos_token})

    @classmethod
    def from_file(cls, path: str | Path, **options: Any) -> HuggingFaceTokenizer:
        """Read a `tokenizer.json`; `options` as in the constructor.

        Raises:
            ValueError: the file is missing or corrupt.
        """
        return cls(read_with(tokenizers.Tokenizer.from_file, path, str(path)), **options)

    @classmethod
    def from_vocab_and_merges(
        cls,
        vocab: str | Path,
        merges: str | Path,
        *,
        pre_tokenizer: str = "gpt2",
        **options: Any,
    ) -> HuggingFaceTokenizer:
        """Read a byte-level BPE from `vocab.json` and `merges.txt`.

        Args:
            vocab: path of the JSON object piece -> id.
            merges: path of the merges, one a line.
            pre_tokenizer: `gpt2`, `smollm2` (single digits, then as GPT-2), `qwen2` (composes
                characters first: NFC) or `clip` (also makes text lower-case and forgets where
                blanks were).
            **options: as in the constructor.

        Raises:
            ValueError: a file is missing or corrupt, or `pre_tokenizer` is unknown.
        """
        return cls(read_vocab_and_merges(Path(vocab), Path(merges), pre_tokenizer), **options)

    @classmethod
    def from_clip_bpe(cls, path: str | Path) -> HuggingFaceTokenizer:
        """Read CLIP's own `bpe_simple_vocab_16e6.txt.gz`; pads with its end of text.

        Raises:
            ValueError: the file is missing or corrupt.
        """
        named = {"pad_token": CLIP_END, "bos_token": CLIP_START, "eos_token": CLIP_END}
        return cls(read_clip_bpe(Path(path)), special_tokens=[CLIP_START, CLIP_END], **named)

    @classmethod
    def load(cls, folder: str | Path, *, pre_tokenizer: str | None = None) -> HuggingFaceTokenizer:
        """Read `tokenizer.json`, or else `vocab.json` and `merges.txt`, and the token files.

        Args:
            folder: a folder in Hugging Face's layout, or one that `save` wrote.
            pre_tokenizer: for `vocab.json` and `merges.txt`; default: by the `tokenizer_class` in
                `tokenizer_config.json`, `gpt2` without one.

        Raises:
            ValueError: a file is missing or corrupt, or the files contradict one another.
        """
        folder = Path(folder)
        tokens = read_folder_tokens(folder)
        path = folder / TOKENIZER_FILE
        if path.exists():
            if pre_tokenizer is not None:
                raise ValueError(f"{path} has its own pre-tokenizer; leave pre_tokenizer out")
            backend = read_with(tokenizers.Tokenizer.from_file, path, str(path))
        else:
            name = pre_tokenizer or _known_pre_tokenizer(folder, tokens)
            backend = read_vocab_and_merges(folder / VOCAB_FILE, folder / MERGES_FILE, name)
            _add_tokens(backend, tokens, folder)
        named = {f"{name}_token": token for name, token in tokens.named.items()}
        missing = [t for t in tokens.special if backend.token_to_id(t) is None]
        if missing:
            raise ValueError(f"the token files in {folder} name {missing}, which have no id there")
        return cls(backend, special_tokens=tokens.special, **named)

    def save(self, folder: str | Path) -> None:
        """Write `tokenizer.json` and `tokenizer_config.json`, as Hugging Face's libraries do."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self._backend.save(str(folder / TOKENIZER_FILE))
        write_folder_tokens(folder, "PreTrainedTokenizerFast", self._named, self.special_tokens)

    @property
    def vocab_size(self) -> int:
        """The highest id plus one."""
        return self._size

    def _measure(self) -> None:
        vocab = self._backend.get_vocab(with_added_tokens=True)
        if not vocab:
            raise ValueError("the tokenizer has an empty vocabulary")
        self._size = max(vocab.values()) + 1
        # BPE without an unknown token drops what it has no piece for. Some vocabularies
        # (SmolLM2's) lack rare bytes: remember them, to refuse a text instead of losing a part.
        byte_level = isinstance(self._backend.decoder, decoders.ByteLevel)
        droppable = byte_level and getattr(self._backend.model, "unk_token", None) is None
        spelling = byte_spelling() if droppable else {}
        self._missing = frozenset(b for b, char in spelling.items() if char not in vocab)

    def _encode_text(self, text: str, continues: bool) -> list[int]:
        if self._missing and not self._missing.isdisjoint(text.encode()):
            lost = next(c for c in text if not self._missing.isdisjoint(c.encode()))
            raise ValueError(
                f"the tokenizer has no id for the character U+{ord(lost):04X}; remove it"
            )
        backend = self._backend
        if continues:
            if self._continuing is None:
                self._continuing = _without_prefix(self._backend)
            backend = self._continuing
        return backend.encode(text, add_special_tokens=False).ids

    def _decode_text(self, ids: list[int]) -> str:
        hole = next((i for i in ids if self._backend.id_to_token(i) is None), None)
        if hole is not None:
            raise ValueError(f"id {hole} is not in the tokenizer's vocabulary")
        return self._backend.decode(ids, skip_special_tokens=False)

    def _plain_bytes(self, token_id: int) -> bytes:
        added = token_id in self._backend.get_added_tokens_decoder()
        if added or not isinstance(self._backend.decoder, decoders.ByteLevel):
            return super()._plain_bytes(token_id)
        piece = self._id_to_piece(token_id)
        if not _BYTE_OF.keys() >= {*piece}:  # It was put into the vocabulary as a text.
            return piece.encode()
        return bytes(_BYTE_OF[char] for char in piece)

    def _id_to_piece(self, token_id: int) -> str:
        return self._backend.id_to_token(token_id)

    def _piece_to_id(self, token: str) -> int | None:
        return self._backend.token_to_id(token)

    def _append_special(self, token: str) -> int:
        known = self._backend.token_to_id(token)
        if known is not None and known not in self._backend.get_added_tokens_decoder():
            # A piece of the vocabulary: all is well if text cannot give it (GPT-2's end of text).
            self._check_unreachable(token, known, self._decode_text([known]))
        self._backend.add_special_tokens([AddedToken(token, special=True, normalized=False)])
        self._continuing = None
        found = self._backend.token_to_id(token)
        self._size = max(self._size, found + 1)
        return found

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_continuing": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._backend.encode_special_tokens = True  # the library does not pickle this


def _state(part: Any) -> bytes:
    """A part of a pipeline as JSON."""
    return b"null" if part is None else part.__getstate__()


def _without_prefix(backend: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """A copy that puts no blank before texts; `backend` itself if it puts none."""
    changes = {}
    for name in ("normalizer", "pre_tokenizer"):
        state = json.loads(_state(getattr(backend, name)))
        changed = _unprefixed(state)
        if changed != state:
            changes[name] = changed
    if not changes:
        return backend
    copied = tokenizers.Tokenizer.from_str(json.dumps(json.loads(backend.to_str()) | changes))
    copied.encode_special_tokens = True
    return copied


def _unprefixed(part: Any) -> Any:
    """The JSON of a normalizer or pre-tokenizer (None: there is none) without its prefix."""
    if part is None or part["type"] == "Prepend":
        return None
    for steps in part.keys() & {"normalizers", "pretokenizers"}:
        kept = [_unprefixed(step) for step in part[steps]]
        part = part | {steps: [step for step in kept if step is not None]}
    changes = {"add_prefix_space": False, "prepend_scheme": "never"}
    return part | {name: changes[name] for name in part.keys() & changes}


def _known_pre_tokenizer(folder: Path, tokens: FolderTokens) -> str:
    if tokens.tokenizer_class not in PRE_TOKENIZER_OF_CLASS:
        raise ValueError(
            f"{folder} was written by {tokens.tokenizer_class}, whose pre-tokenizer is not known "
            "here; use HuggingFaceTokenizer.load(folder, pre_tokenizer=...) with one of "
            f"{sorted(PRE_TOKENIZERS)}"
        )
    return PRE_TOKENIZER_OF_CLASS[tokens.tokenizer_class]


def _add_tokens(backend: tokenizers.Tokenizer, tokens: FolderTokens, folder: Path) -> None:
    for token_id, token, special in tokens.added:
        backend.add_tokens([AddedToken(token, special=special, normalized=False)])
        found = backend.token_to_id(token)
        if found != token_id:
            raise ValueError(
                f"the token files in {folder} give {token!r} the id {token_id}, but with "
                f"{VOCAB_FILE} it is {found}"
            )
