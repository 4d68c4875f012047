"""Tile grids and layouts against transformers, restatements and hand-written text."""

import json
import sys
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.idefics3.processing_idefics3 import Idefics3Processor
from transformers.models.smolvlm.processing_smolvlm import get_image_prompt_string

from dl_techniques.preprocessing.image_processors import (
    CenterCropImageProcessor,
    Idefics3ImageProcessor,
    InternVLImageProcessor,
    NanoVLMImageProcessor,
    NVLMImageProcessor,
    image_processor_from_config,
)
from dl_techniques.preprocessing.images import ImageError, ImageProcessor
from dl_techniques.preprocessing.tiling import Grid, aspect_grids, cut

pytestmark = pytest.mark.no_backend


def sizes(count=10_000):
    """Return random (width, height): plain, small, extreme, and near multiples of a tile."""
    generator = np.random.default_rng(0)
    plain = generator.integers(1, 5000, (count // 4, 2))
    small = generator.integers(1, 60, (count // 4, 2))
    extreme = np.exp(generator.uniform(0, np.log(20_000), (count // 4, 2))).astype(int)
    near = generator.integers(1, 9, (count // 4, 2)) * generator.choice([364, 384, 448, 512])
    near += generator.integers(-2, 3, near.shape)
    chosen = np.concatenate([plain, small, extreme, near])
    # The corners of the space, each tall and wide.
    chosen[:6] = [(1, 1), (5000, 3), (3, 5000), (20_000, 1), (1, 20_000), (145, 579)]
    return [(int(width), int(height)) for width, height in chosen]


def without_memory(width, height):
    return np.broadcast_to(np.uint8(0), (3, height, width))


@pytest.mark.parametrize(
    ("side", "longest_edge"), [(512, 2048), (384, 1536), (364, 1456), (37, 225)]
)
def test_idefics3_grids(side, longest_edge, monkeypatch):
    theirs = Idefics3ImageProcessorPil(max_image_size={"longest_edge": side})
    module = sys.modules[Idefics3ImageProcessorPil.__module__]
    monkeypatch.setattr(
        theirs, "resize", lambda image, size, **_: without_memory(size.width, size.height)
    )
    ours = Idefics3ImageProcessor(side, longest_edge)
    for width, height in sizes():
        # The two steps of its pixels; its own counting function forgets one of them.
        size = module.get_resize_output_image_size(without_memory(width, height), longest_edge)
        scaled = theirs.resize_for_vision_encoder(without_memory(*size[::-1]), side)
        frames, rows, columns = theirs.split_images(scaled, {"longest_edge": side})
        grid = ours.grid(width, height)
        assert (grid.rows, grid.columns, grid.count) == (rows, columns, len(frames)), (
            width,
            height,
        )
        assert grid.count <= ours.max_tiles


def by_trying(width, height, side, longest, enlarge):
    """Restate nanoVLM's rule by counting up."""
    wide = width >= height
    long_side, short_side = (width, height) if wide else (height, width)
    many = 1
    while many * side < (longest if enlarge else min(long_side, longest)):
        many += 1
    few = 1
    while few < short_side * (many * side / long_side) / side:
        few += 1
    few = min(few, 8)
    return (few, many) if wide else (many, few)


@pytest.mark.parametrize("enlarge", [True, False])
@pytest.mark.parametrize(("side", "longest"), [(512, 2048), (256, 2048), (7, 56), (7, 21)])
def test_nanovlm_grids(side, longest, enlarge):
    processor = NanoVLMImageProcessor(side, longest, enlarge)
    for width, height in sizes():
        rows, columns = by_trying(width, height, side, longest, enlarge)
        expected = Grid(rows, columns, overview=rows * columns > 1)
        assert processor.grid(width, height) == expected, (width, height)
        assert expected.count <= processor.max_tiles


def test_nanovlm_grids_by_hand():
    for enlarge, expected in ((False, Grid(2, 2, True)), (True, Grid(3, 4, True))):
        assert NanoVLMImageProcessor(resize_to_max_side_len=enlarge).grid(640, 480) == expected
    processor = NanoVLMImageProcessor(resize_to_max_side_len=False)
    assert processor.grid(512, 30) == Grid(1, 1)
    # nanoVLM's rounding: 1092 * (1536 / 1092) is a little more than 1536.
    squares = [n for n in range(1025, 1537) if processor.grid(n, n) != Grid(3, 3, True)]
    assert squares and all(processor.grid(n, n) == Grid(4, 3, True) for n in squares)


def nearest_ratio(width, height, side, fewest, most):
    """Restate InternVL's rule as its first program has it, in its order of a set."""
    ratios = {
        (i, j)
        for n in range(fewest, most + 1)
        for i in range(1, n + 1)
        for j in range(1, n + 1)
        if fewest <= i * j <= most
    }
    best, difference = None, float("inf")
    for ratio in sorted(ratios, key=lambda r: r[0] * r[1]):
        now = abs(width / height - ratio[0] / ratio[1])
        if now < difference:
            best, difference = ratio, now
        elif now == difference and width * height > 0.5 * side * side * ratio[0] * ratio[1]:
            best = ratio
    return best


@pytest.mark.parametrize(("side", "fewest", "most"), [(448, 1, 6), (448, 1, 12), (28, 3, 9)])
def test_internvl_grids(side, fewest, most):
    processor = InternVLImageProcessor(side, fewest, most)
    for width, height in sizes():
        grid = processor.grid(width, height)
        got = (grid.columns, grid.rows)
        theirs = get_optimal_tiled_canvas((height, width), (side, side), fewest, most)
        assert got == theirs, (width, height)
        assert grid.overview == (grid.rows * grid.columns > 1)
        assert grid.count <= processor.max_tiles
    for width, height in sizes(1000):
        grid = processor.grid(width, height)
        expected = nearest_ratio(width, height, side, fewest, most)
        assert (grid.columns, grid.rows) == expected, (width, height)


def test_internvl_grids_by_hand():
    grids = [(640, 480), (1000, 300), (1920, 1080), (896, 896), (600, 600)]
    got = [NVLMImageProcessor().grid(*size) for size in grids]
    assert [(g.columns, g.rows) for g in got] == [(3, 2), (3, 1), (2, 1), (2, 2), (1, 1)]
    assert [g.count for g in got] == [7, 4, 3, 5, 1]
    assert InternVLImageProcessor().grid(640, 480) == Grid(3, 4, True)
    assert InternVLImageProcessor(use_thumbnail=False).grid(640, 480) == Grid(3, 4)
    assert len(aspect_grids(1, 6)) == 14


def written(layout, image_token="<image>", count=3):
    """Return the text of a layout with `count` placeholders where a tile stands."""
    return "".join(image_token * count if isinstance(part, int) else part for part in layout)


def test_idefics3_text_is_that_of_transformers():
    tokens = {
        "fake_image_token": "<fake_token_around_image>",
        "image_token": "<image>",
        "global_image_tag": "<global-img>",
        "image_seq_len": 3,
    }
    processor = Idefics3ImageProcessor(16, 96)
    seen = set()
    for width, height in sizes(2000):
        grid = processor.grid(width, height)
        if grid in seen:
            continue
        seen.add(grid)
        got = written(processor.layout(width, height))
        assert got == get_image_prompt_string(
            grid.rows, grid.columns, 3, tokens["fake_image_token"], "<image>", "<global-img>"
        )
        info = {"rows": [[grid.rows]], "cols": [[grid.columns]]}
        idefics3 = SimpleNamespace(**tokens)
        assert got == Idefics3Processor.replace_image_token(idefics3, info, 0)
    assert {Grid(6, n, True) for n in range(1, 7)} | {Grid(n, 6, True) for n in range(1, 7)} == seen
    whole = Idefics3ImageProcessor(16, 96, do_image_splitting=False)
    fake = "<fake_token_around_image>"
    assert whole.layout(640, 480) == (fake, "<global-img>", 0, fake)
    # A picture that fits into one tile is not split either.
    assert Idefics3ImageProcessor(16, 16).layout(640, 480) == whole.layout(640, 480)


def test_layouts_by_hand():
    nano = NanoVLMImageProcessor(512, 2048, False)
    assert nano.layout(500, 500) == ("<|global_image|>", 0)
    assert nano.layout(500, 500, 1, 2) == ("<image: 1>", "<|global_image|>", 0)
    assert written(nano.layout(1024, 600, 0, 2), "I", 2) == (
        "<image: 0><|global_image|>II<row_1_col_1>II<row_1_col_2>II<row_2_col_1>II<row_2_col_2>II"
    )
    assert nano.layout(1024, 500) == (
        *("<|global_image|>", 0),
        *("<row_1_col_1>", 1),
        *("<row_1_col_2>", 2),
    )
    assert Idefics3ImageProcessor(512, 1024).layout(1024, 500) == (
        *("<fake_token_around_image>", "<row_1_col_1>", 0),
        *("<fake_token_around_image>", "<row_1_col_2>", 1),
        *("\n", "\n"),
        *("<fake_token_around_image>", "<global-img>", 2, "<fake_token_around_image>"),
    )
    assert InternVLImageProcessor().layout(896, 448, 3, 5) == ("<img>", 0, 1, 2, "</img>")
    assert InternVLImageProcessor().layout(448, 448) == ("<img>", 0, "</img>")
    assert written(NVLMImageProcessor().layout(896, 448), "I", 1) == (
        "<Image><tile_1>I<tile_2>I<tile_global_thumbnail>I</Image>\n"
    )
    only = ("<Image>", "<tile_global_thumbnail>", 0, "</Image>\n")
    assert NVLMImageProcessor().layout(448, 448) == only
    bare = NVLMImageProcessor(use_thumbnail=False).layout(896, 448)
    assert written(bare, "I", 1) == "<Image><tile_1>I<tile_2>I</Image>\n"
    for plain in (ImageProcessor(), CenterCropImageProcessor()):
        assert plain.layout(5000, 3, 2, 4) == (0,)


def test_tiles_are_cut_row_by_row():
    picture = np.arange(24, dtype=np.uint8).reshape(4, 6, 1)
    tiles = cut(picture, 2)[..., 0]
    assert tiles.tolist() == [
        *([[0, 1], [6, 7]], [[2, 3], [8, 9]], [[4, 5], [10, 11]]),
        *([[12, 13], [18, 19]], [[14, 15], [20, 21]], [[16, 17], [22, 23]]),
    ]


PROCESSORS = [
    ImageProcessor((8, 6), (0.1, 0.2, 0.3), 0.4, "lanczos", 10**6, "drop"),
    CenterCropImageProcessor(8, resample="bilinear"),
    NanoVLMImageProcessor(8, 24, False, mean=0.1),
    Idefics3ImageProcessor(8, 20),
    Idefics3ImageProcessor(8, None, False),
    InternVLImageProcessor(8, 2, 5, False, transparency="white"),
    NVLMImageProcessor(8, 4),
]


@pytest.mark.parametrize("processor", PROCESSORS, ids=lambda p: type(p).__name__)
def test_config_round_trip(processor):
    config = json.loads(json.dumps(processor.get_config()))
    copy = image_processor_from_config(config)
    assert type(copy) is type(processor) and copy.get_config() == processor.get_config()
    assert vars(copy) == vars(processor)
    picture = Image.effect_noise((17, 11), 90)
    assert np.array_equal(copy.tiles(picture).pixels, processor.tiles(picture).pixels)
    other = ImageProcessor if processor.kind == "center_crop" else CenterCropImageProcessor
    with pytest.raises(ValueError, match=f"'{processor.kind}', not '{other.kind}'"):
        other.from_config(config)


def test_configs_of_before_have_no_kind():
    config = ImageProcessor(8, resample="box").get_config()
    del config["kind"], config["transparency"]
    assert vars(image_processor_from_config(config)) == vars(ImageProcessor(8, resample="box"))
    assert type(ImageProcessor.from_config(config)) is ImageProcessor


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "dict"),
        ([], "dict"),
        ({"kind": "tiles"}, "tiles"),
        ({"kind": []}, "kind"),
        ({"kind": "stretch", "longest_edge": 8}, "longest_edge"),
        ({"image_size": "224"}, "image_size"),
        ({"image_size": None}, "image_size"),
        ({"image_size": True}, "image_size"),
        ({"image_size": [8, 0]}, "image_size"),
        ({"image_size": float("inf")}, "image_size"),
        ({"mean": "0.5"}, "mean"),
        ({"mean": [0.5, None, 0.5]}, "mean"),
        ({"std": -1}, "std"),
        ({"max_pixels": 0}, "max_pixels"),
        ({"resample": "cubic"}, "bicubic"),
        ({"transparency": "black"}, "white"),
        ({"kind": "center_crop", "image_size": [8, 6]}, "squares"),
        ({"kind": "nanovlm", "image_size": [8, 6]}, "squares"),
        ({"kind": "nanovlm", "max_side_len": 1000}, "1 to 8 times"),
        ({"kind": "nanovlm", "max_side_len": 9 * 512}, "1 to 8 times"),
        ({"kind": "nanovlm", "resize_to_max_side_len": 1}, "resize_to_max_side_len"),
        ({"kind": "idefics3", "longest_edge": None}, "do_image_splitting=False"),
        ({"kind": "idefics3", "longest_edge": 4097}, "4096"),
        ({"kind": "idefics3", "longest_edge": 0}, "longest_edge"),
        ({"kind": "idefics3", "do_image_splitting": "no"}, "do_image_splitting"),
        ({"kind": "internvl", "min_num": 0}, "min_num"),
        ({"kind": "internvl", "min_num": 5, "max_num": 4}, "min_num <= max_num"),
        ({"kind": "internvl", "use_thumbnail": None}, "use_thumbnail"),
        ({"kind": "nvlm", "max_num": 12}, "9 tiles"),
    ],
)
def test_bad_configs(config, message):
    with pytest.raises(ValueError, match=message):
        image_processor_from_config(config)


@pytest.mark.parametrize("processor", PROCESSORS, ids=lambda p: type(p).__name__)
def test_bad_calls(processor):
    for size in ((0, 5), (5, -1), (5, 2.5), ("5", 5), (float("nan"), 5)):
        with pytest.raises(ValueError, match="width|height"):
            processor.layout(*size)
    for number, count in ((1, 1), (-1, 2), (0, 0)):
        with pytest.raises(ValueError, match="number"):
            processor.layout(5, 5, number, count)
        with pytest.raises(ValueError, match="number"):
            processor.tiles(np.zeros((5, 5, 3), np.uint8), number, count)
    with pytest.raises(ImageError, match="no pixels"):
        processor.tiles(np.zeros((0, 5, 3), np.uint8))
    with pytest.raises(ImageError, match="decoded|format"):
        processor.tiles(b"no image")
    small = image_processor_from_config(processor.get_config() | {"max_pixels": 24})
    with pytest.raises(ImageError, match="max_pixels=24"):
        small.tiles(np.zeros((5, 5, 3), np.uint8))


@pytest.mark.parametrize("size", [(5000, 3), (3, 5000), (60_000, 1), (1, 60_000)])
def test_extreme_shapes_need_little_memory(size):
    for processor in (
        NanoVLMImageProcessor(),
        Idefics3ImageProcessor(),
        InternVLImageProcessor(),
        NVLMImageProcessor(),
    ):
        tracemalloc.start()
        tiles = processor.tiles(Image.new("RGB", size))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert len(tiles.pixels) <= processor.max_tiles <= 17
        assert peak < 4 * tiles.pixels.nbytes


def test_crop_refuses_pictures_that_would_become_huge():
    processor = CenterCropImageProcessor(336)
    with pytest.raises(ImageError, match="20160000 pixels long") as caught:
        processor.tiles(Image.new("RGB", (60_000, 1)))
    assert caught.value.reason == "huge image"
    assert processor.tiles(Image.new("RGB", (5, 500))).pixels.shape == (1, 336, 336, 3)


def test_normalize_takes_floats_up_to_255():
    processor = ImageProcessor(4, (0.1, 0.2, 0.3), 0.5)
    levels = np.arange(0, 256, 17, dtype=np.uint8)
    pixels = np.stack([levels, levels[::-1], levels], -1)
    expected = (pixels / 255 - [0.1, 0.2, 0.3]) / 0.5
    for dtype in (np.uint8, np.float32):
        got = processor.normalize(pixels.astype(dtype))
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, expected, atol=1e-6)
    assert processor.normalize(np.zeros((0, 4, 4, 3), np.float32)).shape == (0, 4, 4, 3)
    for bad in (pixels.astype(np.float64), pixels.astype(np.int32), pixels[..., :2]):
        with pytest.raises(ValueError, match="uint8"):
            processor.normalize(bad)
    for value in (-0.01, 255.5, np.nan):
        with pytest.raises(ValueError, match="0, 255"):
            processor.normalize(np.full((2, 3), value, np.float32))
