"""Exponential moving averages of weights, for evaluation."""

import contextlib

import keras
import numpy as np
from keras import ops

from dl_techniques.optimization import gradient_ops


class WeightAverages:
    """float32 averages of trainable variables in variables of an optimizer.

    They start as the weights are when the optimizer is built. The update after n others
    moves them by 1 - d towards the new weights, where d = min(decay, (1 + n) / (10 + n)): without
    that warm-up the first weights would rule the averages for 1 / (1 - decay) updates. The first
    d are 0.1, 0.18, 0.25; the decay 0.999 is reached after 8990 updates, 0.9999 after 89990.

    Args:
        optimizer: holds the averages, so that they are saved with it.
        variables: the trainable variables.
        decay: largest share of the old average that an update keeps.
    """

    def __init__(self, optimizer: keras.optimizers.Optimizer, variables: list, decay: float):
        self._variables = list(variables)
        self._decay = decay
        self.averages = [
            optimizer.add_variable(
                shape=variable.shape,
                # A function, as an assignment would become a part of a traced step.
                initializer=_value_of(variable),
                dtype="float32",
                layout=getattr(variable, "_layout", None),
                name=f"{variable.path.replace('/', '_')}_average",
            )
            for variable in variables
        ]

    def update(self, updates) -> None:
        """Move the averages towards the weights.

        Args:
            updates: int[], the number of updates that made the weights, at least 1.
        """
        n = ops.cast(updates, "float32") - 1.0
        decay = ops.minimum(self._decay, (1.0 + n) / (10.0 + n))
        gradient_ops.move_towards(self.averages, self._variables, 1.0 - decay)

    def values(self) -> list[np.ndarray]:
        """Return float32 copies of the averages in the order of the variables."""
        return [ops.convert_to_numpy(average) for average in self.averages]

    @contextlib.contextmanager
    def in_the_model(self):
        """Put the averages into the variables inside this context, then the weights back."""
        weights = [_kept(variable) for variable in self._variables]
        try:
            for variable, average in zip(self._variables, self.averages, strict=True):
                variable.assign(ops.cast(_copied(average), variable.dtype))
            yield
        finally:
            for variable, weight in zip(self._variables, weights, strict=True):
                variable.assign(weight)


def _value_of(variable):
    return lambda shape, dtype=None: ops.cast(_copied(variable), dtype)


def _copied(variable):
    """Return the value in memory of its own: others are updated in place or donated."""
    return ops.stop_gradient(ops.copy(variable.value))


def _kept(variable):
    # JAX never writes into an array, and the model is given others meanwhile.
    return variable.value if keras.backend.backend() == "jax" else _copied(variable)
