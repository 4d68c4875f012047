"""Tiny models with processors, and the files of tiny tokenizers, for tests of whole folders."""

import json

import numpy as np
from PIL import Image
from tiny_models import tiny_config, tiny_nanovlm

from dl_techniques.datasets.vqa_dataset import VQADataProcessor
from dl_techniques.preprocessing.images import ImageProcessor
from dl_techniques.preprocessing.tokenizer import HuggingFaceTokenizer, SentencePieceTokenizer

MARKERS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
BARE = {
    "input_dim": 16,
    "output_dim": 24,
    "scale_factor": 2,
    "use_gelu": False,
    "use_layer_norm": False,
    "use_bias": False,
}
QUESTION = "What is it?"


def byte_tokenizer(folder, special=MARKERS):
    """Return a byte-level BPE: 256 bytes, then the special tokens."""
    own = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in own]
    spelling = {b: chr(b) for b in own} | {b: chr(256 + n) for n, b in enumerate(others)}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({spelling[b]: b for b in range(256)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = HuggingFaceTokenizer.from_vocab_and_merges(
        folder / "vocab.json",
        folder / "merges.txt",
        special_tokens=list(special),
        eos_token=special[0],
        pad_token=special[0],
    )
    (folder / "vocab.json").unlink()
    (folder / "merges.txt").unlink()
    tokenizer.save(folder)
    return tokenizer


def tiny_model(
    folder,
    fusion="placeholder",
    template="chatml",
    special=MARKERS,
    image_token="<|image|>",
    images=None,
    kind="bytes",
):
    """Return a model with a processor; `folder` gets the tokenizer's files."""
    if kind == "sentencepiece":
        texts = [f"Question: {QUESTION} Answer: a red square, two blue circles"] * 4
        tokenizer = SentencePieceTokenizer.train(texts, 300)
    else:
        tokenizer = byte_tokenizer(folder, special)
    image_token_id = None
    if fusion == "placeholder":
        (image_token_id,) = tokenizer.add_special_tokens([image_token])
    language = tiny_config()["language_config"] | {"max_positions": 512}
    model = tiny_nanovlm(
        seed=1,
        fusion=fusion,
        language_config=language,
        projection_config=BARE,
        vocab_size=tokenizer.vocab_size,
        image_token_id=image_token_id,
    )
    model.processor = VQADataProcessor(
        max_text_length=512,
        tokenizer=tokenizer,
        template=template,
        image_token_id=image_token_id,
        tokens_per_image=model.tokens_per_image if image_token_id is not None else 0,
        image_processor=images or ImageProcessor(16, mean=[0.4, 0.5, 0.6], std=0.3),
    )
    return model


def picture(path, seed=0, size=(20, 13)):
    """Write a picture and return its path."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def question(*images, text=QUESTION):
    """Return a conversation of one question."""
    return [{"role": "user", "content": text, "images": list(images)}]


def assert_same_weights(a, b):
    """Compare two models' weights, bit by bit."""
    import keras

    assert len(a.weights) == len(b.weights)
    for mine, other in zip(a.weights, b.weights, strict=True):
        np.testing.assert_array_equal(
            keras.ops.convert_to_numpy(mine), keras.ops.convert_to_numpy(other), mine.path
        )
