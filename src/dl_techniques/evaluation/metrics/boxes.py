"""Boxes in answers: RefCOCO, RefCOCO+ and RefCOCOg."""

import re
from collections.abc import Sequence

Box = tuple[float, float, float, float]

_NUMBER = r"\s*(-?(?:\d+(?:\.\d*)?|\.\d+))\s*"
_BOX = re.compile(rf"[\[(<]{','.join([_NUMBER] * 4)}[\])>]")


def parse_box(text: str) -> Box | None:
    """Return the first (left, top, right, bottom) in brackets of a text, None if there is none."""
    found = _BOX.search(text)
    return None if found is None else tuple(map(float, found.groups()))


def box_iou(a: Sequence[float], b: Sequence[float]) -> float:
    """Return the intersection over union of two boxes (left, top, right, bottom).

    A box whose right or bottom lies before its left or top is empty.
    """
    both = _area(
        (max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])),
    )
    either = _area(a) + _area(b) - both
    return both / either if either else 0.0


def box_accuracy(
    prediction: str, box: Sequence[float], threshold: float = 0.5, scale: float = 1.0
) -> float:
    """Return 1.0 if the box in an answer overlaps the right one with an IoU of the threshold.

    Source: lmms-eval, tasks/refcoco/utils_rec.py; threshold 0.5 as in RefCOCO's papers.

    Args:
        prediction: The model's answer; without a box it scores 0.
        box: (left, top, right, bottom), as shares of the picture's width and height.
        threshold: The least IoU.
        scale: What the model writes for the whole width or height: 1, or 1000 for some models.

    Raises:
        ValueError: for an empty right box, or one outside of the picture.
    """
    left, top, right, bottom = box
    # Rows of RefCOCO overshoot the picture by rounding.
    if not (-0.01 <= left < right <= 1.01 and -0.01 <= top < bottom <= 1.01):
        raise ValueError(
            f"Expected left < right and top < bottom, as shares of the picture, got {tuple(box)}."
        )
    found = parse_box(prediction)
    return float(found is not None and box_iou([x / scale for x in found], box) >= threshold)


def _area(box):
    left, top, right, bottom = box
    return max(0.0, right - left) * max(0.0, bottom - top)
