"""Objectives: separate means of text and pictures, the contrast, and losses by source."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
from only_on import only_on
from tiny_models import (
    IMAGE_ID,
    mixed_batch,
    numpy,
    place_images,
    random_ids,
    random_images,
    run,
    text_batch,
    tiny_config,
    tiny_nanovlm,
)

from dl_techniques.losses import NanoVLMLoss, NextTokenAccuracy, SupervisedTokens
from dl_techniques.losses.contrastive_loss import ContrastiveLoss, SigmoidContrastiveLoss
from dl_techniques.models.contrast import caption_states, outputs_with_contrast
from dl_techniques.models.objectives import Objective, documents_with_image
from dl_techniques.training.distribution import mirrored_strategy
from dl_techniques.training.setup import component_optimizer

SOURCES = ("vqa", "captions", "none")
LAMBDA = 0.3
# To compile a step takes longer than to run it as it is, but on JAX.
EAGER = keras.backend.backend() != "jax"


def new_model(
    fusion="placeholder", chunk_size=None, optimizer=None, objective=None, eager=EAGER, **changes
):
    """Return a compiled model of one block on each side."""
    config = tiny_config(fusion)
    parts = (("vision_config", {"depth": 1}), ("language_config", {"num_layers": 1}))
    parts = {name: {**config[name], **change} for name, change in parts}
    model = tiny_nanovlm(fusion, **parts, **changes)
    model.objective = objective
    model.compile(
        optimizer or keras.optimizers.SGD(0.1),
        NanoVLMLoss(label_smoothing=0.1, chunk_size=chunk_size),
        metrics=[NextTokenAccuracy(name="accuracy"), SupervisedTokens()],
        run_eagerly=eager,
    )
    return model


def packed_batch():
    """Return rows of documents: picture, text, picture; text, text; padding. And all S labels."""
    segments = np.repeat([[1, 2, 3], [1, 2, 2], [0, 0, 0]], [6, 4, 6], axis=1).astype("int32")
    ids = place_images(random_ids(3, 16), [(0, 1), (0, 11)])
    return {
        "text_tokens": np.where(segments > 0, ids, 0),
        "images": random_images(3, 2),
        "num_images": np.array([2, 0, 0], "int32"),
        "segment_ids": segments,
    }


BATCHES = {
    "rows": ("placeholder", mixed_batch),
    "packed": ("placeholder", packed_batch),
    "prefix": ("prefix", text_batch),
}


def labels_of(batch):
    """Return labels at two thirds of the text."""
    ids = batch["text_tokens"]
    learned = (ids != IMAGE_ID) & (ids > 0) & (np.arange(16) % 3 > 0)
    return np.where(learned, ids, -100).astype("int32")


def has_picture(name, batch):
    """Return bool[B, S], document by document."""
    if name == "prefix":
        return np.repeat(batch["num_images"][:, None] > 0, 16, axis=1)
    ids, segments = batch["text_tokens"], batch.get("segment_ids", np.zeros((3, 16), int))
    out = np.zeros((3, 16), bool)
    for row in range(3):
        for document in set(segments[row]):
            own = segments[row] == document
            out[row, own] = (ids[row, own] == IMAGE_ID).any()
    return out


def source_ids():
    return np.repeat([[1, 2], [2, 2], [1, 0]], 8, axis=1).astype("int32")


def losses_of(model, batch, labels):
    """Return float64[B, S]: smoothed cross-entropy of the label at each place; 0 without one."""
    logits = run(model, {k: v for k, v in batch.items() if k != "source_ids"})[:, -16:]
    logits = logits.astype("float64")
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    own = np.take_along_axis(log_p[:, :-1], np.maximum(labels, 0)[:, 1:, None], -1)[..., 0]
    losses = -0.9 * own - 0.1 * log_p[:, :-1].mean(-1)
    return np.pad(np.where(labels[:, 1:] >= 0, losses, 0.0), [(0, 0), (1, 0)])


def train_loss(model, batch, labels):
    return model.train_on_batch(batch, labels, return_dict=True)["loss"]


def held_loss(model, batch, labels):
    return model.test_on_batch(batch, labels, return_dict=True)["loss"]


def mean(losses, chosen):
    return losses[chosen].sum() / chosen.sum() if chosen.any() else np.nan


def values(model):
    return [numpy(w) for w in model.trainable_weights]


def assert_same(got, expected, tolerance=1e-5):
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", BATCHES)
def test_documents_with_pictures(name):
    fusion, make = BATCHES[name]
    batch = make()
    marks = (IMAGE_ID,) if fusion == "placeholder" else ()
    got = run(lambda b: documents_with_image(b, marks), batch)
    np.testing.assert_array_equal(got, has_picture(name, batch))
    assert got.any() and not got.all()
    without = {k: batch[k] for k in ("text_tokens",)}
    assert run(lambda b: documents_with_image(b, marks), without).any() == (name != "prefix")
    if name == "prefix":
        assert run(lambda b: documents_with_image(b, ()), {**batch, "num_images": None}).all()


@pytest.mark.parametrize("chunk_size", [None, 7])
@pytest.mark.parametrize("name", BATCHES)
def test_text_has_a_mean_of_its_own(name, chunk_size):
    """Values by hand; the update is that of the plain loss with sample weights chosen by hand."""
    fusion, make = BATCHES[name]
    batch = {**make(), "source_ids": source_ids()}
    labels, pictured = labels_of(batch), has_picture(name, batch)
    model = new_model(fusion, chunk_size)
    learned = (labels >= 0) & (np.arange(16) > 0)
    seen, text = learned & pictured, learned & ~pictured
    assert seen.sum() != text.sum() and seen.any() and text.any()
    share = seen / seen.sum() + LAMBDA * text / text.sum()
    model.optimizer.learning_rate = 0.1 * (1 + LAMBDA)
    model.train_on_batch(batch, labels, sample_weight=share.astype("float32"))
    expected = values(model)

    model = new_model(fusion, chunk_size, objective=Objective(lambda_text=LAMBDA))
    model.source_names = SOURCES
    losses, sources = losses_of(model, batch, labels), batch["source_ids"]
    means = {"loss_vlm": mean(losses, seen), "loss_text": mean(losses, text)}
    for k, source in enumerate(SOURCES):
        means["source/" + source] = mean(losses, learned & (sources == k + 1))
    means["loss"] = means["loss_vlm"] + LAMBDA * means["loss_text"]
    for step in (model.test_on_batch, model.train_on_batch):
        logs = step(batch, labels, return_dict=True)
        assert np.isnan(logs.pop("source/none")) and np.isnan(logs.pop("loss_contrast"))
        assert logs.pop("supervised_tokens") == learned.sum() and 0 <= logs.pop("accuracy") <= 1
        means.pop("source/none", None)
        assert logs == {name: pytest.approx(value, rel=2e-5) for name, value in means.items()}
    assert_same(values(model), expected)
    assert not model.in_step and model(make()).shape[-1] == model.vocab_size


def test_chunks_and_all_logits_are_as_right():
    batch = mixed_batch()
    logs = []
    for chunk_size in (None, 5):
        model = new_model(chunk_size=chunk_size, objective=Objective(lambda_text=LAMBDA))
        logs.append(model.test_on_batch(batch, labels_of(batch), return_dict=True))
    assert logs[0] == {k: pytest.approx(v, rel=1e-5, nan_ok=True) for k, v in logs[1].items()}


def contrast_batch():
    """Return rows of two, one, no and one pictures, the last without a caption; and labels."""
    ids = place_images(random_ids(5, 16), [(0, 1), (0, 5), (1, 3), (3, 0), (4, 2)])
    mask = np.arange(16) < np.array([16, 12, 9, 16, 14])[:, None]
    ids = np.where(mask, ids, 0)
    batch = {
        "text_tokens": ids,
        "images": random_images(5, 2),
        "num_images": np.array([2, 1, 0, 1, 1], "int32"),
        "attention_mask": mask,
    }
    labels = labels_of(batch)
    labels[3] = -100
    return batch, labels


def pair_loss_by_hand(model, batch, labels, pair_loss):
    """Return the loss of pooled vectors, row by row, each caption alone without its pictures."""
    images, texts = [], []
    for row in (0, 1, 4):
        pictures = batch["images"][row, : batch["num_images"][row]]
        images.append(run(model.encode_vision, pictures).reshape(-1, 24).mean(axis=0))
        kept = (batch["text_tokens"][row] != IMAGE_ID) & batch["attention_mask"][row]
        ids = batch["text_tokens"][row : row + 1, kept]
        states = run(lambda x: model.language_decoder(x, return_hidden=True), ids)
        texts.append(states[0, labels[row, kept] >= 0].mean(axis=0))
    return float(numpy(pair_loss(np.stack(images), np.stack(texts))))


PAIR_LOSSES = {
    "infonce": (0.2, ContrastiveLoss(0.2, learned=False)),
    "sigmoid": (None, SigmoidContrastiveLoss(learned=False)),
}


@pytest.mark.parametrize("kind", PAIR_LOSSES)
def test_contrast_alone(kind):
    """Its value by hand, its gradient by differences; tokens are neither predicted nor learned."""
    temperature, pair_loss = PAIR_LOSSES[kind]
    factors = {"lambda_vlm": 0.0, "lambda_contrast": 2.0}
    objective = Objective(**factors, contrast=kind, temperature=temperature)
    batch, labels = contrast_batch()
    model = new_model(objective=objective)
    expected = pair_loss_by_hand(model, batch, labels, pair_loss)
    logs = model.test_on_batch(batch, labels, return_dict=True)
    assert logs["loss_contrast"] == pytest.approx(expected, rel=1e-4)
    assert logs["loss"] == pytest.approx(2.0 * expected, rel=1e-4)
    assert np.isnan(logs["loss_vlm"]) and logs["supervised_tokens"] > 0 and logs["accuracy"] == 0
    before = values(model)
    assert train_loss(model, batch, labels) == pytest.approx(2.0 * expected, rel=1e-4)
    gradients = [(a - b) / 0.1 for a, b in zip(before, values(model), strict=True)]
    moved = {
        w.path.split("/")[0]
        for w, g in zip(model.trainable_weights, gradients, strict=True)
        if g.any()
    }
    assert moved == {"vision_encoder", "modality_projection", "language_decoder"}
    rng = np.random.default_rng(0)
    for _ in range(2):
        direction = [
            rng.normal(size=w.shape) * np.abs(g).max()
            for w, g in zip(before, gradients, strict=True)
        ]
        slope = sum((g * d).sum() for g, d in zip(gradients, direction, strict=True))
        unit = 0.01 / np.sqrt(sum((d**2).sum() for d in direction))
        ends = []
        for sign in (1, -1):
            for w, x, d in zip(model.trainable_weights, before, direction, strict=True):
                w.assign(x + sign * unit * d)
            ends.append(held_loss(model, batch, labels))
        assert (ends[0] - ends[1]) / 2 == pytest.approx(unit * slope, rel=0.02, abs=2e-5)


def test_all_parts_together():
    """L is the sum of its parts, each of them what it is without the others."""
    batch, labels = contrast_batch()
    model = new_model(chunk_size=6)
    model.objective = Objective(lambda_vlm=0.5, lambda_text=LAMBDA, lambda_contrast=2.0)
    logs = model.test_on_batch(batch, labels, return_dict=True)
    parts = [logs[f"loss_{name}"] for name in ("vlm", "text", "contrast")]
    assert logs["loss"] == pytest.approx(np.dot(parts, [0.5, LAMBDA, 2.0]), rel=1e-5)
    losses, pictured = losses_of(model, batch, labels), batch["num_images"][:, None] > 0
    learned = (labels >= 0) & (np.arange(16) > 0)
    by_hand = [mean(losses, learned & pictured), mean(losses, learned & ~pictured)]
    by_hand.append(pair_loss_by_hand(model, batch, labels, ContrastiveLoss(learned=False)))
    np.testing.assert_allclose(parts, by_hand, rtol=1e-4)
    model.objective = None
    logs = model.test_on_batch(batch, labels, return_dict=True)
    assert logs["loss"] == pytest.approx(mean(losses, learned), rel=1e-5)
    assert sorted(logs) == ["accuracy", "loss", "supervised_tokens"]


def test_captions_see_no_picture_and_pictures_are_encoded_once(monkeypatch):
    batch, _ = contrast_batch()
    model = new_model(objective=Objective(lambda_contrast=1.0))
    text = batch["text_tokens"] != IMAGE_ID
    first = run(lambda b: caption_states(model, b), batch)[text & batch["attention_mask"]]
    other = {**batch, "images": random_images(5, 2, seed=7)}
    np.testing.assert_array_equal(
        run(lambda b: outputs_with_contrast(model, b)["captions"], other)[
            text & batch["attention_mask"]
        ],
        run(lambda b: outputs_with_contrast(model, b)["captions"], batch)[
            text & batch["attention_mask"]
        ],
    )
    table = model.language_decoder.token_embedding.embeddings
    table.assign(np.where(np.arange(32)[:, None] == IMAGE_ID, 5.0, numpy(table)))
    again = run(lambda b: caption_states(model, b), batch)[text & batch["attention_mask"]]
    np.testing.assert_allclose(again, first, rtol=1e-5, atol=1e-5)

    calls = []
    for part, method in (("vision", model.vision_encoder), ("decoder", model.language_decoder)):
        inner = method.call
        monkeypatch.setattr(
            method, "call", lambda *a, n=part, f=inner, **k: (calls.append(n), f(*a, **k))[1]
        )
    for objective, expected in (
        (Objective(lambda_contrast=1.0), ["decoder", "decoder", "vision"]),
        (Objective(lambda_vlm=0.0, lambda_contrast=1.0), ["decoder", "vision"]),
    ):
        calls.clear()
        model.objective = objective
        outputs = outputs_with_contrast(model, batch)
        assert sorted(calls) == expected
        assert ("tokens" in outputs) == objective.learns_tokens
    embeds = {**batch, "images": None, "vision_embeds": model.encode_vision(batch["images"])}
    np.testing.assert_allclose(
        numpy(outputs_with_contrast(model, embeds)["images"]), numpy(outputs["images"]), rtol=1e-5
    )


EVERYTHING = Objective(lambda_text=LAMBDA, lambda_contrast=0.5)
CONTRAST_ALONE = Objective(lambda_vlm=0.0, lambda_contrast=0.5)


@pytest.mark.parametrize("objective", [EVERYTHING, CONTRAST_ALONE])
def test_batches_that_lack_something(objective):
    """Without pictures, without text rows, without labels: parts are missing, nothing breaks."""
    model = new_model(objective=objective, optimizer=accumulating(1))
    full, labels = contrast_batch()
    text = {"text_tokens": random_ids(5, 16), "attention_mask": full["attention_mask"]}
    learned = labels_of(text)
    logs = model.train_on_batch(text, learned, return_dict=True)
    assert np.isnan(logs["loss_contrast"]) and np.isnan(logs["loss_vlm"])
    if objective.learns_tokens:
        assert logs["loss"] == pytest.approx(LAMBDA * logs["loss_text"], rel=1e-6)
        assert logs["loss"] > 0
    else:
        assert logs["loss"] == 0.0
    before = values(model)
    logs = model.train_on_batch(full, np.full_like(labels, -100), return_dict=True)
    assert logs["loss"] == 0.0
    assert_same(values(model), before)
    assert all(np.isnan(logs[name]) for name in ("loss_vlm", "loss_text", "loss_contrast"))
    pictures = labels.copy()
    pictures[2] = -100
    logs = model.train_on_batch(full, pictures, return_dict=True)
    assert np.isnan(logs["loss_text"]) and logs["loss_contrast"] > 0
    assert np.isnan(logs["loss_vlm"]) != objective.learns_tokens
    assert all(np.isfinite(x).all() for x in values(model))


def test_text_of_factor_zero_is_not_learned():
    batch = mixed_batch()
    labels = labels_of(batch)
    model = new_model(chunk_size=5, objective=Objective(lambda_text=0.0))
    logs = model.train_on_batch(batch, labels, return_dict=True)
    moved = values(model)
    labels[2] = -100
    model = new_model(chunk_size=5, objective=Objective(lambda_text=1.0))
    expected = model.train_on_batch(batch, labels, return_dict=True)
    assert np.isnan(logs["loss_text"])
    assert logs["loss"] == pytest.approx(expected["loss"], rel=1e-6)
    assert logs["accuracy"] == pytest.approx(expected["accuracy"], rel=1e-6)
    assert_same(moved, values(model))


class Batches(keras.utils.PyDataset):
    def __init__(self, batches):
        super().__init__()
        self.batches = batches

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, i):
        return self.batches[i]


def accumulating(count):
    rates = {name: keras.optimizers.SGD(0.1) for name in ("vision", "language", "projection")}
    return component_optimizer(rates, accumulation_steps=count, global_clipnorm=None)


def rows_of(batch, labels, rows):
    return {k: v[rows] for k, v in batch.items()}, labels[rows]


def accumulation_pieces():
    """Return micro-batches: pictures, text, nothing learned; and the one batch of them all."""
    batch, labels = contrast_batch()
    pieces = [rows_of(batch, labels, rows) for rows in ([0, 1], [2, 2], [3, 3])]
    return pieces, rows_of(batch, labels, [0, 1, 2, 2, 3, 3])


def test_accumulation_with_separate_means():
    """Each micro-batch that learns anything counts as one, so that the lambdas' ratio stays."""
    pieces, whole = accumulation_pieces()
    objective = Objective(lambda_text=LAMBDA)
    model = new_model(optimizer=accumulating(3), objective=objective)
    start = values(model)
    history = model.fit(Batches(pieces), shuffle=False, verbose=0).history
    assert history["loss_text"][0] > 0
    moves = [b - a for a, b in zip(start, values(model), strict=True)]
    model = new_model(objective=objective)
    model.train_on_batch(*whole)
    expected = [(b - a) / 2 for a, b in zip(start, values(model), strict=True)]
    assert_same(moves, expected, 1e-6)


