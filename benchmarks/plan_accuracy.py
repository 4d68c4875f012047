"""Compares what `plan_training` says with what training steps take, for five configurations.

    python benchmarks/plan_accuracy.py [--backend jax] [--only 2]

Each runs in a process of its own, one after the other; the largest needs 12 GB. Weights, gradients
and optimizer state are the bytes of the arrays that the step works on. The peak is those bytes'
and, on a CPU, what the process has resident in a step beyond its state between two steps; on JAX
the table has also what XLA has allotted to the compiled step (arguments, outputs and temporary
buffers, aliased ones once).
"""

import argparse
import json
import math

from side_by_side import run_child

_222M = {"model": "nanovlm_222m"}
CONFIGURATIONS = [
    {"model": "nanovlm_mini", "batch_size": 16},
    {"model": "nanovlm_base", "batch_size": 4, "length": 256, "optimizer": "muon"},
    {**_222M, "batch_size": 8},
    {**_222M, "batch_size": 4, "length": 512, "chunk_size": 1024},
    {
        **_222M,
        "batch_size": 8,
        "chunk_size": 1024,
        "remat": True,
        "optimizer": "adafactor",
        "trainable": ["language_decoder", "modality_projection"],
    },
]
PARTS = ("weights", "gradients", "optimizer", "peak")


def child(number: int) -> dict:
    """Return the bytes of one configuration: planned, measured, and as XLA says."""
    from dl_techniques.utils.resident_memory import give_back_freed_memory

    give_back_freed_memory()
    from dl_techniques.training.bench import BenchSettings
    from dl_techniques.training.bench_steps import PeakMeter, StepsToMeasure
    from dl_techniques.training.plan import plan_training
    from dl_techniques.training.planned_layout import size_in_bytes

    config = CONFIGURATIONS[number]
    plan = plan_training(**config)
    steps = StepsToMeasure(BenchSettings("memory", **config))
    gradients = watch_gradients(steps.model.optimizer)
    xla = allotted_by_xla(steps)
    steps.step()
    meter = PeakMeter(steps.model)
    steps.step()
    measured = {
        "weights": sum(map(size_in_bytes, steps.model.weights)),
        "gradients": gradients[-1],
        "optimizer": sum(map(size_in_bytes, steps.model.optimizer.variables)),
        "peak": meter.peak(),
    }
    planned = {part: getattr(plan, part) for part in PARTS}
    return {"title": plan.title, "planned": planned, "measured": measured, "xla": xla}


def watch_gradients(optimizer) -> list[int]:
    """Return a list to which every step adds the bytes of its gradients."""
    import keras

    seen, apply = [], optimizer.apply

    def watched(grads, trainable_variables=None):
        dtypes = [keras.backend.standardize_dtype(g.dtype) for g in grads if g is not None]
        shapes = [tuple(g.shape) for g in grads if g is not None]
        items = [2 if dtype.endswith("16") else 4 for dtype in dtypes]
        seen.append(sum(i * math.prod(s) for i, s in zip(items, shapes, strict=True)))
        return apply(grads, trainable_variables)

    optimizer.apply = watched
    return seen


def allotted_by_xla(steps) -> int | None:
    """Return the bytes of the compiled step, which Keras compiles alike; None but on JAX."""
    import keras

    if keras.backend.backend() != "jax":
        return None
    import jax

    model = steps.model
    data = (steps.inputs, steps.labels, None)
    model._symbolic_build(data_batch=data)
    state = model._get_jax_state(
        trainable_variables=True,
        non_trainable_variables=True,
        optimizer_variables=True,
        metrics_variables=True,
    )
    compiled = jax.jit(model.train_step, donate_argnums=0).lower(state, data).compile()
    sizes = compiled.memory_analysis()
    used = sizes.argument_size_in_bytes + sizes.output_size_in_bytes + sizes.temp_size_in_bytes
    return used - sizes.alias_size_in_bytes


def main() -> None:
    """Print the table, or act as the process of one configuration."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backend", default="jax", choices=["jax", "tensorflow", "torch"])
    parser.add_argument("--only", type=int, choices=range(len(CONFIGURATIONS)))
    parser.add_argument("--role", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--rounds", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role is not None:
        print(json.dumps(child(options.role)))
        return
    chosen = range(len(CONFIGURATIONS)) if options.only is None else [options.only]
    for number in chosen:
        result = run_child(__file__, str(number), options.backend, 0)
        print(f"{result['title']}, {CONFIGURATIONS[number]}")
        print(f"  {'MB':<10}{'planned':>12}{'measured':>12}{'ratio':>8}")
        for part in PARTS:
            print_row(part, result["planned"][part], result["measured"][part])
        if result["xla"] is not None:
            print_row("peak, XLA", result["planned"]["peak"], result["xla"])


def print_row(name: str, planned: int, measured: int) -> None:
    ratio = planned / measured
    print(f"  {name:<10}{planned / 1e6:>12,.1f}{measured / 1e6:>12,.1f}{ratio:>8.3f}", flush=True)


if __name__ == "__main__":
    main()
