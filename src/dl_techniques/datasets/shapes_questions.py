"""Questions about scenes of shapes, balanced against a blind reader and against each other."""

from typing import NamedTuple

import numpy as np

from dl_techniques.datasets.shapes_scene import COLOURS, SHAPES, CountPlan, SceneObject

KINDS = ("colour", "shape", "count", "existence", "relation", "size")

_COLOUR_NAMES = tuple(COLOURS)
# Half of the "no" questions about existence ask for something that shares one attribute with a
# shape in the picture, so that spotting the colour or the shape alone is not enough.
_HARD_NEGATIVES = 0.5


class Question(NamedTuple):
    """One question with its answer; `kind` is one of `KINDS`."""

    kind: str
    text: str
    answer: str


class QuestionWriter:
    """Asks questions about one scene, none of which the earlier ones answer.

    It keeps what a listener without eyes knows after each turn: which objects were named, which
    colours and shapes have no further members, and which combinations are absent. A candidate
    whose answer follows from that is not asked. (A listener who also knows that a picture never
    holds more than five shapes is not considered.) Yes/no questions are asked only where both
    answers can be given, and a coin decides: a skipped question then favours neither.

    Args:
        scene: the objects.
        plan: the count question for which the scene was drawn.
        rng: all choices come from it.
    """

    def __init__(
        self, scene: tuple[SceneObject, ...], plan: CountPlan, rng: np.random.Generator
    ):
        self._scene = scene
        self._plan = plan
        self._rng = rng
        self._by_colour = _group(scene, lambda item: item.colour)
        self._by_shape = _group(scene, lambda item: item.shape)
        self._by_both = _group(scene, lambda item: (item.colour, item.shape))
        self._named: set[SceneObject] = set()
        self._sized: set[SceneObject] = set()
        self._absent: set[tuple[str, str]] = set()
        # Values whose members are all named, by the presupposition "the star" or by a count.
        self._closed: set[str] = set()
        self._counted = False
        self._axes: set[str] = set()

    def write(self, count: int) -> list[Question]:
        """Returns up to `count` questions, kinds in turn, in random order.

        Small scenes run out of questions that are still open, and give fewer.
        """
        questions: list[Question] = []
        while len(questions) < count:
            before = len(questions)
            for kind in self._rng.permutation(KINDS):
                question = getattr(self, f"_ask_{kind}")()
                if question is not None:
                    questions.append(Question(str(kind), *question))
                if len(questions) == count:
                    break
            if len(questions) == before:
                break
        return questions

    def _choose(self, candidates: list):
        return candidates[self._rng.integers(len(candidates))]

    def _coin(self) -> bool:
        return bool(self._rng.random() < 0.5)

    def _name(self, item: SceneObject):
        """Notes that colour and shape of an object are known, with what follows from that."""
        self._named.add(item)
        if not self._counted:
            return
        plan = self._plan
        if plan.attribute == "object":
            if len(self._named) == len(self._scene):
                self._closed.update(_COLOUR_NAMES)
        elif sum(plan.value in known for known in self._named) == plan.answer:
            self._closed.add(plan.value)

    def _awaits_count(self, value: str) -> bool:
        # "What colour is the star?" would give away that there is one star.
        return not self._counted and value == self._plan.value

    def _ask_colour(self) -> tuple[str, str] | None:
        candidates = [
            group[0]
            for shape, group in self._by_shape.items()
            if len(group) == 1 and group[0] not in self._named and not self._awaits_count(shape)
        ]
        if not candidates:
            return None
        item = self._choose(candidates)
        self._closed.add(item.shape)
        self._name(item)
        return f"What colour is the {item.shape}?", item.colour

    def _ask_shape(self) -> tuple[str, str] | None:
        candidates = [
            group[0]
            for colour, group in self._by_colour.items()
            if len(group) == 1 and group[0] not in self._named and not self._awaits_count(colour)
        ]
        if not candidates:
            return None
        item = self._choose(candidates)
        self._closed.add(item.colour)
        self._name(item)
        return f"What shape is the {item.colour} object?", item.shape

    def _ask_count(self) -> tuple[str, str] | None:
        # Only the planned one: its answers are uniform, those of other counts are mostly 0 and 1.
        if self._counted:
            return None
        self._counted = True
        plan = self._plan
        if plan.attribute != "object" and plan.answer == 0:
            self._closed.add(plan.value)
        for item in tuple(self._named):
            self._name(item)
        things = {"object": "objects", "shape": _plural(plan.value)}.get(
            plan.attribute, f"{plan.value} objects"
        )
        return f"How many {things} are there?", str(plan.answer)

    def _ask_existence(self) -> tuple[str, str] | None:
        present = [
            (colour, shape)
            for (colour, shape), group in self._by_both.items()
            if self._open(colour, shape) and not self._named.intersection(group)
        ]
        absent = [
            (colour, shape)
            for colour in _COLOUR_NAMES
            for shape in SHAPES
            if (colour, shape) not in self._by_both
            and (colour, shape) not in self._absent
            and self._open(colour, shape)
        ]
        if not present or not absent:
            return None
        yes = self._coin()
        colour, shape = self._choose(present)
        if yes:
            for item in self._by_both[colour, shape]:
                if len(self._by_both[colour, shape]) == 1:
                    self._name(item)
            self._present.add((colour, shape))
        else:
            near = [pair for pair in absent if (pair[0] == colour) != (pair[1] == shape)]
            hard = near and self._rng.random() < _HARD_NEGATIVES
            colour, shape = self._choose(near if hard else absent)
            self._absent.add((colour, shape))
        return f"Is there {_article(colour)} {colour} {shape}?", "yes" if yes else "no"
