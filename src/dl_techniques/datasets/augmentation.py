"""Augmentations: functions of (uint8[H, W, 3], Generator) that return uint8[H, W, 3].

Questions about places ("left of") do not survive a flip, nor questions about colours a strong
colour jitter: choose per data set.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

Augmentation = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def compose(*steps: Augmentation) -> Augmentation:
    """Returns the augmentation that does all steps in order."""

    def apply(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        for step in steps:
            image = step(image, rng)
        return image

    return apply


def random_flip(probability: float = 0.5) -> Augmentation:
    """Mirrors left and right with the given probability."""
    _check_range("probability", probability, 0.0, 1.0)

    def apply(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return np.ascontiguousarray(image[:, ::-1]) if rng.random() < probability else image

    return apply


def random_crop(padding: int) -> Augmentation:
    """Shifts the picture by up to `padding` pixels in each direction, repeating the edge."""
    _check_range("padding", padding, 0, float("inf"))

    def apply(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        height, width = image.shape[:2]
        top, left = rng.integers(2 * padding + 1, size=2)
        padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)), mode="edge")
        return np.ascontiguousarray(padded[top : top + height, left : left + width])

    return apply


def random_resized_crop(
    scale: tuple[float, float] = (0.8, 1.0), ratio: tuple[float, float] = (0.9, 1.1)
) -> Augmentation:
    """Cuts out a part of the picture and stretches it to the full size.

    Args:
        scale: smallest and largest share of the area that is kept.
        ratio: smallest and largest width / height of the part, relative to the picture's.
    """
    _check_range("scale", scale[0], 1e-3, scale[1])
    _check_range("scale", scale[1], scale[0], 1.0)
    _check_range("ratio", ratio[0], 1e-3, ratio[1])

    def apply(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        height, width = image.shape[:2]
        area, aspect = rng.uniform(*scale), rng.uniform(*ratio)
        crop_width = min(1.0, (area * aspect) ** 0.5) * width
        crop_height = min(1.0, (area / aspect) ** 0.5) * height
        left = rng.uniform(0.0, width - crop_width)
        top = rng.uniform(0.0, height - crop_height)
        box = (left, top, left + crop_width, top + crop_height)
        resized = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC, box)
        return np.array(resized)

    return apply


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

    def apply(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        light, spread, colour = (rng.uniform(1.0 - a, 1.0 + a) for a in amounts.values())
        pixels = image.astype(np.float32) * light
        weights = np.array([0.299, 0.587, 0.114], np.float32)
        grey = pixels @ weights
        pixels = grey[..., None] + (pixels - grey[..., None]) * colour
        mean = grey.mean()
        pixels = mean + (pixels - mean) * spread
        return np.clip(np.round(pixels), 0, 255).astype(np.uint8)

    return apply


def _check_range(name: str, value: Any, low: float, high: float):
    if not low <= value <= high:
        raise ValueError(f"{name} must lie in [{low:g}, {high:g}], got {value!r}.")
