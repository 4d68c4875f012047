"""The commands `dl-techniques plan` and `dl-techniques bench`."""

from pathlib import Path
from typing import Annotated

import typer

_Model = Annotated[
    str, typer.Argument(help="Model or recipe name, or a .json file of sizes or of a run.")
]
_Length = Annotated[int, typer.Option(help="Text tokens per row, image placeholders included.")]
_Images = Annotated[int, typer.Option(help="Images per row.")]
_Precision = Annotated[
    str, typer.Option(help="float32, bfloat16, mixed_bfloat16 or mixed_float16.")
]
_Optimizer = Annotated[str, typer.Option(help="adamw, muon, adafactor, sgd, ...")]
_Train = Annotated[
    list[str] | None, typer.Option(help="A component that is trained; may be repeated; none: all.")
]
_ChunkSize = Annotated[
    int | None, typer.Option(help="Logits of so many tokens exist at a time; none: all.")
]
_Remat = Annotated[
    bool | None, typer.Option(help="Compute blocks again in the backward pass; none: as it is.")
]
_PeakTflops = Annotated[
    float | None, typer.Option(help="What a device can do at most, in TFLOP/s.")
]


def plan(
    model: _Model,
    batch_size: Annotated[int, typer.Option(help="Rows of a batch, on all devices.")] = 8,
    length: _Length = 128,
    images: _Images = 1,
    precision: _Precision = "float32",
    optimizer: _Optimizer = "adamw",
    ema: Annotated[float | None, typer.Option(help="Decay of averaged weights.")] = None,
    train: _Train = None,
    chunk_size: _ChunkSize = None,
    remat: _Remat = None,
    accumulation: Annotated[int, typer.Option(help="Batches per update.")] = 1,
    layout: Annotated[
        str, typer.Option(help="single, data, fsdp, tensor or fsdp+tensor.")
    ] = "single",
    devices: Annotated[int, typer.Option(help="How many; they need not be here.")] = 1,
    model_parallel: Annotated[int, typer.Option(help="Devices that share a matrix.")] = 1,
    device: Annotated[str | None, typer.Option(help="cpu or gpu; none: as here.")] = None,
    flash: Annotated[
        bool | None, typer.Option(help="Flash attention; none: as the backend has it.")
    ] = None,
    peak_tflops: _PeakTflops = None,
    mfu: Annotated[float, typer.Option(help="Share of the peak that is reached.")] = 0.4,
):
    """Tell memory and work of a training step before anything is allocated."""
    from dl_techniques.training.plan import plan_training

    result = plan_training(
        model,
        batch_size,
        length,
        images,
        precision,
        optimizer,
        ema,
        train,
        chunk_size,
        remat,
        accumulation,
        layout,
        devices,
        model_parallel,
        device,
        flash,
    )
    typer.echo(str(result))
    if peak_tflops is not None:
        seconds = result.seconds(peak_tflops, mfu)
        typer.echo(f"{seconds:,.3f} s a step at {mfu:.0%} of {peak_tflops:g} TFLOP/s per device")


bench = typer.Typer(no_args_is_help=True, help="Measure training steps.")
_Json = Annotated[Path | None, typer.Option("--json", help="Write the measurements to this file.")]
_BatchSizes = Annotated[str, typer.Option(help="Rows of the batches, as 1,8,16.")]
_LimitGb = Annotated[
    float | None,
    typer.Option(help="Resident GB that count as out of memory; none: 90 % of what is free."),
]


@bench.command()
def memory(
    model: _Model = "nanovlm_222m",
    batch_sizes: _BatchSizes = "1,8,16,32,64,128,256,512",
    length: _Length = 128,
    images: _Images = 1,
    precision: _Precision = "float32",
    optimizer: _Optimizer = "adamw",
    train: _Train = None,
    chunk_size: _ChunkSize = None,
    remat: _Remat = None,
    limit_gb: _LimitGb = None,
    json_file: _Json = None,
):
    """Measure the peak memory of a training step, up to the batch that does not fit."""
    from dl_techniques.training.bench import BenchSettings, memory_header, memory_line

    settings = BenchSettings(
        "memory", model, 1, length, images, precision, optimizer, chunk_size, remat, train
    )
    _bench(settings, batch_sizes, limit_gb, json_file, memory_header(), memory_line)


@bench.command(name="train")
def bench_train(
    model: _Model = "nanovlm_222m",
    batch_sizes: _BatchSizes = "2,8",
    length: _Length = 128,
    images: _Images = 1,
    precision: _Precision = "float32",
    optimizer: _Optimizer = "adamw",
    train: _Train = None,
    chunk_size: _ChunkSize = None,
    remat: _Remat = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps that are timed.")] = 10,
    peak_tflops: _PeakTflops = None,
    limit_gb: _LimitGb = None,
    json_file: _Json = None,
):
    """Measure time, tokens per second, FLOP/s and peak memory of training steps."""
    from dl_techniques.training.bench import BenchSettings, train_header, train_line

    settings = BenchSettings(
        "train",
        model,
        1,
        length,
        images,
        precision,
        optimizer,
        chunk_size,
        remat,
        train,
        steps=steps,
        warm_up=2,
        peak_tflops=peak_tflops,
    )
    _bench(settings, batch_sizes, limit_gb, json_file, train_header(), train_line)


def _bench(settings, batch_sizes, limit_gb, json_file, header, line):
    from dl_techniques.training.bench import as_json, parse_batch_sizes
    from dl_techniques.training.bench import bench as measure_all

    sizes = parse_batch_sizes(batch_sizes)
    typer.echo(header)
    points = measure_all(settings, sizes, limit_gb, lambda point: typer.echo(line(point)))
    if json_file is not None:
        json_file.write_text(as_json(settings, points), encoding="utf-8")
        typer.echo(f"{json_file} written.")
