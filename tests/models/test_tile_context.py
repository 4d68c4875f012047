"""Which token may look at which image: masks against arrays written by hand."""

import numpy as np
from tiny_models import run

from dl_techniques.models import tile_context

# bos, tag of 1, text, tag of 2 (two tokens), text | a second document: text, tag of 3, text, pad.
TAGS = np.array([[0, 1, 0, 2, 2, 0, 0, 3, 0, 0]], "int32")
SEGMENTS = np.array([[1, 1, 1, 1, 1, 1, 2, 2, 2, 0]], "int32")


def seen(tags, segments=None):
    return run(
        lambda t: tile_context.seen_images(tile_context.tags_by_image(t, 3), segments), tags
    ).astype(int)


def test_a_row_of_one_document():
    expected = [
        *([0, 0, 0], [1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 1, 0]),
        *([1, 1, 0], [1, 1, 0], [0, 0, 1], [1, 1, 1], [1, 1, 1]),
    ]
    np.testing.assert_array_equal(seen(TAGS)[0], expected)


def test_packed_documents():
    expected = [
        *([0, 0, 0], [1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 1, 0], [1, 1, 0]),
        *([0, 0, 0], [0, 0, 1], [0, 0, 1], [0, 0, 0]),
    ]
    np.testing.assert_array_equal(seen(TAGS, SEGMENTS)[0], expected)


def test_tags_by_their_ids():
    text = np.array([[3, 5, 9, 6, 5, 2], [9, 9, 9, 9, 9, 7]], "int32")
    tags = run(lambda t: tile_context.tags_of(t, [5, 6, 7]), text)
    np.testing.assert_array_equal(tags, [[0, 1, 0, 2, 3, 0], [0, 0, 0, 0, 0, 1]])


def test_images_in_the_sequence_and_the_image_that_began_last():
    tags = np.array([[0, 1, 2, 0, 0, 3, 0, 0]], "int32")
    placeholders = np.array([[0, 0, 0, 1, 1, 0, 0, 0]], bool)
    by_image = run(lambda t: tile_context.tags_by_image(t, 3), tags)
    found = run(tile_context.images_in_sequence, by_image, placeholders)
    np.testing.assert_array_equal(found, [[False, True, False]])
    begun = run(tile_context.begun_images, by_image)
    np.testing.assert_array_equal(begun, [[0, 1, 2, 2, 2, 3, 3, 3]])


def test_the_embedding_of_a_tag_is_the_mean_of_its_tokens():
    embeddings = np.arange(20, dtype="float32").reshape(1, 10, 2)
    by_image = run(lambda t: tile_context.tags_by_image(t, 4), TAGS)
    found = run(tile_context.tag_embeddings, by_image, embeddings)
    np.testing.assert_allclose(found[0], [[2, 3], [7, 8], [14, 15], [0, 0]])
