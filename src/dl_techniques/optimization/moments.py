"""Moments of weights in reduced precision: float32, as are the updates computed from them."""

import functools

from keras import ops

from dl_techniques.utils.traced_once import traced_once

REDUCED = ("bfloat16", "float16")


class Float32Moments:
    """Mixin of optimizers: the moments of bfloat16 and float16 weights are float32.

    In bfloat16 beta_2 = 0.999 is 1, so a second moment could never fall, and what corrects its
    start, 1 - beta_2 ** step, is 0: Keras' Adam then never moves a weight.
    """

    def add_variable_from_reference(self, reference_variable, name=None, initializer="zeros"):
        """Add a moment of a weight, float32 at least."""
        if reference_variable.dtype not in REDUCED:
            return super().add_variable_from_reference(reference_variable, name, initializer)
        return self.add_variable(
            shape=reference_variable.shape,
            initializer=initializer,
            dtype="float32",
            name=f"{reference_variable.path.replace('/', '_')}_{name}",
            layout=getattr(reference_variable, "_layout", None),
        )


def bias_correction(optimizer, betas):
    """Return float32[]: what makes up for Adam's moments having begun at zero."""
    step = ops.cast(optimizer.iterations + 1, "float32")
    return ops.sqrt(1 - betas[1] ** step) / (1 - betas[0] ** step)


def adam_step(
    optimizer, gradient, variable, m, v, rate, betas, epsilon, largest=None, kept=None
) -> None:
    """Update a weight and its moments by a gradient.

    Args:
        optimizer: the optimizer that assigns.
        gradient: gradient of any precision.
        variable: the weight.
        m: first moment, a variable.
        v: second moment, a variable.
        rate: float32[], the learning rate times `bias_correction`.
        betas: decays of the two moments.
        epsilon: is added to the root of the second moment.
        largest: the largest second moment so far, a variable; None: not AMSGrad.
        kept: float32[], the share of the weight that decay leaves; None: all of it.
    """
    changed = [x for x in (variable, m, v, largest) if x is not None]
    values = map(ops.convert_to_tensor, changed)
    new = _adam(tuple(betas), epsilon)(ops.cast(gradient, m.dtype), rate, kept, *values)
    for x, value in zip(changed, new, strict=True):
        optimizer.assign(x, value)


@functools.cache
def _adam(betas, epsilon):
    """Return (gradient, rate, kept, weight, m, v[, largest]) -> the last ones' new values."""

    def compute(gradient, rate, kept, weight, m, v, *largest):
        m = m + (gradient - m) * (1 - betas[0])
        v = v + (ops.square(gradient) - v) * (1 - betas[1])
        largest = [ops.maximum(x, v) for x in largest]
        change = ops.cast(rate, m.dtype) * m / (ops.sqrt((largest or [v])[0]) + epsilon)
        return less(weight, change, kept), m, v, *largest

    return traced_once(compute)


def less(weight, change, kept=None):
    """Return a weight of any precision less a change of float32 at least, rounded once.

    Args:
        weight: the weight.
        change: its change.
        kept: the share of the weight that decay leaves; None: all of it.
    """
    wide = ops.cast(weight, change.dtype)
    wide = wide if kept is None else wide * ops.cast(kept, change.dtype)
    return ops.cast(wide - change, weight.dtype)
