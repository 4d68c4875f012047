"""Dense: Keras' layer, whose products JAX takes of two matrices."""

import keras
from keras import ops

from dl_techniques.layers.configured_layer import register
from dl_techniques.utils.jax_queries import is_traced_by_jax


@register
class Dense(keras.layers.Dense):
    """`keras.layers.Dense`; what JAX traces has its leading axes as one while it is multiplied.

    The gradient of the kernel is then a product of two matrices. That of two leading axes has XLA,
    on a CPU, write out its left side transposed, and compute for it again all that led to it.
    """

    def call(self, x, training=None):
        if len(x.shape) < 3 or not is_traced_by_jax(x):
            return super().call(x, training=training)
        out = super().call(ops.reshape(x, (-1, x.shape[-1])), training=training)
        return ops.reshape(out, (*x.shape[:-1], self.units))

    def quantize(self, mode=None, type_check=True, config=None):
        # Keras refuses subclasses, which may compute something else; this one does not.
        super().quantize(mode, type_check=False, config=config)
