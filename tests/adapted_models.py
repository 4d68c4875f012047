"""Tiny models with adapters, for the tests of LoRA, quantized bases and adapter files."""

import keras
import numpy as np
from tiny_models import IMAGE_ID, random_ids, tiny_nanovlm

from dl_techniques.losses.nanovlm_loss import NanoVLMLoss
from dl_techniques.models.lora import enable_lora


def move(variables, seed=1):
    """Add noise that depends on the variables' order alone, as a training might."""
    generator = np.random.default_rng(seed)
    for variable in variables:
        noise = 0.1 * generator.standard_normal(variable.shape)
        variable.assign(keras.ops.convert_to_numpy(variable) + noise.astype("float32"))


def adapted(rank=4, dtype=None, moved=True, **options):
    """Return a model whose adapters, and what else is open, do something."""
    model = tiny_nanovlm(dtype=dtype)
    enable_lora(model, rank=rank, **options)
    if moved:
        move(model.trainable_variables)
    return model


def values(variables):
    """Return path -> array, copied."""
    return {v.path: np.array(keras.ops.convert_to_numpy(v)) for v in variables}


def assert_same(first, second):
    """Compare two dicts of `values`, bit by bit."""
    assert first.keys() == second.keys()
    for path, value in first.items():
        np.testing.assert_array_equal(value, second[path], path)


def text_batch():
    """Return two rows of text."""
    return {"text_tokens": random_ids(2, 12)}


def labels_of(batch):
    """Return every real token of text as a label."""
    ids = batch["text_tokens"]
    real = batch.get("attention_mask", np.ones(ids.shape, bool)) & (ids != IMAGE_ID)
    return np.where(real, ids, -100).astype("int32")


def fit(model, batch, optimizer=None):
    """Train for two steps on one batch."""
    model.compile(optimizer or keras.optimizers.AdamW(1e-2), NanoVLMLoss())
    rows = len(batch["text_tokens"])
    model.fit(batch, labels_of(batch), batch_size=rows, epochs=2, verbose=0)
