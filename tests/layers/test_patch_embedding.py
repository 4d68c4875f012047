import keras
import numpy as np
import pytest
from PIL import Image
from tiny_models import fill, run

from dl_techniques.layers import PatchEmbedding, VisionTransformer
from dl_techniques.layers.patch_embedding import resampling_matrix


def _layer(img_size=(8, 12), patch_size=4, class_token=False):
    layer = PatchEmbedding(img_size, patch_size, 5, class_token)
    layer.build((None, None, None, 3))
    return fill(layer)


def _images(*shape):
    return np.random.default_rng(0).uniform(-1, 1, (2, *shape, 3)).astype("float32")


def test_is_a_strided_convolution_plus_positions():
    layer, images = _layer(), _images(8, 12)
    kernel = layer.patch_projection.kernel.numpy().reshape(4, 4, 3, 5)
    patches = run(lambda x: keras.ops.conv(x, kernel, strides=4, padding="valid"), images)
    expected = patches.reshape(2, 6, 5) + layer.patch_projection.bias.numpy()
    expected = expected + layer.position_embedding.numpy()
    np.testing.assert_allclose(run(layer, images), expected, rtol=1e-5, atol=1e-5)


def test_pixels_beyond_the_last_whole_patch_are_dropped():
    layer, images = _layer(), _images(11, 15)
    np.testing.assert_array_equal(run(layer, images), run(layer, images[:, :8, :12]))


def test_class_token_comes_first_with_a_position_of_its_own():
    layer, images = _layer(class_token=True), _images(8, 12)
    positions = layer.position_embedding.numpy()
    assert positions.shape == (7, 5)
    got = run(layer, images)
    expected = layer.class_embedding.numpy() + positions[0]
    np.testing.assert_allclose(got[:, 0], [expected, expected], rtol=1e-6)
    plain = _layer()
    plain.set_weights([positions[1:], *layer.patch_projection.get_weights()])
    np.testing.assert_allclose(got[:, 1:], run(plain, images), rtol=1e-6)


def test_first_values_of_the_tables():
    layer = PatchEmbedding(224, 16, 64, class_token=True)
    layer.build((None, 224, 224, 3))
    positions = layer.position_embedding.numpy()
    assert positions.shape == (197, 64)
    assert 0.015 < positions.std() < 0.02
    assert np.abs(positions).max() <= 0.0401
    np.testing.assert_array_equal(layer.class_embedding.numpy(), 0)


@pytest.mark.parametrize(("old", "new"), [(14, 32), (16, 7), (4, 6), (24, 5), (9, 9), (3, 1)])
def test_resampling_is_that_of_pillow(old, new):
    lines = np.random.default_rng(old).standard_normal((3, old)).astype("float32")
    expected = [
        np.asarray(Image.fromarray(line[None], "F").resize((new, 1), Image.Resampling.BICUBIC))[0]
        for line in lines
    ]
    matrix = run(lambda: resampling_matrix(old, new))
    assert matrix.shape == (new, old)
    np.testing.assert_allclose(lines @ matrix.T, expected, atol=1e-5)


@pytest.mark.parametrize("grid", [(3, 2), (6, 6), (1, 5)])
def test_other_grids_see_the_resized_table(grid):
    # Blank images leave bias + positions.
    layer = _layer((16, 12), class_token=True)
    table = layer.position_embedding.numpy()[1:].reshape(4, 3, 5)
    size = (grid[1], grid[0])
    expected = np.stack(
        [
            np.asarray(Image.fromarray(table[..., c], "F").resize(size, Image.Resampling.BICUBIC))
            for c in range(5)
        ],
        axis=-1,
    )
    blank = np.zeros((1, 4 * grid[0], 4 * grid[1], 3), "float32")
    got = run(layer, blank)[0, 1:] - layer.patch_projection.bias.numpy()
    np.testing.assert_allclose(got, expected.reshape(-1, 5), atol=1e-5)


@pytest.mark.parametrize("shape", [(2, 8, 12, 1), (8, 12, 3), (2, 3, 12, 3), (2, 8, 3, 3)])
def test_images_that_are_none(shape):
    with pytest.raises(ValueError, match="at least patch_size=4 pixels, got shape"):
        _layer()(np.zeros(shape, "float32"))


def test_patches_larger_than_the_image():
    with pytest.raises(ValueError, match="img_size=8 is smaller than patch_size=16"):
        PatchEmbedding(8, 16)
    with pytest.raises(ValueError, match="patch_size=0 must be at least 1"):
        PatchEmbedding(8, 0)


@pytest.mark.no_backend
def test_sizes_of_numpy_are_whole_numbers():
    config = VisionTransformer(np.int64(8), 4, 8, 1, 2).get_config()
    assert type(config["img_size"]) is int
    assert VisionTransformer.from_config(config).compute_output_shape((1, 8, 8, 3)) == (1, 4, 8)
