"""Image processors that reproduce the pixels, tiles and text layouts of public models.

`images.ImageProcessor` stretches; the others crop or cut into tiles. All are built on Pillow, whose
antialiased resize is what the public models were trained with.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from dl_techniques.preprocessing.images import (
    MAX_PIXELS,
    BaseImageProcessor,
    ImageError,
    ImageProcessor,
    positive_int,
)
from dl_techniques.preprocessing.tiling import (
    NANOVLM_ROWS,
    Grid,
    Layout,
    aspect_grids,
    cut,
    idefics3_grid,
    idefics3_size,
    internvl_grid,
    nanovlm_grid,
)

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
THUMBNAIL_TAG = "<tile_global_thumbnail>"
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class CenterCropImageProcessor(ImageProcessor):
    """CLIP's image processor: the short side becomes `image_size`, the middle square is kept.

    Args:
        image_size: side of the square in pixels.
        mean: see `BaseImageProcessor`.
        std: see `BaseImageProcessor`.
        resample: see `BaseImageProcessor`.
        max_pixels: also the most pixels that the picture may have between scaling and cropping;
            only pictures hundreds of times longer than wide come near.
        transparency: see `ImageProcessor`.

    Raises:
        ValueError: a size, a scale or a name is not usable.
    """

    kind = "center_crop"

    def __init__(
        self,
        image_size: int | Sequence[int] = 224,
        mean: float | Sequence[float] = CLIP_MEAN,
        std: float | Sequence[float] = CLIP_STD,
        resample: str = "bicubic",
        max_pixels: int = MAX_PIXELS,
        transparency: str = "white",
    ):
        super().__init__(image_size, mean, std, resample, max_pixels, transparency)
        _check_square(self)

    def _fitted(self, image: Image.Image) -> np.ndarray:
        side = self.width
        width, height = image.size
        long_side = int(side * max(width, height) / min(width, height))
        if long_side * side > self.max_pixels:
            raise ImageError(
                "huge image",
                f"An image of {width} x {height} pixels would be {long_side} pixels long where its "
                f"short side has {side}: more than max_pixels={self.max_pixels}. Crop it first.",
            )
        size = (long_side, side) if width >= height else (side, long_side)
        left, top = (size[0] - side) // 2, (size[1] - side) // 2
        return np.array(self._resized(image, *size).crop((left, top, left + side, top + side)))


class TiledImageProcessor(BaseImageProcessor):
    """What the processors that cut square tiles share.

    Args:
        image_size: side of a tile in pixels.
        **settings: `mean`, `std`, `resample`, `transparency` and `max_pixels` of
            `BaseImageProcessor`, where they are to differ from the class's `defaults`.

    Raises:
        ValueError: a size, a scale or a name is not usable.
    """

    defaults: dict[str, Any] = {}

    def __init__(self, image_size: int | Sequence[int], **settings: Any):
        super().__init__(image_size, **{"max_pixels": MAX_PIXELS, **self.defaults, **settings})
        _check_square(self)

    def _stretched(self, image: Image.Image, grid: Grid) -> Image.Image:
        return self._resized(image, grid.columns * self.width, grid.rows * self.height)


class NanoVLMImageProcessor(TiledImageProcessor):
    """nanoVLM's tiles, from its second release on: an overview, then the tiles row by row.

    The overview is scaled from the tiled picture without rounding to whole grey levels, so
    `Tiles.pixels` are float32 in [0, 255]. With n = `max_side_len / image_size` an image has at
    most `n ** 2 + 1` tiles, by default 17; `n * (n + 1) + 1` if `max_side_len` is no power of two,
    as nanoVLM's rounding then gives some squares a row too many. EXIF orientation is applied,
    unlike there.

    Args:
        image_size: side of a tile in pixels.
        max_side_len: longest side of the tiled picture in pixels, a multiple of `image_size`; at
            most 8 times it, as there are tokens for 8 rows and columns.
        resize_to_max_side_len: whether small pictures are scaled up to `max_side_len`.
        **settings: see `TiledImageProcessor`; nanoVLM drops transparency, and its overview is
            always bilinear.

    Raises:
        ValueError: a size, a scale or a name is not usable.
    """

    kind = "nanovlm"
    defaults = {"mean": 0.0, "std": 1.0, "resample": "bicubic", "transparency": "drop"}

    def __init__(
        self,
        image_size: int | Sequence[int] = 512,
        max_side_len: int = 2048,
        resize_to_max_side_len: bool = True,
        **settings: Any,
    ):
        super().__init__(image_size, **settings)
        self.max_side_len = positive_int("max_side_len", max_side_len)
        self.resize_to_max_side_len = _flag("resize_to_max_side_len", resize_to_max_side_len)
        if self.max_side_len % self.width or self.max_side_len > NANOVLM_ROWS * self.width:
            raise ValueError(
                f"max_side_len must be 1 to {NANOVLM_ROWS} times image_size={self.width}, got "
                f"{max_side_len}."
            )

    @property
    def max_tiles(self) -> int:
        """The most tiles that any image gets."""
        many = self.max_side_len // self.width
        exact = self.max_side_len & (self.max_side_len - 1) == 0  # Powers of two do not round.
        tiles = many * (many if exact else min(many + 1, NANOVLM_ROWS))
        return tiles + (tiles > 1)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments and the `kind` of processor, JSON-ready."""
        return super().get_config() | {
            "max_side_len": self.max_side_len,
            "resize_to_max_side_len": self.resize_to_max_side_len,
        }

    def _grid(self, width: int, height: int) -> Grid:
        limits = (self.max_side_len, self.resize_to_max_side_len)
        return nanovlm_grid(width, height, self.width, *limits)

    def _pixels(self, image: Image.Image, grid: Grid) -> np.ndarray:
        side = self.width
        whole = self._stretched(image, grid)
        tiles = cut(np.array(whole), side).astype(np.float32)
        if not grid.overview:
            return tiles
        channels = [
            band.convert("F").resize((side, side), Image.Resampling.BILINEAR)
            for band in whole.split()
        ]
        return np.concatenate([np.stack(channels, -1)[None], tiles])

    def _layout(self, grid: Grid, number: int, count: int) -> Layout:
        layout = ["<|global_image|>", 0]
        if count > 1:
            layout.insert(0, f"<image: {number}>")
        if grid.overview:
            for tile, (row, column) in enumerate(grid.places(), 1):
                layout += [f"<row_{row}_col_{column}>", tile]
        return tuple(layout)


