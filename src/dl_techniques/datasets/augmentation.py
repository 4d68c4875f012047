"""Augmentations: functions of (uint8[H, W, 3], Generator) that return uint8[H, W, 3].

Those of this module can be pickled, as worker processes need them.
Nothing is augmented unless a data set is told to. Questions about places ("left of") and about
writing do not survive a flip: a data set flips only samples that `may_flip`, and uses
`without_flip(augment)` for the others. Questions about colours do not survive a strong colour
jitter: choose per data set.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from dl_techniques.preprocessing.messages import message_parts

Augmentation = Callable[[np.ndarray, np.random.Generator], np.ndarray]

_SIDES = (
    r"(?:left|right)(?:s|most|wards?|hand|handed)?|(?:anti|counter)?clockwise"
    r"|(?:north|south)?(?:east|west)(?:ern)?"
)
# Not: "in a single word", "the option's letter", "the number of people".
_WRITING = (
    r"(?<!single )(?<!one )(?<!few )(?<!own )words?|(?<!option's )letters?|digits?"
    r"|numbers?(?! of\b)|numerals?|numbered|reads?|reading|readable|text|writ(?:es?|ten|ing)"
    r"|says?|saying|spell(?:s|ed|ing)?|print(?:s|ed)?|titles?|titled|captions?|label(?:s|ed|led)?"
    r"|logos?|brands?|signs?|posters?|banners?|headlines?|screenshots?|web ?(?:site|page)s?"
    r"|documents?|receipts?|invoices?|charts?|graphs?|diagrams?|maps?|menus?|pages?|calendars?"
    r"|clocks?|what time|dates?|what year|which year|how much|percent(?:age)?"
)
# Numbers that were read off, or coordinates; small whole numbers are mostly counts.
_FIGURES = r"\d{3,}|\d[.,:/-]\d|\d ?%|[$\u00a3\u20ac] ?\d"
_UNFLIPPABLE = re.compile(rf"\b(?:{_SIDES}|{_WRITING})\b|{_FIGURES}", re.IGNORECASE)


def may_flip(messages: Sequence[Mapping[str, Any]]) -> bool:
    """Returns whether a conversation stays true when its images are mirrored.

    It looks for English words about left and right, about reading and about what carries writing,
    and for figures longer than a count, in questions and answers. In doubt it says no. That is a
    net, not a proof: do not flip sources of documents, charts and maps, or in other languages.

    Args:
        messages: the whole conversation, in any form that samples have.

    Raises:
        ValueError: a malformed message.
    """
    return not any(
        kind == "text" and _UNFLIPPABLE.search(value)
        for number, message in enumerate(messages)
        for kind, value in message_parts(message, f"message {number}")
    )


@dataclass(frozen=True)
class _Steps:
    steps: tuple[Augmentation, ...]

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        for step in self.steps:
            image = step(image, rng)
        return image


@dataclass(frozen=True)
class _Flip:
    probability: float

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        flipped = rng.random() < self.probability
        return np.ascontiguousarray(image[:, ::-1]) if flipped else image


def compose(*steps: Augmentation) -> Augmentation:
    """Returns the augmentation that does all steps in order."""
    return _Steps(steps)


def random_flip(probability: float = 0.5) -> Augmentation:
    """Mirrors left and right with the given probability; see `may_flip`."""
    _check_range("probability", probability, 0.0, 1.0)
    return _Flip(probability)


def without_flip(augment: Augmentation) -> Augmentation:
    """Returns the same augmentation with its `random_flip` steps doing nothing.

    They still take their random numbers, so the other steps do to a picture what they would have
    done with the flip. Functions that this module did not make are left as they are.
    """
    if isinstance(augment, _Flip):
        return _Flip(0.0)
    if isinstance(augment, _Steps):
        return _Steps(tuple(map(without_flip, augment.steps)))
    return augment


@dataclass(frozen=True)
class _Crop:
    padding: int

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        padding, (height, width) = self.padding, image.shape[:2]
        top, left = rng.integers(2 * padding + 1, size=2)
        padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)), mode="edge")
        return np.ascontiguousarray(padded[top : top + height, left : left + width])


def random_crop(padding: int) -> Augmentation:
    """Shifts the picture by up to `padding` pixels in each direction, repeating the edge."""
    _check_range("padding", padding, 0, float("inf"))
    return _Crop(padding)


@dataclass(frozen=True)
class _ResizedCrop:
    scale: tuple[float, float]
    ratio: tuple[float, float]

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        height, width = image.shape[:2]
        area, aspect = rng.uniform(*self.scale), rng.uniform(*self.ratio)
        # Neither side may be longer than the picture's; the area stays as it was drawn.
        aspect = min(max(aspect, area), 1.0 / area)
        crop_width = min(1.0, (area * aspect) ** 0.5) * width
        crop_height = min(1.0, (area / aspect) ** 0.5) * height
        left = rng.uniform(0.0, width - crop_width)
        top = rng.uniform(0.0, height - crop_height)
        box = (left, top, left + crop_width, top + crop_height)
        resized = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC, box)
        return np.array(resized)


def random_resized_crop(
    scale: tuple[float, float] = (0.8, 1.0), ratio: tuple[float, float] = (0.9, 1.1)
) -> Augmentation:
    """Cuts out a part of the picture and stretches it to the full size.

    Args:
        scale: smallest and largest share of the area that is kept.
        ratio: smallest and largest width / height of the part, relative to the picture's; a part
            that would not fit into the picture is drawn nearer to 1.
    """
    _check_range("scale", scale[0], 1e-3, scale[1])
    _check_range("scale", scale[1], scale[0], 1.0)
    _check_range("ratio", ratio[0], 1e-3, ratio[1])
    return _ResizedCrop(tuple(scale), tuple(ratio))


@dataclass(frozen=True)
class _ColourJitter:
    brightness: float
    contrast: float
    saturation: float

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        amounts = (self.brightness, self.contrast, self.saturation)
        light, spread, colour = (rng.uniform(1.0 - a, 1.0 + a) for a in amounts)
        pixels = image.astype(np.float32) * light
        weights = np.array([0.299, 0.587, 0.114], np.float32)
        grey = pixels @ weights
        pixels = grey[..., None] + (pixels - grey[..., None]) * colour
        mean = grey.mean()
        pixels = mean + (pixels - mean) * spread
        return np.clip(np.round(pixels), 0, 255).astype(np.uint8)


def colour_jitter(
    brightness: float = 0.1, contrast: float = 0.1, saturation: float = 0.1
) -> Augmentation:
    """Changes brightness, contrast and saturation.

    Args:
        brightness: each factor is drawn from [1 - amount, 1 + amount].
        contrast: see `brightness`; around the mean grey of the picture.
        saturation: see `brightness`; around the grey of each pixel.
    """
    amounts = {"brightness": brightness, "contrast": contrast, "saturation": saturation}
    for name, amount in amounts.items():
        _check_range(name, amount, 0.0, 1.0)
    return _ColourJitter(**amounts)


def _check_range(name: str, value: Any, low: float, high: float):
    if not low <= value <= high:
        raise ValueError(f"{name} must lie in [{low:g}, {high:g}], got {value!r}.")
