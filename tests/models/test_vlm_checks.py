"""Batches that do not fit are refused before a step, or turn into NaN where nobody could look."""

import grain
import keras
import numpy as np
import pytest
from tiny_models import (
    IMAGE_ID,
    VOCAB,
    mixed_batch,
    place_images,
    random_ids,
    random_images,
    run,
    text_batch,
    tiny_config,
    tiny_nanovlm,
)

from dl_techniques.losses.nanovlm_loss import NanoVLMLoss
from dl_techniques.models.nano_vlm import NanoVLM


@pytest.fixture(scope="module")
def model():
    model = tiny_nanovlm()
    model.compile("sgd", NanoVLMLoss())
    return model


@pytest.fixture(scope="module")
def prefix_model():
    return tiny_nanovlm("prefix")


def _with(changes):
    """Return mixed_batch with single tokens replaced: {(row, column): id}."""
    batch = mixed_batch()
    for place, value in changes.items():
        batch["text_tokens"][place] = value
    return batch


def _labels(batch):
    return np.where(batch["text_tokens"] == IMAGE_ID, -100, batch["text_tokens"]).astype("int32")


def _too_few():
    return _with({(0, 8): 5})


class _OneBatch(keras.utils.PyDataset):
    def __init__(self, batch):
        super().__init__()
        self.batch = batch

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return self.batch, _labels(self.batch)


def _grain_dataset(batch):
    return grain.MapDataset.source([(batch, _labels(batch))])


WAYS_IN = {
    "call": lambda model, batch: model(batch),
    "fit_arrays": lambda model, batch: model.fit(batch, _labels(batch), verbose=0),
    "fit_dataset": lambda model, batch: model.fit(_OneBatch(batch), verbose=0),
    "fit_generator": lambda model, batch: model.fit(
        ((batch, _labels(batch)) for _ in range(1)), steps_per_epoch=1, shuffle=False, verbose=0
    ),
    "fit_grain": lambda model, batch: model.fit(
        _grain_dataset(batch), steps_per_epoch=1, shuffle=False, verbose=0
    ),
    "fit_grain_stream": lambda model, batch: model.fit(
        _grain_dataset(batch).to_iter_dataset(), steps_per_epoch=1, shuffle=False, verbose=0
    ),
    "validation_arrays": lambda model, batch: model.fit(
        mixed_batch(), _labels(mixed_batch()), validation_data=(batch, _labels(batch)), verbose=0
    ),
    "validation_dataset": lambda model, batch: model.fit(
        mixed_batch(), _labels(mixed_batch()), validation_data=_OneBatch(batch), verbose=0
    ),
    "train_on_batch": lambda model, batch: model.train_on_batch(batch, _labels(batch)),
    "test_on_batch": lambda model, batch: model.test_on_batch(batch, _labels(batch)),
    "evaluate": lambda model, batch: model.evaluate(batch, _labels(batch), verbose=0),
    "predict": lambda model, batch: model.predict(batch, verbose=0),
    "generate": lambda model, batch: model.generate(batch, 1),
}


@pytest.mark.parametrize("way", list(WAYS_IN))
def test_every_way_in_counts_placeholders(way, model):
    message = r"Row 0 has 7 placeholders \(id 31\), expected 8 = 2 images x 4 tokens"
    with pytest.raises(ValueError, match=message):
        WAYS_IN[way](model, _too_few())


@pytest.mark.parametrize("way", list(WAYS_IN))
def test_every_way_in_takes_a_good_batch(way, model):
    WAYS_IN[way](model, mixed_batch())


BAD_BATCHES = {
    "too_many": (_with({(2, 0): IMAGE_ID}), "Row 2 has 1 placeholders .* expected 0 = 0 images"),
    "no_images": (
        {"text_tokens": mixed_batch()["text_tokens"]},
        "Row 0 has 8 placeholders .* expected 0 = 0 images",
    ),
    "id_too_large": (
        _with({(1, 9): VOCAB}),
        r"text_tokens\[1, 9\] = 32 is out of range: .* \[0, vocab_size=32\)",
    ),
    "id_negative": (_with({(2, 3): -1}), r"text_tokens\[2, 3\] = -1 is out of range"),
    "num_images_too_large": (
        {**mixed_batch(), "num_images": np.array([3, 1, 0])},
        r"num_images=\[3, 1, 0\] .* in \[0, 2\]",
    ),
    "num_images_of_other_rows": (
        {**mixed_batch(), "num_images": np.array([2, 1])},
        r"num_images=\[2, 1\] must give each of the 3 rows",
    ),
    "images_of_other_rows": (
        {**mixed_batch(), "images": random_images(2, 2)},
        r"B=3 as text_tokens, got shape \(2, 2, 16, 16, 3\)",
    ),
    "mask_of_other_shape": (
        {**mixed_batch(), "attention_mask": np.ones((3, 15), bool)},
        r"attention_mask \(3, 15\) must have the shape of text_tokens \(3, 16\)",
    ),
    "float_ids": (
        {"text_tokens": np.zeros((2, 3), "float32")},
        r"must be integers \[B, S\], got float32 \(2, 3\)",
    ),
    "no_ids": ({"images": random_images(3, 2)}, r"need the key 'text_tokens'; got \['images'\]"),
    "unknown_key": ({**mixed_batch(), "image": random_images(3)}, r"unknown keys \['image'\]"),
}


