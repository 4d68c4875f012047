"""Packed documents: each as if it were alone, in logits, loss and gradients."""

import keras
import numpy as np
import pytest
from tiny_models import (
    IMAGE_ID,
    logits,
    place_images,
    random_ids,
    random_images,
    run,
    tiny_nanovlm,
)

from dl_techniques.datasets.packed_rows import Document, PackedRow, collate
from dl_techniques.losses.nanovlm_loss import (
    NanoVLMLoss,
    next_token_targets,
    supervised_token_count,
)

TOLERANCE = 1e-5
LENGTH = 24
PAD = 0
# Length and columns of the images of each document; then which of them share a row.
LAYOUTS = [(9, [2]), (5, []), (10, [0, 4]), (11, [1, 5]), (6, [1]), (12, [])]
ROWS = [(0, 1, 2), (3, 5), (4,)]


def _document(number):
    length, starts = LAYOUTS[number]
    ids = place_images(random_ids(1, length, seed=number), [(0, start) for start in starts])[0]
    labels = np.where(ids == IMAGE_ID, -100, ids).astype("int32")
    images = tuple(random_images(seed=10 * number + k) for k in range(len(starts)))
    return Document(ids, labels, images, len(starts), ("made", number))


def _batch(rows):
    """Return inputs with pixels, room for 5 images in each row, and labels; one row is empty."""
    inputs, labels = collate(rows, PAD, batch_size=len(rows) + 1)
    inputs["images"] = np.zeros((len(labels), 5, *random_images().shape), "float32")
    for place, row in enumerate(rows):
        for slot, image in enumerate(row.images):
            inputs["images"][place, slot] = image
    return inputs, labels


@pytest.fixture(scope="module")
def documents():
    return [_document(number) for number in range(len(LAYOUTS))]


@pytest.fixture(scope="module")
def packed(documents):
    return _batch([PackedRow(tuple(documents[k] for k in row), LENGTH) for row in ROWS])


@pytest.fixture(scope="module")
def alone(documents):
    """Every document in a row of its own, without anything that packing adds."""
    inputs, _ = _batch([PackedRow((document,), LENGTH) for document in documents])
    del inputs["segment_ids"], inputs["positions"]
    labels = np.full_like(inputs["text_tokens"], -100)
    for row, document in enumerate(documents):
        labels[row, : len(document.labels)] = document.labels
    return inputs, labels


@pytest.fixture(scope="module", params=[False, True], ids=["causal", "bidirectional"])
def model(request):
    return tiny_nanovlm(bidirectional_images=request.param)


def _places():
    """Return (row, slice) of every document in the packed batch, by its number."""
    places = {}
    for row, numbers in enumerate(ROWS):
        start = 0
        for number in numbers:
            end = start + LAYOUTS[number][0]
            places[number] = (row, slice(start, end))
            start = end
    return places


def test_packed_documents_have_the_logits_that_they_have_alone(model, packed, alone):
    together, apart = logits(model, packed[0]), logits(model, alone[0])
    assert np.isfinite(together).all()
    for number, (row, place) in _places().items():
        expected = apart[number, : LAYOUTS[number][0]]
        np.testing.assert_allclose(together[row, place], expected, rtol=0, atol=TOLERANCE)


def test_segments_alone_give_the_same_positions(model, packed):
    inputs = {name: x for name, x in packed[0].items() if name != "positions"}
    real = inputs["attention_mask"]
    difference = logits(model, inputs)[real] - logits(model, packed[0])[real]
    assert np.abs(difference).max() <= TOLERANCE


def test_the_packed_loss_is_the_loss_of_the_documents_apart(model, packed, alone):
    loss = NanoVLMLoss()
    (inputs, labels), (inputs_alone, labels_alone) = packed, alone
    together = run(loss, labels, logits(model, inputs))
    apart = run(loss, labels_alone, logits(model, inputs_alone))
    assert together == pytest.approx(apart, abs=TOLERANCE)


def test_nothing_is_predicted_across_a_boundary(documents, packed):
    labels = packed[1]
    targets = keras.ops.convert_to_numpy(next_token_targets(labels))
    for number, (row, place) in _places().items():
        document = documents[number]
        expected = np.append(document.labels[1:], -100)
        np.testing.assert_array_equal(targets[row, place], expected)
    # Plain text, whose first token is learned wherever something comes before it.
    assert documents[1].labels[0] != -100 and documents[5].labels[0] != -100
    count = sum(document.supervised for document in documents)
    assert float(supervised_token_count(labels)) == count == 24


def _edited(documents, number):
    """Return the packed batch with every token and image of one document replaced."""
    old = documents[number]
    ids = np.where(old.ids == IMAGE_ID, IMAGE_ID, (old.ids + 7) % IMAGE_ID).astype("int32")
    images = tuple(1.0 - 2.0 * image for image in old.images)
    new = Document(ids, old.labels, images, old.tiles, old.key)
    changed = [*documents[:number], new, *documents[number + 1 :]]
    return _batch([PackedRow(tuple(changed[k] for k in row), LENGTH) for row in ROWS])[0]


@pytest.mark.parametrize("number", range(len(LAYOUTS)))
def test_editing_a_document_leaves_every_other_bit_as_it_was(model, documents, packed, number):
    before, after = logits(model, packed[0]), logits(model, _edited(documents, number))
    row, place = _places()[number]
    same = (before == after).all(axis=-1)
    assert not same[row, place].any()
    same[row, place] = True
    assert same.all()


def _gradient(function, x):
    """Return the gradient of function(x) float32[] in NumPy."""
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        return np.asarray(jax.jit(jax.grad(function))(x))
    if backend == "tensorflow":
        import tensorflow as tf

        x = tf.convert_to_tensor(x)
        with tf.GradientTape() as tape:
            tape.watch(x)
            value = function(x)
        return tape.gradient(value, x).numpy()
    import torch

    x = torch.tensor(x, requires_grad=True)
    return torch.autograd.grad(function(x), x)[0].numpy()


def test_the_loss_of_a_document_has_no_gradient_in_another(model, packed):
    inputs, labels = packed
    fused = run(lambda x: {k: v for k, v in model.embed(x).items() if v is not None}, inputs)
    embeddings = fused.pop("inputs")
    row, place = _places()[1]  # Between two documents with images.
    own = np.full_like(labels, -100)
    own[row, place] = labels[row, place]

    def loss(x):
        return NanoVLMLoss()(own, model.language_decoder(x, **fused))

    moved = np.abs(_gradient(loss, embeddings)).max(axis=-1) > 0
    expected = np.zeros_like(moved)
    # The last token predicts nothing.
    expected[row, place.start : place.stop - 1] = True
    np.testing.assert_array_equal(moved, expected)
