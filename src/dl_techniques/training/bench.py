"""Measures training steps at growing batch sizes, each in a process of its own.

A point that does not fit into memory ends its process, not the measurement: it is reported, and
larger ones are not tried. This module imports no backend, so that the device is the measured
process's alone.
"""

import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from dl_techniques.utils.resident_memory import available_bytes, resident_bytes

_WORKER = "dl_techniques.training.bench_worker"
# Part of the free memory that a process may fill on a CPU before it counts as out of memory.
_FREE_SHARE = 0.9
_POLL_SECONDS = 0.02


@dataclasses.dataclass(frozen=True)
class BenchSettings:
    """What is measured; the arguments of `plan_training` of the same names.

    Attributes:
        kind: "memory" or "train".
        steps: Steps after the first ones; one has all that a peak is made of.
        warm_up: First steps that do not count, at least the one that compiles.
        peak_tflops: What the device can do at most, in TFLOP/s; None: `peak_flops_per_second`.
    """

    kind: str
    model: str
    batch_size: int = 1
    length: int = 128
    images: int = 1
    precision: str = "float32"
    optimizer: str = "adamw"
    chunk_size: int | None = None
    remat: bool | None = None
    trainable: list[str] | None = None
    steps: int = 1
    warm_up: int = 1
    peak_tflops: float | None = None


def bench(
    settings: BenchSettings,
    batch_sizes: Iterable[int],
    limit_gb: float | None = None,
    report: Callable[[dict], None] = lambda point: None,
) -> list[dict]:
    """Return the measurements, one a batch size, in growing order.

    Args:
        settings: What to measure; its `batch_size` is not read.
        batch_sizes: Rows of the batches.
        limit_gb: Resident memory in GB (1e9 bytes) beyond which a process is ended as out of
            memory; None: 90 % of what is free, on a CPU.
        report: Is called with each measurement.

    Returns:
        What `bench_worker` measured. A point that does not fit has `out_of_memory`, and is the
        last one.

    Raises:
        ValueError: no batch size, or one below 1, or what the model and the optimizer refuse.
        RuntimeError: a process failed otherwise.
    """
    sizes = sorted(set(batch_sizes))
    if not sizes or sizes[0] < 1:
        raise ValueError(f"batch sizes must be at least 1, got {sizes}.")
    points = []
    for size in sizes:
        point = measure(dataclasses.replace(settings, batch_size=size), limit_gb)
        points.append(point)
        report(point)
        if point["out_of_memory"]:
            break
    return points


def measure(settings: BenchSettings, limit_gb: float | None = None) -> dict:
    """Return one point, measured in a new process; see `bench`."""
    with tempfile.TemporaryDirectory() as folder:
        results, log = Path(folder) / "results", Path(folder) / "log"
        results.touch()
        arguments = [json.dumps(dataclasses.asdict(settings)), str(results)]
        with log.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", _WORKER, *arguments], stdout=file, stderr=file
            )
            overfull = _watch(process, results, limit_gb)
        point = {"batch_size": settings.batch_size, "out_of_memory": overfull}
        for line in results.read_text().splitlines():
            point |= json.loads(line)
        _check_end(process.returncode, point, log)
    return point


def _watch(process, results, limit_gb):
    """Wait for the end of a process; return whether it was ended for its memory."""
    free = available_bytes()
    limit = free and _FREE_SHARE * free if limit_gb is None else limit_gb * 1e9
    try:
        while process.poll() is None:
            if limit and resident_bytes(process.pid) > limit:
                process.kill()
                process.wait()
                return True
            time.sleep(_POLL_SECONDS)
    finally:
        if process.poll() is None:  # Ctrl-C: the process must not live on.
            process.kill()
            process.wait()
    return False


def _check_end(code, point, log):
    if "error" in point:
        raise ValueError(point["error"])
    if point["out_of_memory"] or (code == 0 and "peak" in point):
        return
    last = log.read_text(errors="replace")[-3000:]
    # The kernel's own end of a process, or an allocation in C++ that nothing catches.
    if code == -9 or "std::bad_alloc" in last:
        point["out_of_memory"] = True
        return
    raise RuntimeError(
        f"The process of batch size {point['batch_size']} ended with {code}:\n{last}"
    )


def parse_batch_sizes(text: str) -> list[int]:
    """Return the numbers of "1,8,16".

    Raises:
        ValueError: if they are no whole numbers.
    """
    try:
        return [int(number) for number in text.replace(",", " ").split()]
    except ValueError:
        raise ValueError(f"Batch sizes are whole numbers as 1,8,16, got {text!r}.") from None


def as_json(settings: BenchSettings, points: list[dict]) -> str:
    """Return settings and measurements as JSON; bytes, seconds and operations."""
    return json.dumps({"settings": dataclasses.asdict(settings), "points": points}, indent=1)


def memory_header() -> str:
    """Return the head of the table of `memory_line`."""
    return f"{'batch':>6}{'peak MB':>14}{'planned MB':>12}{'ratio':>7}  measured by"


def memory_line(point: dict) -> str:
    """Return one measurement of memory as a line; MB are 1e6 bytes."""
    planned = point.get("planned", 0) / 1e6
    if point["out_of_memory"]:
        return f"{point['batch_size']:>6}{'out of memory':>14}{planned:>12,.0f}"
    peak = point["peak"] / 1e6
    return (
        f"{point['batch_size']:>6}{peak:>14,.0f}{planned:>12,.0f}{planned / peak:>7.2f}"
        f"  {point['source']}"
    )


def train_header() -> str:
    """Return the head of the table of `train_line`."""
    return (
        f"{'batch':>6}{'step s':>10}{'first s':>9}{'tokens/s':>11}{'learned/s':>11}"
        f"{'TFLOP':>9}{'TFLOP/s':>9}{'MFU':>7}{'peak MB':>14}"
    )


def train_line(point: dict) -> str:
    """Return one measurement of time as a line."""
    if point["out_of_memory"]:
        return f"{point['batch_size']:>6}{'out of memory':>14}"
    step, mfu = point["step_seconds"], point["mfu"]
    return (
        f"{point['batch_size']:>6}{step:>10.3f}{point['first_seconds']:>9.1f}"
        f"{point['tokens_per_second']:>11,.0f}{point['learned_tokens_per_second']:>11,.0f}"
        f"{point['flops'] / 1e12:>9.3f}{point['flops'] / step / 1e12:>9.2f}"
        f"{'-' if mfu is None else f'{mfu:.1%}':>7}{point['peak'] / 1e6:>14,.0f}"
    )