@pytest.mark.parametrize("name", list(BAD_BATCHES))
def test_bad_batches(name, model):
    batch, message = BAD_BATCHES[name]
    with pytest.raises(ValueError, match=message):
        model(batch)


def test_bad_labels(model):
    batch = mixed_batch()
    labels = _labels(batch)
    labels[1, 4] = VOCAB
    with pytest.raises(ValueError, match=r"labels\[1, 4\] = 32 is out of range"):
        model.fit(batch, labels, verbose=0)
    labels[1, 4] = -1
    with pytest.raises(ValueError, match=r"labels\[1, 4\] = -1 is out of range"):
        model.train_on_batch(batch, labels)
    with pytest.raises(ValueError, match=r"labels \(3, 15\) must have the shape of text_tokens"):
        model.evaluate(batch, labels[:, 1:], verbose=0)


def test_prefix_batches_are_checked_too(prefix_model):
    with pytest.raises(ValueError, match=r"num_images=\[3, 0, 0\] .* in \[0, 2\]"):
        prefix_model({**text_batch(), "num_images": np.array([3, 0, 0])})
    # Prefix fusion has no placeholder: that id is text like any other.
    assert np.isfinite(run(prefix_model, np.full((1, 16), IMAGE_ID))).all()


def test_optional_keys_may_be_none(model):
    batch = {"text_tokens": random_ids(3, 16)}
    none = dict.fromkeys(("images", "num_images", "attention_mask", "segment_ids", "positions"))
    got = keras.ops.convert_to_numpy(model({**batch, **none}))
    np.testing.assert_allclose(got, run(model, batch), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bad", ["too_few", "too_many", "no_images", "id_too_large", "negative"])
def test_unchecked_rows_become_nan(bad, model):
    ids = place_images(random_ids(3, 16), [(0, 1), (1, 3), (2, 5)])
    batch = {"text_tokens": ids, "images": random_images(3, 1)}
    if bad == "no_images":
        batch.pop("images")
        ids[[0, 2]] = random_ids(2, 16)
    else:
        changes = {"too_few": (5, 7), "too_many": (9, IMAGE_ID)}
        column, value = {**changes, "id_too_large": (9, VOCAB), "negative": (9, -1)}.get(bad)
        if bad == "too_few":
            column = 4
        ids[1, column] = value
    if bad == "id_too_large" and keras.backend.backend() != "jax":
        # TensorFlow and PyTorch refuse to look up such ids themselves.
        with pytest.raises(Exception, match=r"index|indices"):
            run(lambda b: model.embed(b)["inputs"], batch)
        return
    embeddings = run(lambda b: model.embed(b)["inputs"], batch)
    assert np.isnan(embeddings[1]).all()
    assert np.isfinite(embeddings[[0, 2]]).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_token_id": VOCAB}, r"image_token_id=32 must lie in \[0, vocab_size=32\)"),
        ({"image_token_id": -1}, "image_token_id=-1 must lie in"),
        ({"fusion": "prefix"}, "prefix fusion has none; got fusion='prefix', image_token_id=31"),
        ({"fusion": "placeholder", "image_token_id": None}, "Placeholder fusion needs"),
        ({"fusion": "suffix"}, "fusion='suffix' must be 'placeholder' or 'prefix'"),
        (
            {"projection_config": {"input_dim": 16, "output_dim": 20}},
            "output_dim=20 must equal the decoder's hidden_dim=24",
        ),
        (
            {"projection_config": {"input_dim": 8, "output_dim": 24}},
            "width input_dim=8",
        ),
    ],
)
def test_models_that_cannot_be(changes, message):
    with pytest.raises(ValueError, match=message):
        NanoVLM(**{**tiny_config(), **changes})
