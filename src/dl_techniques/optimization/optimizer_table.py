"""How many parameters each component trains, how fast, and what its optimizer keeps for them."""

from typing import NamedTuple

import keras
import numpy as np
from keras import ops

from dl_techniques.optimization.component_map import TOTAL
from dl_techniques.optimization.component_optimizer import ComponentOptimizer
from dl_techniques.optimization.learning_rate_schedules import LinearSchedule


class OptimizerRow(NamedTuple):
    """A component's figures.

    Attributes:
        pattern: the component's pattern; "all" for all together.
        parameters: number of trained parameters.
        learning_rate: rate after the warm-up where the schedule is one of this package, else that
            of the next update; None where the components' differ.
        state_bytes: size of all that the optimizer keeps: moments, gradient sums, averages.
    """

    pattern: str
    parameters: int
    learning_rate: float | None
    state_bytes: int


def optimizer_table(optimizer: keras.optimizers.Optimizer, variables: list) -> list[OptimizerRow]:
    """Return a row for each component of a `ComponentOptimizer` and a last one for "all".

    Any other optimizer has the last row only; a `LossScaleOptimizer` is looked into.

    Args:
        optimizer: a built optimizer.
        variables: the trainable variables it was built with.

    Raises:
        ValueError: the optimizer is not built.
    """
    if not optimizer.built:
        raise ValueError("Build the optimizer first: optimizer.build(variables).")
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    rows, rate = [], None
    if isinstance(inner, ComponentOptimizer):
        rows = [
            OptimizerRow(pattern, _parameters(trained), _rate(part), _bytes(kept))
            for (pattern, (trained, kept)), part in zip(
                inner.state_by_component().items(), inner.optimizers, strict=True
            )
        ]
    else:
        rate = _rate(inner)
    total = OptimizerRow(TOTAL, _parameters(variables), rate, _bytes(optimizer.variables))
    return [*rows, total]


def _rate(optimizer):
    schedule = optimizer._learning_rate
    if isinstance(schedule, LinearSchedule):
        return float(schedule.learning_rate)
    return float(ops.convert_to_numpy(ops.convert_to_tensor(optimizer.learning_rate)))


def _parameters(variables):
    return sum(int(np.prod(v.shape)) for v in variables)


def _bytes(variables):
    return sum(int(np.prod(v.shape)) * _item_size(v.dtype) for v in variables)


def _item_size(dtype):
    # NumPy knows bfloat16 only where a backend has brought it along.
    return 2 if dtype == "bfloat16" else np.dtype(dtype).itemsize
