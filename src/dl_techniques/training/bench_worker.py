"""The process that `bench` starts for one point: trains a model on random batches, and measures.

    python -m dl_techniques.training.bench_worker SETTINGS RESULTS

SETTINGS are `BenchSettings` as JSON; RESULTS is a file to which lines of JSON are added: the
plan's numbers before anything is allocated, then the measurement.
"""

import json
import os
import statistics
import sys
from pathlib import Path

from dl_techniques.training.bench import BenchSettings
from dl_techniques.utils.memory import keep_freed_memory
from dl_techniques.utils.resident_memory import give_back_freed_memory


def main(settings: BenchSettings, results: Path) -> None:
    """Measure and write; what is refused, or does not fit, is written too."""
    _prepare_process(settings)
    try:
        for lines in _points(settings):
            with results.open("a") as file:
                file.write(json.dumps(lines) + "\n")
    except (ValueError, OSError) as error:
        with results.open("a") as file:
            file.write(json.dumps({"error": str(error)}) + "\n")
    except Exception as error:
        if not _is_out_of_memory(error):
            raise
        with results.open("a") as file:
            file.write(json.dumps({"out_of_memory": True}) + "\n")


def _prepare_process(settings):
    # Before a backend is imported. All of a GPU but what its driver needs.
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.95")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
    if settings.kind == "train":
        keep_freed_memory()  # As the command line does for training.
    else:
        give_back_freed_memory()


def _points(settings):
    """Yield the plan's numbers, then what was measured."""
    import keras

    from dl_techniques.training.bench_steps import StepsToMeasure
    from dl_techniques.training.device_peaks import device_name, peak_flops_per_second
    from dl_techniques.training.plan import plan_training

    plan = plan_training(
        settings.model,
        settings.batch_size,
        settings.length,
        settings.images,
        settings.precision,
        settings.optimizer,
        trainable=settings.trainable,
        chunk_size=settings.chunk_size,
        remat=settings.remat,
    )
    yield {
        "planned": plan.peak,
        "flops": plan.flops,
        "tokens": plan.tokens,
        "backend": keras.backend.backend(),
        "device": device_name(),
    }
    steps = StepsToMeasure(settings)
    measured = steps.run()
    seconds = statistics.median(measured.pop("seconds"))
    peak = settings.peak_tflops and settings.peak_tflops * 1e12
    peak = peak or peak_flops_per_second(settings.precision)
    yield {
        **measured,
        "step_seconds": seconds,
        "tokens_per_second": plan.tokens / seconds,
        "learned_tokens_per_second": steps.learned_tokens / seconds,
        "mfu": None if peak is None else plan.flops / seconds / peak,
    }


def _is_out_of_memory(error):
    """Tell whether a backend ran out of memory; each has an exception of its own."""
    text = f"{type(error).__name__}: {error}"
    known = ("MemoryError", "OutOfMemory", "out of memory", "RESOURCE_EXHAUSTED", "Exhausted")
    return any(word in text for word in (*known, "can't allocate memory"))


if __name__ == "__main__":
    main(BenchSettings(**json.loads(sys.argv[1])), Path(sys.argv[2]))
