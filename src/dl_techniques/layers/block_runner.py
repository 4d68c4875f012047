"""BlockRunner: calls the blocks of a stack, traced once, and computed again for the gradients."""

from functools import partial

import keras
from keras import ops
from keras.src.backend import AutocastScope

from dl_techniques.utils.traced_once import is_traced, traced_once


class BlockRunner:
    """Calls blocks one after the other; made anew for each call of their stack.

    Where JAX or TensorFlow trace, blocks that are alike share one program, with their weights as
    its arguments. With `remat` only the blocks' inputs are kept for the gradients, and their
    insides are computed again (https://arxiv.org/abs/1604.06174).

    In both cases the block's variables go in and out as values: what a traced function assigns, the
    seeds of dropout, must not be assigned from inside of it, and a second computation has to draw
    the same numbers as the first.

    Args:
        remat: Whether the insides are computed again; without training there is no need to.
        training: See Keras.
    """

    def __init__(self, remat: bool, training: bool | None):
        self._training = training
        self._remats = bool(remat and training)
        self._programs = {}

    def __call__(self, block: keras.layers.Layer, x, *args, context=None):
        """Return `block(x, *args, training=training)`.

        Args:
            block: A built layer whose call takes `training`.
            x: float tensor.
            *args: Further arguments, tensors or None, which are not differentiated.
            context: A float tensor that the block also takes, by this name, and whose gradient
                counts.
        """
        named = {} if context is None else {"context": context}
        # What is computed again within a function has no gradient on TensorFlow.
        shares = is_traced(x) and not (self._remats and keras.backend.backend() == "tensorflow")
        if not (shares or self._remats):
            return block(x, *args, **named, training=self._training)
        kept = block.non_trainable_variables
        with AutocastScope(None):  # Norms want their weights as they are.
            values = [ops.convert_to_tensor(v.value) for v in block.trainable_variables]
            # PyTorch changes seeds in place.
            values += [ops.copy(v.value) for v in kept]
        run = self._shared(block) if shares else partial(_computed_again, self._pure(block))
        out, updates = run(x, values, args, named)
        if self._training:
            for variable, value in zip(kept, updates, strict=True):
                if "seed" in variable.path:  # Nothing else changes; frozen weights least of all.
                    variable.assign(value)
        return out

    def _pure(self, block):
        """Return the block as a function of tensors that gives (out, non-trainable values)."""
        split = len(block.trainable_variables)

        def compute(x, values, args, named):
            return block.stateless_call(
                values[:split], values[split:], x, *args, **named, training=self._training
            )

        return compute

    def _shared(self, block):
        """Return the program of all blocks that are like this one."""
        kind = _kind(block)
        if kind not in self._programs:
            compute = self._pure(block)
            self._programs[kind] = traced_once(keras.remat(compute) if self._remats else compute)
        return self._programs[kind]


def _computed_again(compute, x, values, args, named):
    """Call a function whose gradient computes it again, of x, values and what is named."""

    def flat(x, *tensors):
        own, others = tensors[: len(values)], tensors[len(values) :]
        return compute(x, own, args, dict(zip(named, others, strict=True)))

    return keras.remat(flat)(x, *values, *named.values())


def _kind(block):
    """Return what two blocks have in common that differ in nothing but their weights' values.

    Functions are not looked at, as Keras wraps some of each layer's own: of two blocks of one stack
    the activations are the same.
    """
    layers = []
    for layer in block._flatten_layers():
        options = [
            (name, value)
            for name, value in vars(layer).items()
            if isinstance(value, bool | int | float | str) and name[0] != "_" and name != "name"
        ]
        layers.append((type(layer), layer.dtype_policy.name, tuple(options)))
    variables = [(v.shape, v.dtype, v.trainable) for v in block.variables]
    return tuple(layers), tuple(variables)
