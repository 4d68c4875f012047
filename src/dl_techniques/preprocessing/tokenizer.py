"""Tokenizers behind one interface: SentencePiece, Hugging Face files, and single characters."""

from __future__ import annotations

from pathlib import Path

from dl_techniques.preprocessing.bpe_files import MERGES_FILE, PRE_TOKENIZERS, VOCAB_FILE
from dl_techniques.preprocessing.huggingface_tokenizer import TOKENIZER_FILE, HuggingFaceTokenizer
from dl_techniques.preprocessing.sentencepiece_tokenizer import MODEL_FILE, SentencePieceTokenizer
from dl_techniques.preprocessing.tokenizer_base import Tokenizer
from dl_techniques.preprocessing.tokenizer_files import (
    CONFIG_FILE,
    empty_place,
    read_object,
    write_json,
)

__all__ = [
    "PRE_TOKENIZERS",
    "CharacterTokenizer",
    "HuggingFaceTokenizer",
    "SentencePieceTokenizer",
    "Tokenizer",
    "load_tokenizer",
]


class CharacterTokenizer(Tokenizer):
    """One id per character of the lower-cased text, for demonstrations: `min(code, vocab_size-1)`.

    Case is lost, and so are characters with codes from `vocab_size - 1` on. With the default ids
    the control characters U+0000 to U+0002 cannot be told from pad, bos and eos: this is the one
    tokenizer where plain text can produce a special id. Added special tokens come after
    `vocab_size` and are safe.

    Args:
        vocab_size: number of ids before special tokens are added.
        pad_id: id of `<pad>`; None: there is none. Likewise:
        bos_id: id of `<bos>`.
        eos_id: id of `<eos>`.

    Raises:
        ValueError: an id is outside the vocabulary, there twice, or that of ordinary text.
    """

    def __init__(
        self,
        vocab_size: int = 32000,
        pad_id: int | None = 0,
        bos_id: int | None = 1,
        eos_id: int | None = 2,
    ) -> None:
        super().__init__()
        if not 2 <= vocab_size <= 0x110000:
            raise ValueError(f"vocab_size must be from 2 to {0x110000}, not {vocab_size}")
        self._characters = vocab_size
        self._added: list[str] = []
        named = {"pad": pad_id, "bos": bos_id, "eos": eos_id}
        for name, token_id in named.items():
            if token_id is None:
                continue
            if not 0 <= token_id < vocab_size or token_id in self._special.values():
                raise ValueError(
                    f"{name}_id must be an id of its own below {vocab_size}, not {token_id}"
                )
            self._check_unreachable(f"<{name}>", token_id, f"<{name}>")
            self._special[f"<{name}>"] = token_id
            self._named[name] = f"<{name}>"

    @property
    def vocab_size(self) -> int:
        """The characters' ids and the added special tokens behind them."""
        return self._characters + len(self._added)

    def save(self, folder: str | Path) -> None:
        """Write `tokenizer_config.json`.

        Raises:
            ValueError: the folder holds a tokenizer of another kind.
        """
        folder = empty_place(folder, (TOKENIZER_FILE, VOCAB_FILE, MODEL_FILE))
        ids = {"pad_id": self.pad_id, "bos_id": self.bos_id, "eos_id": self.eos_id}
        config = {"tokenizer_class": type(self).__name__, "vocab_size": self._characters}
        write_json(folder / CONFIG_FILE, config | ids | {"added_special_tokens": self._added})

    @classmethod
    def load(cls, folder: str | Path) -> CharacterTokenizer:
        """Read what `save` wrote.

        Raises:
            ValueError: the file is missing or holds something else.
        """
        path = Path(folder) / CONFIG_FILE
        config = read_object(path)
        try:
            names = ("vocab_size", "pad_id", "bos_id", "eos_id")
            self = cls(**{name: config[name] for name in names})
            self.add_special_tokens(config["added_special_tokens"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path} is not that of a CharacterTokenizer: {error!r}") from error
        return self

    def _encode_text(self, text: str, continues: bool) -> list[int]:
        last = self._characters - 1
        return [min(ord(character), last) for character in text.lower()]

    def _decode_text(self, ids: list[int]) -> str:
        # Codes of surrogates are no characters of their own.
        return "".join("\ufffd" if 0xD800 <= i < 0xE000 else chr(i) for i in ids)

    def _id_to_piece(self, token_id: int) -> str:
        return self._decode_text([token_id])

    def _piece_to_id(self, token: str) -> int | None:
        known = len(token) == 1 and ord(token) < self._characters
        return ord(token) if known else None

    def _append_special(self, token: str) -> int:
        if self._piece_to_id(token) is not None:
            raise ValueError(f"{token!r} is an ordinary character, not a special token")
        self._added.append(token)
        return self.vocab_size - 1


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """Load the tokenizer in a folder, whatever its kind, with its special tokens.

    Looks for `tokenizer.json`, then `vocab.json` and `merges.txt`, then `tokenizer.model`, then
    the `tokenizer_config.json` of a `CharacterTokenizer`.

    Raises:
        ValueError: the folder holds none of these, or a file in it is missing or corrupt.
    """
    folder = Path(folder)
    if any((folder / name).exists() for name in (TOKENIZER_FILE, VOCAB_FILE, MERGES_FILE)):
        return HuggingFaceTokenizer.load(folder)
    if (folder / MODEL_FILE).exists():
        return SentencePieceTokenizer.load(folder)
    if read_object(folder / CONFIG_FILE).get("tokenizer_class") == CharacterTokenizer.__name__:
        return CharacterTokenizer.load(folder)
    raise ValueError(
        f"no tokenizer in {folder}: expected {TOKENIZER_FILE}, {VOCAB_FILE} with {MERGES_FILE}, or "
        f"{MODEL_FILE}"
    )
