"""Adafactor that keeps only the row and column means of squared gradients."""

import functools

import keras
from keras import ops

from dl_techniques.optimization.moments import less
from dl_techniques.utils.traced_once import traced_once


@keras.saving.register_keras_serializable(package="dl_techniques")
class Adafactor(keras.optimizers.Adafactor):
    """`keras.optimizers.Adafactor` with the memory that Adafactor is chosen for.

    It takes the same arguments and gives the same numbers. Keras' also keeps the product of the
    means, which is as large as the weights; here a matrix of n x m has n + m numbers. Means and
    updates are float32, also for bfloat16 and float16 weights. Where a whole row and a whole
    column had no gradient yet, Keras' product falls below the smallest float32 and the weight
    becomes NaN; here the factors are applied one by one.

    References:
        Shazeer and Stern, 2018, https://arxiv.org/abs/1804.04235
    """

    def build(self, variables):
        """Create the means: rows' and columns' for matrices, each element's for vectors."""
        if self.built:
            return
        # Not that of Keras' Adafactor, which makes the large variables.
        super(keras.optimizers.Adafactor, self).build(variables)
        self._moments = [self._add_moments(variable) for variable in variables]

    def _add_moments(self, variable):
        shapes = {"square": variable.shape}
        if len(variable.shape) >= 2:
            *others, rows, columns = variable.shape
            shapes = {"row": (*others, rows), "column": (*others, columns)}
        stem = variable.path.replace("/", "_")
        return tuple(
            self.add_variable(shape=shape, dtype="float32", name=f"{stem}_{name}")
            for name, shape in shapes.items()
        )

    def update_step(self, gradient, variable, learning_rate):
        """Update one weight and the means of its squared gradients."""
        changed = [variable, *self._moments[self._get_variable_index(variable)]]
        step = ops.cast(self.iterations + 1, "float32")
        rate = ops.minimum(ops.cast(learning_rate, "float32"), 1.0 / ops.sqrt(step))
        beta_2 = 1.0 - step**self.beta_2_decay
        values = map(ops.convert_to_tensor, changed)
        new = self._update(ops.cast(gradient, "float32"), rate, beta_2, *values)
        for x, value in zip(changed, new, strict=True):
            self.assign(x, value)

    @functools.cached_property
    def _update(self):
        """(gradient, rate, beta_2, weight, *means) -> the new weight and means."""

        def compute(gradient, rate, beta_2, weight, *means):
            square = ops.square(gradient) + self.epsilon_1
            squares = [square]
            if len(means) == 2:
                squares = [ops.mean(square, axis=-1), ops.mean(square, axis=-2)]
            means = [beta_2 * m + (1.0 - beta_2) * s for m, s in zip(means, squares, strict=True)]
            if len(means) == 1:
                change = gradient / ops.sqrt(means[0])
            else:
                row, column = means
                level = ops.sqrt(ops.mean(row, axis=-1, keepdims=True))
                change = gradient * ops.expand_dims(level / ops.sqrt(row), -1)
                change = change / ops.expand_dims(ops.sqrt(column), -2)
            change = change / ops.maximum(1.0, self._rms(change) / self.clip_threshold)
            size = self._rms(ops.cast(weight, "float32"))
            return less(weight, rate * ops.maximum(self.epsilon_2, size) * change), *means

        return traced_once(compute)
