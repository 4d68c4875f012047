"""A tiny model that reads and writes characters, and helpers of the tests of generation."""

import io
from collections import Counter

import numpy as np
from keras import ops
from PIL import Image
from tiny_models import TOKENS_PER_IMAGE, tiny_config, tiny_nanovlm

from dl_techniques.datasets.vqa_dataset import VQADataProcessor
from dl_techniques.preprocessing.tokenizer import CharacterTokenizer

CHARACTERS = 128
CHAT_IMAGE_ID = CHARACTERS
LETTERS = np.isin(np.arange(CHARACTERS + 1), [ord(c) for c in "abcdefghijklmnopqrstuvwxyz"])
PROGRAMS = ("encode", "prefill", "choose", "advance", "score", "decode")


def chat_processor(image_size: int = 16, **options) -> VQADataProcessor:
    """Return a processor with one id per character; the image placeholder's id is the last."""
    tokenizer = CharacterTokenizer(CHARACTERS)
    tokenizer.add_special_tokens(["<|image|>"])
    return VQADataProcessor(
        image_size,
        tokenizer=tokenizer,
        image_token_id=CHAT_IMAGE_ID,
        tokens_per_image=TOKENS_PER_IMAGE,
        **options,
    )


def chat_model(
    seed: int = 3, max_positions: int = 256, vocab_size: int = CHARACTERS + 1, **changes
):
    """Return a model with its processor, which knows the first 129 ids."""
    language = tiny_config()["language_config"] | {
        "max_positions": max_positions,
        "tie_embeddings": False,
    }
    model = tiny_nanovlm(
        seed=seed,
        language_config=language,
        vocab_size=vocab_size,
        image_token_id=CHAT_IMAGE_ID,
        **changes,
    )
    model.processor = chat_processor()
    return model


def letters(logits, ids, i):
    """Logits processor: a blank, then letters, so that answers are the same text again as ids."""
    blank = np.arange(CHARACTERS + 1) == ord(" ")
    allowed = ops.where(ops.equal(i, 0), blank, LETTERS)
    return ops.where(allowed, logits, -1e9)


def picture(seed: int, size: int = 16) -> np.ndarray:
    """Return uint8[size, size, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)


def png(array: np.ndarray) -> bytes:
    """Return the encoded image."""
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


def user(text: str, *images) -> dict:
    """Return a user's message."""
    return {"role": "user", "content": text} | ({"images": list(images)} if images else {})


def assistant(text: str) -> dict:
    """Return an assistant's message."""
    return {"role": "assistant", "content": text}


def count_programs(monkeypatch, model) -> Counter:
    """Return the number of calls of each compiled program from now on."""
    programs, counts = model.generation_engine().programs, Counter()

    def counting(name, method):
        def call(*args):
            counts[name] += 1
            return method(*args)

        return call

    for name in PROGRAMS:
        monkeypatch.setattr(programs, name, counting(name, getattr(programs, name)))
    return counts


def log_softmax(logits):
    """Return float64 log-probabilities."""
    logits = np.asarray(logits, "float64")
    logits = logits - logits.max(axis=-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