class Idefics3ImageProcessor(TiledImageProcessor):
    """Idefics3's and SmolVLM's tiles: row by row, then the whole picture.

    The picture is scaled twice, first to `longest_edge`, then to whole tiles. An image has at most
    `ceil((longest_edge + 1) / image_size) ** 2 + 1` tiles; with the defaults 17.

    Args:
        image_size: side of a tile in pixels.
        longest_edge: to which the long side is scaled first, 4096 at most; None leaves this step
            out and needs `do_image_splitting=False`.
        do_image_splitting: False gives one tile, the whole picture stretched.
        **settings: see `TiledImageProcessor`; transformers lays transparent PIL images over white,
            but drops the transparency of images that it loads itself from a path.

    Raises:
        ValueError: a size, a scale or a name is not usable.
    """

    kind = "idefics3"
    defaults = {"mean": 0.5, "std": 0.5, "resample": "lanczos", "transparency": "white"}

    def __init__(
        self,
        image_size: int | Sequence[int] = 512,
        longest_edge: int | None = 2048,
        do_image_splitting: bool = True,
        **settings: Any,
    ):
        super().__init__(image_size, **settings)
        self.do_image_splitting = _flag("do_image_splitting", do_image_splitting)
        if longest_edge is not None:
            longest_edge = positive_int("longest_edge", longest_edge)
            if longest_edge > 4096:
                raise ValueError(f"longest_edge must be 4096 at most, got {longest_edge}.")
        elif do_image_splitting:
            raise ValueError(
                "longest_edge=None needs do_image_splitting=False: without a limit a large image "
                "would have any number of tiles."
            )
        self.longest_edge = longest_edge

    @property
    def max_tiles(self) -> int:
        """The most tiles that any image gets."""
        if not self.do_image_splitting:
            return 1
        # A square picture is the largest; its second side is even, so it may be one pixel longer.
        return idefics3_grid(*idefics3_size(1, 1, self.longest_edge), self.width).count

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments and the `kind` of processor, JSON-ready."""
        return super().get_config() | {
            "longest_edge": self.longest_edge,
            "do_image_splitting": self.do_image_splitting,
        }

    def _grid(self, width: int, height: int) -> Grid:
        if not self.do_image_splitting:
            return Grid(0, 0, overview=True)
        return idefics3_grid(*idefics3_size(width, height, self.longest_edge), self.width)

    def _pixels(self, image: Image.Image, grid: Grid) -> np.ndarray:
        side = self.width
        if self.longest_edge is not None:
            image = self._resized(image, *idefics3_size(*image.size, self.longest_edge))
        if not grid.rows:
            return np.array(self._resized(image, side, side))[None]
        whole = self._stretched(image, grid)
        overview = np.array(self._resized(whole, side, side))
        return np.concatenate([cut(np.array(whole), side), overview[None]])

    def _layout(self, grid: Grid, number: int, count: int) -> Layout:
        layout = []
        for tile, (row, column) in enumerate(grid.places()):
            layout += ["<fake_token_around_image>", f"<row_{row}_col_{column}>", tile]
            if column == grid.columns:
                layout.append("\n")
        if grid.rows:
            layout.append("\n")
        last = grid.count - 1
        layout += ["<fake_token_around_image>", "<global-img>", last, "<fake_token_around_image>"]
        return tuple(layout)


class InternVLImageProcessor(TiledImageProcessor):
    """InternVL's tiles: the grid nearest to the picture's shape, then a thumbnail.

    An image has at most `max_num + 1` tiles.

    Args:
        image_size: side of a tile in pixels.
        min_num: fewest tiles, without the thumbnail.
        max_num: most tiles, without the thumbnail.
        use_thumbnail: whether several tiles are followed by the whole picture.
        **settings: see `TiledImageProcessor`; the original programs of InternVL and NVLM drop
            transparency, transformers does as for `Idefics3ImageProcessor`.

    Raises:
        ValueError: a size, a scale or a name is not usable.
    """

    kind = "internvl"
    defaults = {
        "mean": IMAGENET_MEAN,
        "std": IMAGENET_STD,
        "resample": "bicubic",
        "transparency": "drop",
    }

    def __init__(
        self,
        image_size: int | Sequence[int] = 448,
        min_num: int = 1,
        max_num: int = 12,
        use_thumbnail: bool = True,
        **settings: Any,
    ):
        super().__init__(image_size, **settings)
        self.min_num = positive_int("min_num", min_num)
        self.max_num = positive_int("max_num", max_num)
        if self.min_num > self.max_num:
            raise ValueError(f"Expected min_num <= max_num, got {min_num} and {max_num}.")
        self.use_thumbnail = _flag("use_thumbnail", use_thumbnail)
        self._grids = aspect_grids(self.min_num, self.max_num)

    @property
    def max_tiles(self) -> int:
        """The most tiles that any image gets."""
        return self.max_num + (self.use_thumbnail and self.max_num > 1)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments and the `kind` of processor, JSON-ready."""
        return super().get_config() | {
            "min_num": self.min_num,
            "max_num": self.max_num,
            "use_thumbnail": self.use_thumbnail,
        }

    def _grid(self, width: int, height: int) -> Grid:
        return internvl_grid(width, height, self.width, self._grids, self.use_thumbnail)

    def _pixels(self, image: Image.Image, grid: Grid) -> np.ndarray:
        tiles = cut(np.array(self._stretched(image, grid)), self.width)
        if not grid.overview:
            return tiles
        thumbnail = np.array(self._resized(image, self.width, self.height))
        return np.concatenate([tiles, thumbnail[None]])

    def _layout(self, grid: Grid, number: int, count: int) -> Layout:
        return ("<img>", *range(grid.count), "</img>")


