"""Where a benchmark's questions are: on the hub, in a local folder, or generated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dl_techniques.datasets.hub_rows import PREFIX
from dl_techniques.datasets.image_place import ImagePlace
from dl_techniques.datasets.recipe_sources import SUFFIXES
from dl_techniques.datasets.samples import make_sample, split_by_image
from dl_techniques.datasets.shapes import generate_shapes
from dl_techniques.datasets.sources import open_rows
from dl_techniques.evaluation.benchmarks import Benchmark, get_benchmark
from dl_techniques.evaluation.questions import Find, Question

SHAPES = 500  # Pictures, where no limit is given.


class Questions:
    """The questions of a benchmark by the number of their row.

    Args:
        benchmark: A row of the table.
        rows: What holds the rows; see `row_files`.
        name: Where they are from; answers to others are not mixed with theirs.
        find: Image that a row names -> its source. Default: the rows know.
        chosen: The numbers of the rows that are asked. Default: all.
    """

    def __init__(
        self,
        benchmark: Benchmark,
        rows: Any,
        name: str,
        find: Find | None = None,
        chosen: Sequence[int] | None = None,
    ):
        self.benchmark, self.name = benchmark, name
        self.chosen = range(len(rows)) if chosen is None else chosen
        self._rows, self._find = rows, find

    def __getitem__(self, row: int) -> list[Question]:
        """Return the questions of a row.

        Raises:
            ValueError: if the row is malformed; it is named.
        """
        find = self._find or self._rows.images(row).find
        try:
            questions = self.benchmark.read(self._rows[row], find)
        except ValueError as error:
            raise ValueError(f"{self._rows.where(row)}: {error}") from error
        return [self._named(question, row) for question in questions]

    def _named(self, question: Question, row: int) -> Question:
        # Without a name a reader leaves nothing, or the "-0" by which it tells several apart.
        name = question.id
        if not name or name.startswith("-"):
            name = f"{self._rows.default_id(row)}{name}"
        group = question.group
        if not group or group.startswith("-"):
            group = f"{self._rows.default_id(row)}"
        return replace(question, id=name, group=group)

    def limited(self, limit: int | None) -> Questions:
        """Return the same with the first rows only."""
        chosen = self.chosen[:limit]
        return Questions(self.benchmark, self._rows, self.name, self._find, chosen)

    def held_out(self, share: float, seed: int) -> Questions:
        """Return the same with the rows that training did not see.

        They are those whose pictures `split_by_image` holds out, as the runs of this package do.

        Raises:
            ValueError: if that is none, or the share is not in [0, 1).
        """
        samples = [
            make_sample(str(row), "", q.images, [(q.text, "")])
            for row in self.chosen
            for q in self[row]
        ]
        kept = {int(sample["id"]) for sample in split_by_image(samples, share, seed)[1]}
        if not kept:
            raise ValueError(f"A share of {share} of {self.name} holds out no picture.")
        chosen = [row for row in self.chosen if row in kept]
        return Questions(self.benchmark, self._rows, self.name, self._find, chosen)


def open_questions(
    task: str,
    data: str | Path | None = None,
    split: str | None = None,
    images: str | Path | None = None,
) -> Questions:
    """Open the questions of a benchmark.

    Args:
        task: A name in `BENCHMARKS`.
        data: "hf://owner/name"; a file or folder that `open_rows` takes; or a folder that holds
            one of the benchmark's name. Default: the benchmark's place on the hub.
        split: Default: the benchmark's.
        images: Folder or zip archive of the pictures that rows name.

    Raises:
        ValueError: if nothing is found there, or it has no place of its own.
        ImportError: if a package is missing for this kind of data.
        ConnectionError: if the hub cannot be reached.
    """
    benchmark = get_benchmark(task)
    split = split or benchmark.split
    if task == "shapes":
        if data is not None or images is not None:
            raise ValueError("The questions about shapes are generated: give no data.")
        return Questions(benchmark, _Shapes(split), f"generated, {split}")
    if data is None and benchmark.place is None:
        raise ValueError(f"{task} is no data set of the hub: give its folder with --data.")
    place = benchmark.place if data is None else _local(str(data), task)
    on_hub = place.startswith(PREFIX)
    rows, _ = open_rows(place, split, config=benchmark.config if on_hub else None)
    find = None if images is None else ImagePlace.at(images).find
    if on_hub and images is None and benchmark.images_config is not None:
        find = _HubPictures(place, benchmark.images_config, split).find
    return Questions(benchmark, rows, f"{place}, {split}", find)


def _local(data: str, task: str) -> str:
    """Return what a folder holds for a task, or the folder itself."""
    if data.startswith(PREFIX):
        return data
    inside = [Path(data) / f"{task}{suffix}" for suffix in ("", *SUFFIXES)]
    return str(next((path for path in inside if path.exists()), data))


class _HubPictures:
    """Pictures of a configuration of their own, by their `id`."""

    def __init__(self, name: str, config: str, split: str):
        self._rows, _ = open_rows(name, split, config=config)
        self._places = {str(key): k for k, key in enumerate(self._rows.column("id"))}

    def find(self, image: Any) -> Any:
        """Return the encoded picture that a row names."""
        if not isinstance(image, str):
            return image
        key = Path(image).stem
        if key not in self._places:
            raise ValueError(f"there is no picture of the id {key!r}.")
        stored = self._rows[self._places[key]]["image"]
        return stored["bytes"] if stored.get("bytes") is not None else stored["path"]


class _Shapes:
    """Generated pictures as rows."""

    def __init__(self, split: str):
        self._pictures = generate_shapes(split, SHAPES)

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._pictures[index]

    def where(self, index: int) -> str:
        return f"shapes, picture {index}"

    def default_id(self, index: int) -> str:
        return self._pictures[index]["id"]

    def images(self, index: int) -> ImagePlace:
        return ImagePlace("")
