"""Scenes of coloured shapes: what is in a picture, which split it belongs to, how it is drawn."""

import functools
import hashlib
import math
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

COLOURS = {
    "red": (220, 30, 30),
    "green": (30, 160, 50),
    "blue": (30, 70, 220),
    "yellow": (245, 215, 0),
    "purple": (140, 40, 180),
    "orange": (255, 130, 0),
    "cyan": (0, 200, 220),
    "black": (20, 20, 20),
}
SHAPES = ("circle", "square", "triangle", "star", "cross")
SIZES = ("small", "large")
MAX_OBJECTS = 5
GRID = 3
BACKGROUND = (245, 245, 245)

_COLOUR_NAMES = tuple(COLOURS)
_DIAMETER = {"small": 10 / 64, "large": 18 / 64}  # In picture widths; a grid cell is 21 / 64.
_MAX_JITTER = 2 / 64
_SUPERSAMPLING = 8
_HELD_OUT_SHARE = 0.2


class SceneObject(NamedTuple):
    """One shape: its grid cell (row-major), and its attributes by name."""

    cell: int
    colour: str
    shape: str
    size: str

    @property
    def row(self) -> int:
        """Row of the grid, 0 at the top."""
        return self.cell // GRID

    @property
    def column(self) -> int:
        """Column of the grid, 0 at the left."""
        return self.cell % GRID


class CountPlan(NamedTuple):
    """The question "how many" that a scene is made for, chosen before the scene.

    Attributes:
        attribute: "object" (everything is counted), "shape" or "colour".
        value: the shape or colour that is counted; "" for objects.
        answer: how many there are.
    """

    attribute: str
    value: str
    answer: int


def draw_plan(rng: np.random.Generator) -> CountPlan:
    """Draws a count question whose answers are uniform: 1 to 5 objects, 0 to 4 of one kind."""
    attribute = ("object", "shape", "colour")[rng.integers(3)]
    if attribute == "object":
        return CountPlan("object", "", 1 + int(rng.integers(MAX_OBJECTS)))
    names = SHAPES if attribute == "shape" else _COLOUR_NAMES
    return CountPlan(attribute, names[rng.integers(len(names))], int(rng.integers(MAX_OBJECTS)))


def draw_scene(rng: np.random.Generator, plan: CountPlan) -> tuple[SceneObject, ...]:
    """Draws a scene in which the plan's answer is true; everything else is uniform."""
    if plan.attribute == "object":
        count = plan.answer
    else:
        fewest = max(1, plan.answer)
        count = fewest + int(rng.integers(MAX_OBJECTS - fewest + 1))
    cells = rng.permutation(GRID * GRID)[:count]
    colours = rng.integers(len(_COLOUR_NAMES), size=count)
    shapes = rng.integers(len(SHAPES), size=count)
    sizes = rng.integers(len(SIZES), size=count)
    if plan.attribute == "shape":
        _plant(rng, shapes, SHAPES.index(plan.value), plan.answer, len(SHAPES))
    elif plan.attribute == "colour":
        _plant(rng, colours, _COLOUR_NAMES.index(plan.value), plan.answer, len(_COLOUR_NAMES))
    objects = zip(cells, colours, shapes, sizes, strict=True)
    return tuple(
        SceneObject(int(cell), _COLOUR_NAMES[colour], SHAPES[shape], SIZES[size])
        for cell, colour, shape, size in sorted(objects)
    )


def _plant(rng: np.random.Generator, values: np.ndarray, value: int, count: int, kinds: int):
    # The first `count` objects get the value, the rest any other one; cells are random already.
    values[:count] = value
    others = rng.integers(kinds - 1, size=len(values) - count)
    values[count:] = others + (others >= value)


def split_of(scene: tuple[SceneObject, ...]) -> str:
    """Returns "train" or "heldout": a fixed function of what the scene shows.

    Jitter is left out, so a held-out picture differs from every training picture in an object's
    place, colour, shape or size, whatever the seeds.
    """
    description = ";".join(",".join(map(str, item)) for item in sorted(scene))
    digest = hashlib.blake2b(description.encode(), digest_size=8).digest()
    return "heldout" if int.from_bytes(digest, "big") < _HELD_OUT_SHARE * 2**64 else "train"


def render_scene(
    scene: tuple[SceneObject, ...], image_size: int, rng: np.random.Generator
) -> Image.Image:
    """Draws a scene, each shape near the middle of its cell, on a plain light ground.

    Args:
        scene: the objects; shapes never touch each other or the border.
        image_size: side of the square picture in pixels.
        rng: moves each shape by up to 2/64 of the width.

    Returns:
        An RGB image of [image_size, image_size].
    """
    image = Image.new("RGB", (image_size, image_size), BACKGROUND)
    cell = image_size / GRID
    moves = rng.uniform(-1.0, 1.0, size=(len(scene), 2))
    for item, (move_x, move_y) in zip(scene, moves, strict=True):
        diameter = max(3, round(_DIAMETER[item.size] * image_size))
        room = min((cell - diameter) / 2 - 0.5, _MAX_JITTER * image_size)
        left = round((item.column + 0.5) * cell - diameter / 2 + move_x * room)
        top = round((item.row + 0.5) * cell - diameter / 2 + move_y * room)
        image.paste(COLOURS[item.colour], (left, top), _shape_mask(item.shape, diameter))
    return image


@functools.lru_cache(maxsize=256)
def _shape_mask(shape: str, diameter: int) -> Image.Image:
    """Returns the antialiased coverage of a shape, a grey image of [diameter, diameter]."""
    side = diameter * _SUPERSAMPLING
    mask = Image.new("L", (side, side), 0)
    draw = ImageDraw.Draw(mask)
    last = side - 1
    if shape == "circle":
        draw.ellipse((0, 0, last, last), fill=255)
    elif shape == "square":
        draw.rectangle((0, 0, last, last), fill=255)
    elif shape == "triangle":
        draw.polygon([(last / 2, 0), (last, last), (0, last)], fill=255)
    elif shape == "star":
        draw.polygon(_star_points(side), fill=255)
    elif shape == "cross":
        low, high = side * 0.33, side * 0.67
        draw.rectangle((low, 0, high, last), fill=255)
        draw.rectangle((0, low, last, high), fill=255)
    else:
        raise ValueError(f"Unknown shape {shape!r}; known: {SHAPES}.")
    return mask.reduce(_SUPERSAMPLING)


def _star_points(side: int) -> list[tuple[float, float]]:
    points = []
    for corner in range(10):
        radius = side / 2 * (1.0 if corner % 2 == 0 else 0.42)
        angle = math.pi * corner / 5
        points.append((side / 2 + radius * math.sin(angle), side / 2 - radius * math.cos(angle)))
    return points
