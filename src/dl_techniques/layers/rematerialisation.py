"""Blocks whose activations are computed again in the backward pass instead of being kept."""

import keras
from keras import ops


def run_block(block: keras.layers.Layer, x, *args, remat: bool, training=None, context=None):
    """Return `block(x, *args, training=training)`, with `remat` keeping only `x` for the gradients.

    The block's variables go in and out as values: what a traced function assigns, the seeds of
    dropout, must not be assigned from inside of it, and the second computation has to draw the same
    numbers as the first.

    Args:
        block: A built layer whose call takes `training`.
        x: float tensor.
        *args: Further arguments, tensors or None, which are not differentiated.
        remat: Whether the insides are computed again; without training there is no need to.
        training: See Keras.
        context: A float tensor that the block also takes, by this name, and whose gradient counts.

    Reference: https://arxiv.org/abs/1604.06174.
    """
    named = {} if context is None else {"context": context}
    if not (remat and training):
        return block(x, *args, **named, training=training)
    trainable, kept = block.trainable_variables, block.non_trainable_variables

    def compute(x, *values):
        weights = values[: len(values) - len(named)]
        return block.stateless_call(
            weights[: len(trainable)],
            weights[len(trainable) :],
            x,
            *args,
            **dict(zip(named, values[len(weights) :], strict=True)),
            training=training,
        )

    values = [ops.convert_to_tensor(v.value) for v in trainable]
    values += [ops.copy(v.value) for v in kept]  # PyTorch changes seeds in place.
    out, updates = keras.remat(compute)(x, *values, *named.values())
    for variable, value in zip(kept, updates, strict=True):
        if "seed" in variable.path:  # Nothing else changes in a call; frozen weights least of all.
            variable.assign(value)
    return out
