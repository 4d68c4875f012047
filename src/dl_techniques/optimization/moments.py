"""Moments of weights in reduced precision: float32, as are the updates computed from them."""

from keras import ops

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


def adam_change(optimizer, gradient, m, v, rate, betas, epsilon, largest=None):
    """Update moments by a gradient; return the change to subtract, of the moments' dtype.

    Args:
        optimizer: the optimizer that holds the moments.
        gradient: gradient of any precision.
        m: first moment, a variable.
        v: second moment, a variable.
        rate: float32[], the learning rate times `bias_correction`.
        betas: decays of the two moments.
        epsilon: is added to the root of the second moment.
        largest: the largest second moment so far, a variable; None: not AMSGrad.
    """
    gradient = ops.cast(gradient, m.dtype)
    optimizer.assign_add(m, (gradient - m) * (1 - betas[0]))
    optimizer.assign_add(v, (ops.square(gradient) - v) * (1 - betas[1]))
    if largest is not None:
        optimizer.assign(largest, ops.maximum(largest, v))
        v = largest
    return ops.cast(rate, m.dtype) * m / (ops.sqrt(v) + epsilon)


def subtract(optimizer, variable, change, kept=None) -> None:
    """Subtract a change from a weight of any precision, rounding once.

    Args:
        optimizer: the optimizer that assigns.
        variable: the weight.
        change: of float32 at least.
        kept: float32[], the share of the weight that decay leaves; None: all of it.
    """
    wide = ops.cast(variable, change.dtype)
    wide = wide if kept is None else wide * ops.cast(kept, change.dtype)
    optimizer.assign(variable, ops.cast(wide - change, variable.dtype))
