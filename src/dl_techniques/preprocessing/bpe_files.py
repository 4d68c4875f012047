"""Byte-level BPE vocabularies as GPT-2, SmolLM2, Qwen and CLIP publish them, without a pipeline."""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers

VOCAB_FILE = "vocab.json"
MERGES_FILE = "merges.txt"
CLIP_START, CLIP_END = "<|startoftext|>", "<|endoftext|>"
_CLIP_MERGES = 48894
_END_OF_WORD = "</w>"


@dataclass(frozen=True)
class BytePairPipeline:
    """What happens to text around BPE.

    Attributes:
        words: cuts text into words, and these into bytes.
        normalizer: changes text before that; None: text stays as it is.
        end_of_word: ends the last piece of every word.
    """

    words: pre_tokenizers.PreTokenizer
    normalizer: normalizers.Normalizer | None = None
    end_of_word: str = ""

    @property
    def decoder(self) -> decoders.Decoder:
        """Turns pieces into text again; ends of words become blanks, except at the end."""
        if not self.end_of_word:
            return decoders.ByteLevel()
        last = decoders.Replace(Regex(rf"{self.end_of_word}\z"), "")
        others = decoders.Replace(self.end_of_word, " ")
        return decoders.Sequence([decoders.ByteLevel(), last, others])


_GPT2_WORDS = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
_BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
_QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CLIP_WORDS = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
)
# vocab.json and merges.txt do not say these.
PRE_TOKENIZERS = {
    "gpt2": BytePairPipeline(_GPT2_WORDS),
    "smollm2": BytePairPipeline(
        pre_tokenizers.Sequence([pre_tokenizers.Digits(True), _GPT2_WORDS])
    ),
    "qwen2": BytePairPipeline(
        pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(_QWEN2_WORDS), "isolated"), _BYTES]),
        normalizers.NFC(),
    ),
    # GPT-2's pattern cuts again, which parts the spellings of special tokens.
    "clip": BytePairPipeline(
        pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(_CLIP_WORDS), "removed", invert=True), _GPT2_WORDS]
        ),
        normalizers.Sequence(
            [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
        ),
        _END_OF_WORD,
    ),
}
PRE_TOKENIZER_OF_CLASS = {
    None: "gpt2",
    "GPT2Tokenizer": "gpt2",
    "GPT2TokenizerFast": "gpt2",
    "Qwen2Tokenizer": "qwen2",
    "Qwen2TokenizerFast": "qwen2",
    "CLIPTokenizer": "clip",
    "CLIPTokenizerFast": "clip",
}


def read_with(reader: Any, source: Any, *arguments: Any, **options: Any) -> Any:
    """Call a reader of `tokenizers`, which raises bare `Exception`s; ValueError naming `source`."""
    try:
        return reader(*arguments, **options)
    except Exception as error:
        raise ValueError(f"cannot read {source}: {error}") from error


def read_vocab_and_merges(vocab: Path, merges: Path, pre_tokenizer: str) -> tokenizers.Tokenizer:
    """Read `vocab.json` and `merges.txt`.

    Raises:
        ValueError: a file is missing or corrupt, or `pre_tokenizer` is unknown.
    """
    if pre_tokenizer not in PRE_TOKENIZERS:
        raise ValueError(
            f"pre_tokenizer must be one of {sorted(PRE_TOKENIZERS)}, not {pre_tokenizer!r}"
        )
    for path in (vocab, merges):
        if not path.is_file():
            raise ValueError(f"cannot read {path}: there is no such file")
    files = f"{vocab} with {merges}"
    pieces, pairs = read_with(models.BPE.read_file, files, str(vocab), str(merges))
    return _backend(pieces, pairs, pre_tokenizer, files)


def read_clip_bpe(path: Path) -> tokenizers.Tokenizer:
    """Read CLIP's own `bpe_simple_vocab_16e6.txt.gz`: merges, from which the pieces follow.

    Raises:
        ValueError: the file is missing, corrupt or too short.
    """
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            lines = file.read().split("\n")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read {path}: {error}") from error
    # A head line, then more merges than CLIP has pieces for.
    pairs = [tuple(line.split()) for line in lines[1 : 1 + _CLIP_MERGES]]
    if len(pairs) < _CLIP_MERGES or any(len(pair) != 2 for pair in pairs):
        raise ValueError(f"cannot read {path}: expected {_CLIP_MERGES} merges of two pieces each")
    letters = list(byte_spelling().values())
    pieces = letters + [letter + _END_OF_WORD for letter in letters]
    pieces += ["".join(pair) for pair in pairs] + [CLIP_START, CLIP_END]
    return _backend({piece: i for i, piece in enumerate(pieces)}, pairs, "clip", path)


def _backend(pieces: dict, pairs: list, pre_tokenizer: str, source: Any) -> tokenizers.Tokenizer:
    pipeline = PRE_TOKENIZERS[pre_tokenizer]
    suffix = pipeline.end_of_word
    if suffix:
        missing = [s for s in byte_spelling().values() if not {s, s + suffix} <= pieces.keys()]
        if missing:
            raise ValueError(
                f"{source} lacks {len(missing)} of the 256 bytes, with {suffix} or not"
            )
    options = {"end_of_word_suffix": suffix} if suffix else {}
    backend = tokenizers.Tokenizer(read_with(models.BPE, source, pieces, pairs, **options))
    if pipeline.normalizer is not None:
        backend.normalizer = pipeline.normalizer
    backend.pre_tokenizer = pipeline.words
    backend.decoder = pipeline.decoder
    return backend


def byte_spelling() -> dict[int, str]:
    """The character that stands for each byte in a byte-level vocabulary, in CLIP's order.

    Printable Latin-1 characters stand for themselves, the other bytes for U+0100 and up, in order.
    """
    own = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(0x100) if b not in own]
    return {b: chr(b) for b in own} | {b: chr(0x100 + n) for n, b in enumerate(others)}