@pytest.mark.parametrize("objective", [Objective(lambda_vlm=2.0), None])
def test_accumulation_of_tokens_alike_is_exact(objective):
    pieces, whole = accumulation_pieces()
    model = new_model(optimizer=accumulating(3), objective=objective)
    for piece in pieces:
        model.train_on_batch(*piece)
    moved = values(model)
    rate = 0.1 if objective is None else 0.2
    model = new_model(optimizer=keras.optimizers.SGD(rate))
    model.train_on_batch(*whole)
    assert_same(moved, values(model))


def test_accumulation_of_contrasts_weighs_by_pairs():
    batch, labels = contrast_batch()
    pieces = [rows_of(batch, labels, rows) for rows in ([0, 1, 4, 2], [1, 4, 3, 2])]
    model = new_model(optimizer=accumulating(2), objective=CONTRAST_ALONE)
    start = values(model)
    for piece in pieces:
        model.train_on_batch(*piece)
    moves = [b - a for a, b in zip(start, values(model), strict=True)]
    expected = []
    for piece in pieces:
        model = new_model(objective=CONTRAST_ALONE)
        model.train_on_batch(*piece)
        expected.append([b - a for a, b in zip(start, values(model), strict=True)])
    assert_same(moves, [0.6 * a + 0.4 * b for a, b in zip(*expected, strict=True)], 1e-6)


