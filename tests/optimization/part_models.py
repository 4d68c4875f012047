"""Models with one small matrix per component, and steps on them by hand."""

import keras
import numpy as np
from keras import ops


class Part(keras.layers.Layer):
    """One weight matrix of ones."""

    def __init__(self, width=2, **kwargs):
        super().__init__(**kwargs)
        self.width = width

    def build(self, input_shape=None):
        self.kernel = self.add_weight(shape=(2, self.width), initializer="ones", name="kernel")

    def call(self, x):
        return x @ self.kernel


def model_with(*names):
    """A model whose variables have the paths "vlm/{name}/kernel"."""

    class Model(keras.Model):
        def __init__(self):
            super().__init__(name="vlm")
            self.parts = [Part(name=name) for name in names]

        def call(self, x):
            for part in self.parts:
                x = part(x)
            return x

    model = Model()
    model(np.ones((1, 2), "float32"))
    return model


def apply(optimizer, variables, gradients, weight=None):
    gradients = [None if g is None else ops.convert_to_tensor(g) for g in gradients]
    if weight is None:
        optimizer.apply(gradients, variables)
    else:
        with optimizer.token_weight(weight):
            optimizer.apply(gradients, variables)


def values(variables):
    return [ops.convert_to_numpy(v) for v in variables]


def full(value):
    return np.full((2, 2), value, "float32")


def state(optimizer, variables):
    """All values that a step may change but the counters of skipped steps."""
    kept = [v for v in optimizer.variables if "skipped" not in v.path]
    return values([*variables, *kept])
