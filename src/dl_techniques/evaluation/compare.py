"""Compares two evaluations question by question."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dl_techniques.evaluation.benchmarks import get_benchmark
from dl_techniques.evaluation.intervals import Comparison, paired_comparison
from dl_techniques.evaluation.results import parse_rows, read_results
from dl_techniques.evaluation.run import task_records


@dataclass(frozen=True)
class TaskComparison:
    """Two models' figures of one benchmark, and whether they differ.

    Attributes:
        task: The benchmark.
        metric: Which figure is compared.
        questions: How many both answered.
        a: The figure of the first model.
        b: That of the second.
        result: Of a minus b.
    """

    task: str
    metric: str
    questions: int
    a: float
    b: float
    result: Comparison


def compare_results(first: str | Path, second: str | Path) -> list[TaskComparison]:
    """Compare two `results.json` of `dl-techniques evaluate`, with the predictions beside them.

    Each benchmark that both have is tested with `paired_comparison`, on the questions that the
    results are of.

    Raises:
        ValueError: if they have no benchmark in common, answered different questions, or do not
            say which.
    """
    files = [_file(path) for path in (first, second)]
    results = [read_results(path) for path in files]
    tasks = [task for task in results[0]["tasks"] if task in results[1]["tasks"]]
    if not tasks:
        names = [", ".join(each["tasks"]) or "none" for each in results]
        raise ValueError(
            f"The two have no benchmark in common: {files[0]} has {names[0]}, {files[1]} has "
            f"{names[1]}."
        )
    return [_compare_task(task, files, [each["tasks"][task] for each in results]) for task in tasks]


def _file(path) -> Path:
    path = Path(path)
    return path / "results.json" if path.is_dir() else path


def _compare_task(
    task: str, files: Sequence[Path], results: Sequence[dict[str, Any]]
) -> TaskComparison:
    sides = []
    for file, found in zip(files, results, strict=True):
        rows = found.get("asked", {}).get("rows")
        if rows is None:
            raise ValueError(
                f"{file} does not say of which rows its {task} is (an older version wrote it): "
                "run its command of `evaluate` again with the same --output; the answers stay."
            )
        records = task_records(file.parent, task, rows=parse_rows(rows))
        if not records:
            raise ValueError(
                f"{file.parent / task} holds no predictions: they belong beside results.json."
            )
        sides.append({(record["row"], record["part"]): record for record in records})
    a, b = sides
    same = a.keys() == b.keys() and all(
        a[key]["id"] == b[key]["id"] and a[key]["references"] == b[key]["references"] for key in a
    )
    if not same:
        raise ValueError(
            f"{task}: the models answered different questions ({len(a)} and {len(b)}). Evaluate "
            "both with the same data, split and limit."
        )
    metric = get_benchmark(task).metric
    tables = [metric.table(list(side.values())) for side in sides]
    name, figure = next(iter(metric.figures_of(list(a.values())).items()))
    values = [float(figure(table.sum(axis=0))) for table in tables]
    groups = [record["group"] for record in a.values()]
    result = paired_comparison(*tables, figure, groups)
    return TaskComparison(task, name, len(a), *values, result)