def test_pairs_count_where_tokens_of_their_rows_do_not():
    batch, labels = contrast_batch()
    pieces = [rows_of(batch, labels, rows) for rows in ([0, 1, 4], [2, 2])]
    objective = Objective(lambda_vlm=0.0, lambda_text=LAMBDA, lambda_contrast=0.5)
    model = new_model(objective=objective)
    assert [float(model._batch_weight(*piece, None)) for piece in pieces] == [1.0, 1.0]
    nothing = np.full((2, 16), -100, "int32")
    assert float(model._batch_weight(pieces[1][0], nothing, None)) == 0.0


def test_a_compiled_step_follows_the_objective():
    batch, labels = mixed_batch(), labels_of(mixed_batch())
    model = new_model(eager=False)
    assert "loss_vlm" not in model.train_on_batch(batch, labels, return_dict=True)
    model.objective = Objective(lambda_text=LAMBDA)
    logs = model.train_on_batch(batch, labels, return_dict=True)
    total = logs["loss_vlm"] + LAMBDA * logs["loss_text"]
    assert logs["loss"] == pytest.approx(total, rel=1e-5)


def test_mixed_precision_learns_all_parts():
    batch, labels = contrast_batch()
    batch["source_ids"] = np.where(batch["attention_mask"], 1, 0).astype("int32")
    expected = None
    for policy in ("float32", "mixed_bfloat16"):
        model = new_model(
            "placeholder",
            6,
            keras.optimizers.Adam(3e-3),
            EVERYTHING,
            eager=EAGER and policy == "float32",
            dtype=policy,
        )
        model.source_names = ["all"]
        logs = [model.train_on_batch(batch, labels, return_dict=True) for _ in range(8)]
        expected = expected or logs[0]
    assert logs[0] == {k: pytest.approx(v, rel=0.05, abs=0.05) for k, v in expected.items()}
    for name in ("loss", "loss_vlm", "loss_text", "loss_contrast", "source/all"):
        assert logs[-1][name] < logs[0][name]


