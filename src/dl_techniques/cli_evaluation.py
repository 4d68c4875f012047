"""The commands `dl-techniques evaluate` and `dl-techniques compare`."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer


def evaluate(
    model: Annotated[str, typer.Option(help="Training run, preset folder, or hf://owner/name.")],
    tasks: Annotated[
        str, typer.Option(help="Benchmarks and guards, as pope,mmstar,mmlu,text_loss.")
    ],
    data: Annotated[
        str | None,
        typer.Option(help="Folder or file, or hf://owner/name; none: the benchmarks' own places."),
    ] = None,
    split: Annotated[str | None, typer.Option(help="None: the benchmark's.")] = None,
    images: Annotated[
        str | None, typer.Option(help="Folder or zip of the pictures that rows name.")
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder of predictions and results.json.")] = Path(
        "evaluation"
    ),
    batch_size: Annotated[int, typer.Option(min=1)] = 8,
    limit: Annotated[int | None, typer.Option(min=1, help="So many rows, from the first.")] = None,
    held_out: Annotated[
        float | None, typer.Option(help="Only the share of the pictures that training held out.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="With which it was held out.")] = 0,
    suffix: Annotated[
        str | None, typer.Option(help="Added to questions in place of the benchmark's words.")
    ] = None,
    max_new_tokens: Annotated[int | None, typer.Option(min=1)] = None,
    likelihood: Annotated[
        bool, typer.Option(help="Choose the likeliest letter instead of generating.")
    ] = False,
    blind: Annotated[bool, typer.Option(help="Ask also without pictures.")] = False,
    shard: Annotated[
        str, typer.Option(help="i/n: this is process i of n, from 0, each with a part.")
    ] = "0/1",
    report: Annotated[bool, typer.Option(help="Write report.html.")] = False,
    tokenizer: Annotated[
        str | None, typer.Option(help="Folder or hf://owner/name, if the model has none.")
    ] = None,
):
    """Score a model on benchmarks; a run that was stopped goes on where it was."""
    from dl_techniques.cli_loading import load_answering
    from dl_techniques.evaluation.command import run_evaluation, run_text_guards
    from dl_techniques.evaluation.data import open_questions
    from dl_techniques.evaluation.run import RunSettings
    from dl_techniques.evaluation.text_guards import GUARDS
    from dl_techniques.evaluation.text_loss import TEXT_LOSS, read_texts

    names = [name.strip() for name in tasks.split(",") if name.strip()]
    if not names:
        raise ValueError("--tasks names no benchmark.")
    if held_out is not None and limit is not None:
        raise ValueError("--held-out and --limit exclude each other.")
    guards = [name for name in names if name in (TEXT_LOSS, *GUARDS)]
    if guards and shard != "0/1":
        raise ValueError(f"{', '.join(guards)} cannot be shared: leave out --shard.")
    settings = RunSettings(batch_size, suffix, max_new_tokens, likelihood, parse_shard(shard))
    questions = {}
    for name in (name for name in names if name not in guards):
        opened = open_questions(name, data, split, images).limited(limit)
        questions[name] = opened if held_out is None else opened.held_out(held_out, seed)
    texts = []
    if TEXT_LOSS in guards:
        if data is None:
            raise ValueError(f"{TEXT_LOSS} is of your own texts: give their folder with --data.")
        texts = read_texts(data, split or "train")[:limit]
    loaded = load_answering(model, tokenizer)
    common = {"batch-size": batch_size, "limit": limit, "tokenizer": tokenizer}
    common["output"] = f"{output}-again"
    place = {"data": data, "split": split}
    asked = {
        **place,
        "images": images,
        "held-out": held_out,
        "seed": None if held_out is None else seed,
        "suffix": suffix,
        "max-new-tokens": max_new_tokens,
        "likelihood": likelihood,
    }
    own = {**dict.fromkeys(GUARDS, {}), TEXT_LOSS: place}
    commands = {name: command_line(model, name, own.get(name, asked) | common) for name in names}
    if questions:
        run_evaluation(loaded, model, questions, output, settings, commands, blind, report)
    if guards:
        run_text_guards(loaded, model, guards, output, batch_size, limit, commands, texts)


def compare(
    first: Annotated[Path, typer.Argument(help="results.json, or its folder.")],
    second: Annotated[Path, typer.Argument(help="Another one.")],
):
    """Test whether two models differ on the benchmarks that both answered."""
    from dl_techniques.evaluation.command import comparison_table, print_table
    from dl_techniques.evaluation.compare import compare_results

    print_table(comparison_table(compare_results(first, second)))


def command_line(model: str, task: str, options: Mapping[str, Any]) -> str:
    """Return the command that gives a task's figures again, in one process.

    Args:
        model: As the command was told.
        task: A benchmark or a guard.
        options: Flag -> value; None and False are left out.
    """
    import keras

    parts = ["dl-techniques", "evaluate", "--model", model, "--tasks", task]
    for name, value in options.items():
        if value is True:
            parts.append(f"--{name}")
        elif value is not None and value is not False:
            parts += [f"--{name}", str(value)]
    return f"KERAS_BACKEND={keras.backend.backend()} {shlex.join(parts)}"


def parse_shard(text: str) -> tuple[int, int]:
    """Return (index, count) of "index/count".

    Raises:
        ValueError: if it is not of this form.
    """
    index, _, count = text.partition("/")
    if not (index.isdigit() and count.isdigit()):
        raise ValueError(f"--shard is i/n, as 0/4, got {text!r}.")
    return int(index), int(count)
