import numpy as np
import pytest
from numpy_reference import space_to_depth
from tiny_models import run

from dl_techniques.layers import PixelShuffle


def test_hand_written_grid():
    # Token (row, column) of a 4 x 4 grid holds [10 * row + column, -(10 * row + column)].
    names = np.array([[10.0 * r + c for c in range(4)] for r in range(4)])
    tokens = np.stack([names, -names], axis=-1).reshape(1, 16, 2)
    got = run(PixelShuffle(2), tokens.astype("float32"))
    expected = [
        [0, 0, 1, -1, 10, -10, 11, -11],
        [2, -2, 3, -3, 12, -12, 13, -13],
        [20, -20, 21, -21, 30, -30, 31, -31],
        [22, -22, 23, -23, 32, -32, 33, -33],
    ]
    np.testing.assert_array_equal(got[0], expected)


@pytest.mark.parametrize("scale", [1, 2, 3, 6])
def test_order_of_every_scale(scale):
    tokens = np.random.default_rng(0).standard_normal((2, 36, 5)).astype("float32")
    got = run(PixelShuffle(scale), tokens)
    for row in range(2):
        grid = tokens[row].reshape(6, 6, 5)
        np.testing.assert_array_equal(got[row], space_to_depth(grid, scale))


def test_class_token_is_kept_and_tiled():
    tokens = np.random.default_rng(0).standard_normal((32, 197, 768)).astype("float32")
    got = run(PixelShuffle(2), tokens)
    assert got.shape == (32, 50, 3072)
    np.testing.assert_array_equal(got[:, 0].reshape(32, 4, 768), tokens[:, :1].repeat(4, 1))
    grid = tokens[7, 1:].reshape(14, 14, 768)
    np.testing.assert_array_equal(got[7, 1:], space_to_depth(grid, 2))


def test_class_token_can_be_said_where_it_could_be_inferred():
    tokens = np.zeros((1, 17, 3), "float32")
    assert PixelShuffle(2, class_token=True).compute_output_shape((1, 17, 3)) == (1, 5, 12)
    message = "square grid of tokens without a class token, got 17 tokens with class_token=False"
    with pytest.raises(ValueError, match=message):
        PixelShuffle(2, class_token=False)(tokens)


@pytest.mark.parametrize(
    ("scale", "length", "message"),
    [
        (2, 12, "square grid of tokens.* got 12 tokens"),
        (2, 9, "cannot divide a 3 x 3 grid by scale_factor=2"),
        (4, 37, "cannot divide a 6 x 6 grid by scale_factor=4"),
        (2, 1, "cannot divide a 1 x 1 grid"),
    ],
)
def test_impossible_grids(scale, length, message):
    layer = PixelShuffle(scale)
    with pytest.raises(ValueError, match=message):
        layer(np.zeros((1, length, 3), "float32"))
    with pytest.raises(ValueError, match=message):
        layer.compute_output_shape((None, length, 3))


def test_unknown_number_of_tokens_needs_class_token():
    with pytest.raises(ValueError, match="pass class_token=True or class_token=False"):
        PixelShuffle(2).compute_output_shape((None, None, 3))
    assert PixelShuffle(2, class_token=False).compute_output_shape((4, None, 3)) == (4, None, 12)


def test_scale_factor_is_positive():
    with pytest.raises(ValueError, match="scale_factor=0 must be at least 1"):
        PixelShuffle(0)