def test_sources_without_an_objective():
    batch = {**mixed_batch(), "source_ids": source_ids()}
    labels = labels_of(batch)
    for chunk_size in (None, 5):
        model = new_model(chunk_size=chunk_size)
        model.source_names = SOURCES
        losses = losses_of(model, batch, labels)
        learned = (labels >= 0) & (np.arange(16) > 0)
        logs = model.train_on_batch(batch, labels, return_dict=True)
        for k, name in enumerate(SOURCES):
            expected = mean(losses, learned & (batch["source_ids"] == k + 1))
            assert logs["source/" + name] == pytest.approx(expected, rel=2e-5, nan_ok=True)
        assert "loss_vlm" not in logs
        with pytest.raises(ValueError, match=r"source_names=\['vqa', .* need inputs\['source_ids"):
            model.train_on_batch(mixed_batch(), labels)
        assert np.isnan(model.test_on_batch(mixed_batch(), labels, return_dict=True)["source/vqa"])
        model.source_names = None
        assert "source/vqa" not in model.train_on_batch(batch, labels, return_dict=True)


def test_batches_that_are_refused():
    model = new_model(objective=EVERYTHING)
    model.source_names = ["a", "b"]
    packed = {**packed_batch(), "source_ids": np.ones((3, 16), "int32")}
    labels = labels_of(packed)
    for way in (
        lambda: model.train_on_batch(packed, labels),
        lambda: model.fit(Batches([(packed, labels)]), verbose=0),
        lambda: model.evaluate(packed, labels, verbose=0),
    ):
        with pytest.raises(
            ValueError, match=r"Row 0 holds 3 packed documents .* lambda_contrast=0"
        ):
            way()
    model.predict(packed, verbose=0)  # Without labels there is no contrast.
    wrong = {**mixed_batch(), "source_ids": np.full((3, 16), 3, "int32")}
    with pytest.raises(ValueError, match=r"source_ids\[0, 0\] = 3 must lie in \[0, 2\]"):
        model.train_on_batch(wrong, labels)
    with pytest.raises(ValueError, match=r"source_ids \(3, 15\) must have the shape"):
        model.train_on_batch({**wrong, "source_ids": np.ones((3, 15), "int32")}, labels)