class NVLMImageProcessor(InternVLImageProcessor):
    """NVLM-D's tiles: those of InternVL, six at most by default, each behind a numbered tag.

    The tags are text to the tokenizer, or special tokens where it has them (NVLM-X and -H here).

    Args:
        image_size: side of a tile in pixels.
        max_num: most tiles, without the thumbnail; 9 at most, as the tags have one digit.
        **arguments: see `InternVLImageProcessor`.

    Raises:
        ValueError: a size, a scale or a name is not usable.
    """

    kind = "nvlm"

    def __init__(self, image_size: int | Sequence[int] = 448, max_num: int = 6, **arguments: Any):
        super().__init__(image_size, max_num=max_num, **arguments)
        if self.max_num > 9:
            raise ValueError(f"NVLM has tags for 9 tiles at most, got max_num={max_num}.")

    @property
    def tags(self) -> tuple[str, ...]:
        """All tags of tiles."""
        return (*(f"<tile_{tile}>" for tile in range(1, self.max_num + 1)), THUMBNAIL_TAG)

    def _layout(self, grid: Grid, number: int, count: int) -> Layout:
        tags = list(self.tags[: grid.rows * grid.columns])
        if self.use_thumbnail:
            # A single tile is its own thumbnail.
            tags = tags[: grid.count - 1] + [THUMBNAIL_TAG]
        layout = ["<Image>"]
        for tile, tag in enumerate(tags):
            layout += [tag, tile]
        return (*layout, "</Image>\n")


_KINDS = {
    processor.kind: processor
    for processor in (
        ImageProcessor,
        CenterCropImageProcessor,
        NanoVLMImageProcessor,
        Idefics3ImageProcessor,
        InternVLImageProcessor,
        NVLMImageProcessor,
    )
}


def image_processor_from_config(config: dict[str, Any]) -> BaseImageProcessor:
    """Builds a processor of any kind from its `get_config()`'s result.

    Args:
        config: without a "kind" it is that of the plain `ImageProcessor`.

    Raises:
        ValueError: the config is no dict, or its kind or one of its arguments is unknown.
    """
    if not isinstance(config, dict):
        raise ValueError(f"The config of an image processor must be a dict, got {config!r}.")
    kind = config.get("kind", ImageProcessor.kind)
    if not isinstance(kind, str) or kind not in _KINDS:
        raise ValueError(f"kind of image processor must be one of {sorted(_KINDS)}, got {kind!r}.")
    try:
        return _KINDS[kind].from_config(config)
    except TypeError as error:
        raise ValueError(
            f"Wrong argument in the config of a {kind!r} processor: {error}"
        ) from error


def _check_square(processor: BaseImageProcessor) -> None:
    if processor.height != processor.width:
        raise ValueError(
            f"{type(processor).__name__} makes squares; got image_size={processor.image_size}."
        )


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be True or False, got {value!r}.")
    return value
