"""Pixels of our image processors against transformers' and, for nanoVLM, a restatement."""

import io
import math
import warnings

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from transformers.image_utils import load_image as transformers_load_image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from dl_techniques.preprocessing.image_processors import (
    CLIP_MEAN,
    CLIP_STD,
    IMAGENET_MEAN,
    IMAGENET_STD,
    CenterCropImageProcessor,
    Idefics3ImageProcessor,
    InternVLImageProcessor,
    NanoVLMImageProcessor,
    NVLMImageProcessor,
)
from dl_techniques.preprocessing.images import ImageError, ImageProcessor, image_size_of

pytestmark = pytest.mark.no_backend

SIZES = [(1, 1), (2, 3), (7, 13), (31, 32), (32, 32), (33, 31), (64, 48), (97, 89), (127, 61)]
SIZES += [(200, 50), (50, 200), (211, 37), (128, 128), (301, 299), (5000, 3), (3, 5000), (320, 240)]
BILINEAR, BICUBIC, LANCZOS = 2, 3, 1
RAW = {"do_rescale": False, "do_normalize": False}


def encoded(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def files():
    """Return {name: bytes} of small images of every mode, noisy and smooth."""
    generator = np.random.default_rng(0)

    def picture(width, height, channels=3):
        array = generator.integers(0, 256, (height, width, channels), np.uint8)
        array[: height // 2] //= 8  # A dark half: rings at its edge show clipping.
        return Image.fromarray(array.squeeze(-1) if channels == 1 else array)

    result = {f"rgb {w}x{h}": encoded(picture(w, h)) for w, h in SIZES}
    grey, alpha = picture(61, 47, 1), picture(61, 47, 1)
    rgba = picture(53, 71, 4)
    palette = picture(67, 41).quantize(16)
    shades = bytes(range(0, 256, 16))
    result |= {
        "grey": encoded(grey),
        "grey, one shade transparent": encoded(grey, transparency=7),
        "grey and alpha": encoded(Image.merge("LA", (grey, alpha))),
        "rgba": encoded(rgba),
        "rgba webp": encoded(rgba, "WEBP", lossless=True, exact=True),
        "rgb, one colour transparent": encoded(picture(19, 23), transparency=(7, 7, 7)),
        "palette": encoded(palette),
        "palette, one transparent": encoded(palette, transparency=3),
        "palette, shades transparent": encoded(palette, transparency=shades),
        "gif": encoded(palette, "GIF", transparency=3),
        "one bit": encoded(grey.convert("1")),
        "cmyk": encoded(picture(43, 59).convert("CMYK"), "JPEG"),
        "jpeg": encoded(picture(83, 29), "JPEG"),
        "bmp": encoded(picture(29, 31), "BMP"),
    }
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        turned = picture(45, 23)
        result[f"jpeg turned {orientation}"] = encoded(turned, "JPEG", exif=exif)
        result[f"png turned {orientation}"] = encoded(turned, exif=exif)
        result[f"tiff turned {orientation}"] = encoded(turned, "TIFF", exif=exif)
    return result


FILES = files()


def upright(data):
    """Open a file as its users do who give transformers PIL images."""
    return ImageOps.exif_transpose(Image.open(io.BytesIO(data)))


@pytest.fixture(scope="module")
def loaded_by_transformers(tmp_path_factory):
    """Return {name: image} as transformers loads a path itself: without transparency."""
    path = tmp_path_factory.mktemp("files") / "image"
    images = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow finds the palette's transparency worth one.
        for name, data in FILES.items():
            path.write_bytes(data)
            images[name] = transformers_load_image(str(path))
            # Left behind for grey and RGB, and then laid over white after all: an accident.
            images[name].info.pop("transparency", None)
    return images


def stacked(output):
    """Return [n, H, W, 3] of transformers' result for one image."""
    values = np.asarray(output["pixel_values"], np.float32)
    return np.moveaxis(values.reshape(-1, *values.shape[-3:]), 1, -1)


def clip(side):
    return {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}


def idefics3(side, longest_edge, **options):
    longest = {"size": {"longest_edge": longest_edge}, "max_image_size": {"longest_edge": side}}
    return longest | options


PAIRS = {
    "siglip": (
        lambda **o: ImageProcessor(32, **o),
        lambda **o: SiglipImageProcessorPil(size={"height": 32, "width": 32}, **o),
    ),
    "siglip 2": (
        lambda **o: ImageProcessor((24, 40), resample="bilinear", **o),
        lambda **o: SiglipImageProcessorPil(
            size={"height": 24, "width": 40}, resample=BILINEAR, **o
        ),
    ),
    "clip": (
        lambda **o: CenterCropImageProcessor(33, **o),
        lambda **o: CLIPImageProcessorPil(**clip(33), **o),
    ),
    "idefics3": (
        lambda **o: Idefics3ImageProcessor(32, 128, **o),
        lambda **o: Idefics3ImageProcessorPil(**idefics3(32, 128), **o),
    ),
    "idefics3, odd": (
        lambda **o: Idefics3ImageProcessor(21, 77, **o),
        lambda **o: Idefics3ImageProcessorPil(**idefics3(21, 77), **o),
    ),
    "smolvlm": (
        lambda **o: Idefics3ImageProcessor(48, 192, **o),
        lambda **o: SmolVLMImageProcessorPil(**idefics3(48, 192), **o),
    ),
    "smolvlm, whole": (
        lambda **o: Idefics3ImageProcessor(32, 128, do_image_splitting=False, **o),
        lambda **o: SmolVLMImageProcessorPil(**idefics3(32, 128, do_image_splitting=False), **o),
    ),
    "smolvlm, stretched once": (
        lambda **o: Idefics3ImageProcessor(32, None, do_image_splitting=False, **o),
        lambda **o: SmolVLMImageProcessorPil(
            **idefics3(32, 32, do_image_splitting=False, do_resize=False), **o
        ),
    ),
    "internvl": (
        lambda **o: InternVLImageProcessor(28, **o),
        lambda **o: GotOcr2ImageProcessorPil(
            size={"height": 28, "width": 28}, crop_to_patches=True, **o
        ),
    ),
    "nvlm": (
        lambda **o: NVLMImageProcessor(28, 6, min_num=2, **o),
        lambda **o: GotOcr2ImageProcessorPil(
            size={"height": 28, "width": 28},
            crop_to_patches=True,
            min_patches=2,
            max_patches=6,
            **o,
        ),
    ),
    "internvl, one tile": (
        lambda **o: InternVLImageProcessor(28, max_num=1, **o),
        lambda **o: GotOcr2ImageProcessorPil(
            size={"height": 28, "width": 28}, crop_to_patches=True, max_patches=1, **o
        ),
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_pixels_are_those_of_transformers(name, loaded_by_transformers):
    ours, theirs = PAIRS[name]
    theirs = theirs(**RAW)
    for transparency in ("white", "drop"):
        processor = ours(transparency=transparency)
        for file, data in FILES.items():
            image = upright(data) if transparency == "white" else loaded_by_transformers[file]
            expected = stacked(theirs(image))
            tiles = processor.tiles(data)
            assert tiles.pixels.dtype == np.uint8 and tiles.pixels.shape == expected.shape, file
            assert np.array_equal(tiles.pixels, expected), (file, transparency)
            # The layout is known without the pixels, and names each tile once, in order.
            assert tiles.layout == processor.layout(*image_size_of(data)), file
            assert [n for n in tiles.layout if isinstance(n, int)] == [*range(len(expected))]
            assert len(expected) <= processor.max_tiles


def test_white_and_dropped_transparency_differ():
    for file in ("rgba", "grey and alpha", "palette, one transparent", "gif"):
        tiles = [ImageProcessor(8, transparency=t).resize(FILES[file]) for t in ("white", "drop")]
        assert not np.array_equal(*tiles), file


@pytest.mark.parametrize(
    ("name", "statistics"),
    [
        ("siglip", {}),
        ("clip", {}),
        ("idefics3", {}),
        ("internvl", {"image_mean": list(IMAGENET_MEAN), "image_std": list(IMAGENET_STD)}),
    ],
)
def test_normalised_values_are_those_of_transformers(name, statistics):
    ours, theirs = PAIRS[name]
    ours, theirs = ours(), theirs(**statistics)
    for file in ("rgb 97x89", "cmyk", "grey"):
        got = ours.normalize(ours.tiles(FILES[file]).pixels)
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, stacked(theirs(upright(FILES[file]))), rtol=0, atol=1e-6)


def nanovlm_tiles(image, side, longest, enlarge):
    """Restate nanoVLM: bicubic to whole tiles, then an overview of the float picture with torch."""
    width, height = image.size
    long_side = longest if enlarge else min(longest, math.ceil(max(width, height) / side) * side)
    short = math.ceil(min(width, height) * (long_side / max(width, height)) / side) * side
    short = max(short, side)
    size = (long_side, short) if width >= height else (short, long_side)
    whole = np.asarray(image.resize(size, Image.Resampling.BICUBIC)) / np.float32(255)
    tiles = [
        whole[top : top + side, left : left + side]
        for top in range(0, size[1], side)
        for left in range(0, size[0], side)
    ]
    if len(tiles) > 1:
        batch = torch.from_numpy(whole.transpose(2, 0, 1)[None].copy())
        overview = torch.nn.functional.interpolate(
            batch, (side, side), mode="bilinear", antialias=True, align_corners=False
        )
        tiles.insert(0, overview[0].permute(1, 2, 0).numpy())
    return np.stack(tiles)


@pytest.mark.parametrize("enlarge", [True, False])
def test_nanovlm_tiles(enlarge, loaded_by_transformers):
    processor = NanoVLMImageProcessor(32, 128, enlarge)
    for file, data in FILES.items():
        expected = nanovlm_tiles(loaded_by_transformers[file], 32, 128, enlarge)
        tiles = processor.tiles(data)
        assert tiles.pixels.dtype == np.float32 and tiles.pixels.shape == expected.shape, file
        got = processor.normalize(tiles.pixels)
        first = int(len(got) > 1)
        # Tiles are whole grey levels; the overview is summed in another order than torch's.
        assert np.array_equal(got[first:], expected[first:]), file
        np.testing.assert_allclose(got, expected, rtol=0, atol=5e-7, err_msg=file)
        assert tiles.layout == processor.layout(*image_size_of(data))


def test_first_nanovlm_is_a_setting_of_the_stretch(loaded_by_transformers):
    processor = ImageProcessor(32, 0.0, 1.0, "bilinear", transparency="drop")
    for file, image in loaded_by_transformers.items():
        resized = image.resize((32, 32), Image.Resampling.BILINEAR)
        expected = np.asarray(resized) / np.float32(255)
        assert np.array_equal(processor(FILES[file]), expected), file


def test_torchs_kernel_differs_from_pillows_by_one_grey_level():
    # The "fast" processors resize with torch, in other integers than Pillow's. Bilinear only:
    # torch's bicubic and Lanczos overshoot differently, by 7 and 15 levels on noise.
    for name in ("rgb 97x89", "rgb 320x240", "rgb 211x37"):
        image = upright(FILES[name])
        batch = torch.from_numpy(np.array(image).transpose(2, 0, 1)[None].copy())
        theirs = torch.nn.functional.interpolate(batch, (32, 32), mode="bilinear", antialias=True)
        ours = ImageProcessor(32, resample="bilinear").resize(image)
        difference = np.abs(theirs[0].permute(1, 2, 0).numpy().astype(int) - ours)
        assert difference.max() <= 1


def test_sixteen_bit_grey_is_scaled_where_transformers_clips():
    array = np.array([[0, 257, 32896, 65535]], np.uint16)
    image = Image.open(io.BytesIO(encoded(Image.fromarray(array))))
    theirs = SiglipImageProcessorPil(size={"height": 1, "width": 4}, **RAW)(image)
    assert stacked(theirs)[0, 0, :, 0].tolist() == [0, 255, 255, 255]
    assert ImageProcessor((1, 4)).resize(image)[0, :, 0].tolist() == [0, 1, 128, 255]


def test_statistics_are_those_of_transformers():
    assert tuple(CLIPImageProcessorPil.image_mean) == CLIP_MEAN
    assert tuple(CLIPImageProcessorPil.image_std) == CLIP_STD


def late_exif():
    """Return a turned PNG whose EXIF stands behind its pixels."""
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(Image.new("RGB", (3, 2)), exif=exif)
    start = data.index(b"eXIf") - 4
    stop = start + 12 + int.from_bytes(data[start : start + 4], "big")
    end = data.index(b"IEND") - 4
    return data[:start] + data[stop:end] + data[start:stop] + data[end:]


def test_size_is_read_from_the_header():
    for name, data in FILES.items():
        assert image_size_of(data) == upright(data).size, name
    assert image_size_of(late_exif()) == upright(late_exif()).size == (2, 3)
    assert image_size_of(np.zeros((2, 3, 3), np.uint8)) == (3, 2)
    # The pixels of these are missing: whoever decodes them fails.
    for name in ("rgb 301x299", "jpeg turned 6", "png turned 6"):
        assert image_size_of(FILES[name][:-40]) == upright(FILES[name]).size
    with pytest.raises(ImageError, match="max_pixels=5"):
        image_size_of(FILES["rgb 2x3"], max_pixels=5)
    broken = bytearray(late_exif())
    broken[broken.index(b"IDAT") + 6] ^= 255
    with pytest.raises(ImageError, match="truncated"):
        image_size_of(broken)
