"""The command line: `dl-techniques train | generate | chat | serve | evaluate | convert | ...`."""

import logging
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from dl_techniques.cli_evaluation import compare, evaluate
from dl_techniques.cli_loading import load_answering, load_source
from dl_techniques.cli_planning import bench, plan
from dl_techniques.cli_serving import chat, serve
from dl_techniques.utils.compilation_cache import keep_compiled_programs
from dl_techniques.utils.logger import logger
from dl_techniques.utils.memory import keep_freed_memory

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Train and ask vision-language models (the backend is chosen by KERAS_BACKEND).",
)

Checkpoint = Annotated[str, typer.Argument(help="Training run, preset folder, or hf://owner/name.")]
Picture = Annotated[Path, typer.Argument(help="Picture file.")]
TokenizerSource = Annotated[
    str | None, typer.Option(help="Folder or hf://owner/name, if the checkpoint has none.")
]


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    add_help_option=False,
    help="Train a recipe. Every setting of it is a flag: --data FOLDER --epochs 3 ...",
)
def train(context: typer.Context):
    """Train a model; see `train_command`."""
    from dl_techniques.cli_training import train_command
    from dl_techniques.training.recipes import get_recipe

    # Within typer, which would end a ctrl-C without its message.
    run_command(lambda: train_command(context.args, get_recipe))


@app.command()
def generate(
    checkpoint: Checkpoint,
    image: Picture,
    question: Annotated[str, typer.Argument(help="What to ask about it.")],
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 32,
    temperature: Annotated[float, typer.Option(help="0: the likeliest answer.")] = 0.0,
    top_k: Annotated[int, typer.Option(help="0: all ids.")] = 50,
    top_p: Annotated[float, typer.Option()] = 1.0,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    tokenizer: TokenizerSource = None,
):
    """Answer a question about a picture with a trained checkpoint."""
    from dl_techniques.generation import Sampler

    sampler = Sampler(temperature=temperature, top_k=top_k, top_p=top_p)
    model = load_source(checkpoint, tokenizer=tokenizer)
    messages = [{"role": "user", "content": question, "image": image}]
    answer = model.generate(messages, max_new_tokens, sampler, seed=seed, stream=True)
    for piece in answer:
        typer.echo(piece, nl=False)
    typer.echo()


@app.command()
def look(
    checkpoint: Checkpoint,
    image: Picture,
    prompt: Annotated[str, typer.Option(help="What to ask about it.")],
    output: Annotated[Path, typer.Option(help="Folder for the PNGs.")] = Path("look"),
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 32,
    tokenizer: TokenizerSource = None,
):
    """Draw where an answer looks, the tiles, the image tokens' words, and resampler queries."""
    from dl_techniques.visualization.look import look

    answer, paths = look(
        load_answering(checkpoint, tokenizer), image, prompt, output, max_new_tokens
    )
    typer.echo(answer)
    for path in paths:
        typer.echo(f"{path} written.")


@app.command()
def convert(
    source: Annotated[
        str, typer.Argument(help="Training run, .keras file, folder, or hf://owner/name.")
    ],
    target: Annotated[Path, typer.Argument(help="Folder; with --to keras also a .keras file.")],
    to: Annotated[
        str,
        typer.Option(help="keras, nanovlm, smolvlm, llava, internvl, nvlm_d, llama or siglip."),
    ],
    dtype: Annotated[
        str | None, typer.Option(help="float32, float16 or bfloat16; none: as it is.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit.")] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="Folder or hf://owner/name, if the source has none.")
    ] = None,
    weights_only: Annotated[
        bool, typer.Option(help="Neither tokenizer nor image settings.")
    ] = False,
):
    """Convert a checkpoint into another format."""
    from dl_techniques.checkpoints.converting import KERAS_SUFFIX, convert

    model = load_source(source, tokenizer=tokenizer, weights_only=weights_only, revision=revision)
    convert(model, target, to, dtype)
    typer.echo(f"{target} written.")
    if target.suffix == KERAS_SUFFIX and getattr(model, "processor", None) is not None:
        typer.echo("It holds no tokenizer, image settings and stop ids: a folder would.")


