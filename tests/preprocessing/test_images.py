import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from dl_techniques.generation.vision_cache import image_digest
from dl_techniques.preprocessing.images import ImageError, ImageProcessor, load_image, open_image

pytestmark = pytest.mark.no_backend

# 3 x 2 pixels, all different: any flip, turn or swap of channels shows.
PIXELS = np.arange(18, dtype=np.uint8).reshape(2, 3, 3) * 13


def encoded(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pixels(source, **options):
    return np.asarray(load_image(source, **options))


class Reader:
    def __init__(self, data):
        self.data = data

    def read(self):
        return self.data


def test_every_kind_of_source_gives_the_same_pixels(tmp_path):
    image = Image.fromarray(PIXELS)
    data = encoded(image)
    path = tmp_path / "picture.png"
    path.write_bytes(data)
    file = io.BytesIO(data)
    file.read()  # At its end: loading starts over.
    alpha = np.concatenate([PIXELS, np.full((2, 3, 1), 255, np.uint8)], -1)
    sources = [path, str(path), data, bytearray(data), image, PIXELS, alpha, file, Reader(data)]
    sources.append(PIXELS.astype(np.float32) / 255)
    sources.append(np.asfortranarray(PIXELS))
    for source in sources:
        loaded = load_image(source)
        assert loaded.mode == "RGB" and np.array_equal(np.asarray(loaded), PIXELS), source


class Pipe(io.BytesIO):
    """What can be read once only."""

    def seekable(self):
        return False

    def seek(self, *place):
        raise io.UnsupportedOperation


def test_a_stream_that_was_read_is_told():
    data = encoded(Image.fromarray(PIXELS))
    pipe = Pipe(data)
    assert np.array_equal(pixels(pipe), PIXELS)
    with pytest.raises(ImageError, match="gives no bytes. If it can be read only once, give what"):
        load_image(pipe)
    pipe = Pipe(data)
    assert image_digest(pipe) == image_digest(data)
    with pytest.raises(ImageError, match="read only once"):
        image_digest(pipe)


def test_every_exif_orientation_is_undone():
    turned = {
        1: PIXELS,
        2: PIXELS[:, ::-1],
        3: PIXELS[::-1, ::-1],
        4: PIXELS[::-1],
        5: PIXELS.transpose(1, 0, 2),
        6: np.rot90(PIXELS, 1),
        7: PIXELS[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(PIXELS, -1),
    }
    for orientation, stored in turned.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        data = encoded(Image.fromarray(np.ascontiguousarray(stored)), exif=exif)
        assert np.array_equal(pixels(data), PIXELS), orientation


def test_transparency_is_laid_over_white():
    rgba = np.array([[[0, 0, 0, 0], [200, 100, 0, 255], [200, 100, 0, 51]]], np.uint8)
    expected = [[255, 255, 255], [200, 100, 0], [244, 224, 204]]  # 51 / 255 = 0.2
    assert pixels(Image.fromarray(rgba)).tolist() == [expected]
    grey = Image.fromarray(np.array([[[0, 0], [9, 255]]], np.uint8), "LA")
    assert pixels(encoded(grey)).tolist() == [[[255] * 3, [9] * 3]]
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    assert pixels(encoded(palette)).tolist() == [[[10, 20, 30], [40, 50, 60]]]
    assert pixels(encoded(palette, transparency=0)).tolist() == [[[255] * 3, [40, 50, 60]]]


def test_sixteen_bit_grey_is_scaled_not_clipped():
    array = np.array([[0, 257, 32896, 65535]], np.uint16)
    expected = [[[v] * 3 for v in (0, 1, 128, 255)]]
    assert pixels(array).tolist() == expected
    assert pixels(encoded(Image.fromarray(array))).tolist() == expected
    assert pixels(encoded(Image.fromarray(array), "TIFF")).tolist() == expected
    with pytest.raises(ImageError, match="integers from 0 to 70000"):
        load_image(Image.fromarray(np.array([[0, 70000]], np.int32)))


def test_other_modes():
    assert pixels(Image.new("CMYK", (1, 1), (0, 255, 255, 0))).tolist() == [[[255, 0, 0]]]
    assert pixels(Image.new("1", (1, 1), 1)).tolist() == [[[255] * 3]]
    assert pixels(np.full((1, 1), 7, np.uint8)).tolist() == [[[7] * 3]]
    assert pixels(np.full((1, 1, 1), 7, np.uint8)).tolist() == [[[7] * 3]]


def bomb():
    """A PNG header that promises 60000 x 60000 pixels, and nothing behind it."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    idat = b"IDAT"
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk
        + struct.pack(">I", 0)
        + idat
        + struct.pack(">I", zlib.crc32(idat))
    )


def test_broken_sources_are_named(tmp_path):
    data = encoded(
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    )
    cut = tmp_path / "cut.png"
    cut.write_bytes(data[: len(data) // 2])
    jpeg = tmp_path / "cut.jpg"
    jpeg.write_bytes(encoded(Image.open(io.BytesIO(data)), "JPEG")[:900])
    cases = [
        (cut, "truncated image", "cut.png"),
        (jpeg, "truncated image", "cut.jpg"),
        (tmp_path / "none.png", "missing image", "none.png"),
        (tmp_path, "unreadable image", tmp_path.name),
        (b"no image", "unreadable image", "8 bytes"),
        (b"", "unreadable image", "0 bytes"),
        (bomb(), "huge image", "bytes"),
        (Image.new("L", (9000, 9000)), "huge image", "9000 x 9000"),
        (17, "unsupported image", "17 .int."),
        (np.zeros((3, 8, 8), np.uint8), "unsupported image", "channels last"),
        (np.zeros((0, 8), np.uint8), "unsupported image", "no pixels"),
        (np.zeros((8, 8), np.int64), "unsupported image", "uint8"),
        (PIXELS.astype(np.float32), "unsupported image", "floats from 0 to 221"),
        (np.full((2, 2), np.nan), "unsupported image", "nan"),
    ]
    for source, reason, text in cases:
        with pytest.raises(ValueError, match=text) as caught:
            load_image(source)
        assert caught.value.reason == reason, source


def test_size_is_checked_before_decoding():
    data = encoded(Image.new("RGB", (50, 40)))[:-20]  # The header is whole, the pixels are not.
    assert open_image(data, max_pixels=2000).size == (50, 40)
    with pytest.raises(ImageError, match="max_pixels=1999") as caught:
        load_image(data, max_pixels=1999)
    assert caught.value.reason == "huge image"


def test_processor_golden_values():
    ramp = np.zeros((2, 8, 3), np.uint8)
    ramp[..., 0] = np.arange(8) * 32
    ramp[..., 2] = 255
    small = ImageProcessor((1, 2), resample="box").resize(ramp)
    assert small.tolist() == [[[48, 0, 255], [176, 0, 255]]]
    values = ImageProcessor((1, 2), resample="box")(ramp)
    assert values.dtype == np.float32
    np.testing.assert_allclose(values[0, :, 0], [48 / 127.5 - 1, 176 / 127.5 - 1], atol=1e-6)
    assert values[0, 0, 1] == -1.0 and values[0, 0, 2] == 1.0
    clip = ImageProcessor((1, 2), mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4), resample="box")
    expected = [(48 / 255 - 0.4) / 0.2, -0.5 / 0.3, 0.4 / 0.4]
    np.testing.assert_allclose(clip(ramp)[0, 0], expected, rtol=1e-6)


def test_resize_is_antialiased():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    for resample in ("bilinear", "bicubic", "lanczos", "box"):
        small = ImageProcessor(16, resample=resample).resize(stripes).astype(int)
        assert abs(small - 128).max() <= 20, resample  # Without antialiasing: 127.


def test_processor_config_round_trip():
    processor = ImageProcessor((8, 6), (0.1, 0.2, 0.3), 0.4, "lanczos", max_pixels=99)
    config = processor.get_config()
    assert config == ImageProcessor.from_config(config).get_config()
    assert config["image_size"] == [8, 6] and config["std"] == [0.4] * 3
    assert processor(PIXELS).shape == (8, 6, 3)
    with pytest.raises(ImageError, match="max_pixels=99"):
        processor(np.zeros((10, 10), np.uint8))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": 0}, "image_size"),
        ({"image_size": (4, 4, 3)}, "image_size"),
        ({"image_size": 8.5}, "image_size"),
        ({"mean": (0.1, 0.2)}, "mean"),
        ({"std": 0.0}, "std"),
        ({"std": float("nan")}, "std"),
        ({"resample": "cubic"}, "bicubic"),
    ],
)
def test_bad_processor_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        ImageProcessor(**arguments)


def test_normalize_refuses_other_types():
    with pytest.raises(ValueError, match="float64"):
        ImageProcessor(4).normalize(np.zeros((4, 4, 3), np.float64))
