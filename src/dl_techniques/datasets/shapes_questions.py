"""Questions about scenes of shapes, balanced against a blind reader and against each other."""

from typing import NamedTuple

import numpy as np

from dl_techniques.datasets.shapes_scene import COLOURS, SHAPES, CountPlan, SceneObject

KINDS = ("colour", "shape", "count", "existence", "relation", "size")

# Relation and size questions name their objects in full, which answers other questions about
# them: they come after those, and ask about objects that were named already where they can.
_REVEALING = 2
_COLOUR_NAMES = tuple(COLOURS)
# Half of the "no" questions about existence ask for something that shares one attribute with a
# shape in the picture, so that spotting the colour or the shape alone is not enough.
_HARD_NEGATIVES = 0.5
# Per axis of the grid: what an object with the smaller, and with the larger coordinate is called.
_RELATIONS = {"column": ("left of", "right of"), "row": ("above", "below")}


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

    def __init__(self, scene: tuple[SceneObject, ...], plan: CountPlan, rng: np.random.Generator):
        self._scene = scene
        self._plan = plan
        self._rng = rng
        self._by_colour = _group(scene, lambda item: item.colour)
        self._by_shape = _group(scene, lambda item: item.shape)
        self._by_both = _group(scene, lambda item: (item.colour, item.shape))
        self._named: set[SceneObject] = set()
        self._sized: set[SceneObject] = set()
        self._asked_pairs: set[tuple[str, str]] = set()  # By existence questions.
        # Values whose members are all named, by the presupposition "the star" or by a count.
        self._closed: set[str] = set()
        self._counted = False
        self._axes: set[str] = set()

    def write(self, count: int) -> list[Question]:
        """Returns up to `count` questions, the kinds in turn.

        Small scenes run out of questions that are still open, and give fewer.
        """
        questions: list[Question] = []
        while len(questions) < count:
            before = len(questions)
            early = self._rng.permutation(KINDS[:-_REVEALING])
            late = self._rng.permutation(KINDS[-_REVEALING:])
            for kind in (*early, *late):
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
            if self._is_open(colour, shape) and not self._named.intersection(group)
        ]
        absent = [
            (colour, shape)
            for colour in _COLOUR_NAMES
            for shape in SHAPES
            if (colour, shape) not in self._by_both and self._is_open(colour, shape)
        ]
        if not present or not absent:
            return None
        yes = self._coin()
        colour, shape = self._choose(present)
        if yes:
            if len(self._by_both[colour, shape]) == 1:
                self._name(self._by_both[colour, shape][0])
        else:
            near = [pair for pair in absent if (pair[0] == colour) != (pair[1] == shape)]
            hard = near and self._rng.random() < _HARD_NEGATIVES
            colour, shape = self._choose(near if hard else absent)
        self._asked_pairs.add((colour, shape))
        return f"Is there {_article(colour)} {colour} {shape}?", "yes" if yes else "no"

    def _is_open(self, colour: str, shape: str) -> bool:
        return (
            (colour, shape) not in self._asked_pairs
            and colour not in self._closed
            and shape not in self._closed
        )

    def _unique(self) -> list[SceneObject]:
        return [group[0] for group in self._by_both.values() if len(group) == 1]

    def _ask_size(self) -> tuple[str, str] | None:
        candidates = [item for item in self._unique() if item not in self._sized]
        # Objects that were named before: the others stay open for questions about them.
        candidates = [item for item in candidates if item in self._named] or candidates
        if not candidates:
            return None
        item = self._choose(candidates)
        self._sized.add(item)
        self._name(item)
        return f"Is the {item.colour} {item.shape} large or small?", item.size

    def _ask_relation(self) -> tuple[str, str] | None:
        candidates = [
            (first, second, axis)
            for first in self._unique()
            for second in self._unique()
            for axis in _RELATIONS
            if axis not in self._axes and getattr(first, axis) < getattr(second, axis)
        ]
        if not candidates:
            return None
        known = [sum(item in self._named for item in pair[:2]) for pair in candidates]
        most = max(known)
        first, second, axis = self._choose(
            [pair for pair, number in zip(candidates, known, strict=True) if number == most]
        )
        # One question per axis: two could imply a third.
        self._axes.add(axis)
        self._name(first)
        self._name(second)
        before, after = _RELATIONS[axis]
        # Four equally likely spellings of one fact, two of them true.
        forward, true = self._coin(), self._coin()
        if not forward:
            first, second, before, after = second, first, after, before
        relation = before if true else after
        text = f"Is the {first.colour} {first.shape} {relation} the {second.colour} {second.shape}?"
        return text, "yes" if true else "no"


def _group(scene: tuple[SceneObject, ...], key) -> dict:
    groups: dict = {}
    for item in scene:
        groups.setdefault(key(item), []).append(item)
    return groups


def _plural(noun: str) -> str:
    return noun + ("es" if noun.endswith("s") else "s")


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"
