import io
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dl_techniques.preprocessing.adaptive_resolution import get_adaptive_resolution


def image(height, width):
    return Image.new("1", (width, height))


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (1024, 1024, (1022, 1022)),
        (480, 640, (476, 630)),  # Not enlarged.
        (3000, 2000, (1022, 672)),  # 1024 x 682.67
        (2000, 3000, (672, 1022)),
        (1025, 14, (1022, 14)),  # 13.99 columns: one patch is the least.
        (4, 9000, (14, 1022)),
        (5, 5, (14, 14)),
        (28, 41, (28, 28)),
    ],
)
def test_by_hand(height, width, expected):
    assert get_adaptive_resolution(image(height, width)) == expected


def test_other_sizes():
    assert get_adaptive_resolution(image(600, 800), 384, 16) == (288, 384)
    assert get_adaptive_resolution(image(600, 800), 16, 16) == (16, 16)
    # Every multiple is reached, where floats would fall just short of some.
    for edge in range(16, 3000, 16):
        assert get_adaptive_resolution(image(3000, 3000), edge, 16) == (edge, edge)


@given(
    st.integers(1, 3000), st.integers(1, 3000), st.integers(32, 2000), st.sampled_from([14, 16, 32])
)
def test_properties(height, width, max_size, patch):
    result = get_adaptive_resolution(image(height, width), max_size, patch)
    assert get_adaptive_resolution(image(width, height), max_size, patch) == result[::-1]
    scale = min(1.0, max_size / max(height, width))
    for got, edge in zip(result, (height, width), strict=True):
        assert got % patch == 0 and patch <= got <= max_size
        if got > patch:
            assert got <= edge * scale + 1e-6
        assert got > math.floor(edge * scale - 1e-6) - patch


def test_every_kind_of_source(tmp_path):
    picture = Image.new("RGB", (100, 60))
    path = tmp_path / "a.jpg"
    turned = Image.Exif()
    turned[0x0112] = 6
    picture.save(path, exif=turned)
    encoded = io.BytesIO()
    picture.save(encoded, "PNG")
    for source in (picture, np.zeros((60, 100, 3), np.uint8), encoded.getvalue()):
        assert get_adaptive_resolution(source) == (56, 98)
    assert get_adaptive_resolution(path) == get_adaptive_resolution(str(path)) == (98, 56)


def test_bad_arguments(tmp_path):
    with pytest.raises(ValueError, match="max_size=13 is smaller than one patch of 14"):
        get_adaptive_resolution(image(9, 9), 13)
    with pytest.raises(ValueError, match="patch_size must be a positive int, got 0"):
        get_adaptive_resolution(image(9, 9), patch_size=0)
    with pytest.raises(ValueError, match="max_size must be a positive int, got 10.5"):
        get_adaptive_resolution(image(9, 9), 10.5)
    with pytest.raises(ValueError, match="does not exist"):
        get_adaptive_resolution(tmp_path / "missing.png")
    with pytest.raises(ValueError, match=r"\(640, 480\).*no image source"):
        get_adaptive_resolution((640, 480))
