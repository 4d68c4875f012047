"""traced_once: one trace for all calls whose arguments are alike, inside of a larger trace."""

from collections.abc import Callable

import keras

from dl_techniques.utils.jax_queries import is_traced_by_jax


def is_traced(x) -> bool:
    """Return whether a tensor stands for values that JAX or TensorFlow will know later."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.is_symbolic_tensor(x)
    return is_traced_by_jax(x)


def traced_once(function: Callable) -> Callable:
    """Return the function as a part that a surrounding trace refers to and does not repeat.

    To trace 300 weights' updates or 40 blocks one by one takes longer than to trace their kinds.
    PyTorch computes as it goes: there it is the function itself.

    Args:
        function: Of tensors and None in lists, tuples and dicts; all else it uses must stay as it
            is.
    """
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        return jax.jit(function)
    if backend == "tensorflow":
        import tensorflow as tf

        traced = tf.function(function, autograph=False)

        def call(*args):
            # A variable would be an argument of its own kind.
            tensors = keras.tree.map_structure(
                lambda x: x if x is None else tf.convert_to_tensor(x), args
            )
            return traced(*tensors)

        return call
    return function
