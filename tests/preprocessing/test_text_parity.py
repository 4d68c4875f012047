"""Ids and decoded text equal those of transformers' tokenizers, made from the same files."""

import json
import re
import unicodedata

import pytest
from sentences import from_data, handmade
from transformers import (
    AutoTokenizer,
    CLIPTokenizer,
    GPT2Tokenizer,
    LlamaTokenizer,
    PreTrainedTokenizerFast,
    Qwen2Tokenizer,
)

from dl_techniques.preprocessing.tokenizer import HuggingFaceTokenizer, load_tokenizer

pytestmark = pytest.mark.no_backend

CLIP_FILE = "clip_bpe/bpe_simple_vocab_16e6.txt.gz"


def test_there_are_enough_sentences():
    texts = handmade()
    assert len(texts) == len(set(texts)) >= 200
    assert any(t != unicodedata.normalize("NFC", t) for t in texts)
    assert any(t != unicodedata.normalize("NFD", t) for t in texts)


@pytest.fixture(scope="module")
def texts(data_folder):
    return handmade() + from_data(data_folder)


@pytest.fixture(scope="module")
def tokenizers(data_folder):
    return data_folder / "tokenizers"


def clip_pair(tokenizers):
    """Ours reads the original file; theirs knows the pieces and merges only."""
    ours = HuggingFaceTokenizer.from_clip_bpe(tokenizers / CLIP_FILE)
    model = json.loads(ours._backend.to_str())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    return ours, CLIPTokenizer(vocab=model["vocab"], merges=merges)


def pair(name, tokenizers):
    if name == "clip":
        return clip_pair(tokenizers)
    folder = tokenizers / name
    # For SmolLM2 AutoTokenizer takes GPT-2's pipeline and leaves out what tokenizer.json says.
    theirs = {"smollm2": PreTrainedTokenizerFast, "qwen2.5": Qwen2Tokenizer, "gpt2": GPT2Tokenizer}
    ours = load_tokenizer(folder)
    if name == "gpt2":
        ours.add_special_tokens(["<|endoftext|>"])
    return ours, theirs[name].from_pretrained(folder)


def their_ids(theirs, text, special):
    return theirs.encode(text, add_special_tokens=False, split_special_tokens=not special)


@pytest.mark.data
@pytest.mark.parametrize("name", ["smollm2", "qwen2.5", "gpt2", "clip"])
def test_byte_level_bpe(texts, tokenizers, name):
    ours, theirs = pair(name, tokenizers)
    missing = ours._missing
    assert missing if name == "smollm2" else not missing
    refused = 0
    for text in texts:
        if missing.intersection(text.encode()):
            # Ours refuses what theirs drops without a word.
            refused += 1
            kept = "".join(c for c in text if not missing.intersection(c.encode()))
            with pytest.raises(ValueError, match="no id for the character"):
                ours.encode(text)
            assert their_ids(theirs, text, False) == ours.encode(kept)
            continue
        for special in (False, True):
            ids = ours.encode(text, allow_special=special)
            assert ids == their_ids(theirs, text, special), text
            decoded = theirs.decode(ids, clean_up_tokenization_spaces=False)
            if name == "clip" and special:
                # Ours decodes the words between special tokens alone.
                decoded = re.sub(r" (?=<\|(start|end)oftext\|>)", "", decoded)
            assert ours.decode(ids) == decoded, text
    assert (refused > 0) == (name == "smollm2")


@pytest.mark.data
def test_the_files_of_clip_in_hugging_face_layout(texts, tokenizers, tmp_path):
    original, theirs = clip_pair(tokenizers)
    theirs.backend_tokenizer.model.save(str(tmp_path))
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "CLIPTokenizer",
                "bos_token": "<|startoftext|>",
                "eos_token": {"content": "<|endoftext|>", "special": True},
                "pad_token": "<|endoftext|>",
            }
        )
    )
    loaded = load_tokenizer(tmp_path)
    assert loaded.special_tokens == {"<|startoftext|>": 49406, "<|endoftext|>": 49407}
    assert (loaded.bos_id, loaded.eos_id, loaded.pad_id) == (49406, 49407, 49407)
    assert loaded.special_tokens == original.special_tokens
    for text in texts:
        assert loaded.encode(text) == original.encode(text)
    assert original.encode("A  photo\tof two CATS!") == [320, 1125, 539, 1237, 3989, 256]
    assert original.decode([320, 1125, 539, 1237, 3989, 256]) == "a photo of two cats !"
    assert original.decode([]) == ""


@pytest.mark.data
def test_sentencepiece(texts, tokenizers):
    """Ours runs the SentencePiece library itself; theirs is a conversion that differs on blanks."""
    folder = tokenizers / "mistral_v1_spm"
    ours, theirs = load_tokenizer(folder), LlamaTokenizer.from_pretrained(folder, legacy=True)
    different = 0
    for text in texts:
        for special in (False, True):
            ids = ours.encode(text, allow_special=special)
            if ids != their_ids(theirs, text, special):
                # A second blank at the start, runs of blanks, and the spelling of a blank.
                assert re.search("^ |  |\u2581|> ", text), text
                different += 1
    assert 0 < different < 100


@pytest.mark.data
@pytest.mark.parametrize("legacy", [False, True])
def test_a_prefix_before_the_first_text_or_before_every_text(texts, tokenizers, tmp_path, legacy):
    theirs = LlamaTokenizer.from_pretrained(tokenizers / "mistral_v1_spm", legacy=legacy)
    theirs.save_pretrained(tmp_path)
    ours = load_tokenizer(tmp_path)
    assert isinstance(ours, HuggingFaceTokenizer)
    for text in texts:
        for special in (False, True):
            ids = ours.encode(text, allow_special=special)
            assert ids == their_ids(theirs, text, special), text


@pytest.mark.data
@pytest.mark.parametrize("name", ["smollm2", "qwen2.5", "gpt2", "clip"])
def test_auto_tokenizer_loads_what_ours_saves(texts, tokenizers, tmp_path, name):
    ours, _ = pair(name, tokenizers)
    ours.add_special_tokens(["<|image|>", "<row_1_col_1>"])
    ours.save(tmp_path)
    same_as_auto_tokenizer(ours, tmp_path, texts)


def same_as_auto_tokenizer(ours, folder, texts):
    theirs = AutoTokenizer.from_pretrained(folder)
    assert len(theirs) == ours.vocab_size
    assert set(theirs.all_special_tokens) == set(ours.special_tokens)
    for token, token_id in ours.special_tokens.items():
        assert theirs.convert_tokens_to_ids(token) == token_id
    named = (theirs.pad_token_id, theirs.bos_token_id, theirs.eos_token_id)
    assert named == (ours.pad_id, ours.bos_id, ours.eos_id)
    missing = ours._missing
    for text in texts:
        if not missing.intersection(text.encode()):
            ids = ours.encode(text)
            assert theirs.encode(text, split_special_tokens=True) == ids, text
            assert theirs.encode(text) == ours.encode(text, allow_special=True), text
            assert theirs.decode(ids) == ours.decode(ids), text


def test_auto_tokenizer_loads_what_the_tests_own_tokenizer_saves(byte_tokenizer, tmp_path):
    byte_tokenizer.save(tmp_path)
    same_as_auto_tokenizer(byte_tokenizer, tmp_path, handmade())
