"""Answers as they come, piece by piece."""

import json

import numpy as np
import pytest
from keras import ops
from tiny_chat import (
    count_programs,
    letters,
    picture,
    user,
)
from tiny_models import (
    TOKENS_PER_IMAGE,
    mixed_batch,
    tiny_nanovlm,
)

from dl_techniques.datasets.vqa_dataset import VQADataProcessor
from dl_techniques.generation import Sampler
from dl_techniques.preprocessing.tokenizer import HuggingFaceTokenizer

NEW = 12
SAMPLER = Sampler(temperature=1.3, top_k=20, top_p=0.95)
PENALISED = Sampler(temperature=1.3, min_p=0.02, repetition_penalty=1.5)


@pytest.mark.parametrize("sampler", ["greedy", SAMPLER, PENALISED], ids=str)
def test_streamed_ids_are_the_ids(models, sampler):
    model, prompts = models["placeholder"], mixed_batch()
    expected = model.generate(prompts, NEW, sampler, seed=3)
    columns = list(model.generate(prompts, NEW, sampler, seed=3, stream=True))
    assert all(column.shape == (3,) and column.dtype == np.int32 for column in columns)
    np.testing.assert_array_equal(np.stack(columns, axis=1), expected)


@pytest.mark.parametrize("question", [[user("what?", picture(0))], "how?"])
def test_streamed_text_is_the_text(chat, question):
    for options in ({"logits_processors": [letters]}, {"sampler": SAMPLER, "seed": 8}):
        pieces = list(chat.generate(question, NEW, stream=True, **options))
        assert all(pieces) and "".join(pieces) == chat.generate(question, NEW, **options)


def test_the_first_piece_comes_before_the_rest_is_computed(chat, models, monkeypatch):
    counts = count_programs(monkeypatch, chat)
    stream = chat.generate("what?", NEW, stream=True, logits_processors=[letters])
    assert not counts
    assert next(stream)
    # Token 0 is a blank, which is held back: one step more.
    assert counts["prefill"] == 1 and counts["decode"] == 1
    assert next(stream) and counts["decode"] == 2
    stream.close()
    assert list(stream) == [] and counts["decode"] == 2
    counts = count_programs(monkeypatch, models["placeholder"])
    columns = models["placeholder"].generate(mixed_batch(), NEW, stream=True)
    next(columns)
    assert counts["prefill"] == 1 and counts["decode"] == 0
    next(columns)
    assert counts["decode"] == 1


def test_no_broken_characters_with_byte_level_tokens(byte_chat):
    model, text = byte_chat
    assert model.generate("hm?", 40) == text
    pieces = list(model.generate("hm?", 40, stream=True))
    assert "".join(pieces) == text
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)
    assert len(pieces) >= 6 and any("😀" in piece for piece in pieces)


@pytest.fixture
def byte_chat(tmp_path, monkeypatch):
    """A model with a byte-level tokenizer, and the text that it always says."""
    own = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in own]
    spelling = {b: chr(b) for b in own} | {b: chr(256 + n) for n, b in enumerate(others)}
    vocab = {spelling[b]: b for b in range(256)}
    (tmp_path / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    (tmp_path / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    tokenizer = HuggingFaceTokenizer.from_vocab_and_merges(
        tmp_path / "vocab.json",
        tmp_path / "merges.txt",
        special_tokens=["<|end|>", "<|image|>"],
        eos_token="<|end|>",
        pad_token="<|end|>",
    )
    model = tiny_nanovlm(vocab_size=258, image_token_id=257)
    model.processor = VQADataProcessor(
        16, tokenizer=tokenizer, image_token_id=257, tokens_per_image=TOKENS_PER_IMAGE
    )
    text = "a 😀é漢字 b"
    said = np.array([*f" {text}".encode(), 256], "int32")

    def says(logits, ids, i):
        token = ops.take(said, ops.minimum(i, len(said) - 1))
        return ops.where(ops.arange(258) == token, 1e3, logits)

    generate = model.generate
    monkeypatch.setattr(
        type(model),
        "generate",
        lambda self, *args, **options: generate(*args, logits_processors=[says], **options),
    )
    return model, text
