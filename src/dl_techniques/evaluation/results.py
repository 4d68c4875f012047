"""What comes of answered questions: figures with intervals, by category, and a comparison."""

import json
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from dl_techniques.evaluation.benchmarks import Benchmark
from dl_techniques.evaluation.intervals import bootstrap_interval
from dl_techniques.evaluation.predictions import Record


def summarise(benchmark: Benchmark, records: Sequence[Record]) -> dict[str, Any]:
    """Return a task's results.

    Returns:
        `metric` (the first of `figures`), `questions`, `groups`; `figures`: name -> `value`,
        `low`, `high` (95 % intervals); `categories`: the same figures, without intervals, of each
        category; `totals`, where a benchmark sums up categories; `note`, what makes figures differ
        from those of others, or why some are left out.
    """
    metric = benchmark.metric
    chosen = metric.figures_of(records)
    groups = [record["group"] for record in records]
    table = metric.table(records)
    figures = {
        name: vars(bootstrap_interval(table, figure, groups)) for name, figure in chosen.items()
    }
    results = {
        "metric": next(iter(chosen)),
        "scoring": benchmark.scoring,
        "questions": len(records),
        "groups": len(set(groups)),
        "figures": figures,
        "categories": _categories(chosen, table, records),
    }
    notes = [benchmark.note] if benchmark.note else []
    if left_out := [name for name in metric.figures if name not in chosen]:
        notes.append(
            f"Without {' and '.join(left_out)}: {metric.cut_groups(records):,} of "
            f"{results['groups']:,} groups of questions are not whole."
        )
    if notes:
        results["note"] = " ".join(notes)
    if metric.totals is not None:
        results["totals"] = metric.totals(results["categories"])
    return results


def _categories(figures, table, records) -> dict[str, dict[str, float]]:
    places: dict[str, list[int]] = {}
    for number, record in enumerate(records):
        places.setdefault(record["category"], []).append(number)
    if set(places) == {""}:
        return {}
    found = {}
    for category in sorted(places):
        totals = table[places[category]].sum(axis=0)
        values = {name: float(figure(totals)) for name, figure in figures.items()}
        found[category] = {"questions": len(places[category]), **values}
    return found


def spell_rows(rows: Iterable[int]) -> str:
    """Return ascending row numbers as text: "0-8,12"."""
    spans = groupby(enumerate(rows), lambda pair: pair[1] - pair[0])
    runs = [[row for _, row in span] for _, span in spans]
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)


def parse_rows(text: str) -> set[int]:
    """Return the row numbers that `spell_rows` spelt."""
    ends = [span.split("-") for span in text.split(",")]
    return {row for span in ends for row in range(int(span[0]), int(span[-1]) + 1)}


def read_results(path: str | Path) -> dict[str, Any]:
    """Return the contents of a `results.json` of `dl-techniques evaluate`.

    Raises:
        ValueError: if it is none.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "results.json"
    if not path.is_file():
        raise ValueError(f"{path} does not exist.")
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    if not isinstance(results, dict) or not isinstance(results.get("tasks"), dict):
        raise ValueError(f"{path} has no 'tasks': it is no results.json of `evaluate`.")
    return results
