"""Generated pictures of coloured shapes with questions: learning to see without any download."""

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from dl_techniques.datasets.samples import make_sample
from dl_techniques.datasets.shapes_questions import QuestionWriter
from dl_techniques.datasets.shapes_scene import draw_plan, draw_scene, render_scene, split_of

SPLITS = ("train", "heldout")
_ROWS, _COLUMNS = ("top", "middle", "bottom"), ("left", "centre", "right")


class ShapesDataset(Sequence):
    """A sequence of samples, each made anew from (seed, split, index) when it is asked for.

    Item i is `{"id", "source": "shapes", "images": [PIL image], "messages": [user, assistant,
    ...], "kinds": [one per question]}`. No question's answer follows from the earlier turns of its
    conversation, so pictures with few shapes may have fewer questions. No held-out picture ever
    occurs in training, whatever the seeds: what a picture shows decides its split.

    Args:
        split: "train" or "heldout".
        count: number of pictures.
        seed: another seed gives other pictures.
        image_size: side of the square pictures in pixels, at least 32.
        questions_per_image: the most questions about one picture.

    Raises:
        ValueError: an unknown split, or a number out of range.
    """

    source = "shapes"

    def __init__(
        self,
        split: str,
        count: int,
        seed: int = 0,
        image_size: int = 64,
        questions_per_image: int = 6,
    ):
        if split not in SPLITS:
            raise ValueError(f"split must be one of {SPLITS}, got {split!r}.")
        if count < 0 or seed < 0 or image_size < 32 or questions_per_image < 1:
            raise ValueError(
                "Expected count >= 0, seed >= 0, image_size >= 32 and questions_per_image >= 1, "
                f"got {count}, {seed}, {image_size} and {questions_per_image}."
            )
        self.split = split
        self.count = count
        self.seed = seed
        self.image_size = image_size
        self.questions_per_image = questions_per_image

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self.count))]
        index = operator.index(index)
        if index < 0:
            index += self.count
        if not 0 <= index < self.count:
            raise IndexError(f"Picture {index} of {self.count}.")
        rng = np.random.default_rng([self.seed, SPLITS.index(self.split), index])
        while True:
            plan = draw_plan(rng)
            scene = draw_scene(rng, plan)
            if split_of(scene) == self.split:
                break
        turns, kinds = self._turns(scene, plan, rng)
        picture = render_scene(scene, self.image_size, rng)
        name = f"{self.source}-{self.split}-{self.seed}-{index}"
        return {**make_sample(name, self.source, [picture], turns), "kinds": kinds}

    def _turns(self, scene, plan, rng):
        questions = QuestionWriter(scene, plan, rng).write(self.questions_per_image)
        return [(q.text, q.answer) for q in questions], [q.kind for q in questions]


class ShapesCaptions(ShapesDataset):
    """The same pictures, each with one request and a caption that says all that is in it.

    Such as "a large red star at the top left, a small blue circle at the bottom centre".
    """

    source = "shapes_captions"

    def _turns(self, scene, plan, rng):
        return [("Describe this image.", caption_of(scene))], ["caption"]


def caption_of(scene) -> str:
    """Return what stands where in a scene, row by row."""
    return ", ".join(
        f"a {item.size} {item.colour} {item.shape} at the {_ROWS[item.row]} {_COLUMNS[item.column]}"
        for item in sorted(scene)
    )


def generate_shapes(
    split: str,
    count: int,
    seed: int = 0,
    image_size: int = 64,
    questions_per_image: int = 6,
) -> ShapesDataset:
    """Returns a random-access sequence of generated samples; see `ShapesDataset`."""
    return ShapesDataset(split, count, seed, image_size, questions_per_image)