def test_packed_documents_that_nobody_checked_give_nan():
    batch, labels = contrast_batch()
    model = new_model(objective=CONTRAST_ALONE)
    alone = {**batch, "segment_ids": batch["attention_mask"].astype("int32")}
    expected = held_loss(model, batch, labels)
    assert held_loss(model, alone, labels) == pytest.approx(expected, rel=1e-5)
    alone["segment_ids"][1, 6:9] = 2
    model.batch_checks.one_document = False
    assert np.isnan(held_loss(model, alone, labels))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lambda_text": -1.0}, "lambda_text=-1.0 must be 0 or above"),
        ({"lambda_contrast": float("nan")}, "lambda_contrast=nan must be 0 or above"),
        ({"lambda_vlm": float("inf")}, "lambda_vlm=inf .* finite"),
        ({"lambda_vlm": 0.0}, "Nothing to learn: all of lambda_vlm, lambda_contrast are 0"),
        ({"contrast": "triplet"}, r"contrast='triplet' must be one of \['infonce', 'sigmoid'\]"),
        ({"temperature": 0.0}, "temperature=0.0 must be above 0"),
    ],
)
def test_objectives_that_cannot_be(arguments, message):
    with pytest.raises(ValueError, match=message):
        Objective(**arguments)


def test_settings_are_checked_and_not_saved(tmp_path):
    model = new_model(objective=EVERYTHING)
    model.source_names = ["a"]
    settings = json.loads(json.dumps(dataclasses.asdict(EVERYTHING)))
    assert Objective(**settings) == model.objective and model.source_names == ("a",)
    with pytest.raises(ValueError, match="objective must be an Objective or None"):
        model.objective = {"lambda_text": 1.0}
    for names in ("vqa", ["a", "a"], ["a", ""]):
        with pytest.raises(ValueError, match="source_names must be names of their own"):
            model.source_names = names
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert again.objective is None and again.source_names == ()
    assert_same(values(again), values(model))
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.source_names = None
    with pytest.raises(ValueError, match="objective and source_names need the loss NanoVLMLoss"):
        model.train_step((None, None)) if keras.backend.backend() != "jax" else model.train_step(
            None, (None, None)
        )


