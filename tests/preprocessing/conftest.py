"""Small tokenizers that the tests make themselves."""

import json

import pytest

from dl_techniques.preprocessing.tokenizer import HuggingFaceTokenizer, SentencePieceTokenizer

CHAT_TOKENS = ("<|im_start|>", "<|im_end|>", "<|image|>")
TEXTS = [
    "What color is the bear? The bear is brown.",
    "Question: How many squares are there? Answer: 12",
    "a red circle, two blue squares  and one star",
    "user assistant system <|im_start|> é 漢字 😀",
]


@pytest.fixture(scope="session")
def byte_files(tmp_path_factory):
    """A byte-level BPE whose first 256 ids are the bytes, so expected ids can be written by hand.

    Behind them: 256 he, 257 us, 258 use, 259 user, 260 12, 261 "!" with a line feed.
    """
    own = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in own]
    spelling = {b: chr(b) for b in own} | {b: chr(256 + n) for n, b in enumerate(others)}
    merges = ["h e", "u s", "us e", "use r", "1 2", f"! {spelling[10]}"]
    vocab = {spelling[b]: b for b in range(256)}
    vocab |= {merge.replace(" ", ""): 256 + n for n, merge in enumerate(merges)}
    folder = tmp_path_factory.mktemp("byte_bpe")
    (folder / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    merges_text = "#version: 0.2\n" + "\n".join(merges) + "\n"
    (folder / "merges.txt").write_text(merges_text, encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def byte_tokenizer(byte_files):
    """Special: 262 <|begin|>, 263 <|endoftext|>, 264 <|im_start|>, 265 <|im_end|>, 266 <|image|>.

    Shared by all tests: copy it before you change it.
    """
    return HuggingFaceTokenizer.from_vocab_and_merges(
        byte_files / "vocab.json",
        byte_files / "merges.txt",
        special_tokens=["<|begin|>", "<|endoftext|>", *CHAT_TOKENS],
        bos_token="<|begin|>",
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
    )


@pytest.fixture(scope="session")
def spm_tokenizer():
    """Special: 0 <pad>, 1 <s>, 2 </s>, 3 <unk>, 4 <|im_start|>, 5 <|im_end|>, 6 <|image|>."""
    return SentencePieceTokenizer.train(TEXTS, 400, special_tokens=CHAT_TOKENS)


@pytest.fixture(scope="session", params=["byte", "spm"])
def tokenizer(request, byte_tokenizer, spm_tokenizer):
    return {"byte": byte_tokenizer, "spm": spm_tokenizer}[request.param]