@app.command()
def info(
    target: Annotated[
        str | None,
        typer.Argument(help="Folder, weights file, training run or model name; none: all models."),
    ] = None,
):
    """Show versions, or the format, parts and parameters of a model."""
    import keras

    from dl_techniques import __version__
    from dl_techniques.checkpoints.inspection import describe
    from dl_techniques.models.families import MODEL_NAMES
    from dl_techniques.models.nano_vlm import NanoVLM, analyze_model_size
    from dl_techniques.training.run_folder import is_run

    if target is None:
        from dl_techniques.training.model_table import model_rows, table_header

        typer.echo(f"dl_techniques {__version__}, keras {keras.__version__}")
        typer.echo(f"backend {keras.backend.backend()}")
        typer.echo(table_header())
        for row in model_rows():
            typer.echo(str(row))
    elif target in MODEL_NAMES:
        typer.echo(str(analyze_model_size(target)))
    elif is_run(target):
        typer.echo(str(analyze_model_size(load_source(target))))
    else:
        typer.echo(describe(target, NanoVLM))


app.command()(chat)
app.command()(serve)
app.command()(plan)
app.command()(evaluate)
app.command()(compare)
app.add_typer(bench, name="bench")

data = typer.Typer(no_args_is_help=True, help="Look at data sets.")
app.add_typer(data, name="data")


@data.callback()
def _data():
    """Look at data sets."""


@data.command()
def inspect(
    source: Annotated[
        str, typer.Argument(help="File, folder, hf://owner/name, or a mixture's name.")
    ],
    schema: Annotated[str | None, typer.Option(help="Layout of the rows; none: told.")] = None,
    split: Annotated[str, typer.Option()] = "train",
    images: Annotated[str | None, typer.Option(help="Folder or zip of the images.")] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="Folder or hf://owner/name; none: one token a character.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="How many rows to look at; none: 1000.")
    ] = None,
    mixture: Annotated[
        str | None,
        typer.Option(help="A mixture's name, or vqa=0.7,text=0.3: sources in the folder."),
    ] = None,
    tokens: Annotated[
        int | None,
        typer.Option(min=1, help="How many answer tokens of it to draw; none: 200000."),
    ] = None,
    epochs: Annotated[
        float | None, typer.Option(help="How often its sources may be repeated.")
    ] = None,
    page: Annotated[
        Path | None, typer.Option(help="Write a page of samples to look at, as HTML.")
    ] = None,
):
    """Show counts, lengths, image sizes and faults of a data set, or the shares of a mixture."""
    from dl_techniques.checkpoints.processors import tokenizer_of
    from dl_techniques.datasets import inspect_command as command

    of_source = {"--schema": schema, "--images": images, "--limit": limit}
    of_mixture = {"--tokens": tokens, "--epochs": epochs}
    if mixture is None and command.is_recipe(source):
        others = {"--tokenizer": tokenizer, "--page": page}
        _refuse({**of_source, **of_mixture, **others}, f"{source} is a mixture without data")
        typer.echo(command.inspect_recipe(source))
        return
    own = None if tokenizer is None else tokenizer_of(tokenizer)
    if mixture is None:
        _refuse(of_mixture, "there is no --mixture")
        options = {"schema": schema, "split": split, "images": images}
        report = command.inspect_source(source, own, limit or command.LIMIT, **options)
    else:
        _refuse(of_source, "--mixture opens several sources")
        draws = tokens or command.TOKENS
        report = command.inspect_mixture(source, mixture, own, draws, epochs, split)
    typer.echo(report.text)
    if page is not None:
        page.write_text(report.html(), encoding="utf-8")
        typer.echo(f"{page} written.")


def _refuse(flags: dict, reason: str):
    given = [flag for flag, value in flags.items() if value is not None]
    if given:
        raise ValueError(f"{', '.join(given)} cannot be used here: {reason}.")


def run_command(command) -> None:
    """Run a command; an expected error is one line, not a traceback.

    Raises:
        SystemExit: 1 after an error, 130 after ctrl-C.
    """
    logging.basicConfig(format="%(message)s")
    logger.setLevel(logging.INFO)
    keep_freed_memory()
    keep_compiled_programs()
    # What TensorFlow tells of the machine would stand between answers.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        command()
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        print(f"Error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt as stopped:
        print(stopped or "Stopped.", file=sys.stderr)
        raise SystemExit(130) from None


def main() -> None:
    """Run the command line."""
    run_command(app)
