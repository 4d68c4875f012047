"""SentencePiece models as pipelines of the `tokenizers` library, for `tokenizer.json`.

Both libraries can give the same ids, but they spell differently. Here the pieces are spelled with
real blanks, so that U+2581 in a text, which SentencePiece writes for a blank, falls back to its
bytes as with `SentencePieceTokenizer`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import tokenizers
from tokenizers import Regex, decoders, models, normalizers

from dl_techniques.preprocessing.huggingface_tokenizer import HuggingFaceTokenizer
from dl_techniques.preprocessing.sentencepiece_tokenizer import BLANK, SentencePieceTokenizer
from dl_techniques.preprocessing.tokenizer_base import Tokenizer

_UNIGRAM, _BPE = 1, 2  # TrainerSpec.model_type
_NORMAL, _UNKNOWN, _CONTROL, _UNUSED, _BYTE = 1, 2, 3, 5, 6  # SentencePiece.type
_PRIVATE_USE = range(0xE000, 0xF900)


def to_huggingface(tokenizer: Tokenizer) -> HuggingFaceTokenizer:
    """The tokenizer as one that saves a `tokenizer.json`: same ids, same special tokens.

    A dummy prefix goes before every text between special tokens, as with `Tokenizer.encode`. Where
    a unigram model scores two orders of the same pieces alike (one text many times in a row), the
    two libraries may round to different ones.

    Args:
        tokenizer: a `SentencePieceTokenizer`; a `HuggingFaceTokenizer` is returned as it is.

    Raises:
        ValueError: a tokenizer that the library cannot express: of characters, or a model that
            normalizes text, trims blanks, has pieces of a user or no bytes to fall back to.
    """
    if isinstance(tokenizer, HuggingFaceTokenizer):
        return tokenizer
    if not isinstance(tokenizer, SentencePieceTokenizer):
        raise ValueError(
            f"a {type(tokenizer).__name__} cannot be written as tokenizer.json; train the model "
            "with a SentencePieceTokenizer or a HuggingFaceTokenizer to export it"
        )
    model = _read_model(tokenizer.model)
    backend = _unigram(model) if model.kind == _UNIGRAM else _bpe(model)
    spelling = {i: token for token, i in tokenizer.special_tokens.items()}
    return HuggingFaceTokenizer(
        backend,
        special_tokens=list(tokenizer.special_tokens),
        pad_token=spelling.get(tokenizer.pad_id),
        bos_token=spelling.get(tokenizer.bos_id),
        eos_token=spelling.get(tokenizer.eos_id),
    )


@dataclass(frozen=True)
class _Model:
    """What a `.model` file says: `pieces` are (spelling, score, type), with real blanks."""

    kind: int
    pieces: list[tuple[str, float, int]]
    dummy_prefix: bool

    @property
    def ids(self) -> dict[str, int]:
        return {piece: i for i, (piece, _, _) in enumerate(self.pieces)}


def _bpe(model: _Model) -> tokenizers.Tokenizer:
    normal = {
        piece: (-score, i) for i, (piece, score, kind) in enumerate(model.pieces) if kind == _NORMAL
    }
    # SentencePiece makes the best piece, from left to right among equals; here pairs have an order.
    # Equals are runs of blanks: with the longest first they grow from the left, too.
    merges = [
        (normal[piece][0], -len(piece), normal[piece[:cut]][1], piece[:cut], piece[cut:])
        for piece in normal
        for cut in range(1, len(piece))
        if piece[:cut] in normal and piece[cut:] in normal
    ]
    pairs = [(left, right) for *_, left, right in sorted(merges)]
    backend = tokenizers.Tokenizer(models.BPE(model.ids, pairs, byte_fallback=True))
    _set_normalizer(backend, model, [])
    backend.decoder = _decoder(model, [])
    return backend


def _unigram(model: _Model) -> tokenizers.Tokenizer:
    """The unigram model; there a text that spells `<s>` or `<0x41>` would give that piece.

    So "<" becomes another character in texts and normal pieces, one that no piece has. Where a
    text has that one itself, it becomes the spelling of its bytes.
    """
    taken = set("".join(piece for piece, _, kind in model.pieces if kind == _NORMAL))
    other = next(char for char in map(chr, _PRIVATE_USE) if char not in taken)
    pieces = [
        (piece.replace("<", other) if kind == _NORMAL else piece, score)
        for piece, score, kind in model.pieces
    ]
    unknown = next(i for i, (_, _, kind) in enumerate(model.pieces) if kind == _UNKNOWN)
    backend = tokenizers.Tokenizer(models.Unigram(pieces, unknown, byte_fallback=True))
    steps = [
        normalizers.Replace(other, "<" + other),
        normalizers.Replace(Regex(f"<(?!{other})"), other if "<" in taken else _bytes_of("<")),
        normalizers.Replace("<" + other, _bytes_of(other)),
    ]
    _set_normalizer(backend, model, steps)
    backend.decoder = _decoder(model, [decoders.Replace(other, "<")])
    return backend


def _bytes_of(text: str) -> str:
    return "".join(f"<0x{byte:02X}>" for byte in text.encode())


def _set_normalizer(backend: tokenizers.Tokenizer, model: _Model, steps: list[Any]) -> None:
    if model.dummy_prefix:
        steps = [*steps, normalizers.Prepend(" ")]
    if steps:
        backend.normalizer = normalizers.Sequence(steps)


def _decoder(model: _Model, steps: list[Any]) -> decoders.Decoder:
    steps = [*steps, decoders.ByteFallback(), decoders.Fuse()]
    if model.dummy_prefix:
        steps.append(decoders.Strip(" ", 1, 0))
    return decoders.Sequence(steps)


# The file is a protobuf message, ModelProto. Its few fields that count are read here by number:
# 1 pieces (1 piece, 2 score, 3 type), 2 trainer_spec (3 model_type,
# 24 treat_whitespace_as_suffix), 3 normalizer_spec (2 precompiled_charsmap, 3 add_dummy_prefix,
# 4 remove_extra_whitespaces, 5 escape_whitespaces).


def _read_model(content: bytes) -> _Model:
    pieces, trainer, normalizer = [], {}, {}
    for number, value in _fields(content):
        if number == 1:
            piece = dict(_fields(value))
            score = struct.unpack("<f", piece[2])[0] if 2 in piece else 0.0
            pieces.append((piece[1].decode().replace(BLANK, " "), score, piece.get(3, _NORMAL)))
        elif number == 2:
            trainer |= dict(_fields(value))
        elif number == 3:
            normalizer |= dict(_fields(value))
    kinds = {kind for _, _, kind in pieces}
    model = _Model(trainer.get(3, _UNIGRAM), pieces, bool(normalizer.get(3, True)))
    obstacles = {
        "is neither BPE nor unigram": model.kind not in (_UNIGRAM, _BPE),
        "puts blanks behind words": trainer.get(24, False),
        "normalizes text": normalizer.get(2, b""),
        "trims blanks": normalizer.get(4, True),
        "keeps blanks unescaped": not normalizer.get(5, True),
        "has no bytes to fall back to": _BYTE not in kinds,
        "has pieces that a user defined": kinds - {_NORMAL, _UNKNOWN, _CONTROL, _UNUSED, _BYTE},
    }
    found = [what for what, there in obstacles.items() if there]
    if found:
        raise ValueError(
            f"this SentencePiece model {' and '.join(found)}, which tokenizer.json cannot repeat "
            "exactly; models from SentencePieceTokenizer.train can be exported"
        )
    return model


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """Number and value of each field: an int, or the bytes of all that is no varint."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(message, at)
        else:
            size = {1: 8, 5: 4}.get(wire)
            if size is None:
                size, at = _varint(message, at)
            value, at = message[at : at + size], at + size
        yield number, value


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value, shift, at = value | (byte & 0x7F) << shift, shift + 7, at + 1
        if byte < 0x80:
            return value, at
