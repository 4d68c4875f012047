import numpy as np
from keras import ops
from tiny_models import run

from dl_techniques.layers.attention_mask import attention_rule


def _rule(length, queries=None, **kwargs):
    kwargs = {k: np.asarray(v) for k, v in kwargs.items()}
    slots = np.arange(length) if queries is None else np.asarray(queries)
    mask, positions = run(
        lambda q, k: attention_rule(q, length, **k), slots.astype("int32"), kwargs
    )
    return mask[:, 0].astype(int), positions


def test_causal():
    mask, positions = _rule(3)
    np.testing.assert_array_equal(mask, [[[1, 0, 0], [1, 1, 0], [1, 1, 1]]])
    np.testing.assert_array_equal(positions, [[0, 1, 2]])


def test_padding_on_either_side_is_never_seen():
    mask, positions = _rule(4, attention_mask=[[0, 1, 1, 1], [1, 1, 1, 0]])
    left = [[0, 0, 0, 0], [0, 1, 0, 0], [0, 1, 1, 0], [0, 1, 1, 1]]
    right = [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 0]]
    np.testing.assert_array_equal(mask, [left, right])
    np.testing.assert_array_equal(positions[0, 1:], [0, 1, 2])
    np.testing.assert_array_equal(positions[1, :3], [0, 1, 2])


def test_segments_do_not_see_each_other_and_restart_positions():
    mask, positions = _rule(6, segment_ids=[[1, 1, 2, 2, 2, 0]])
    expected = [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [0, 0, 1, 0, 0, 0],
        [0, 0, 1, 1, 0, 0],
        [0, 0, 1, 1, 1, 0],
        [0, 0, 0, 0, 0, 0],
    ]
    np.testing.assert_array_equal(mask[0], expected)
    np.testing.assert_array_equal(positions[0, :5], [0, 1, 0, 1, 2])


def test_images_see_themselves_whole_but_not_each_other_and_not_padding():
    # Two neighbouring images of two tokens, then text; the second image's last token is padding.
    mask, positions = _rule(5, image_ids=[[1, 1, 2, 2, 0]], attention_mask=[[1, 1, 1, 0, 1]])
    expected = [
        [1, 1, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 0, 1],
    ]
    np.testing.assert_array_equal(mask[0], expected)
    # Looking ahead inside an image does not move positions.
    np.testing.assert_array_equal(positions[0], [0, 1, 2, 2, 3])


def test_images_of_other_segments_are_not_seen():
    # Image ids restart in every document of a packed row.
    mask, _ = _rule(4, image_ids=[[1, 1, 1, 1]], segment_ids=[[1, 1, 2, 2]])
    np.testing.assert_array_equal(mask[0], [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]])


def test_some_queries_of_a_longer_cache():
    full, positions = _rule(5, attention_mask=[[0, 1, 1, 1, 1]], image_ids=[[0, 0, 1, 1, 0]])
    part, part_positions = _rule(
        5, [2, 3], attention_mask=[[0, 1, 1, 1, 1]], image_ids=[[0, 0, 1, 1, 0]]
    )
    np.testing.assert_array_equal(part, full[:, 2:4])
    np.testing.assert_array_equal(part_positions, positions[:, 2:4])


def test_masks_may_be_integers():
    mask = ops.convert_to_tensor(np.array([[1, 1, 0]], "int32"))
    got, _ = attention_rule(ops.arange(3), 3, attention_mask=mask)
    assert not ops.convert_to_numpy(got)[0, 0, :, 2].any()


def test_turns_see_what_is_shared_and_themselves():
    mask, positions = _rule(
        7, turn_ids=[[0, 0, 1, 1, 2, 2, 2]], attention_mask=[[1, 1, 1, 1, 1, 1, 0]]
    )
    expected = [
        [1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0],
        [1, 1, 0, 0, 1, 0, 0],
        [1, 1, 0, 0, 1, 1, 0],
        [1, 1, 0, 0, 1, 1, 0],
    ]
    np.testing.assert_array_equal(mask[0], expected)
    np.testing.assert_array_equal(positions[0, :6], [0, 1, 2, 3, 2, 3])


def test_rows_may_have_slots_of_their_own():
    arrays = {
        "attention_mask": np.arange(6) != np.array([[0], [3]]),
        "segment_ids": np.array([[1, 1, 1, 2, 2, 2], [1, 1, 2, 2, 2, 0]]),
        "turn_ids": np.array([[0, 1, 1, 2, 2, 2], [0, 0, 1, 1, 2, 2]]),
        "image_ids": np.array([[0, 1, 1, 0, 2, 2], [0, 0, 1, 1, 1, 0]]),
    }
    slots = np.array([[1, 2], [4, 5]])
    mask, positions = _rule(6, slots, **arrays)
    for row in range(2):
        alone = {name: value[row : row + 1] for name, value in arrays.items()}
        expected_mask, expected_positions = _rule(6, slots[row], **alone)
        np.testing.assert_array_equal(mask[row : row + 1], expected_mask)
        np.testing.assert_array_equal(positions[row : row + 1], expected_positions)