def test_metrics_of_logits_are_refused_where_there_are_none():
    model = new_model(objective=CONTRAST_ALONE)
    of_logits = keras.metrics.SparseCategoricalAccuracy()
    model.compile("sgd", NanoVLMLoss(), metrics=[of_logits])
    with pytest.raises(ValueError, match="needs logits, .* nor a contrast alone"):
        model.train_on_batch(*contrast_batch())


@only_on("tensorflow", "jax")  # PyTorch has no such way to train on several devices.
def test_two_devices_give_the_losses_of_one():
    """On TensorFlow two replicas, each with its rows; on JAX arrays that span two devices."""
    worker = pathlib.Path(__file__).with_name("objective_worker.py")
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2"
    done = subprocess.run(
        [sys.executable, str(worker)],
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads(done.stdout.splitlines()[-1])
    assert results and all(result["devices"] == 2 for result in results)
    for result in results:
        for one, two in zip(result["one"], result["two"], strict=True):
            assert two == {k: pytest.approx(v, rel=2e-5, nan_ok=True) for k, v in one.items()}
            assert one["loss_text"] > 0 and one["source/b"] > 0


@only_on("tensorflow")
def test_replicas_refuse_a_contrast():
    with mirrored_strategy(1).scope():
        model = new_model(objective=EVERYTHING)
    with pytest.raises(ValueError, match="replicas cannot share a contrast: .* lambda_contrast=0"):
        model.train_on_batch(*contrast_batch())
