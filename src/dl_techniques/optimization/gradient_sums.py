"""Gradients of several batches, added up with the weights of their tokens."""

import keras
from keras import ops

from dl_techniques.optimization import gradient_ops


class GradientSums:
    """Weighted sums of gradients in variables of an optimizer.

    The sums are float32 whatever the variables are: bfloat16 would lose small gradients in them.

    Args:
        optimizer: holds the variables, so that they are saved with it.
        variables: the trainable variables.
    """

    def __init__(self, optimizer: keras.optimizers.Optimizer, variables: list):
        self.pending = optimizer.add_variable((), dtype="int32", name="pending_batches")
        self._weight = optimizer.add_variable((), dtype="float32", name="pending_weight")
        self.sums = [
            optimizer.add_variable(
                shape=variable.shape,
                dtype="float32",
                layout=getattr(variable, "_layout", None),
                name=f"{variable.path.replace('/', '_')}_gradient_sum",
            )
            for variable in variables
        ]

    @property
    def variables(self) -> list:
        """All that `add` and `clear` change."""
        return [self.pending, self._weight, *self.sums]

    def add(self, gradients: list, weight) -> None:
        """Add `weight` (float32[]) times each gradient; None adds nothing."""
        gradient_ops.add_weighted(self.sums, gradients, weight)
        self._weight.assign_add(weight)
        self.pending.assign_add(1)

    def scale(self):
        """Return float32[]: what makes the sums a mean over tokens.

        Not one supervised token in any of the batches gives 0: a zero gradient, as in one batch.
        """
        return ops.divide_no_nan(1.0, ops.convert_to_tensor(self._weight))

    def clear(self) -> None:
        """Start anew."""
        gradient_ops.set_to_zero(self.variables)
