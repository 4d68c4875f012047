"""SentencePiece models: trained from texts, loaded, saved."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import sentencepiece

from dl_techniques.preprocessing.tokenizer_base import Tokenizer
from dl_techniques.preprocessing.tokenizer_files import (
    ADDED_TOKENS_FILE,
    empty_place,
    read_folder_tokens,
    write_folder_tokens,
    write_json,
)

MODEL_FILE = "tokenizer.model"
_BYTES = 256
# In the order of their ids: 0, 1, 2, 3.
_BASE_TOKENS = {"pad": "<pad>", "bos": "<s>", "eos": "</s>", "unk": "<unk>"}
BLANK = "\u2581"  # how SentencePiece spells a blank inside pieces
# The protobuf field normalizer_spec.add_dummy_prefix = false. In protobuf the last value of a
# field counts, so appending these bytes to a model switches its dummy prefix off.
_NO_DUMMY_PREFIX = b"\x1a\x02\x18\x00"


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model, with special tokens of the model and others behind its pieces.

    Its control pieces are special tokens, as is `<unk>` where bytes stand in for unknown
    characters (byte fallback). Models from `train` give every text back exactly; others as far
    as their own normalization allows.

    Args:
        model: content of a `.model` file; kept as an attribute.
        special_tokens: made special, behind the pieces when the model does not have them.
        pad_token: padding token; default: the model's own, if it has one. Likewise:
        bos_token: start of a document.
        eos_token: end of a document.

    Raises:
        ValueError: not a SentencePiece model, or a named token is no special one.
    """

    def __init__(
        self,
        model: bytes,
        *,
        special_tokens: Sequence[str] = (),
        pad_token: str | None = None,
        bos_token: str | None = None,
        eos_token: str | None = None,
    ) -> None:
        super().__init__()
        self.model = bytes(model)
        self._open()
        pieces = self._processor
        for i in range(pieces.get_piece_size()):
            if pieces.is_control(i) or (pieces.is_unknown(i) and self._blank_bytes):
                self._special[pieces.id_to_piece(i)] = i
        self._added: list[str] = []
        self.add_special_tokens(special_tokens)
        given = {"pad": pad_token, "bos": bos_token, "eos": eos_token}
        own = {"pad": pieces.pad_id(), "bos": pieces.bos_id(), "eos": pieces.eos_id()}
        for name, i in own.items():
            if given[name] is None and i >= 0:
                given[name] = pieces.id_to_piece(i)
        self._set_named(given)

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        vocab_size: int,
        model_type: str = "bpe",
        special_tokens: Sequence[str] = (),
        character_coverage: float = 0.9995,
    ) -> SentencePieceTokenizer:
        """Train a model in memory; the same texts give the same model.

        Every text round-trips: nothing is normalized, and characters without a piece become
        their UTF-8 bytes. Ids: pad 0, bos 1, eos 2, unk 3, then `special_tokens`, 256 bytes,
        pieces.

        Args:
            texts: any number of texts of any length.
            vocab_size: ids wanted; a small corpus gives fewer.
            model_type: `bpe` or `unigram`.
            special_tokens: more control tokens, such as those of a chat template.
            character_coverage: share of all characters that get a piece of their own.

        Raises:
            ValueError: no text, a vocabulary too small for the bytes, or a special token that is
                empty or there twice.
        """
        if isinstance(texts, str):
            raise ValueError("texts must be a list or an iterator of strings, not one string")
        if model_type not in ("bpe", "unigram"):
            raise ValueError(f"model_type must be 'bpe' or 'unigram', not {model_type!r}")
        control = _control_tokens(special_tokens, vocab_size)
        model = io.BytesIO()
        base = {}
        for i, (name, token) in enumerate(_BASE_TOKENS.items()):
            base |= {f"{name}_id": i, f"{name}_piece": token}
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=_training_lines(texts),
                model_writer=model,
                model_type=model_type,
                vocab_size=vocab_size,
                hard_vocab_limit=False,
                control_symbols=control,
                character_coverage=character_coverage,
                byte_fallback=True,
                normalization_rule_name="identity",
                add_dummy_prefix=False,
                remove_extra_whitespaces=False,
                split_digits=True,
                minloglevel=2,
                **base,
            )
        except RuntimeError as error:
            raise ValueError(f"SentencePiece could not train on these texts: {error}") from error
        return cls(model.getvalue())

    @classmethod
    def load(cls, folder: str | Path) -> SentencePieceTokenizer:
        """Read `tokenizer.model` and the token files beside it.

        Raises:
            ValueError: a file is missing or corrupt, or the files contradict one another.
        """
        folder = Path(folder)
        path = folder / MODEL_FILE
        try:
            self = cls(path.read_bytes())
        except (OSError, ValueError) as error:
            raise ValueError(f"cannot read {path}: {error}") from error
        tokens = read_folder_tokens(folder)
        for token_id, token, _ in tokens.added:
            known = self._piece_to_id(token)
            found = self.add_special_tokens([token])[0] if known is None else known
            if found != token_id:
                raise ValueError(
                    f"the token files in {folder} give {token!r} the id {token_id}, but with "
                    f"{path.name} it is {found}"
                )
        missing = [token for token in tokens.special if token not in self._special]
        if missing:
            raise ValueError(f"the token files in {folder} name {missing}, which have no id there")
        self._set_named(tokens.named)
        return self

    def save(self, folder: str | Path) -> None:
        """Write `tokenizer.model`, `added_tokens.json` and `tokenizer_config.json`.

        Raises:
            ValueError: the folder holds a tokenizer of another kind.
        """
        folder = empty_place(folder, ("tokenizer.json", "vocab.json"))
        (folder / MODEL_FILE).write_bytes(self.model)
        write_json(folder / ADDED_TOKENS_FILE, {t: self._special[t] for t in self._added})
        write_folder_tokens(folder, type(self).__name__, self._named, self.special_tokens)

    @property
    def vocab_size(self) -> int:
        """Pieces of the model and the special tokens behind them."""
        return self._processor.get_piece_size() + len(self._added)

    def _open(self) -> None:
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=self.model)
            changed = self.model + _NO_DUMMY_PREFIX
            self._continuing = sentencepiece.SentencePieceProcessor(model_proto=changed)
        except RuntimeError as error:
            raise ValueError(f"this is no SentencePiece model: {error}") from error
        blank = self._continuing.encode(" ")
        self._prefix = [] if self._processor.encode(" ") == blank else blank
        pieces = [self._processor.piece_to_id(f"<0x{b:02X}>") for b in BLANK.encode()]
        self._blank_bytes = pieces if all(map(self._processor.is_byte, pieces)) else []

    def _encode_text(self, text: str, continues: bool) -> list[int]:
        processor = self._continuing if continues else self._processor
        if not self._blank_bytes or BLANK not in text:
            return processor.encode(text)
        # SentencePiece takes U+2581 for a blank; as bytes it comes back as what it was.
        first, *rest = text.split(BLANK)
        ids = processor.encode(first) if first or continues else list(self._prefix)
        for part in rest:
            ids += self._blank_bytes + self._continuing.encode(part)
        return ids

    def _decode_text(self, ids: list[int]) -> str:
        return self._processor.decode(ids)

    def _id_to_piece(self, token_id: int) -> str:
        return self._processor.id_to_piece(token_id)

    def _piece_to_id(self, token: str) -> int | None:
        found = self._processor.piece_to_id(token)
        return found if self._processor.id_to_piece(found) == token else None

    def _append_special(self, token: str) -> int:
        if self._piece_to_id(token) is not None:
            raise ValueError(f"{token!r} is an ordinary piece of this model, not a special token")
        self._added.append(token)
        return self.vocab_size - 1

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        return {k: v for k, v in state.items() if k not in ("_processor", "_continuing")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._open()


def _control_tokens(special_tokens: Sequence[str], vocab_size: int) -> list[str]:
    control = list(special_tokens)
    base = list(_BASE_TOKENS.values())
    if "" in control or len({*control, *base}) != len(control) + len(base):
        raise ValueError(f"special_tokens must be non-empty, unique and none of {base}")
    smallest = len(base) + len(control) + _BYTES + 1
    if vocab_size < smallest:
        raise ValueError(
            f"vocab_size {vocab_size} is too small: {len(base)} base tokens, {len(control)} "
            f"special tokens and {_BYTES} bytes need at least {smallest}"
        )
    return control


def _training_lines(texts: Iterable[str]) -> Iterator[str]:
    """The texts in lines that the trainer takes: it drops long ones, and ones with such marks."""
    for text in texts:
        for line in re.split(f"[\\n\\r\\t\\0{BLANK}\u2585]", text):
            for start in range(0, len(line), 1000):
                yield line[start : start + 1000]
