"""Tokenizers that others published, against ids that others measured."""

import unicodedata

import pytest

from dl_techniques.preprocessing.tokenizer import HuggingFaceTokenizer, load_tokenizer

pytestmark = pytest.mark.no_backend

QUESTION = "What color is the bear?"
BATTERY = [
    "",
    "  two  blanks\tand\r\nlines\n\n",
    "I'll've 1234 Don't\n\n  x\r\n y  ",
    "\u2581 blank mark \u2581\u2581",
    "é e\u0301 漢字 😀 \ufeff \ufffd \x00 \u2585",
    "<|im_start|>user\n<|im_end|> </s> <s> <pad> <unk> <0x41> <|endoftext|>",
]


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "ids", "size", "named"),
    [
        ("smollm2", [1780, 2380, 314, 260, 7012, 47], 49152, (0, 0, 0)),
        ("qwen2.5", [3838, 1894, 374, 279, 11722, 30], 151665, (151643, None, 151645)),
        ("gpt2", [2061, 3124, 318, 262, 6842, 30], 50257, (None, None, None)),
        ("mistral_v1_spm", [1824, 3181, 349, 272, 9135, 28804], 32000, (None, 1, 2)),
    ],
)
def test_published_tokenizers(data_folder, tmp_path, name, ids, size, named):
    loaded = load_tokenizer(data_folder / "tokenizers" / name)
    assert loaded.encode(QUESTION) == ids
    assert loaded.vocab_size == size
    assert (loaded.pad_id, loaded.bos_id, loaded.eos_id) == named
    for text in BATTERY:
        # Qwen composes characters; the others keep every text as it is.
        kept = unicodedata.normalize("NFC", text) if name == "qwen2.5" else text
        assert loaded.decode(loaded.encode(text)) == kept
        said = map(loaded.token_bytes, loaded.encode(text, continues=True))
        assert b"".join(said) == kept.encode()
        assert not set(loaded.encode(text)) & set(loaded.special_tokens.values())
    assert loaded.add_special_tokens(["<|image|>"]) == [size]
    loaded.save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert [again.encode(t) for t in BATTERY] == [loaded.encode(t) for t in BATTERY]
    assert again.special_tokens == loaded.special_tokens


@pytest.mark.data
def test_smollm2_from_vocab_and_merges_equals_its_tokenizer_json(data_folder):
    folder = data_folder / "tokenizers" / "smollm2"
    whole = load_tokenizer(folder)
    parts = HuggingFaceTokenizer.from_vocab_and_merges(
        folder / "vocab.json", folder / "merges.txt", pre_tokenizer="smollm2"
    )
    text = next((data_folder / "text").glob("*.txt")).read_text(encoding="utf-8")[:20000]
    ids = whole.encode(text)
    assert len(ids) > 1024  # the file asks for truncation there
    assert whole.decode(ids) == text
    for sample in [*BATTERY, text]:
        assert parts.encode(sample) == whole.encode(sample)
    with pytest.raises(ValueError, match=r"U\+0004"):
        whole.encode("\x04")


@pytest.mark.data
def test_gpt2_end_of_text_becomes_special_with_its_own_id(data_folder):
    loaded = load_tokenizer(data_folder / "tokenizers" / "gpt2")
    assert loaded.add_special_tokens(["<|endoftext|>"]) == [50256]
    assert 50256 not in loaded.encode("<|endoftext|>")
    assert loaded.encode("<|endoftext|>", allow_special=True) == [50256]
    assert loaded.vocab_size == 50257
