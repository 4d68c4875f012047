"""Questions of benchmarks, read from public rows one at a time."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from dl_techniques.datasets.row_fields import Row, letter, needed_image, row_images

Find = Callable[[Any], Any]  # An image that a row names -> its source; see `ImagePlace.find`.


@dataclass(frozen=True)
class Question:
    """One question of a benchmark.

    Attributes:
        id: What tells it apart from the others.
        images: Their sources, in order.
        text: What is asked, with its options, without what the benchmark adds.
        answers: Every accepted answer; of a multiple choice the letter.
        options: The texts of A, B, ...
        category: By which results are told apart.
        group: Questions of one group are about the same picture, and not independent.
        details: What else the benchmark's metric takes.
    """

    id: str
    images: Sequence[Any]
    text: str
    answers: Sequence[str]
    options: Sequence[str] = ()
    category: str = ""
    group: str = ""
    details: dict[str, Any] = field(default_factory=dict)


def pictures(row: Row, name: str, find: Find, *fields: str) -> list[Any]:
    """Return the sources of the images in the first of these fields that is not null.

    Raises:
        ValueError: if there are none; `name` names the row.
    """
    return [find(image) for image in needed_image(row, name, *fields)]


def optional_pictures(row: Row, name: str, find: Find, *fields: str) -> list[Any]:
    """Return `pictures`, or an empty list."""
    return [find(image) for image in row_images(row, name, *fields)]


def picture_group(row: Row, *fields: str) -> str:
    """Return what a row calls its picture, "" if it has no name."""
    # The path beside encoded bytes does not count: whole data sets have the same one.
    values = [row.get(field) for field in fields]
    return next((str(x) for x in values if isinstance(x, (str, int)) and x != ""), "")


def with_options(question: str, options: Sequence[str]) -> str:
    """Return a question with its lettered options below, as lmms-eval spells them."""
    lines = [f"{letter(k)}. {option}" for k, option in enumerate(options)]
    return "\n".join([question, *lines])
