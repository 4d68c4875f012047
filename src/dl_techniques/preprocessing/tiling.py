"""Tiles of an image: how many there are, where they lie, and the text that stands around them.

The rules of three model families, each in whole numbers of tiles and to the last rounding of the
programs that their models were trained with.
"""

import dataclasses
import math

import numpy as np

Layout = tuple[str | int, ...]
# nanoVLM has tokens for so many rows and columns.
NANOVLM_ROWS = 8


@dataclasses.dataclass(frozen=True)
class Tiles:
    """The tiles of one image together with their place in the text.

    Attributes:
        pixels: uint8[n, H, W, 3], or float32[n, H, W, 3] in [0, 255] from processors whose tiles
            are not all whole numbers.
        layout: what stands in the text, in reading order: an int is the number of a tile, where
            its placeholder tokens stand; a str is text. Neighbouring strs are one text: join them
            before they are split into tokens.
    """

    pixels: np.ndarray
    layout: Layout


@dataclasses.dataclass(frozen=True)
class Grid:
    """The tiles of one image as a plan.

    Attributes:
        rows: of tiles.
        columns: of tiles.
        overview: whether the whole image, in the size of a tile, is one tile more.
    """

    rows: int = 1
    columns: int = 1
    overview: bool = False

    @property
    def count(self) -> int:
        """Number of tiles, the overview included."""
        return self.rows * self.columns + self.overview

    def places(self) -> list[tuple[int, int]]:
        """(row, column) of every tile in reading order, both from 1."""
        rows, columns = range(1, self.rows + 1), range(1, self.columns + 1)
        return [(row, column) for row in rows for column in columns]


def cut(pixels: np.ndarray, side: int) -> np.ndarray:
    """Cuts [R * side, C * side, 3] into [R * C, side, side, 3], row by row."""
    height, width, channels = pixels.shape
    blocks = pixels.reshape(height // side, side, width // side, side, channels)
    return blocks.swapaxes(1, 2).reshape(-1, side, side, channels)


def nanovlm_grid(
    width: int, height: int, side: int, max_side_len: int, resize_to_max_side_len: bool
) -> Grid:
    """Plans nanoVLM's tiles: both sides grow to whole tiles, the long one to the limit at most.

    Args:
        width: of the image in pixels.
        height: of the image in pixels.
        side: of a tile in pixels.
        max_side_len: longest side of the tiled image, a multiple of `side`.
        resize_to_max_side_len: whether every long side becomes `max_side_len`.
    """
    long_side, short_side = max(width, height), min(width, height)
    tiled = max_side_len
    if not resize_to_max_side_len:
        tiled = min(max_side_len, math.ceil(long_side / side) * side)
    # In this order of operations: their last bit may give a square one row more than columns.
    many, few = tiled // side, max(1, math.ceil(short_side * (tiled / long_side) / side))
    few = min(few, NANOVLM_ROWS)  # nanoVLM itself stops with an error there.
    rows, columns = (few, many) if width >= height else (many, few)
    return Grid(rows, columns, overview=rows * columns > 1)


def idefics3_size(width: int, height: int, longest_edge: int) -> tuple[int, int]:
    """Returns the (width, height) to which Idefics3 first scales an image.

    The long side becomes `longest_edge`; the short one keeps the aspect ratio, is made even and is
    at least 1.
    """
    short = _short_side(longest_edge, width / height)
    short = max(1, short + short % 2)
    return (longest_edge, short) if width >= height else (short, longest_edge)


def idefics3_grid(width: int, height: int, side: int) -> Grid:
    """Plans Idefics3's tiles of an image that is already scaled: both sides rounded up.

    Args:
        width: of the scaled image in pixels; see `idefics3_size`.
        height: of the scaled image in pixels.
        side: of a tile in pixels.
    """
    many = math.ceil(max(width, height) / side)
    short = _short_side(many * side, width / height)
    # The short side of one pixel may round to zero, where the original stops with an error.
    few = max(1, math.ceil(short / side))
    if many == few == 1:
        return Grid(0, 0, overview=True)
    rows, columns = (few, many) if width >= height else (many, few)
    return Grid(rows, columns, overview=True)


def _short_side(long_side: int, aspect: float) -> int:
    return int(long_side / aspect) if aspect >= 1 else int(long_side * aspect)


def aspect_grids(min_num: int, max_num: int) -> list[tuple[int, int]]:
    """Returns every (columns, rows) of `min_num` to `max_num` tiles, few tiles first."""
    grids = [
        (columns, rows)
        for columns in range(1, max_num + 1)
        for rows in range(1, max_num // columns + 1)
        if columns * rows >= min_num
    ]
    return sorted(grids, key=math.prod)


def internvl_grid(
    width: int, height: int, side: int, grids: list[tuple[int, int]], use_thumbnail: bool
) -> Grid:
    """Plans InternVL's tiles: the grid whose shape is nearest to the image's.

    Of grids that are equally near, a larger one is taken if the image has more than half as many
    pixels as its tiles.

    Args:
        width: of the image in pixels.
        height: of the image in pixels.
        side: of a tile in pixels.
        grids: what `aspect_grids` returns.
        use_thumbnail: whether several tiles are followed by the whole image.
    """
    best, best_distance = grids[0], math.inf
    for columns, rows in grids:
        distance = abs(width / height - columns / rows)
        fills = width * height > 0.5 * side * side * columns * rows
        if distance < best_distance or (distance == best_distance and fills):
            best, best_distance = (columns, rows), distance
    columns, rows = best
    return Grid(rows, columns, overview=use_thumbnail and rows * columns > 1)
