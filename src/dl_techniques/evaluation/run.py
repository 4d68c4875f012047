"""Runs benchmarks: asks a model what it has not answered yet, and sums up what it has."""

import json
from collections import Counter
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras

from dl_techniques.evaluation.asking import (
    generated_answers,
    likeliest_letters,
    prompt_message,
    without_pictures,
)
from dl_techniques.evaluation.data import Questions
from dl_techniques.evaluation.predictions import Predictions, Record, read_predictions
from dl_techniques.evaluation.questions import Question
from dl_techniques.evaluation.results import read_results, spell_rows, summarise
from dl_techniques.utils.versions import versions

RESULTS_FILE = "results.json"


@dataclass(frozen=True)
class RunSettings:
    """How questions are asked.

    Attributes:
        batch_size: Questions at a time.
        suffix: What is added to questions in place of the benchmark's own words.
        max_new_tokens: The longest answer; None: the benchmark's.
        likelihood: Choose the likeliest letter of a multiple choice instead of generating.
        shard: This process' number, and how many there are; each takes every n-th row.
    """

    batch_size: int = 8
    suffix: str | None = None
    max_new_tokens: int | None = None
    likelihood: bool = False
    shard: tuple[int, int] = (0, 1)

    def __post_init__(self):
        index, count = self.shard
        if not 0 <= index < count:
            raise ValueError(f"shard is i of n with 0 <= i < n, got {index} of {count}.")
        if self.batch_size < 1 or (self.max_new_tokens is not None and self.max_new_tokens < 1):
            raise ValueError("batch_size and max_new_tokens must be at least 1.")


def answer_task(
    model,
    task: str,
    questions: Questions,
    folder: Path,
    settings: RunSettings,
    digest: str,
    blank_images: bool = False,
    advance: Callable[[int], None] = lambda count: None,
) -> None:
    """Ask what this process has not asked yet, and append the answers to its file.

    Args:
        model: A `VisionLanguageModel` with its processor.
        task: The benchmark's name.
        questions: See `open_questions`.
        folder: Gets `TASK/predictions.jsonl`, or one file per process.
        settings: How to ask.
        digest: Of the model's weights; see `command.weights_digest`.
        blank_images: Ask without the pictures.
        advance: Is told how many rows are done.

    Raises:
        ValueError: if the file there is of other settings, or a question cannot be asked.
    """
    benchmark = questions.benchmark
    if settings.likelihood and benchmark.scoring == "captions":
        raise ValueError("Captions have no options of which to choose the likeliest.")
    path = prediction_file(folder, task, settings.shard, blank_images)
    file = Predictions(path, _header(task, questions, settings, digest, blank_images))
    done = {(record["row"], record["part"]) for record in file.records}
    complete = _complete_rows(file.records)
    index, count = settings.shard
    batch: list[tuple[int, int, int, Question]] = []
    for finished, row in enumerate(questions.chosen[index::count], start=1):
        asked = [] if row in complete else questions[row]
        batch += [
            (row, part, len(asked), question)
            for part, question in enumerate(asked)
            if (row, part) not in done
        ]
        while len(batch) >= settings.batch_size:
            now, batch = batch[: settings.batch_size], batch[settings.batch_size :]
            file.append(_records(model, benchmark, now, settings, blank_images))
        advance(finished)
    if batch:
        file.append(_records(model, benchmark, batch, settings, blank_images))


def _header(task, questions, settings, digest, blank_images) -> dict[str, Any]:
    return {
        "task": task,
        "data": questions.name,
        "checkpoint": digest,
        "backend": keras.backend.backend(),
        "suffix": settings.suffix,
        "max_new_tokens": settings.max_new_tokens,
        "likelihood": settings.likelihood,
        "blank_images": blank_images,
    }


def _records(model, benchmark, batch, settings, blank_images) -> Iterator[Record]:
    prompts = [benchmark.prompt(question, settings.suffix) for *_, question in batch]
    asked = [question for *_, question in batch]
    try:
        messages = [
            prompt_message(question, prompt)
            for question, prompt in zip(asked, prompts, strict=True)
        ]
        if blank_images:
            messages = [without_pictures(message) for message in messages]
        if settings.likelihood:
            answers = likeliest_letters(model, messages, [question.options for question in asked])
        else:
            longest = settings.max_new_tokens or benchmark.max_new_tokens
            answers = generated_answers(model, messages, longest)
    except ValueError as error:
        names = ", ".join(question.id for question in asked)
        raise ValueError(f"The questions {names} cannot be asked: {error}") from error
    metric = benchmark.metric
    for (row, part, parts, question), prompt, answer in zip(batch, prompts, answers, strict=True):
        yield {
            "row": row,
            "part": part,
            "parts": parts,
            "id": question.id,
            "prompt": prompt,
            "answer": answer,
            "parsed": metric.parse(answer, question),
            "score": metric.score(answer, question),
            "references": list(question.answers),
            "options": len(question.options),
            "category": question.category,
            "group": question.group,
        }


