"""What `dl-techniques evaluate` does: bars while it asks, then tables and a page."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from dl_techniques.checkpoints.adapter_files import describe_weights
from dl_techniques.checkpoints.key_map import variables_of
from dl_techniques.evaluation.compare import TaskComparison
from dl_techniques.evaluation.data import Questions
from dl_techniques.evaluation.report import evaluation_page
from dl_techniques.evaluation.run import (
    RunSettings,
    answer_task,
    collect,
    merge_results,
    stored_results,
    task_records,
)
from dl_techniques.evaluation.text_guards import run_guards
from dl_techniques.evaluation.text_loss import TEXT_LOSS, text_loss


def run_evaluation(
    model,
    name: str,
    questions: Mapping[str, Questions],
    folder: Path,
    settings: RunSettings,
    commands: Mapping[str, str],
    blind: bool = False,
    report: bool = False,
) -> dict[str, dict[str, Any]]:
    """Ask all questions, write `results.json` and show a table.

    Args:
        model: A `VisionLanguageModel` with its processor.
        name: What the results call it.
        questions: Benchmark -> its questions.
        folder: Gets the predictions, results and the page.
        settings: How to ask.
        commands: Benchmark -> what gives its figures again; it is written down.
        blind: Ask also without pictures.
        report: Write `report.html`.

    Returns:
        Benchmark -> results, of those that all processes have finished.

    Raises:
        ValueError: see `stored_results` and `answer_task`.
    """
    digest = weights_digest(model)
    stored_results(folder, digest)  # Another model's are refused before anything is asked.
    passes = (False, True) if blind else (False,)
    for task, asked in questions.items():
        for blank_images in passes:
            label = f"{task} without pictures" if blank_images else task
            total = len(asked.chosen[settings.shard[0] :: settings.shard[1]])
            with _bar() as bar:
                shown = bar.add_task(label, total=total)
                answer_task(
                    model,
                    task,
                    asked,
                    folder,
                    settings,
                    digest,
                    blank_images,
                    lambda count, bar=bar, shown=shown: bar.update(shown, completed=count),
                )
    origin = {"model": name, "checkpoint": digest}
    results = {
        task: collect(task, asked, folder, settings, origin, commands[task])
        for task, asked in questions.items()
    }
    finished = {task: found for task, found in results.items() if found is not None}
    print_table(results_table(finished))
    for task, found in finished.items():
        if "note" in found:
            Console().print(f"{task}: {found['note']}", highlight=False)
    for task in results.keys() - finished.keys():
        Console().print(f"{task}: other processes have not finished.", highlight=False)
    if report and finished:
        pages = {}
        for task, found in finished.items():
            records = task_records(folder, task, rows=set(questions[task].chosen))
            pages[task] = found, records, questions[task]
        page = evaluation_page(f"Evaluation of {name}", pages)
        (folder / "report.html").write_text(page, encoding="utf-8")
    return finished


def run_text_guards(
    model,
    name: str,
    guards: Sequence[str],
    folder: Path,
    batch_size: int,
    limit: int | None,
    commands: Mapping[str, str],
    texts: Sequence[str] = (),
) -> None:
    """Run text-only guards, add them to `results.json` and show a table.

    Args:
        model: A `VisionLanguageModel` with its processor.
        name: What the results call it.
        guards: Of `text_guards.GUARDS`, and "text_loss".
        folder: Gets the results.
        batch_size: Requests at a time.
        limit: So many questions of each.
        commands: Guard -> what gives its figure again; it is written down.
        texts: What `text_loss` is of.

    Raises:
        ValueError: for an unknown guard, or a model without a processor; see `stored_results`.
        ImportError: if lm-evaluation-harness is not installed.
    """
    digest = weights_digest(model)
    stored_results(folder, digest)  # Another model's are refused before anything is computed.
    found = {}
    if TEXT_LOSS in guards:
        for figure, values in text_loss(model, texts, batch_size).items():
            found[figure] = {**values, "texts": len(texts), "command": commands[TEXT_LOSS]}
    of_harness = [guard for guard in guards if guard != TEXT_LOSS]
    if of_harness:
        for guard, values in run_guards(model, of_harness, batch_size, limit).items():
            found[guard] = {**values, "command": commands[guard]}
    merge_results(folder, {"model": name, "checkpoint": digest}, {"guards": found})
    table = _table("guard", "unit", "score", "95 % interval")
    for guard, figure in found.items():
        unit = figure.get("unit", "%")
        shown = _share if unit == "%" else "{:.4f}".format
        value, low, high = (shown(figure[name]) for name in ("value", "low", "high"))
        table.add_row(guard, unit, value, f"{low} to {high}")
    print_table(table)


def weights_digest(model) -> str:
    """Return a digest of a model's weights, by which its answers are told from others'."""
    return describe_weights(variables_of(model))["digest"]


def results_table(results: Mapping[str, dict[str, Any]]) -> Table:
    """Return a table of benchmarks; figures in per cent."""
    table = _table("benchmark", "figure", "score", "95 % interval", "n", "blind")
    for task, found in results.items():
        for name, figure in found["figures"].items():
            blind = found.get("blind", {}).get(name)
            first = name == found["metric"]
            table.add_row(
                task if first else "",
                name,
                _share(figure["value"]),
                f"{_share(figure['low'])} to {_share(figure['high'])}",
                f"{found['questions']:,}" if first else "",
                "" if blind is None else _share(blind["value"]),
            )
        for name, value in found.get("totals", {}).items():
            table.add_row("", name, _share(value), "", "", "")
    return table


def comparison_table(comparisons: Iterable[TaskComparison]) -> Table:
    """Return a table of differences, in points of per cent."""
    table = _table("benchmark", "figure", "A", "B", "A - B", "95 % interval", "p", "n")
    for each in comparisons:
        difference = each.result.difference
        table.add_row(
            each.task,
            each.metric,
            _share(each.a),
            _share(each.b),
            f"{100 * difference.value:+.1f}",
            f"{100 * difference.low:+.1f} to {100 * difference.high:+.1f}",
            f"{each.result.p_value:.2g}",
            f"{each.questions:,}",
        )
    return table


def print_table(table: Table) -> None:
    """Print a table, as wide as it is where there is no terminal."""
    console = Console()
    if not console.is_terminal:
        console.width = 160
    console.print(table, highlight=False)


def _table(*heads: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    for number, head in enumerate(heads):
        table.add_column(head, justify="left" if number < 2 else "right", no_wrap=True)
    return table


def _share(value: float) -> str:
    return f"{100 * value:.1f}"


def _bar() -> Progress:
    console = Console()
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