def prediction_file(folder: Path, task: str, shard: tuple[int, int], blank_images: bool) -> Path:
    """Return the file of one process' answers."""
    index, count = shard
    name = "blind" if blank_images else "predictions"
    part = "" if count == 1 else f"-{index}-of-{count}"
    return folder / task / f"{name}{part}.jsonl"


def task_records(
    folder: Path, task: str, blank_images: bool = False, rows: Container[int] | None = None
) -> list[Record]:
    """Return the records of a task, those of all processes, in the order of the data.

    Args:
        folder: Holds the predictions.
        task: The benchmark's name.
        blank_images: Those that were asked without the pictures.
        rows: Only those of these rows: the file keeps what longer runs asked. None: all.

    Raises:
        ValueError: if a file is damaged, or files of other settings or numbers of processes lie
            side by side.
    """
    name = "blind" if blank_images else "predictions"
    records, first = {}, None
    for path in sorted((folder / task).glob(f"{name}*.jsonl")):
        settings, found, _ = read_predictions(path)
        first = first or settings
        if settings != first:
            raise ValueError(f"{path} is of other settings than the files beside it.")
        for record in found:
            key = record["row"], record["part"]
            if key in records:
                raise ValueError(
                    f"Two files in {path.parent} answer the question {record['id']!r}: they are "
                    "of runs with other numbers of processes. Keep those of one run."
                )
            records[key] = record
    return [records[key] for key in sorted(records) if rows is None or key[0] in rows]


def unanswered(questions: Questions, records: list[Record]) -> int:
    """Return how many rows have questions without an answer."""
    return len(set(questions.chosen) - _complete_rows(records))


def _complete_rows(records: list[Record]) -> set[int]:
    counts = Counter(record["row"] for record in records)
    return {record["row"] for record in records if counts[record["row"]] == record["parts"]}


def collect(
    task: str,
    questions: Questions,
    folder: Path,
    settings: RunSettings,
    origin: dict[str, Any],
    command: str,
) -> dict[str, Any] | None:
    """Write a task's results once all processes have answered.

    Args:
        task: The benchmark's name.
        questions: What was asked.
        folder: Holds the predictions; `results.json` in it gets the task.
        settings: How it was asked.
        origin: `model` and `checkpoint` of the results.
        command: What gives the same results again.

    Returns:
        The task's results, None if answers are missing.
    """
    chosen = set(questions.chosen)
    seen, blind = (
        task_records(folder, task, blank_images, chosen) for blank_images in (False, True)
    )
    if unanswered(questions, seen):
        return None
    results = summarise(questions.benchmark, seen)
    if blind and not unanswered(questions, blind):
        results["blind"] = summarise(questions.benchmark, blind)["figures"]
        command += " --blind"
    results["asked"] = {
        "data": questions.name,
        "rows": spell_rows(questions.chosen),
        "suffix": questions.benchmark.suffix if settings.suffix is None else settings.suffix,
        "first_prompt": seen[0]["prompt"],
        "max_new_tokens": settings.max_new_tokens or questions.benchmark.max_new_tokens,
        "likelihood": settings.likelihood,
        "command": command,
    }
    merge_results(folder, origin, {"tasks": {task: results}}, settings.shard[0])
    return results


def stored_results(folder: Path, checkpoint: str) -> dict[str, Any]:
    """Return what `results.json` of a folder holds, {} if there is none yet.

    Args:
        folder: Where it is.
        checkpoint: The digest of the model whose results are to be added to it.

    Raises:
        ValueError: if it is of another model, or not of `evaluate`.
    """
    path = folder / RESULTS_FILE
    if not path.is_file():
        return {}
    whole = read_results(path)
    if whole.get("checkpoint") != checkpoint:
        raise ValueError(
            f"{path} holds results of another model ({whole.get('model')}, checkpoint "
            f"{whole.get('checkpoint')}; this one is {checkpoint}). Choose another folder, or "
            "remove the file."
        )
    return whole


def merge_results(folder: Path, origin: dict[str, Any], parts: dict[str, dict], index: int = 0):
    """Add results to `results.json`; those of other tasks stay.

    Args:
        folder: Where it is.
        origin: `model` and `checkpoint`.
        parts: "tasks" and "guards" -> name -> results.
        index: This process' number: others may write at the same time.

    Raises:
        ValueError: see `stored_results`.
    """
    path = folder / RESULTS_FILE
    whole = stored_results(folder, origin["checkpoint"])
    merged = {key: {**whole.get(key, {}), **parts.get(key, {})} for key in ("tasks", "guards")}
    whole = {**origin, "versions": versions(), **merged}
    folder.mkdir(parents=True, exist_ok=True)
    staged = path.with_suffix(f".{index}.tmp")
    staged.write_text(json.dumps(whole, indent=1, ensure_ascii=False), encoding="utf-8")
    staged.replace(path)
